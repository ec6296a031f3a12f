"""The metrics of a comparison, chosen and checked on clips that are not made yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from oseg_video.config import job_to_plain
from oseg_video.config.keys import JOB
from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.errors import EvaluationError
from oseg_video.evaluation.metrics.base import (
    MetricOptions,
    build_metrics,
    check_fit,
    check_options,
    known_metrics,
)
from oseg_video.sweeps.table import Variation


def planned_clips(variations: Sequence[Variation]) -> dict[tuple[str, str], list[ClipFile]]:
    """What the clips of every model and method will be, as far as their settings say."""
    clips: dict[tuple[str, str], list[ClipFile]] = {}
    for one in variations:
        for subject in one.subjects:
            for seed in one.job.seeds:
                prompts = () if subject.prompt is None else (subject.prompt,)
                job = dataclasses.replace(one.job, prompts=prompts, image=subject.image, seeds=(seed,))
                shown = subject.prompt if subject.prompt is not None else subject.image
                clip = ClipFile(
                    path=Path("planned.mp4"),
                    name=f"the clip of {shown!r}",
                    frames=job.frames,
                    height=job.height,
                    width=job.width,
                    fps=job.fps,
                    method=one.method,
                    prompt=subject.prompt,
                    seed=seed,
                    start=f"{subject.prompt}\n{subject.image}",
                    settings=job_to_plain(job),
                )
                clips.setdefault((one.model, one.method), []).append(clip)
    return clips


def check_metrics(
    names: Sequence[str], planned: Mapping[tuple[str, str], Sequence[ClipFile]], options: MetricOptions
) -> list[str]:
    """Warnings about the clips to come. Raises EvaluationError for metrics that they will not be fit for."""
    check_options(names, options)
    return _check(names, planned, options)


def default_metrics(
    variations: Sequence[Variation],
    planned: Mapping[tuple[str, str], Sequence[ClipFile]],
    options: MetricOptions,
) -> list[str]:
    """What needs no weights that would have to be fetched, and suits the clips. Raises EvaluationError."""
    models = {one.job.model for one in variations} or {JOB["model"].default}
    videos = not variations or any(one.job.frames > 1 for one in variations)
    wanted = ("images",) if not videos else ("always", *models) if len(models) == 1 else ("always",)
    suited = [name for when in wanted for name, one in known_metrics().items() if one.compared == when]
    chosen = []
    for name in suited:
        try:
            _check([name], planned, options)
        except EvaluationError:
            continue
        chosen.append(name)
    if not chosen:
        raise EvaluationError("no metric suits these clips by default; name some with --metrics")
    check_options(chosen, options)
    return chosen


def _check(
    names: Sequence[str], planned: Mapping[tuple[str, str], Sequence[ClipFile]], options: MetricOptions
) -> list[str]:
    metrics = build_metrics(names, options)
    warnings = [line for metric in metrics for clips in planned.values() for line in check_fit(metric, clips)]
    for model in dict.fromkeys(model for model, _ in planned):
        together = [clip for (one, _), clips in planned.items() if one == model for clip in clips]
        warnings += [line for metric in metrics for line in metric.check_together(together)]
    return warnings

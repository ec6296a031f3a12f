"""The steps of a job by what they do, before any of them runs."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from oseg_video.adapters import ModelAdapter
from oseg_video.adapters.settings import ReadJson
from oseg_video.config import GenerateJob
from oseg_video.guidance.methods import Guidance
from oseg_video.guidance.plan import Step, StepPlan, Stream
from oseg_video.guidance.scales import guides
from oseg_video.guidance.streams import plan_streams
from oseg_video.jobs.checks import clip_settings
from oseg_video.types import SettingError


def read_nothing(name: str) -> Mapping[str, Any]:
    """Stands for the files of a model that is not at hand."""
    return {}


def pipeline_scales(
    adapter: ModelAdapter, job: GenerateJob, read: ReadJson = read_nothing
) -> dict[Stream, Any]:
    """The scales that the pipeline will be called with, for each stream that the model predicts.

    `read` reads the model's files, if they are there.
    """
    name = adapter.image_to_video if job.image is not None else adapter.text_to_video
    parameters = inspect.signature(adapter.pipeline_class(str(name)).__call__).parameters.values()
    call = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    settings = clip_settings(job)
    settings.pop("image", None)  # a file's name here, where the call takes an image
    call |= adapter.pipeline_arguments(settings)
    scales: dict[Stream, Any] = {}
    for stream in adapter.streams:
        scale = job.guidance.of_stream(stream).largest_guidance_scale
        if scale is None:
            scale = adapter.call_scale(call, read) if stream == "video" else adapter.call_audio_scale(call)
        scales[stream] = scale
    return scales


def runs_uncond(scales: Mapping[Stream, Any]) -> bool:
    """Whether a pipeline with these scales runs an unconditional branch."""
    return any(map(guides, scales.values()))


def check_branches(adapter: ModelAdapter, job: GenerateJob, read: ReadJson = read_nothing) -> None:
    """Refuse, with a SettingError, guidance by a branch that the pipeline will not run."""
    scales = pipeline_scales(adapter, job, read)
    if runs_uncond(scales):
        return
    plans = (plan for _, _, plan in step_kinds(job.guidance, job.steps, scales))
    if any("uncond" in branch.conditions for plan in plans for branch in plan.branches.values()):
        raise SettingError(
            f"guidance_scale {max(scales.values()):g}: {job.guidance.name} needs the unconditional branch, "
            f"which {adapter.family} runs for scales above 1 only; give it one, or 1 for no text guidance"
        )


def step_kinds(
    guidance: Guidance, steps: int, scales: Mapping[Stream, Any]
) -> Iterator[tuple[str, int | None, StepPlan]]:
    """Steps that do the same, in order: which, how many, and the plan for all streams."""
    levels = guidance.levels
    for level, lower in itertools.pairwise([*levels, 0.0]):
        plans = [
            plan_streams(guidance, {one: Step(index, steps, level, scale) for one, scale in scales.items()})
            for index in range(steps)
        ]
        first = 0
        for _, group in itertools.groupby(plans, lambda plan: (plan.formula, repr(plan.branches))):
            same = list(group)
            span = f"steps {first + 1} to {first + len(same)}"
            first += len(same)
            if len(levels) == 1:
                yield span, len(same), same[0]
            else:
                within = f"noise level {level:.4g} down to {lower:.4g}"
                yield within if len(same) == steps else f"{within}, {span}", None, same[0]

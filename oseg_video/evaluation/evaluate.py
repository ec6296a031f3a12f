"""Metrics over the clips of one or several methods, with intervals and paired differences."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from oseg_video.evaluation.alone import alone_in
from oseg_video.evaluation.clips import ClipFile, FoundClips, find_clips
from oseg_video.evaluation.metrics.base import (
    EvaluationError,
    Figure,
    Metric,
    MetricOptions,
    MetricResult,
    Observations,
    build_metrics,
)
from oseg_video.evaluation.metrics.observe import ClipMetric, observe_together
from oseg_video.evaluation.results import Difference, Evaluation, evaluation_versions
from oseg_video.evaluation.sample import Sample

Notify = Callable[[str], None]
"""Takes one line for the user."""


def evaluate(
    clips: Sequence[Path] | FoundClips,
    metrics: Sequence[str],
    *,
    options: MetricOptions | None = None,
    baseline: str | Mapping[str, str] | None = None,
    work: Path | None = None,
    quiet: bool = True,
    notify: Notify = lambda line: None,
) -> Evaluation:
    """Figures of the clips in folders, or of those that `find_clips` found there, one row per method.

    metrics: exact names, see `known_metrics`.
    baseline: a method that the others are compared with, paired by prompt, picture and seed; or, of each
        method that is to be compared, the one that it is compared with.
    work: folder that keeps what an interrupted run has seen; the same call goes on there.
    notify: called with warnings as soon as they are known, before the long part.

    Raises EvaluationError, before any long work, for what cannot be done. A clip that cannot be read is left
    out and named in the result, and so is a figure that has no value without it.
    """
    options = replace(options or MetricOptions(), work=work)
    check_options(metrics, options)
    built = build_metrics(metrics, options)
    found = clips if isinstance(clips, FoundClips) else find_clips(clips, quiet=quiet)
    run = _Run(built, found, baseline)
    for line in run.warnings:
        notify(line)
    alone = alone_in(work, "evaluation") if work else contextlib.nullcontext()
    try:
        with alone:
            run.look(work, quiet)
    except torch.OutOfMemoryError:
        raise EvaluationError(
            f"out of GPU memory with --batch {options.batch}; try a smaller one, or --device cpu"
        ) from None
    return run.evaluation()


def check_options(metrics: Sequence[str], options: MetricOptions) -> None:
    """Refuse to have no metric, and options that none of the metrics reads. Raises EvaluationError."""
    if not metrics:
        raise EvaluationError("no metric was asked for")
    for name in options.weights:
        if name not in metrics:
            raise EvaluationError(f"--weights are for a metric that is asked for; {name!r} is none of them")
    if (options.reference or options.save_reference) and not reads_real(metrics):
        flag = "--reference" if options.reference else "--save-reference"
        raise EvaluationError(f"{flag} is about real clips for fvd, which is not among the metrics")


def reads_real(metrics: Sequence[str]) -> bool:
    """Whether one of the metrics compares with real clips."""
    return any(name.startswith("fvd:") for name in metrics)


class _Run:
    """One pass over the clips, and all the figures that follow."""

    def __init__(
        self, metrics: list[Metric], found: FoundClips, baseline: str | Mapping[str, str] | None
    ) -> None:
        """Raises EvaluationError for what cannot be done, unless clips are broken: then the rest is done."""
        self.metrics = metrics
        self.found = found
        self.results: dict[str, list[MetricResult]] = {method: [] for method in found.methods}
        self.differences: list[Difference] = []
        self.failed: dict[str, str] = {}
        self.versions = evaluation_versions()
        self.baselines = self._baselines(baseline)
        self.warnings = _mixed_clips(found)
        self.unfit = self._check()

    def _baselines(self, baseline: str | Mapping[str, str] | None) -> dict[str, str]:
        baselines = {}
        for method, base in _asked(self.found.methods, baseline).items():
            try:
                _check_pair(self.found.methods, method, base)
            except EvaluationError as error:
                if not self.found.broken:
                    raise
                self.failed[f"{method} minus {base}"] = str(error)
            else:
                baselines[method] = base
        return baselines

    def _check(self) -> set[tuple[Metric, str]]:
        """Which metrics have no value for which methods, because clips are broken."""
        unfit = set()
        for metric in self.metrics:
            for method, clips in self.found.methods.items():
                try:
                    self.warnings += [line for line in metric.check(clips) if line not in self.warnings]
                except EvaluationError as error:
                    if not self.found.broken:
                        raise
                    unfit.add((metric, method))
                    self.failed.update({f"{method}: {figure.name}": str(error) for figure in metric.figures})
        return unfit

    def look(self, work: Path | None, quiet: bool) -> None:
        """At all clips, and work out the figures."""
        self.samples = [
            Sample(metric, seen, method)
            for metric, seen in _observe(self._wanted(), work, quiet)
            for method in self.found.methods
            if (metric, method) not in self.unfit
        ]
        steps = sum(len(sample.figures) for sample in self.samples)
        with tqdm(total=steps, desc="values and intervals", disable=quiet, file=sys.stderr) as self.bar:
            for sample in self.samples:
                self._add(sample)

    def _wanted(self) -> list[tuple[Metric, list[ClipFile]]]:
        """The metrics that can have a value, each with the clips of methods that can."""
        pairs = [
            (metric, [clip for clip in self.found.clips if (metric, clip.method) not in self.unfit])
            for metric in self.metrics
        ]
        return [(metric, clips) for metric, clips in pairs if clips]

    def evaluation(self) -> Evaluation:
        """All of it."""
        skipped = dict(self.found.broken)
        warnings = list(self.warnings)
        read_by: dict[str, str] = {}
        for sample in self.samples:
            skipped |= sample.seen.skipped
            warnings += [line for line in sample.seen.warnings if line not in warnings]
            read_by |= sample.seen.read_by
        fallback = sorted(name for name, reader in read_by.items() if reader == "imageio-ffmpeg")
        if fallback:
            named = ", ".join(fallback[:3]) + (", ..." if len(fallback) > 3 else "")
            warnings.append(f"{len(fallback)} clips that decord cannot read were read by ffmpeg: {named}")
        return Evaluation(
            methods={m: _facts(clips, read_by) for m, clips in self.found.methods.items()},
            results={method: tuple(results) for method, results in self.results.items()},
            better={figure.name: figure.better for metric in self.metrics for figure in metric.figures},
            differences=tuple(self.differences),
            baselines=self.baselines,
            skipped=skipped,
            failed=self.failed,
            warnings=tuple(warnings),
            versions=self.versions,
        )

    def _add(self, sample: Sample) -> None:
        """The figures of one metric and method, and their differences to the baseline."""
        baseline = self.baselines.get(sample.method)
        base = next((s for s in self.samples if s.metric is sample.metric and s.method == baseline), None)
        for figure in sample.figures:
            try:
                self.results[sample.method].append(sample.result(figure, self.versions))
            except EvaluationError as error:
                self.failed[f"{sample.method}: {figure.name}"] = str(error)
            else:
                self._compare(sample, base, figure)
            self.bar.update()

    def _compare(self, sample: Sample, base: Sample | None, figure: Figure) -> None:
        if base is None:
            return
        try:
            self.differences.append(sample.minus(base, figure))
        except EvaluationError as error:
            self.failed[f"{sample.method} minus {base.method}: {figure.name}"] = str(error)


def _observe(
    wanted: Sequence[tuple[Metric, Sequence[ClipFile]]], work: Path | None, quiet: bool
) -> list[tuple[Metric, Observations]]:
    """What every metric sees; those that look at frames share the reading."""
    sharing = [(metric, clips) for metric, clips in wanted if isinstance(metric, ClipMetric)]
    together = iter(observe_together(sharing, work=work, quiet=quiet) if sharing else ())
    return [
        (metric, next(together) if isinstance(metric, ClipMetric) else metric.observe(clips, quiet=quiet))
        for metric, clips in wanted
    ]


def _asked(methods: Mapping[str, Any], baseline: str | Mapping[str, str] | None) -> Mapping[str, str]:
    """Method -> the baseline that it is to be compared with."""
    if not isinstance(baseline, str):
        return baseline or {}
    if {*methods} == {baseline}:
        raise EvaluationError(f"there is no other method to compare {baseline} with")
    return {method: baseline for method in methods if method != baseline}


def _check_pair(methods: Mapping[str, Sequence[ClipFile]], method: str, base: str) -> None:
    """Whether the clips of two methods can be compared pair by pair. Raises EvaluationError."""
    for one in (base, method):
        if one not in methods:
            what = "the baseline " if one == base else ""
            raise EvaluationError(f"no clips of {what}{one!r}; there are: {', '.join(methods)}")
        _check_pairable(one, methods[one])
    if not {clip.key for clip in methods[method]} & {clip.key for clip in methods[base]}:
        raise EvaluationError(f"{method} and {base} have no prompt and seed (or file name) in common")


def _check_pairable(method: str, clips: Sequence[ClipFile]) -> None:
    (key, count), *_ = Counter(clip.key for clip in clips).most_common(1)
    if count > 1:
        names = [clip.name for clip in clips if clip.key == key]
        raise EvaluationError(
            f"{method} has {count} clips of the same prompt and seed, so they cannot be paired: "
            f"{names[0]}, {names[1]}"
        )


def _mixed_clips(found: FoundClips) -> list[str]:
    """A warning for each way in which clips that are compared differ in shape."""
    facts = _facts(found.clips, {})
    kinds = {"numbers of frames": "frames", "sizes": "sizes", "frame rates": "fps"}
    return [
        f"the clips have different {what}: {', '.join(map(str, facts[name]))}"
        for what, name in kinds.items()
        if len(facts[name]) > 1
    ]


def _facts(clips: Sequence[ClipFile], read_by: Mapping[str, str]) -> dict[str, Any]:
    return {
        "clips": len(clips),
        "prompts": len({clip.start for clip in clips}),
        "frames": sorted({clip.frames for clip in clips}),
        "sizes": sorted({f"{clip.height} x {clip.width}" for clip in clips}),
        "fps": sorted({round(clip.fps, 3) for clip in clips if clip.fps}),
        "kinds": dict(Counter(clip.kind for clip in clips)),
        "read_by": dict(Counter(read_by[clip.name] for clip in clips if clip.name in read_by)),
    }

"""Metrics over the clips of one or several methods, with intervals and paired differences."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from oseg_video import console
from oseg_video.evaluation.alone import alone_in
from oseg_video.evaluation.clips import SHOWN_NOWHERE, ClipFile, FoundClips, find_clips, varying_settings
from oseg_video.evaluation.errors import EvaluationError
from oseg_video.evaluation.metrics.base import (
    Metric,
    MetricOptions,
    MetricResult,
    MetricValue,
    Observations,
    build_metrics,
    check_options,
)
from oseg_video.evaluation.observe import ClipMetric, observe_together
from oseg_video.evaluation.results import Difference, Evaluation, evaluation_versions
from oseg_video.evaluation.sample import Sample


def evaluate(
    clips: Sequence[Path] | FoundClips,
    metrics: Sequence[str],
    *,
    options: MetricOptions | None = None,
    baseline: str | Mapping[str, str] | None = None,
    work: Path | None = None,
) -> Evaluation:
    """Metric values of the clips in folders, or of those that `find_clips` found there, one row per method.

    metrics: exact names, see `known_metrics`.
    baseline: a method that the others are compared with, paired by prompt, image and seed; or, of each
        method that is to be compared, the one that it is compared with.
    work: folder that keeps what an interrupted run has seen; the same call goes on there.

    Warnings are logged as soon as they are known, before the long part. Raises EvaluationError, before any
    long work, for what cannot be done. A clip that cannot be looked at is left out and named in the result,
    and so is a metric that has no value without it.
    """
    options = replace(options or MetricOptions(), work=work)
    check_options(metrics, options)
    built = build_metrics(metrics, options)
    found = clips if isinstance(clips, FoundClips) else find_clips(clips)
    run = _Run(built, found, baseline)
    for line in run.warnings:
        console.logger.warning("warning: %s", line)
    alone = alone_in(work, "evaluation") if work else contextlib.nullcontext()
    try:
        with alone:
            run.look(work)
    except torch.OutOfMemoryError:
        raise EvaluationError(
            f"out of GPU memory with --batch {options.batch}; try a smaller one, or --device cpu"
        ) from None
    return run.evaluation()


_MAY_VARY = (
    *("height", "width", "frames", "fps"),
    *SHOWN_NOWHERE,
    *("prompts", "negative_prompt", "image", "seeds"),
)
"""Settings that clips of one row may differ in: what the files say themselves, what shows nothing, and the
request."""
_MOST_VALUES = 5


class _Run:
    """One pass over the clips, and all the values that follow."""

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
        self.skipped = dict(found.broken)
        self.fit = self._check()

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

    def _check(self) -> dict[tuple[Metric, str], list[ClipFile]]:
        """The clips that each metric looks at, of each method that it can have a value of.

        Raises EvaluationError for what cannot be, unless it is because clips are broken or not fit.
        """
        fit: dict[tuple[Metric, str], list[ClipFile]] = {}
        for metric in self.metrics:
            refused = {clip.name: reason for clip in self.found.clips if (reason := metric.refuses(clip))}
            if len(refused) == len(self.found.clips):
                raise EvaluationError(next(iter(refused.values())))
            self.skipped |= refused
            for method, clips in self.found.methods.items():
                kept = [clip for clip in clips if clip.name not in refused]
                try:
                    if not kept:
                        raise EvaluationError(refused[clips[0].name])
                    self.warnings += [line for line in metric.check(kept) if line not in self.warnings]
                except EvaluationError as error:
                    if not self.found.broken and not refused:
                        raise
                    self._fail(metric, method, error)
                else:
                    fit[metric, method] = kept
            try:
                if together := [clip for (one, _), kept in fit.items() if one is metric for clip in kept]:
                    self.warnings += metric.check_together(together)
            except EvaluationError as error:
                if not self.found.broken and not refused:
                    raise
                for method in [method for one, method in fit if one is metric]:
                    self._fail(metric, method, error)
                    del fit[metric, method]
        return fit

    def _fail(self, metric: Metric, method: str, error: EvaluationError) -> None:
        """Note that a method has no value of a metric."""
        self.failed |= {f"{method}: {value.name}": str(error) for value in metric.values}

    def look(self, work: Path | None) -> None:
        """At all clips, and work out the values."""
        self.samples = [
            Sample(metric, seen, method)
            for metric, seen in _observe(self._wanted(), work)
            for method in self.found.methods
            if (metric, method) in self.fit
        ]
        steps = [(sample, value) for sample in self.samples for value in sample.values]
        for sample, value in console.bar(steps, "values and intervals", "value"):
            self._add(sample, value)

    def _wanted(self) -> list[tuple[Metric, list[ClipFile]]]:
        """The metrics that can have a value, each with the clips that it looks at."""
        pairs = [
            (metric, [clip for (one, _), clips in self.fit.items() if one is metric for clip in clips])
            for metric in self.metrics
        ]
        return [(metric, clips) for metric, clips in pairs if clips]

    def evaluation(self) -> Evaluation:
        """All of it."""
        skipped = dict(self.skipped)
        warnings = list(self.warnings)
        for sample in self.samples:
            skipped |= sample.seen.skipped
            warnings += [line for line in sample.seen.warnings if line not in warnings]
        return Evaluation(
            methods={method: _facts(clips) for method, clips in self.found.methods.items()},
            results={method: tuple(results) for method, results in self.results.items()},
            better={value.name: value.better for metric in self.metrics for value in metric.values},
            differences=tuple(self.differences),
            baselines=self.baselines,
            skipped=skipped,
            failed=self.failed,
            left_out=self.found.left_out,
            warnings=tuple(warnings),
            versions=self.versions,
        )

    def _add(self, sample: Sample, value: MetricValue) -> None:
        """A value of one metric and method, and its difference to the baseline."""
        baseline = self.baselines.get(sample.method)
        base = next((s for s in self.samples if s.metric is sample.metric and s.method == baseline), None)
        try:
            self.results[sample.method].append(sample.result(value, self.versions))
        except EvaluationError as error:
            self.failed[f"{sample.method}: {value.name}"] = str(error)
        else:
            self._compare(sample, base, value)

    def _compare(self, sample: Sample, base: Sample | None, value: MetricValue) -> None:
        if base is None:
            return
        try:
            self.differences.append(sample.minus(base, value))
        except EvaluationError as error:
            self.failed[f"{sample.method} minus {base.method}: {value.name}"] = str(error)


def _observe(
    wanted: Sequence[tuple[Metric, Sequence[ClipFile]]], work: Path | None
) -> list[tuple[Metric, Observations]]:
    """What every metric sees; those that look at frames share the reading."""
    sharing = [(metric, clips) for metric, clips in wanted if isinstance(metric, ClipMetric)]
    together = iter(observe_together(sharing, work=work) if sharing else ())
    return [
        (metric, next(together) if isinstance(metric, ClipMetric) else metric.observe(clips))
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
    """A warning for each way in which clips that are compared differ in shape, and those of one row in what
    they were made with."""
    facts = _facts(found.clips)
    kinds = {"numbers of frames": "frames", "sizes": "sizes", "frame rates": "fps"}
    shapes = [
        f"the clips have different {what}: {', '.join(map(str, facts[name]))}"
        for what, name in kinds.items()
        if len(facts[name]) > 1
    ]
    mixed = {method: varying_settings(clips) for method, clips in found.methods.items()}
    return shapes + [
        f"{method} mixes clips of different {name}: {', '.join(values[:_MOST_VALUES])}"
        + (f" and {len(values) - _MOST_VALUES} more" if len(values) > _MOST_VALUES else "")
        for method, settings in mixed.items()
        for name, values in settings.items()
        if name not in _MAY_VARY
    ]


def _facts(clips: Sequence[ClipFile]) -> dict[str, Any]:
    return {
        "clips": len(clips),
        "prompts": len({clip.start for clip in clips}),
        "frames": sorted({clip.frames for clip in clips}),
        "sizes": sorted({f"{clip.height} x {clip.width}" for clip in clips}),
        "fps": sorted({round(clip.fps, 3) for clip in clips if clip.fps}),
        "kinds": dict(Counter(clip.kind for clip in clips)),
        "read_by": dict(Counter(clip.reader for clip in clips)),
    }

"""VBench's dimensions as metrics, computed by the package `vbench` in an interpreter of its own.

`vbench:DIMENSION` takes any clips (VBench's "custom_input"). `vbench_standard:DIMENSION` takes the clips of
VBench's standard suite; `vbench_standard` is all 16 dimensions and the totals.

On a device "cuda" all visible GPUs share the clips; "cuda:1" is one of them.

A row has two numbers for each dimension: what the clip adds to the numerator and to the denominator of the
score. Both are 0 where the dimension does not look at the clip.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oseg_video import console
from oseg_video.evaluation.clips import ClipFile, by_method
from oseg_video.evaluation.errors import EvaluationError, VBenchError
from oseg_video.evaluation.metrics.base import (
    Metric,
    MetricOptions,
    MetricValue,
    Observations,
    register_metrics,
)
from oseg_video.evaluation.observe import unfit_methods
from oseg_video.evaluation.vbench.checks import (
    check_dimensions,
    check_imports,
    custom_warnings,
    file_fault,
    long_clips,
    prompt_fault,
)
from oseg_video.evaluation.vbench.environment import Environment, find_environment
from oseg_video.evaluation.vbench.jobs import Job, custom_job, standard_job
from oseg_video.evaluation.vbench.kept import KeptAnswers
from oseg_video.evaluation.vbench.process import ask
from oseg_video.evaluation.vbench.run import Machine, Tallies, run_jobs, run_static_filter
from oseg_video.evaluation.vbench.scores import DIMENSIONS, TOTALS, members, normalise, total
from oseg_video.evaluation.vbench.suite import (
    SAMPLES,
    Suite,
    check_complete,
    check_static,
    check_surplus,
    match,
    static_candidates,
)
from oseg_video.media import MediaError, stream_clip

if TYPE_CHECKING:
    from torch import Tensor

CUSTOM, STANDARD = "vbench", "vbench_standard"
_FLICKERING = "temporal_flickering"
_FEW = 10
"""Clips or prompts, up to which a run is its own rehearsal."""


class _VBenchMetric(Metric):
    """What both modes share: values from rows."""

    mode: str

    def __init__(self, names: Sequence[str], options: MetricOptions) -> None:
        self._names = _expand(self.mode, names)
        self.dimensions = [d for d in DIMENSIONS if any(d in _members(name) for name in self._names)]
        environment = find_environment()
        self.about = ask(environment, {"task": "describe", "dimensions": self.dimensions})
        check_imports(self.about["failures"])
        self.machine = _machine(environment, options.device, self.about["gpus"])
        self.kept = KeptAnswers(options.work, {**self.about["versions"], "device": self.machine.device})

    @property
    def values(self) -> list[MetricValue]:  # type: ignore[override]
        return [
            MetricValue(
                name=f"{self.mode}:{name}",
                better="higher",
                protocol=self._protocol(name),
                versions=self.about["versions"],
                share=name in DIMENSIONS and DIMENSIONS[name].share,
            )
            for name in self._names
        ]

    def _protocol(self, name: str) -> dict[str, Any]:
        return {
            "mode": "vbench_standard" if self.mode == STANDARD else "custom_input",
            "dimensions": list(_members(name)),
            "device": self.machine.device,
        }

    def compute(self, name: str, rows: Tensor, index: Tensor) -> float:
        name = name.partition(":")[2]
        scores = self._scores(_members(name), rows, index)
        return total(name, scores) if name in TOTALS else scores[name]

    def per_clip(self, name: str, rows: Tensor) -> Tensor | None:
        name = name.partition(":")[2]
        if name in TOTALS:
            return None
        column = 2 * self.dimensions.index(name)
        # 0 / 0 is NaN: a clip that the dimension does not look at has no value.
        return rows[:, column] / rows[:, column + 1]

    def _scores(self, dimensions: Sequence[str], rows: Tensor, index: Tensor) -> dict[str, float]:
        sums = rows[index].sum(dim=0).tolist()
        scores = {}
        for dimension in dimensions:
            column = 2 * self.dimensions.index(dimension)
            if not sums[column + 1]:
                raise EvaluationError(f"VBench's {dimension} has no value for any of {len(index)} clips")
            scores[dimension] = sums[column] / sums[column + 1]
        return scores

    def _run(self, jobs: Sequence[Job]) -> Tallies:
        """All jobs; where that takes long, after one clip or prompt of every dimension.

        The trial fetches the weights, which several processes must not do at once, and finds the dimension
        that would fail after hours.
        """
        longest = max((len(job.groups) for job in jobs), default=0)
        if not longest:  # every clip is damaged
            return {}
        if longest > 1 and (len(self.machine.gpus) > 1 or (len(jobs) > 1 and longest > _FEW)):
            first = {job.dimension: Job(job.name, job.dimension, job.groups[:1]) for job in reversed(jobs)}
            run_jobs(self.machine, list(first.values()), self.kept, title="VBench trial")
        return run_jobs(self.machine, jobs, self.kept)

    def _observations(
        self,
        clips: Sequence[ClipFile],
        jobs: Sequence[Job],
        tallies: Tallies,
        damaged: Mapping[str, str],
        unfit: Mapping[str, str],
        warnings: Sequence[str] = (),
    ) -> Observations:
        import torch

        rows = {clip.name: [0.0] * (2 * len(self.dimensions)) for clip in clips}
        skipped = dict(damaged)
        for job in jobs:
            column = 2 * self.dimensions.index(job.dimension)
            for clip in job.clips.values():
                if found := tallies[job.name].get(clip.name):
                    rows[clip.name][column : column + 2] = found
                elif job.dimension != "color":  # which has a value only where the object is found
                    skipped[clip.name] = f"VBench's {job.dimension} gave no value"
        numbers = torch.tensor(list(rows.values()), dtype=torch.float64)
        return Observations(tuple(clips), numbers, skipped, unfit=unfit, warnings=warnings)


class CustomVBench(_VBenchMetric):
    """Dimensions over any clips."""

    mode = CUSTOM

    def __init__(self, names: Sequence[str], options: MetricOptions) -> None:
        check_dimensions([name.partition(":")[2] for name in names])
        super().__init__(names, options)
        lines = Path(self.about["actions"]).read_text(encoding="utf-8").splitlines()
        self.actions = [line.partition("\t")[0].lower() for line in lines]

    def refuses(self, clip: ClipFile) -> str | None:
        """Formats, lengths and prompts."""
        return file_fault(clip, self.dimensions) or prompt_fault(clip, self.dimensions, self.actions)

    def check(self, clips: Sequence[ClipFile]) -> list[str]:
        """What is unusual about them."""
        return long_clips(clips) + custom_warnings(self.dimensions)

    def observe(self, clips: Sequence[ClipFile]) -> Observations:
        whole, damaged = _whole(clips)
        jobs = [custom_job(dimension, whole) for dimension in self.dimensions]
        unfit = unfit_methods(self, clips, damaged)
        return self._observations(whole, jobs, self._run(jobs), damaged, unfit)


class StandardVBench(_VBenchMetric):
    """Dimensions and totals over the standard suite, one suite for each method."""

    mode = STANDARD

    def __init__(self, names: Sequence[str], options: MetricOptions) -> None:
        super().__init__(names, options)
        self.suite = Suite.read(Path(self.about["suite"]))

    def refuses(self, clip: ClipFile) -> str | None:
        """Formats and lengths of clips of the suite; others do not count anyway."""
        return None if self.suite.prompt_of(clip) is None else file_fault(clip, self.dimensions)

    def group(self, clip: ClipFile) -> Hashable:
        """By the prompt of the suite, which a file's name may tell."""
        return self.suite.prompt_of(clip) or super().group(clip)

    def check(self, clips: Sequence[ClipFile]) -> list[str]:
        """Whether every prompt has its clips, and what they are."""
        found, strangers = match(self.suite, clips)
        check_complete(self.suite, found, self.dimensions)
        wanted = [clip for prompt in self.suite.prompts(self.dimensions) for clip in found[prompt]]
        flickering = self.suite.prompts([d for d in self.dimensions if d == _FLICKERING])
        return check_surplus(found, strangers, flickering) + long_clips(wanted)

    def observe(self, clips: Sequence[ClipFile]) -> Observations:
        whole, damaged = _whole(clips)
        unfit = unfit_methods(self, clips, damaged)
        whole = [clip for clip in whole if clip.method not in unfit]
        found = {method: match(self.suite, group)[0] for method, group in by_method(whole).items()}
        warnings = []
        for method in found:
            candidates = static_candidates(self.suite, found[method], self.dimensions)
            if candidates:
                static = run_static_filter(self.machine, candidates, SAMPLES, self.kept)
                warnings += check_static(method, static)
                found[method] |= static
        jobs = [
            standard_job(f"{dimension}-{place}", dimension, self.suite, found[method])
            for dimension in self.dimensions
            for place, method in enumerate(found)
        ]
        tallies = self._run(jobs)
        seen = {clip.name for job in jobs for clip in job.clips.values()}
        used = [clip for clip in whole if clip.name in seen]
        return self._observations(used, jobs, tallies, damaged, unfit, warnings)

    def details(self, name: str, rows: Tensor, index: Tensor) -> dict[str, Any]:
        """Normalised scores, and how many clips each is about: the static filter may leave too few."""
        dimensions = _members(name.partition(":")[2])
        scores = self._scores(dimensions, rows, index)
        counts = (rows[index, 1::2] > 0).sum(dim=0).tolist()
        return {
            "normalised": {d: normalise(d, score) for d, score in scores.items()},
            "clips": {d: counts[self.dimensions.index(d)] for d in dimensions},
        }


def _whole(clips: Sequence[ClipFile]) -> tuple[list[ClipFile], dict[str, str]]:
    """The clips that can be decoded to their end, and why the others cannot.

    VBench would end at one of those, or make a score of the frames before the damage.
    """
    whole, damaged = [], {}
    for clip in console.bar(clips, "checking clips"):
        try:
            frames = sum(1 for _ in stream_clip(clip.path))
        except MediaError as error:
            damaged[clip.name] = str(error)
        else:
            if frames == clip.frames:
                whole.append(clip)
            else:
                damaged[clip.name] = f"{clip.path} has {frames} frames, and its index says {clip.frames}"
    return whole, damaged


def _expand(mode: str, names: Sequence[str]) -> list[str]:
    """Values without their prefix; the bare name of a mode stands for all of them."""
    if mode in names:
        return [*DIMENSIONS, *TOTALS]
    return [name.removeprefix(f"{mode}:") for name in names]


def _members(name: str) -> tuple[str, ...]:
    return members(name) if name in TOTALS else (name,)


def _machine(environment: Environment, device: str, gpus: int) -> Machine:
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return Machine(environment, kind, ())
    if kind != "cuda" or not gpus or (index and int(index) >= gpus):
        seen = f"{gpus} GPUs" if gpus else "no GPU"
        raise VBenchError(f"VBench runs on cpu or cuda, not on {device!r}; its interpreter sees {seen}")
    return Machine(environment, kind, (int(index),) if index else tuple(range(gpus)))


register_metrics(
    {
        f"{CUSTOM}:{name}": entry.summary if entry.custom else f"refused: only {STANDARD}:{name}"
        for name, entry in DIMENSIONS.items()
    },
    CustomVBench,
    reads=("device",),
)
register_metrics(
    {
        STANDARD: "all of the standard suite",
        **{f"{STANDARD}:{name}": entry.summary for name, entry in DIMENSIONS.items()},
        f"{STANDARD}:quality": "weighted mean of the 7 quality dimensions, normalised",
        f"{STANDARD}:semantic": "mean of the 9 semantic dimensions, normalised",
        f"{STANDARD}:total": "(4 quality + semantic) / 5",
    },
    StandardVBench,
    reads=("device",),
)

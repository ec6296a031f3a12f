"""What a job will run, without its weights: its steps by what they do, and their passes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from operator import mul
from statistics import fmean
from typing import Any

from oseg_video.adapters import ModelAdapter
from oseg_video.adapters.base import Condition
from oseg_video.adapters.settings import ReadJson
from oseg_video.config import GenerateJob
from oseg_video.engine.branches import BranchRunner
from oseg_video.engine.checks import check_blocks, check_reuse
from oseg_video.engine.effect import without_effect
from oseg_video.guidance.plan import Step, StepPlan
from oseg_video.guidance.reuse import Calendar, Due
from oseg_video.jobs.checks import check_family, check_size
from oseg_video.jobs.generate import check_job
from oseg_video.jobs.loading import pipeline as loading
from oseg_video.jobs.loading.hub import HubError
from oseg_video.jobs.loading.meta import empty_denoiser, full_size_denoiser
from oseg_video.jobs.step_kinds import (
    check_branches,
    pipeline_scales,
    read_nothing,
    runs_uncond,
    step_kinds,
)
from oseg_video.types import Denoiser


@dataclass(frozen=True)
class StepKind:
    """Steps that do the same."""

    when: str
    """Which steps, for the reader."""
    steps: int | None
    """How many; None where the noise level decides, which depends on the sampler."""
    plan: StepPlan
    computed: Mapping[str, int] | None
    """In how many of them each branch is computed, if no cache skips any; None as for `steps`."""
    passes: tuple[tuple[tuple[str, ...], float], ...]
    """Branches of each pass where all are computed, and the part of the denoiser that it runs, counted in
    blocks or UNet stages."""
    pass_count: tuple[float, float]
    """Passes of one clip through the whole denoiser in one such step, counted likewise: fewest and most, on
    average over the steps."""


@dataclass(frozen=True)
class CountedJob:
    """One clip of a job, counted."""

    adapter: ModelAdapter
    denoiser: Denoiser
    """Without weights."""
    read: ReadJson
    """Reads the model's files."""
    kinds: tuple[StepKind, ...]
    steps: int
    plain_passes: int
    """Passes of a step of the pipeline without this guidance: 2 with text guidance, else 1."""
    idle: str | None
    """That the guidance acts in none of the steps, and why, in one line; None if it acts in some."""

    @property
    def full_size(self) -> bool:
        """Whether the hub was not reached, so that the denoiser is the family's at full size."""
        return self.read is read_nothing

    @property
    def passes(self) -> tuple[float, float]:
        """Passes through the denoiser, fewest and most: noise levels or a cache may decide."""
        fewest, most = zip(*(kind.pass_count for kind in self.kinds), strict=True)
        if any(kind.steps is None for kind in self.kinds):
            return min(fewest) * self.steps, max(most) * self.steps
        steps = [kind.steps or 0 for kind in self.kinds]
        return sum(map(mul, steps, fewest)), sum(map(mul, steps, most))


def count_job(job: GenerateJob) -> CountedJob:
    """Count one clip of a job; reads the model's configuration only.

    Raises OsegVideoError for what `generate` would refuse about model, clip and guidance. A family whose
    repository cannot be reached is counted at its full-size configuration; then only blocks and settings of
    the guidance are checked.
    """
    adapter, denoiser, read = _find(job)
    guidance = job.guidance
    check_reuse(guidance, job.reuse)
    check_blocks(adapter, denoiser, guidance)
    check_branches(adapter, job, read)
    scales = pipeline_scales(adapter, job, read)
    conditions: tuple[Condition, ...] = ("uncond", "cond") if runs_uncond(scales) else ("cond",)
    runner = BranchRunner(adapter, denoiser, guidance.blocks_used, reuse=job.reuse)
    kinds, calendar, index = [], Calendar(job.reuse), itertools.count()
    for when, steps, plan in step_kinds(guidance, job.steps, scales):
        units = runner.unit_count
        passes = tuple(
            (one.names, (units - one.start_unit) / units) for one in runner.passes(plan.branches, conditions)
        )
        dues = []
        for _ in range(steps or 0):
            dues.append(calendar.due(Step(next(index), job.steps, 1.0, scales["video"]), plan))
            calendar.done(plan, dues[-1].branches)
        if steps is None:  # all of them may be computed, or estimated
            rest = {name: one for name, one in plan.branches.items() if not job.reuse.estimates(one)}
            dues = [Due(plan.branches, {}, not job.reuse.cache), Due(rest, {}, False)]
        most = [runner.cost(due.branches, conditions) for due in dues]
        fewest = [
            1 / units if job.reuse.cache and not due.whole else cost
            for due, cost in zip(dues, most, strict=True)
        ]
        span = (fmean(fewest), fmean(most)) if steps else (min(fewest), max(most))
        computed = Counter(name for due in dues for name in due.branches) if steps else None
        kinds.append(StepKind(when, steps, plan, computed, passes, span))
    idle = without_effect(guidance, [kind.plan for kind in kinds], guides_text=runs_uncond(scales))
    return CountedJob(adapter, denoiser, read, tuple(kinds), job.steps, len(conditions), idle)


def idle_reason(job: GenerateJob) -> str | None:
    """`CountedJob.idle` without the rest, which takes longer. Raises OsegVideoError for an unknown model."""
    source = loading.find_model(job.model, job.revision, image=job.image is not None)
    scales = pipeline_scales(source.adapter, job, source.read_json)
    plans = [plan for _, _, plan in step_kinds(job.guidance, job.steps, scales)]
    return without_effect(job.guidance, plans, guides_text=runs_uncond(scales))


def _find(job: GenerateJob) -> tuple[ModelAdapter, Any, ReadJson]:
    """The adapter, its denoiser without weights, and what reads the model's files."""
    try:
        source = check_job(job)
        return source.adapter, empty_denoiser(source), source.read_json
    except HubError:
        adapter = loading.family(job.model)
        if adapter is None:
            raise
        check_family(job, adapter)
        check_size(job, adapter, adapter.size_multiple, adapter.frame_multiple)
        return adapter, full_size_denoiser(adapter), read_nothing

"""What a job will run, without its weights: its steps by what they do, their passes and counted FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from oseg_video.adapters import ClipSize, ModelAdapter
from oseg_video.adapters.base import Condition
from oseg_video.adapters.settings import ReadJson
from oseg_video.config import GenerateJob
from oseg_video.engine.branches import BranchRunner
from oseg_video.guidance.plan import Branch, StepPlan
from oseg_video.guidance.scales import guides
from oseg_video.jobs.cost import step_cost
from oseg_video.jobs.generate import check_job
from oseg_video.jobs.loading import pipeline as loading
from oseg_video.jobs.loading.hub import HubError
from oseg_video.jobs.loading.meta import empty_denoiser, full_size_denoiser
from oseg_video.jobs.step_kinds import pipeline_scale, read_nothing, step_kinds


@dataclass(frozen=True)
class StepKind:
    """Steps that do the same."""

    when: str
    """Which steps, for the reader."""
    steps: int | None
    """How many; None where the noise level decides, which depends on the sampler."""
    plan: StepPlan
    passes: tuple[tuple[tuple[str, ...], float], ...]
    """Branches of each pass, and the part of the denoiser that it runs, counted in blocks or UNet stages."""
    flops: int
    """Of one step."""

    @property
    def pass_count(self) -> float:
        """Passes of one clip through the denoiser."""
        return sum(len(names) * share for names, share in self.passes)


@dataclass(frozen=True)
class CountedJob:
    """One clip of a job, counted."""

    adapter: ModelAdapter
    denoiser: Any
    """Without weights."""
    read: ReadJson
    """Reads the model's files."""
    kinds: tuple[StepKind, ...]
    clip: ClipSize
    steps: int
    plain: Mapping[str, Branch]
    """Branches of a step of the pipeline without this guidance, one pass each."""

    @property
    def full_size(self) -> bool:
        """Whether the hub was not reached, so that the denoiser is the family's at full size."""
        return self.read is read_nothing

    @cached_property
    def plain_flops(self) -> int:
        """FLOPs of such a step."""
        return step_cost(self.adapter, self.denoiser, self.clip, self.plain).total

    @property
    def passes(self) -> tuple[float, float]:
        """Passes through the denoiser, fewest and most: noise levels may decide which steps run."""
        return self._sum([kind.pass_count for kind in self.kinds])

    @property
    def flops(self) -> tuple[float, float]:
        """FLOPs of the denoiser, fewest and most."""
        return self._sum([kind.flops for kind in self.kinds])

    def _sum(self, counts: Sequence[float]) -> tuple[float, float]:
        if any(kind.steps is None for kind in self.kinds):
            return min(counts) * self.steps, max(counts) * self.steps
        total = sum((kind.steps or 0) * count for kind, count in zip(self.kinds, counts, strict=True))
        return total, total


def count_job(job: GenerateJob) -> CountedJob:
    """Count one clip of a job; reads the model's configuration only.

    Raises OsegVideoError for what `generate` would refuse about model, clip and guidance. A family whose
    repository cannot be reached is counted at its full-size configuration; then only blocks and settings of
    the guidance are checked.
    """
    adapter, denoiser, read = _find(job)
    guidance = job.guidance
    adapter.resolve_blocks(denoiser, guidance.blocks_used)
    clip = ClipSize(job.frames, job.height, job.width)
    scale = pipeline_scale(adapter, job, read)
    conditions: tuple[Condition, ...] = ("uncond", "cond") if guides(scale) else ("cond",)
    kinds = []
    costs: dict[str, int] = {}
    for when, count, plan in step_kinds(guidance, job.steps, scale):
        structure = repr(plan.branches)
        if structure not in costs:
            costs[structure] = step_cost(adapter, denoiser, clip, plan.branches).total
        selectors = [b for one in plan.branches.values() if one.perturbation for b in one.perturbation.blocks]
        runner = BranchRunner(adapter, denoiser, selectors)
        units = runner.unit_count
        passes = tuple(
            (one.names, (units - one.start_unit) / units) for one in runner.passes(plan.branches, conditions)
        )
        kinds.append(StepKind(when, count, plan, passes, costs[structure]))
    plain: dict[str, Branch] = {name: Branch(name) for name in conditions}
    return CountedJob(adapter, denoiser, read, tuple(kinds), clip, job.steps, plain)


def _find(job: GenerateJob) -> tuple[ModelAdapter, Any, ReadJson]:
    """The adapter, its denoiser without weights, and what reads the model's files."""
    try:
        source = check_job(job)
        return source.adapter, empty_denoiser(source), source.read_json
    except HubError:
        adapter = loading.family(job.model)
        if adapter is None:
            raise
        return adapter, full_size_denoiser(adapter), read_nothing

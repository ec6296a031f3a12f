"""What a job will run, without its weights: its steps by what they do, their passes and counted FLOPs."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from oseg_video.adapters import ClipSize, ModelAdapter
from oseg_video.adapters.base import Condition
from oseg_video.adapters.settings import ReadJson
from oseg_video.config import GenerateJob, build_guidance
from oseg_video.guidance.methods import Guidance
from oseg_video.guidance.plan import Branch, Step, StepPlan
from oseg_video.guidance.schedule import Breakpoints
from oseg_video.guidance.text import guides
from oseg_video.runtime import loading
from oseg_video.runtime.branches import BranchRunner
from oseg_video.runtime.cost import step_cost
from oseg_video.runtime.empty import empty_denoiser, full_size_denoiser
from oseg_video.runtime.fitting import clip_settings
from oseg_video.runtime.generate import check_job
from oseg_video.runtime.hub import HubError


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
    full_size: bool
    """Whether the hub was not reached, so that the denoiser is the family's at full size."""
    kinds: tuple[StepKind, ...]
    clip: ClipSize
    steps: int
    plain: Mapping[str, Branch]
    """Branches of a step of the pipeline without this guidance, one pass each."""

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
    guidance = build_guidance(job)
    adapter.resolve_blocks(denoiser, guidance.blocks_used)
    clip = ClipSize(job.frames, job.height, job.width)
    scale = pipeline_scale(adapter, job, guidance, read)
    conditions: tuple[Condition, ...] = ("uncond", "cond") if guides(scale) else ("cond",)
    kinds = []
    costs: dict[str, int] = {}
    for when, count, plan in _kinds(guidance, job.steps, scale):
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
    full_size = read is _read_nothing
    plain: dict[str, Branch] = {name: Branch(name) for name in conditions}
    return CountedJob(adapter, denoiser, full_size, tuple(kinds), clip, job.steps, plain)


def _find(job: GenerateJob) -> tuple[ModelAdapter, Any, ReadJson]:
    """The adapter, its denoiser without weights, and what reads the model's files."""
    try:
        source = check_job(job)
        return source.adapter, empty_denoiser(source), source.read_json
    except HubError:
        adapter = loading.family(job.model)
        if adapter is None:
            raise
        return adapter, full_size_denoiser(adapter), _read_nothing


def _read_nothing(name: str) -> Mapping[str, Any]:
    return {}


def pipeline_scale(
    adapter: ModelAdapter, job: GenerateJob, guidance: Guidance, read: ReadJson = _read_nothing
) -> Any:
    """The scale that the pipeline will be called with; `read` reads the model's files, if they are there."""
    import diffusers

    name = adapter.image_to_video if job.image is not None else adapter.text_to_video
    parameters = inspect.signature(getattr(diffusers, str(name)).__call__).parameters.values()
    call = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    settings = clip_settings(job, guidance)
    settings.pop("image", None)  # a file's name here, where the call takes a picture
    call |= adapter.pipeline_arguments(settings)
    largest = guidance.largest_guidance_scale
    return adapter.call_scale(call, read) if largest is None else largest


def _kinds(guidance: Guidance, steps: int, scale: Any) -> Iterator[tuple[str, int | None, StepPlan]]:
    """Steps that do the same, in order: which, how many, and the plan."""
    levels = _levels(guidance)
    for level, lower in itertools.pairwise([*levels, 0.0]):
        plans = [guidance.plan(Step(index, steps, level, scale)) for index in range(steps)]
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


def _levels(guidance: Guidance) -> list[float]:
    """The noise levels at which a setting of the guidance changes, from 1 down."""
    values = [getattr(guidance, spec.name) for spec in fields(guidance)]
    levels = {level for value in values if isinstance(value, Breakpoints) for level, _ in value.points}
    return sorted(levels | {1.0}, reverse=True)

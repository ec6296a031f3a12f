"""What a job will do, without its weights: branches, blocks, rule, passes, cost."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from oseg_video.adapters import ClipSize, ModelAdapter
from oseg_video.adapters.base import Condition
from oseg_video.adapters.settings import ReadJson
from oseg_video.config import GenerateJob, build_guidance
from oseg_video.guidance.methods import Guidance
from oseg_video.guidance.perturbations import (
    BlurOrthogonalQueries,
    BlurQueries,
    Change,
    PublishedQueries,
    ReplaceAttention,
    SkipBlock,
)
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
    relative_cost: float
    """FLOPs of one step against those of the pipeline's own step without this guidance."""

    @property
    def pass_count(self) -> float:
        """Passes of one clip through the denoiser."""
        return sum(len(names) * share for names, share in self.passes)


def explain(job: GenerateJob) -> str:
    """Text that says what a job will do; reads the model's configuration only, no weights.

    Raises OsegVideoError for what `generate` would refuse about model, clip and guidance. A family whose
    repository cannot be reached is explained by its full-size configuration; then only blocks and settings of
    the guidance are checked.
    """
    adapter, denoiser, read, note = _find(job)
    guidance = build_guidance(job)
    adapter.resolve_blocks(denoiser, guidance.blocks_used)
    clip = ClipSize(job.frames, job.height, job.width)
    scale = pipeline_scale(adapter, job, guidance, read)
    conditions: tuple[Condition, ...] = ("uncond", "cond") if guides(scale) else ("cond",)
    baseline = step_cost(adapter, denoiser, clip, {name: Branch(name) for name in conditions}).total
    kinds = []
    costs: dict[str, float] = {}
    for when, count, plan in _kinds(guidance, job.steps, scale):
        structure = repr(plan.branches)
        if structure not in costs:
            costs[structure] = step_cost(adapter, denoiser, clip, plan.branches).total / baseline
        selectors = [b for one in plan.branches.values() if one.perturbation for b in one.perturbation.blocks]
        runner = BranchRunner(adapter, denoiser, selectors)
        units = runner.unit_count
        passes = tuple(
            (one.names, (units - one.start_unit) / units) for one in runner.passes(plan.branches, conditions)
        )
        kinds.append(StepKind(when, count, plan, passes, costs[structure]))
    lines = [
        f"model      {job.model} ({adapter.family}, {len(adapter.blocks(denoiser))} blocks{note})",
        f"clip       {job.frames} frames of {job.height} x {job.width} pixels, {job.steps} steps",
        f"guidance   {job.guidance}",
    ]
    for kind in kinds:
        lines += _describe(kind, adapter, denoiser)
    lines += _totals(kinds, job.steps, len(conditions))
    return "\n".join(lines)


def _find(job: GenerateJob) -> tuple[ModelAdapter, Any, ReadJson, str]:
    """The adapter, its denoiser without weights, what reads the model's files, and a note on all that."""
    try:
        source = check_job(job)
        return source.adapter, empty_denoiser(source), source.read_json, ""
    except HubError:
        adapter = loading.family(job.model)
        if adapter is None:
            raise
        note = "; hub not reached, the family's full size"
        return adapter, full_size_denoiser(adapter), _read_nothing, note


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


def _describe(kind: StepKind, adapter: ModelAdapter, denoiser: Any) -> Iterator[str]:
    yield ""
    yield kind.when
    yield f"  rule      {kind.plan.formula}"
    for name, branch in kind.plan.branches.items():
        yield f"  branch    {name}: {_branch(branch, adapter, denoiser)}"
    for names, share in kind.passes:
        replayed = f" (the first {1 - share:.0%} of the denoiser replayed)" if share < 1 else ""
        yield f"  pass      {', '.join(names)}{replayed}"
    cost = f"{kind.relative_cost:.2f} x the FLOPs of a plain step"
    yield f"  cost      {kind.pass_count:.2f} passes a step, {cost}"


def _branch(branch: Branch, adapter: ModelAdapter, denoiser: Any) -> str:
    condition = {"cond": "conditional", "uncond": "unconditional"}[branch.condition]
    if branch.perturbation is None:
        return condition
    blocks = adapter.resolve_blocks(denoiser, branch.perturbation.blocks)
    names = ", ".join(f"{block.index} ({block.path})" for block in blocks[:4])
    more = f" and {len(blocks) - 4} more" if len(blocks) > 4 else ""
    return f"{condition}, {_change(branch.perturbation.change)} in block {names}{more}"


def _change(change: Change) -> str:
    if isinstance(change, SkipBlock):
        return "hidden states passed on unchanged"
    if isinstance(change, ReplaceAttention):
        return f"attention replaced by its {change.source}"
    if isinstance(change, BlurQueries):
        return f"queries smoothed (sigma {change.blur_sigma}, {change.boundary})"
    if isinstance(change, BlurOrthogonalQueries):
        return (
            f"what of the queries is orthogonal to the {change.reference} key smoothed "
            f"(sigma {change.blur_sigma}, mix {change.mix:g}, {change.keep_parallel:g} of the rest kept, "
            f"{change.boundary})"
        )
    assert isinstance(change, PublishedQueries)
    return f"queries changed as in OSEG's released code (mix {change.mix:g})"


def _totals(kinds: list[StepKind], steps: int, plain_passes: int) -> Iterator[str]:
    plain = "CFG" if plain_passes == 2 else "no text guidance"
    reference = f"{plain}: {steps * plain_passes}"
    yield ""
    if all(kind.steps is not None for kind in kinds):
        passes = sum((kind.steps or 0) * kind.pass_count for kind in kinds)
        cost = sum((kind.steps or 0) * kind.relative_cost for kind in kinds) / steps
        yield f"total      {passes:.1f} passes ({reference}), {cost:.2f} x the FLOPs of {plain}"
    else:
        counts = [kind.pass_count * steps for kind in kinds]
        costs = [kind.relative_cost for kind in kinds]
        yield (
            f"total      {min(counts):.1f} to {max(counts):.1f} passes ({reference}), {min(costs):.2f} to "
            f"{max(costs):.2f} x the FLOPs of {plain}, depending on the sampler's noise levels"
        )

"""Several streams that one denoiser predicts at once: LTX-2's video and audio.

Each stream is guided by the same method with scales of its own; branches are run once for all. Between the
denoiser and the rules the predictions of a branch are one tensor, [B, N], so that whatever keeps, sends or
estimates predictions need not know of streams.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from oseg_video.guidance.methods.base import Guidance
from oseg_video.guidance.plan import Branch, Step, StepPlan, Stream

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class JoinedStreams:
    """How the predictions of several streams lie in one tensor; a single stream's is itself."""

    shapes: tuple[tuple[int, ...], ...]
    """Of each stream's prediction, without the batch."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """[B, ...] of each stream -> [B, N], or the one that there is."""
        import torch

        return parts[0] if len(self.shapes) == 1 else torch.cat([part.flatten(1) for part in parts], dim=1)

    def split(self, joined: Tensor) -> tuple[Tensor, ...]:
        """What `join` was given."""
        if len(self.shapes) == 1:
            return (joined,)
        parts = joined.split([math.prod(shape) for shape in self.shapes], dim=1)
        return tuple(part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True))


@dataclass(frozen=True)
class Denoised:
    """Rules act on denoised latents, `x - sigma v` of noisy latents x and the predicted velocity v."""

    sigmas: tuple[float, ...]
    """Noise level of each stream."""


def plan_streams(
    guidance: Guidance,
    steps: Mapping[Stream, Step],
    joined: JoinedStreams | None = None,
    denoised: Denoised | None = None,
) -> StepPlan:
    """The branches that any stream needs, and the rule for all of them.

    steps: where sampling stands, for each stream. joined: how their predictions lie in the tensors that the
    rule takes and returns; needed to call it. denoised: what rules act on, if not the predictions as they
    are; linear rules come out the same. Raises as `Guidance.plan`.
    """
    plans = [guidance.of_stream(stream).plan(step) for stream, step in steps.items()]
    if len(plans) == 1 and denoised is None:
        return plans[0]
    branches: dict[str, Branch] = {}
    for plan in plans:
        for name, branch in plan.branches.items():
            # Streams differ in their scales alone, so what has one name is the same.
            assert branches.setdefault(name, branch) == branch
    formulas = [plan.formula for plan in plans]
    same = len(set(formulas)) == 1
    formula = formulas[0] if same else "; ".join(f"{s}: {f}" for s, f in zip(steps, formulas, strict=True))
    if all(plan.rule is None for plan in plans):
        return StepPlan(branches, formula)
    assert joined is None or len(joined.shapes) == len(plans)
    rule = partial(_by_stream, tuple(plans), tuple(steps.values()), joined, denoised)
    return StepPlan(branches, formula, rule)


def _by_stream(
    plans: Sequence[StepPlan],
    steps: Sequence[Step],
    joined: JoinedStreams | None,
    denoised: Denoised | None,
    **predictions: Tensor,
) -> Tensor:
    assert joined is not None
    parts = {name: joined.split(prediction) for name, prediction in predictions.items()}
    guided = []
    for place, (plan, step) in enumerate(zip(plans, steps, strict=True)):
        own = {name: parts[name][place] for name in plan.branches}
        rule = plan.rule or partial(_pipelines_own, step)
        if denoised is None or plan.of_prediction:
            guided.append(rule(**own))
        else:
            guided.append(_in_denoised(rule, step, denoised.sigmas[place], own))
    return joined.join(guided)


def _in_denoised(rule: object, step: Step, sigma: float, predictions: Mapping[str, Tensor]) -> Tensor:
    from oseg_video.guidance.numerics import upcast

    assert callable(rule) and step.sample is not None
    sample = upcast(step.sample)
    clean: Tensor = rule(**{name: sample - sigma * upcast(one) for name, one in predictions.items()})
    return (sample - clean) / sigma


def _pipelines_own(step: Step, *, cond: Tensor, uncond: Tensor | None = None) -> Tensor:
    """What a pipeline makes of its plain branches by itself."""
    from oseg_video.guidance import combine
    from oseg_video.guidance.numerics import upcast

    return upcast(cond) if uncond is None else combine.cfg(cond, uncond, step.pipeline_scale)

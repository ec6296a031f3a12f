"""What guidance costs: counted FLOPs and traffic of one step, on tensors without values (meta), so of any
model size and any number of ranks."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from oseg_video.adapters.base import ClipSize, Condition, ModelAdapter
from oseg_video.engine.assignment import assign_branches, exchange_predictions
from oseg_video.engine.branches import BranchRunner
from oseg_video.guidance.attended import Noise
from oseg_video.guidance.perturbations import (
    BlurAttended,
    ExtrapolateAttention,
    IsolateStreams,
    QueryTransform,
    ReplaceAttention,
    SkipBlock,
)
from oseg_video.guidance.plan import Branch
from oseg_video.guidance.reuse import EXACT, Reuse
from oseg_video.jobs.on_meta import runnable_on_meta
from oseg_video.parallel.degrees import Degrees
from oseg_video.parallel.group import Group
from oseg_video.parallel.mesh import Mesh
from oseg_video.types import TokenGrid

_CONDITIONS: tuple[Condition, ...] = ("uncond", "cond")
_ONE_RANK = Degrees()
_NOISE = Noise(0.5, "epsilon")  # any will do to count


@dataclass(frozen=True)
class StepCost:
    """What one rank computes and sends in one guided step."""

    total: int
    """FLOPs (matrix products, convolutions, attention)."""
    transform: int
    """Part of the total that the change of the queries takes."""
    sent: Mapping[str, int] = field(default_factory=dict)
    """Bytes sent to other ranks, by collective."""


def step_cost(
    adapter: ModelAdapter,
    denoiser: nn.Module,
    clip: ClipSize,
    branches: Mapping[str, Branch],
    *,
    reuse: Reuse = EXACT,
    degrees: Degrees = _ONE_RANK,
    branch_rank: int = 0,
) -> StepCost:
    """Cost of one step that runs `branches` (`StepPlan.branches`) for one clip.

    Text is counted at its full padded length. Works on any device; on the meta device nothing is computed,
    and every text token counts as valid. Raises `UnknownBlockError`, and `GuidanceError` for tokens that
    ranks cannot share.

    degrees: the ranks that make the clip; several need the meta device. The one that is counted is the first
    along the sequence, which has the most tokens and heads, and `branch_rank` along the branch axis.
    """
    mesh = Mesh.on_paper(degrees)
    branch_group = replace(mesh.branch, rank=branch_rank)
    arguments = adapter.example_arguments(denoiser, clip, len(_CONDITIONS))
    counted: list[_CountedTransform] = []
    branches = {name: _with_counted_transform(branch, counted) for name, branch in branches.items()}
    selectors = {b for one in branches.values() if one.perturbation for b in one.perturbation.blocks}
    runner = BranchRunner(adapter, denoiser, tuple(selectors), reuse=reuse, sequence=mesh.sequence)
    with (
        runner.active(),
        runnable_on_meta(),
        FlopCounterMode(display=False) as counter,
    ):
        run_step(adapter, denoiser, runner, arguments, branches, branch_group)
    flops = int(counter.get_total_flops())
    return StepCost(flops, sum(one.flops for one in counted), dict(mesh.traffic))


def run_step(
    adapter: ModelAdapter,
    denoiser: nn.Module,
    runner: BranchRunner,
    arguments: Mapping[str, Any],
    branches: Mapping[str, Branch],
    group: Group,
) -> dict[str, Tensor]:
    """The predictions of all branches, as in `guided` but without a pipeline, on each rank of `group`.

    arguments: of a denoiser call with as many rows for each of the conditions ("uncond", "cond").
    """
    ranks = assign_branches(runner, branches, _CONDITIONS, group.size)
    own = {name: branch for name, branch in branches.items() if ranks[name] == group.rank}
    predictions = runner.run(denoiser, arguments, own, _CONDITIONS, noise=_NOISE)[0] if own else {}
    call = adapter.denoiser_call
    samples = [one[: len(one) // len(_CONDITIONS)] for one in call.samples(denoiser, arguments)]
    blank = partial(torch.empty_like, call.joined(samples).join(samples))
    return exchange_predictions(group, ranks, predictions, blank)


class _CountedTransform:
    """A query transform that counts its own FLOPs beside the model's."""

    def __init__(self, transform: QueryTransform) -> None:
        self.site: Any = transform.site
        self.flops = 0
        self._transform = transform

    def __call__(self, query: Tensor, key: Tensor, grid: TokenGrid) -> Tensor:
        with FlopCounterMode(display=False) as counter:
            changed = self._transform(query, key, grid)
        self.flops += int(counter.get_total_flops())
        return changed


def _with_counted_transform(branch: Branch, counted: list[_CountedTransform]) -> Branch:
    others = SkipBlock | ReplaceAttention | ExtrapolateAttention | IsolateStreams | BlurAttended
    if branch.perturbation is None or isinstance(branch.perturbation.change, others):
        return branch
    counted.append(_CountedTransform(branch.perturbation.change))
    return replace(
        branch, perturbation=replace(branch.perturbation, change=cast(QueryTransform, counted[-1]))
    )

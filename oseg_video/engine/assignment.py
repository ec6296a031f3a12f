"""Which rank runs which branch of a step, and how all ranks get all predictions."""

from collections.abc import Callable, Mapping
from itertools import product

from torch import Tensor

from oseg_video.adapters.base import Condition
from oseg_video.engine.branches import BranchRunner
from oseg_video.guidance.numerics import upcast
from oseg_video.guidance.plan import Branch
from oseg_video.guidance.reuse import PLAIN
from oseg_video.parallel.group import Group


def assign_branches(
    runner: BranchRunner, branches: Mapping[str, Branch], conditions: tuple[Condition, ...], ranks: int
) -> dict[str, int]:
    """A rank for every branch, such that the rank with most to do has as little as possible.

    A perturbed branch on the rank of its plain one starts at its first perturbed block, elsewhere it runs
    whole; among equals the assignment with less work in total is taken, then the first one. The plain
    conditional branch is always on the first rank, where a step cache finds what it keeps. All ranks come to
    the same result. At most four branches, so all assignments are tried.
    """
    if ranks == 1:
        return dict.fromkeys(branches, 0)
    best: tuple[float, float, dict[str, int]] | None = None
    for places in product(range(ranks), repeat=len(branches)):
        assignment = dict(zip(branches, places, strict=True))
        if any(place > 0 and branches[name] == PLAIN for name, place in assignment.items()):
            continue
        costs = []
        for rank in range(ranks):
            mine = {name: branches[name] for name, place in assignment.items() if place == rank}
            costs.append(runner.cost(mine, conditions))
        if best is None or (max(costs), sum(costs)) < best[:2]:
            best = (max(costs), sum(costs), assignment)
    assert best is not None
    return best[2]


def exchange_predictions(
    group: Group, ranks: Mapping[str, int], own: Mapping[str, Tensor], blank: Callable[[], Tensor]
) -> dict[str, Tensor]:
    """The predictions of all branches, each from the rank that ran it, in float32 or better.

    A group of one gives back its own as they are. `blank`: a tensor like a prediction.
    """
    if group.size == 1:
        return dict(own)
    exchanged = {}
    shape = blank().shape
    for name, rank in ranks.items():
        prediction = own[name] if rank == group.rank else blank()
        assert prediction.shape == shape
        exchanged[name] = group.broadcast(upcast(prediction), rank)
    return exchanged

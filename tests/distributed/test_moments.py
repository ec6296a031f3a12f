"""Statistics of real clips that are spread over ranks are those of one process."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from oseg_video.evaluation.metrics.frechet import Moments
from oseg_video.evaluation.metrics.real_clips import reduced_moments

from .ranks import Ranks

DIM = 6


def features(count: int) -> Tensor:
    """Far from zero, so that sums of squares would cancel."""
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(0)).double() + 1e6


def _spread(count: int) -> tuple[Moments, list[int]]:
    rows, looked_at = features(count), []

    def look(items: range) -> Tensor:
        looked_at.extend(items)
        assert len(items) <= 3
        return rows[list(items)][: len(items)]

    return reduced_moments(range(count), look, batch=3), looked_at


@pytest.mark.parametrize("count", [1, 2, 31])  # with one item, a rank has none
def test_moments_over_two_ranks_are_those_of_one_process(two_ranks: Ranks, count: int) -> None:
    results = two_ranks.run(_spread, count)
    whole = Moments.of(features(count))
    for moments, _ in results:
        assert moments.count == count
        assert_close(moments.mean_D, whole.mean_D)
        assert_close(moments.scatter_DD, whole.scatter_DD, rtol=1e-8, atol=1e-8)
    assert torch.equal(results[0][0].mean_D, results[1][0].mean_D)
    assert torch.equal(results[0][0].scatter_DD, results[1][0].scatter_DD)
    assert sorted(results[0][1] + results[1][1]) == list(range(count))  # every item on one rank
    assert abs(len(results[0][1]) - len(results[1][1])) <= 1


def _unequal() -> Moments:
    import torch.distributed as dist

    rows = features(20)
    return Moments.of(rows[:3] if dist.get_rank() == 0 else rows[3:]).all_reduce()


def test_unequal_shares_reduce_to_the_whole(two_ranks: Ranks) -> None:
    whole = Moments.of(features(20))
    for moments in two_ranks.run(_unequal):
        assert_close(moments.mean_D, whole.mean_D)
        assert_close(moments.covariance(), whole.covariance(), rtol=1e-8, atol=1e-8)

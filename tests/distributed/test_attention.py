"""Attention over a spread-out sequence equals attention in one process, forwards and with every shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import groupby
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.testing import assert_close

from oseg_video.guidance.queries import oseg_queries
from oseg_video.parallel import attention
from oseg_video.parallel.attention import attention_with_log_sum, sequence_attention
from oseg_video.parallel.degrees import Degrees
from oseg_video.parallel.mesh import Mesh
from oseg_video.parallel.sequence import SpreadSequence
from oseg_video.types import TokenGrid

from .ranks import Ranks


@cache
def mesh(degrees: Degrees) -> Mesh:
    return Mesh.of(degrees)


def tensors(length: int, heads: int, text: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (2, heads, length + text, 8)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3)]


def _attend(degrees: Degrees, length: int, heads: int, first: int, last: int, masked: bool) -> list[Any]:
    spread = SpreadSequence(mesh(degrees).sequence, length, text_first=first)
    shard = spread.shard
    columns = [*range(first), *range(first + shard.start, first + shard.stop)]
    columns += range(first + length, first + length + last)
    local = [x[:, :, columns] for x in tensors(length, heads, first + last, torch.float64)]
    mask = text_mask(length, first, last) if masked else None
    mixed = sequence_attention(*local, mask, spread=spread)
    return [columns, mixed]


def text_mask(length: int, first: int, last: int) -> torch.Tensor:
    """[2, 1, 1, L + T]: the second row's last text token before the video, or else after it, is padding."""
    mask = torch.ones(2, 1, 1, first + length + last, dtype=torch.bool)
    mask[1, 0, 0, first + length + last - 1 if last else first - 1] = False
    return mask


@pytest.mark.parametrize("length", [8, 7])
@pytest.mark.parametrize("heads", [4, 3])
@pytest.mark.parametrize(
    ("first", "last", "masked"), [(0, 0, False), (3, 0, True), (0, 3, False), (2, 3, True)]
)
@pytest.mark.parametrize("axis", ["ulysses", "ring"])
def test_two_ranks_attend_as_one(
    two_ranks: Ranks, axis: str, length: int, heads: int, first: int, last: int, masked: bool
) -> None:
    query, key, value = tensors(length, heads, first + last, torch.float64)
    mask = text_mask(length, first, last) if masked else None
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    for columns, mixed in two_ranks.run(_attend, Degrees(**{axis: 2}), length, heads, first, last, masked):
        assert_close(mixed, expected[:, :, columns], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("degrees", [Degrees(ulysses=2, ring=2), Degrees(ring=4), Degrees(ulysses=4)])
@pytest.mark.parametrize("length", [11, 8])
def test_four_ranks_attend_as_one(four_ranks: Ranks, degrees: Degrees, length: int) -> None:
    query, key, value = tensors(length, 5, 3, torch.float64)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=text_mask(length, 0, 3))
    for columns, mixed in four_ranks.run(_attend, degrees, length, 5, 0, 3, True):
        assert_close(mixed, expected[:, :, columns], rtol=1e-12, atol=1e-12)


def _order(degrees: Degrees) -> list[str]:
    """What a rank does in one attention, in order."""
    done: list[str] = []

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: (done.append(name), function(*args))[1]

    send = dist.batch_isend_irecv

    def sent(operations: list[Any]) -> list[Any]:
        return [SimpleNamespace(wait=noted("wait", one.wait)) for one in send(operations)]

    with (
        patch.object(dist, "batch_isend_irecv", noted("send", sent)),
        patch.object(attention, "attention_with_log_sum", noted("attend", attention_with_log_sum)),
    ):
        _attend(degrees, 8, 2, 0, 0, False)
    return [name for name, _ in groupby(done)]


def test_the_next_chunk_travels_while_one_is_attended_to(four_ranks: Ranks) -> None:
    for order in four_ranks.run(_order, Degrees(ring=4)):
        assert order == ["send", "attend", "wait"] * 3 + ["attend"]


GRID = TokenGrid(3, 2, 3)


def _transform(degrees: Degrees, heads: int, reference: str) -> list[Any]:
    spread = SpreadSequence(mesh(degrees).sequence, GRID.tokens)
    shard = spread.shard
    query, key, _ = (shard.take(x, 2) for x in tensors(GRID.tokens, heads, 0, torch.float64))

    def change(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return oseg_queries(query, key, GRID, blur_sigma=1.5, reference=reference)

    return [shard, spread.over_heads(change, query, key)]


@pytest.mark.parametrize("degrees", [Degrees(ulysses=2, ring=2), Degrees(ring=4)])
@pytest.mark.parametrize("heads", [4, 3])
@pytest.mark.parametrize("reference", ["token", "frame", "clip", "principal:2"])
def test_queries_change_as_in_one_process(
    four_ranks: Ranks, degrees: Degrees, heads: int, reference: str
) -> None:
    query, key, _ = tensors(GRID.tokens, heads, 0, torch.float64)
    expected = oseg_queries(query, key, GRID, blur_sigma=1.5, reference=reference)
    for shard, changed in four_ranks.run(_transform, degrees, heads, reference):
        assert_close(changed, shard.take(expected, 2), rtol=1e-11, atol=1e-11)


def test_a_rank_may_have_no_head() -> None:
    query, key, value = (x[:, :0] for x in tensors(9, 2, 0, torch.bfloat16))
    mixed, log_sum = attention_with_log_sum(query, key, value, None, None)
    assert (mixed.shape, log_sum.shape) == (query.shape, query.shape[:3]) and mixed.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_log_sum_is_that_of_the_softmax(dtype: torch.dtype) -> None:
    query, key, value = tensors(9, 2, 0, dtype)
    mixed, log_sum = attention_with_log_sum(query, key, value, None, None)
    logits = query.double() @ key.double().mT / 8**0.5
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    assert_close(log_sum.double(), logits.logsumexp(-1), **tolerance)
    assert_close(mixed.double(), logits.softmax(-1) @ value.double(), **tolerance)

"""The room that a change of queries takes beside them: a few heads, rows or tokens are changed at a time."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.testing import assert_close

from oseg_video.adapters.denoiser import AttentionSite, VideoTokens
from oseg_video.engine.patching.sites import ChangedQueries, in_pieces
from oseg_video.guidance.perturbations import BlurOrthogonalQueries, BlurQueries, ReleasedQueries
from oseg_video.jobs.activations import LiveBytes
from oseg_video.types import TokenGrid

GRID = TokenGrid(3, 4, 5)
TEXT = 7
OSEG = partial(BlurOrthogonalQueries, 5.0, boundary="symmetric")
# Of families: Wan 1.3B, Mochi and HunyuanVideo, LTX; SVD's frames in its batch.
SHAPES = ((1, 12), (1, 24), (2, 32), (28, 5))
CHANGES = {
    "oseg": OSEG(1.0, 0.0, "token"),
    "oseg, some kept": OSEG(0.5, 0.5, "token"),
    "oseg, frame": OSEG(1.0, 0.0, "frame"),
    "seg": BlurQueries(5.0, "symmetric"),
}


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    query, key = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    return query, key


def in_heads(batch: int, heads: int) -> tuple[Tensor, Tensor]:
    """Laid out as projections leave them, text tokens first."""
    query, key = pair(batch, TEXT + GRID.tokens, heads, 32)
    return query.transpose(1, 2), key.transpose(1, 2)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pieces_are_the_whole(name: str, shape: tuple[int, int]) -> None:
    query, key = in_heads(*shape)
    span = slice(TEXT, TEXT + GRID.tokens)
    changed = in_pieces(lambda q, k: CHANGES[name](q, k, GRID), query, key, span, tokens=2)
    assert torch.equal(changed[:, :, span], CHANGES[name](query[:, :, span], key[:, :, span], GRID))
    assert torch.equal(changed[:, :, :TEXT], query[:, :, :TEXT])
    assert changed.stride() == query.stride()


@pytest.mark.parametrize("norm", [None, "rms_norm"])
@torch.no_grad()
def test_the_released_codes_queries_are_changed_as_they_leave_their_projection(norm: str | None) -> None:
    """Over all channels, not head by head, also where no norm follows (Stable Diffusion, SVD)."""
    torch.manual_seed(0)
    attention = Attention(query_dim=64, heads=2, dim_head=32, qk_norm=norm)
    x_BSC, change, fired = torch.randn(2, GRID.tokens, 64), ReleasedQueries(0.67), list[str]()
    changed = change(attention.to_q(x_BSC), attention.to_k(x_BSC), GRID)
    stock = attention.to_q.forward
    attention.to_q.forward = lambda _: changed
    expected = attention(x_BSC)
    attention.to_q.forward = stock
    hooks = ChangedQueries(
        AttentionSite("a", attention, "BNSD"),
        VideoTokens(GRID),
        lambda q, k: change(q, k, GRID),
        fired.append,
    )
    with hooks.installed(change.site):
        assert_close(attention(x_BSC), expected)
    assert fired == ["a"] and not torch.allclose(attention(x_BSC), expected)


def room(change: Any, query: Tensor, key: Tensor, span: slice, tokens: int) -> float:
    """Peak of live bytes, in sizes of the queries."""
    run = partial(in_pieces, lambda q, k: change(q, k, GRID), query, key, span, tokens)
    run()  # matrices are kept
    with LiveBytes() as live:
        run()
    return live.peak / query.nbytes


@pytest.mark.parametrize("name", ("oseg", "seg"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_change_takes_half_of_the_queries_besides_its_result(name: str, shape: tuple[int, int]) -> None:
    assert 1 < room(CHANGES[name], *in_heads(*shape), slice(TEXT, TEXT + GRID.tokens), 2) <= 1.5


@pytest.mark.parametrize("name", CHANGES)
def test_so_do_the_others_at_24_heads_or_more(name: str) -> None:
    assert room(CHANGES[name], *in_heads(1, 24), slice(TEXT, TEXT + GRID.tokens), 2) <= 1.5


def test_the_released_change_works_on_a_few_tokens() -> None:
    change = ReleasedQueries(0.67)
    query, key = pair(1, 240, 768)
    changed = in_pieces(lambda q, k: change(q, k, GRID), query, key, slice(0, 240), tokens=1)
    assert torch.equal(changed, change(query, key, GRID))
    assert room(change, query, key, slice(0, 240), 1) <= 1.5
    whole = partial(change, query, key, GRID)
    with LiveBytes() as live:
        whole()
    assert live.peak > 5 * query.nbytes

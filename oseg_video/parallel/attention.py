"""Exact attention over a sequence that is spread over ranks (Ulysses, arXiv 2309.14509; ring, 2310.01889).

Ulysses trades tokens for heads, so that a rank attends with some heads over a whole chunk of the sequence.
The ring passes keys and values on, chunk by chunk, while the chunk at hand is attended to, and merges what
each chunk gives by its softmax weight.
Both together: heads within a ulysses group, chunks around the ring.

Joint attention: text tokens are on every rank. Their heads are cut like those of the video for Ulysses, and
their keys count once in the ring.

B batch, N heads, M heads of this rank, Q queries, K keys, D head dim
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from oseg_video.parallel.sequence import SpreadSequence, gather_parts, heads_to_tokens, tokens_to_heads
from oseg_video.parallel.shards import Shard, with_size


def sequence_attention(
    query_BNSD: Tensor,
    key_BNSD: Tensor,
    value_BNSD: Tensor,
    mask: Tensor | None,
    *,
    spread: SpreadSequence,
    scale: float | None = None,
) -> Tensor:
    """Attention of all tokens to all tokens; on each rank its own tokens, [B, N, S, D] in and out.

    A rank's tokens are `spread.text_first` text tokens, its part of the video's, and further text tokens;
    text is the same on every rank. mask: as in `scaled_dot_product_attention`, broadcast over heads;
    only its columns of text count (video tokens are never masked), in the row of the first video token.
    """
    shard, text_first = spread.shard, spread.text_first
    ulysses, ring = spread.group.ulysses, spread.group.ring
    heads = query_BNSD.shape[1]
    token_sizes = _chunks(spread)[ring.rank]
    text_last = query_BNSD.shape[2] - text_first - len(shard)
    own_heads = Shard.of(heads, ulysses.rank, ulysses.size)

    def cut(x_BNSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(text before, this chunk's video tokens, text after), of this rank's heads."""
        before, video, after = torch.split(x_BNSD, [text_first, len(shard), text_last], dim=2)
        video = tokens_to_heads(ulysses, video, token_sizes)
        return own_heads.take(before, 1), video, own_heads.take(after, 1)

    query_parts, key_parts, value_parts = (cut(x) for x in (query_BNSD, key_BNSD, value_BNSD))
    text_mask = None if mask is None else _text_columns(mask, text_first, text_last)
    mixed = _ring_attention(query_parts, key_parts, value_parts, text_mask, spread, scale)
    before, video, after = torch.split(mixed, [text_first, sum(token_sizes), text_last], dim=2)
    video = heads_to_tokens(ulysses, video, token_sizes, heads)
    texts = [gather_parts(ulysses, x, heads, dim=1) for x in (before, after) if x.shape[2]]
    return torch.cat([*texts[: bool(text_first)], video, *texts[bool(text_first) :]], dim=2)


def _text_columns(mask: Tensor, text_first: int, text_last: int) -> Tensor:
    """[B, 1, 1, T]: what the mask says of text keys to a video query."""
    mask = mask[:, :1, :1] if mask.shape[2] == 1 else mask[:, :1, text_first : text_first + 1]
    return torch.cat((mask[..., :text_first], mask[..., mask.shape[-1] - text_last :]), dim=-1)


def _ring_attention(
    query: tuple[Tensor, Tensor, Tensor],
    key: tuple[Tensor, Tensor, Tensor],
    value: tuple[Tensor, Tensor, Tensor],
    text_mask: Tensor | None,
    spread: SpreadSequence,
    scale: float | None,
) -> Tensor:
    """Attention of this chunk's queries, and those of the text, to all keys: [B, M, Q, D]."""
    query_BMQD = torch.cat(query, dim=2)
    key_BMKD, value_BMKD = (
        torch.cat((key[0], key[2], key[1]), dim=2),
        torch.cat((value[0], value[2], value[1]), 2),
    )
    mask = None if text_mask is None else _padded_mask(text_mask, key_BMKD.shape[2])
    ring = spread.group.ring
    if ring.size == 1:
        return F.scaled_dot_product_attention(query_BMQD, key_BMKD, value_BMKD, attn_mask=mask, scale=scale)
    chunks = [sum(sizes) for sizes in _chunks(spread)]

    def following(turn: int, held: list[Tensor]) -> Callable[[], list[Tensor]]:
        """Keys and values of the next turn, which travel while this one's are attended to."""
        if turn + 1 == ring.size:
            return list
        shape = with_size(held[0].shape, 2, chunks[(ring.rank - turn - 1) % ring.size])
        return ring.rotate(held, [shape, shape])

    arrived = following(0, [key[1], value[1]])
    merged, log_sum = attention_with_log_sum(query_BMQD, key_BMKD, value_BMKD, mask, scale)
    for turn in range(1, ring.size):
        held = arrived()
        arrived = following(turn, held)
        mixed, mixed_log_sum = attention_with_log_sum(query_BMQD, held[0], held[1], None, scale)
        merged, log_sum = _merge(merged, log_sum, mixed, mixed_log_sum)
    return merged.to(query_BMQD.dtype)


def _chunks(spread: SpreadSequence) -> list[list[int]]:
    """Tokens of each ulysses rank, for every chunk that goes around the ring."""
    sizes, ranks = spread.sizes, spread.group.ulysses.size
    return [sizes[first : first + ranks] for first in range(0, len(sizes), ranks)]


def _padded_mask(text_mask: Tensor, keys: int) -> Tensor:
    """[B, 1, 1, T] -> [B, 1, 1, K]: the video's keys, after those of the text, are all valid."""
    valid = 1 if text_mask.dtype == torch.bool else 0
    return F.pad(text_mask, (0, keys - text_mask.shape[-1]), value=valid)


def _merge(one: Tensor, log_one: Tensor, other: Tensor, log_other: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to two sets of keys from that to each: means weighted by `exp(log sum)`, in float32."""
    log_sum = torch.logaddexp(log_one, log_other)
    weight = torch.exp(log_one - log_sum).unsqueeze(-1)
    other_weight = torch.exp(log_other - log_sum).unsqueeze(-1)
    return one * weight + other * other_weight, log_sum


def attention_with_log_sum(
    query_BMQD: Tensor, key_BMKD: Tensor, value_BMKD: Tensor, mask: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Attention [B, M, Q, D] and the logarithm of its softmax's denominators [B, M, Q].

    Through the kernels behind `scaled_dot_product_attention`, which has no such output of its own. In
    float32, or float64 for such inputs.
    """
    aten = torch.ops.aten
    precise = torch.promote_types(query_BMQD.dtype, torch.float32)
    if not query_BMQD.shape[1]:  # ranks with no head; the kernels fail at them
        return query_BMQD.to(precise), query_BMQD[..., 0].to(precise)
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query_BMQD.dtype).masked_fill(~mask, float("-inf"))
    if query_BMQD.device.type == "cpu":
        mixed, log_sum = aten._scaled_dot_product_flash_attention_for_cpu(
            query_BMQD, key_BMKD, value_BMKD, attn_mask=mask, scale=scale
        )
    elif mask is None and query_BMQD.dtype in (torch.float16, torch.bfloat16):
        mixed, log_sum, *_ = aten._scaled_dot_product_flash_attention(
            query_BMQD, key_BMKD, value_BMKD, scale=scale
        )
    else:
        bias = None if mask is None else _aligned(mask, query_BMQD, key_BMKD)
        mixed, log_sum, *_ = aten._scaled_dot_product_efficient_attention(
            query_BMQD, key_BMKD, value_BMKD, bias, True, scale=scale
        )
        log_sum = log_sum[..., : query_BMQD.shape[2]]
    return mixed.to(precise), log_sum.to(precise)


def _aligned(mask: Tensor, query_BMQD: Tensor, key_BMKD: Tensor) -> Tensor:
    """The mask at full size, its rows in memory at multiples of 16 entries, as the kernel wants it."""
    keys = key_BMKD.shape[2]
    mask = F.pad(mask, (0, -keys % 16))
    return mask.expand(*query_BMQD.shape[:3], -1)[..., :keys]

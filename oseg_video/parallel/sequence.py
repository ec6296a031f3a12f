"""A token sequence spread over the ranks of the ring and ulysses axes, and the exchange of tokens for heads.

B batch, N heads, S tokens of this rank, L tokens of all ranks, M heads of this rank, D head dim
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from oseg_video.parallel.group import Group
from oseg_video.parallel.shards import Shard, part_sizes, with_size


@dataclass(frozen=True)
class SequenceGroup:
    """The ranks that share one sequence: `ring` x `ulysses`, in this order along the sequence."""

    ulysses: Group
    ring: Group
    whole: Group
    """All of them: rank = ring rank * ulysses size + ulysses rank."""

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.whole.size


@dataclass(frozen=True)
class SpreadSequence:
    """One sequence of video tokens, as one of its ranks has it."""

    group: SequenceGroup
    length: int
    """Tokens of all ranks."""
    text_first: int = 0
    """Text tokens, the same on every rank, that stand before the video's in attention."""

    @property
    def shard(self) -> Shard:
        """The part of this rank."""
        return Shard.of(self.length, self.group.whole.rank, self.group.size)

    @property
    def sizes(self) -> list[int]:
        """Tokens of each rank."""
        return part_sizes(self.length, self.group.size)

    def gather(self, x: Tensor, dim: int) -> Tensor:
        """Every rank's part [.., S, ..] along `dim` -> the whole sequence [.., L, ..] on every rank."""
        return gather_parts(self.group.whole, x, self.length, dim)

    def over_heads(self, change: Callable[..., Tensor], *inputs_BNSD: Tensor) -> Tensor:
        """`change` of whole sequences, for a change that works head by head: [B, N, S, D] in and out.

        Every rank changes all L tokens of its part of the heads, [B, M, L, D], so the result is exact
        whatever the change does over tokens. A rank with no head (more ranks than heads) changes nothing.
        """
        heads = inputs_BNSD[0].shape[1]
        whole = [tokens_to_heads(self.group.whole, x, self.sizes) for x in inputs_BNSD]
        changed = change(*whole) if whole[0].shape[1] else whole[0]
        return heads_to_tokens(self.group.whole, changed, self.sizes, heads)


def gather_parts(group: Group, x: Tensor, total: int, dim: int) -> Tensor:
    """The parts of a dimension, cut as `part_sizes` does -> the whole on every rank."""
    shapes = [with_size(x.shape, dim, size) for size in part_sizes(total, group.size)]
    parts = group.gather(x, shapes)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def tokens_to_heads(group: Group, x_BNSD: Tensor, token_sizes: list[int]) -> Tensor:
    """All heads of some tokens [B, N, S, D] -> some heads of the group's tokens [B, M, sum(token_sizes), D].

    token_sizes: tokens of each rank of the group. M is this rank's part of N (`part_sizes`); neither number
    needs to be divisible.
    """
    if group.size == 1:
        return x_BNSD
    batch, heads, _, dim = x_BNSD.shape
    head_sizes = part_sizes(heads, group.size)
    mine = head_sizes[group.rank]
    parts = group.exchange(
        torch.split(x_BNSD, head_sizes, dim=1), [(batch, mine, tokens, dim) for tokens in token_sizes]
    )
    return torch.cat(parts, dim=2)


def heads_to_tokens(group: Group, x_BMSD: Tensor, token_sizes: list[int], heads: int) -> Tensor:
    """The way back: some heads of all tokens [B, M, L, D] -> all heads of this rank's tokens [B, N, S, D]."""
    if group.size == 1:
        return x_BMSD
    batch, _, _, dim = x_BMSD.shape
    mine = token_sizes[group.rank]
    parts = group.exchange(
        torch.split(x_BMSD, token_sizes, dim=2),
        [(batch, size, mine, dim) for size in part_sizes(heads, group.size)],
    )
    return torch.cat(parts, dim=1)

"""How a dimension is cut over ranks: contiguous parts, the first ones larger by one if need be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def part_sizes(total: int, parts: int) -> list[int]:
    """Sizes of the parts, as `torch.tensor_split` cuts: they differ by one at most."""
    share, rest = divmod(total, parts)
    return [share + (part < rest) for part in range(parts)]


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's part of a dimension of `total` entries: those in [start, stop)."""

    start: int
    stop: int
    total: int

    @classmethod
    def of(cls, total: int, rank: int, size: int) -> Shard:
        """The part of `rank` out of `size`."""
        sizes = part_sizes(total, size)
        start = sum(sizes[:rank])
        return cls(start, start + sizes[rank], total)

    def __len__(self) -> int:
        return self.stop - self.start

    def take(self, x: Tensor, dim: int) -> Tensor:
        """This rank's part of a whole tensor."""
        return x.narrow(dim, self.start, len(self))

    def local(self, index: int) -> int:
        """Where an index of the whole dimension falls in this part; its nearest end if outside."""
        return min(max(index - self.start, 0), len(self))


def with_size(shape: Sequence[int], dim: int, size: int) -> tuple[int, ...]:
    """The shape with another size of one dimension."""
    return tuple(size if index == dim % len(shape) else length for index, length in enumerate(shape))

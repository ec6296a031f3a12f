"""The ranks along one axis and their collectives. A group of one does nothing; code has no "if distributed".

Shapes need not be the same on all ranks, but each rank knows those of the others: nothing is negotiated.
On meta tensors nothing is sent: shapes come out right and the traffic is counted, for any number of ranks.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from oseg_video.types import OsegVideoError

Shape = Sequence[int]
_SOURCE = re.compile(r"^\[[^]]*\] ")
"""The line of torch's own code that an error starts with."""


class ParallelError(OsegVideoError):
    """Ranks that cannot work together as asked, or a collective that failed or timed out."""


@dataclass(frozen=True)
class Group:
    """The ranks along one axis of the mesh, as one of them sees it."""

    axis: str
    rank: int
    """Place of this rank along the axis."""
    size: int
    process_group: dist.ProcessGroup | None = None
    """None for a group of one, or for ranks on paper (meta tensors only)."""
    traffic: Counter[str] = field(default_factory=Counter, compare=False, repr=False)
    """Bytes that this rank has sent, by collective."""

    def exchange(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """All to all: part i goes to rank i; the result i, of shape i, comes from rank i."""
        if self.size == 1:
            return list(parts)
        self._count("all-to-all", sum(_bytes(part) for i, part in enumerate(parts) if i != self.rank))
        if parts[0].is_meta:
            return [parts[0].new_empty(shape) for shape in shapes]
        sent = torch.cat([part.reshape(-1) for part in parts])
        sizes = [math.prod(shape) for shape in shapes]
        received = sent.new_empty(sum(sizes))
        with self._collective("all-to-all"):
            dist.all_to_all_single(
                received, sent, sizes, [part.numel() for part in parts], group=self.process_group
            )
        return [part.view(shape) for part, shape in zip(torch.split(received, sizes), shapes, strict=True)]

    def gather(self, x: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        """All gather: every rank's tensor on every rank; the tensor of rank i has shape i."""
        if self.size == 1:
            return [x]
        self._count("all-gather", _bytes(x) * (self.size - 1))
        if x.is_meta:
            return [x.new_empty(shape) for shape in shapes]
        sizes = [math.prod(shape) for shape in shapes]
        largest = max(sizes)
        mine = x.new_zeros(largest)
        mine[: x.numel()] = x.reshape(-1)
        received = x.new_empty(self.size * largest)
        with self._collective("all-gather"):
            _all_gather(received, mine, group=self.process_group)
        rows = received.view(self.size, largest)
        return [row[:size].view(shape) for row, size, shape in zip(rows, sizes, shapes, strict=True)]

    def rotate(self, tensors: Sequence[Tensor], shapes: Sequence[Shape]) -> Callable[[], list[Tensor]]:
        """Hand tensors to the next rank; those of the previous one, of these shapes, come in.

        They are on their way from now on: what is returned waits for them. Until then the tensors must not
        be written into. For groups of several ranks.
        """
        self._count("send", sum(_bytes(x) for x in tensors))
        received = [x.new_empty(shape) for x, shape in zip(tensors, shapes, strict=True)]
        if tensors[0].is_meta:
            return lambda: received
        assert self.process_group is not None
        following = dist.get_global_rank(self.process_group, (self.rank + 1) % self.size)
        previous = dist.get_global_rank(self.process_group, (self.rank - 1) % self.size)
        group = self.process_group
        operations = [dist.P2POp(dist.isend, x.contiguous(), following, group) for x in tensors]
        operations += [dist.P2POp(dist.irecv, x, previous, group) for x in received]
        with self._collective("send to the next rank"):
            requests = dist.batch_isend_irecv(operations)

        def arrived() -> list[Tensor]:
            with self._collective("send to the next rank"):
                for request in requests:
                    request.wait()
            return received

        return arrived

    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        """The tensor of rank `source` on every rank; `x` has its shape and dtype everywhere."""
        if self.size == 1:
            return x
        if self.rank == source:
            self._count("broadcast", _bytes(x) * (self.size - 1))
        if x.is_meta:
            return x
        assert self.process_group is not None
        x = x.contiguous()
        with self._collective("broadcast"):
            dist.broadcast(x, dist.get_global_rank(self.process_group, source), group=self.process_group)
        return x

    def broadcast_object(self, value: Any, source: int = 0) -> Any:
        """A small Python value of rank `source` on every rank."""
        if self.size == 1:
            return value
        assert self.process_group is not None
        box = [value]
        with self._collective("broadcast of an object"):
            dist.broadcast_object_list(
                box, dist.get_global_rank(self.process_group, source), group=self.process_group
            )
        return box[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """Small Python values of all ranks, in order of rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self._collective("gather of objects"):
            dist.all_gather_object(values, value, group=self.process_group)
        return values

    def _count(self, collective: str, size: int) -> None:
        self.traffic[collective] += size

    @contextmanager
    def _collective(self, name: str) -> Iterator[None]:
        """Say which collective failed: torch's own message names neither it nor the axis."""
        try:
            yield
        except RuntimeError as error:  # torch.distributed.DistError among them
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            reason = _SOURCE.sub("", reason)
            raise ParallelError(
                f"{name} over the {self.axis} axis (rank {self.rank} of {self.size}) failed: {reason}"
            ) from error


# torch 2.13 has renamed it.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()

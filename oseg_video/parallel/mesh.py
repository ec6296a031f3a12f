"""The axes over which ranks work together, and the process groups along them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from oseg_video.parallel.degrees import Degrees
from oseg_video.parallel.group import Group, ParallelError
from oseg_video.parallel.sequence import SequenceGroup


@dataclass(frozen=True)
class Mesh:
    """The groups that one rank belongs to."""

    degrees: Degrees
    data: Group
    branch: Group
    sequence: SequenceGroup
    clip: Group
    """All ranks that make one clip together: branch x ring x ulysses. Its rank 0 writes the clip."""

    @classmethod
    def of(cls, degrees: Degrees, device: str = "cpu", timeout: float | None = None) -> Mesh:
        """The mesh over the running process group, or over no process group for one rank.

        device: "cpu" or "cuda". timeout: of collectives along the axes, in seconds; the process group's own
        does not reach them, and without one it is torch's 10 minutes (NCCL) or 30 (gloo).
        Raises ParallelError unless the degrees multiply to the number of ranks.
        """
        world = dist.get_world_size() if dist.is_initialized() else 1
        if degrees.ranks != world:
            raise ParallelError(
                f"parallel {degrees} needs {degrees.ranks} ranks, {world} "
                f"{'is' if world == 1 else 'are'} running"
            )
        if world == 1:
            return cls.on_paper(degrees)
        # Each group costs threads (gloo) or buffers on the GPU (NCCL): none for axes of one rank.
        active = {axis: degree for axis, degree in degrees.items() if degree > 1}
        mesh = init_device_mesh(device, tuple(active.values()), mesh_dim_names=tuple(active))
        traffic: Counter[str] = Counter()

        def group(axis: str, *axes: str) -> Group:
            present = tuple(one for one in axes or (axis,) if one in active)
            if not present:
                return Group(axis, 0, 1, traffic=traffic)
            part = mesh[present]
            part = part._flatten() if len(present) > 1 else part
            if timeout is not None:
                _set_pg_timeout(timedelta(seconds=timeout), part.get_group())
            return Group(axis, part.get_local_rank(), part.size(), part.get_group(), traffic)

        sequence = SequenceGroup(group("ulysses"), group("ring"), group("sequence", "ring", "ulysses"))
        return cls(
            degrees, group("data"), group("branch"), sequence, group("clip", "branch", "ring", "ulysses")
        )

    @classmethod
    def on_paper(cls, degrees: Degrees) -> Mesh:
        """What rank 0 of so many ranks would see; for meta tensors, which are never sent."""
        traffic: Counter[str] = Counter()

        def group(axis: str, size: int) -> Group:
            return Group(axis, 0, size, traffic=traffic)

        spread = degrees.ring * degrees.ulysses
        sequence = SequenceGroup(
            group("ulysses", degrees.ulysses), group("ring", degrees.ring), group("sequence", spread)
        )
        return cls(
            degrees,
            group("data", degrees.data),
            group("branch", degrees.branch),
            sequence,
            group("clip", spread * degrees.branch),
        )

    @property
    def rank(self) -> int:
        """This rank among all."""
        return self.data.rank * self.clip.size + self.clip.rank

    def gather_objects(self, value: Any) -> list[Any]:
        """Small Python values of all ranks, in their order."""
        clips = self.data.gather_objects(self.clip.gather_objects(value))
        return [one for clip in clips for one in clip]

    @property
    def traffic(self) -> Counter[str]:
        """Bytes that this rank has sent, by collective, over all axes."""
        return self.clip.traffic


ONE_RANK = Mesh.on_paper(Degrees())
"""The mesh of a single process."""


def device_type(device: torch.device) -> str:
    """The kind of device whose collectives a mesh uses: "cuda" or "cpu"."""
    return "cuda" if device.type == "cuda" else "cpu"

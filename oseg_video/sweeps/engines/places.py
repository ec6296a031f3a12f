"""How many workers a cluster has room for: one that fits on no machine would be waited for in vain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oseg_video.sweeps.table import SweepError


@dataclass(frozen=True)
class Places:
    """Room for workers."""

    workers: int
    on_gpus: bool
    cpus: int
    """That each worker can have."""


def plan_places(machines: Sequence[Mapping[str, float]], workers: int | None, gpus: int) -> Places:
    """Room for so many workers, each whole on one machine.

    machines: the "CPU" and "GPU" that each has. workers: by default as many as there are GPUs for, or one for
    each machine if there are none. gpus: those of each worker, or its processes. Raises SweepError.
    """
    all_gpus, all_cpus = ([int(one.get(kind, 0)) for one in machines] for kind in ("GPU", "CPU"))
    on_gpus = any(all_gpus)
    room = sum(count // gpus for count in all_gpus) if on_gpus else sum(all_cpus)
    wanted = workers or max(1, room if on_gpus else sum(count > 0 for count in all_cpus))
    if wanted > room:
        each = f"{gpus} GPUs on one machine" if on_gpus else "a CPU"
        raise SweepError(f"workers {wanted}, each with {each}: the cluster has room for {room}")
    shares = range(max(all_cpus, default=0), 0, -1)
    fitting = (share for share in shares if sum(count // share for count in all_cpus) >= wanted)
    return Places(wanted, on_gpus, next(fitting, 1))

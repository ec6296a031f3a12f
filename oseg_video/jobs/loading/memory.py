"""Does a model fit? Estimated from its weight files, before they are read."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from oseg_video.types import OsegVideoError

# Beside the weights a run holds activations, latents and decoded frames. Their size depends on the clip;
# this factor only keeps out what cannot work.
_OVERHEAD = 1.1
_GIB = 1 << 30


class NotEnoughMemoryError(OsegVideoError):
    """The model does not fit; the message says how much it needs and what to do."""


@dataclass(frozen=True)
class Weights:
    """The weights of one pipeline component, still in their files."""

    files: Sequence[Path]
    """safetensors files."""
    dtype: torch.dtype
    """Dtype that they are loaded in."""
    float32_modules: Collection[str] = ()
    """Names of submodules that stay in float32 whatever `dtype` is."""

    @property
    def bytes(self) -> int:
        """Their size once loaded, from the headers of the files. Raises what a damaged file raises."""
        total = 0
        for file in self.files:
            for name, count in _parameters(file):
                kept = any(part in self.float32_modules for part in name.split("."))
                total += count * (torch.float32 if kept else self.dtype).itemsize
        return total


def available_memory(device: torch.device) -> int:
    """Bytes free for a new model: of the GPU, or of main memory within the container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    free: int = psutil.virtual_memory().available
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):  # no limit ("max"), or not a Linux with cgroup 2
        return free
    return min(free, limit - used)


def check_memory(
    components: Mapping[str, Weights],
    dtype: torch.dtype,
    device: torch.device,
    offload: str,
    owners: Mapping[str, int],
) -> None:
    """Compare the weights' size with the free memory. Raises an error that suggests --offload.

    dtype: the dtype that was asked for, for the message. owners: among how many devices the weights of
    a component are shared, 1 where it is not named.
    """
    try:
        sizes = {name: weights.bytes // owners.get(name, 1) for name, weights in components.items()}
    except (OSError, ValueError, struct.error, KeyError, TypeError) as error:
        raise NotEnoughMemoryError(
            f"damaged weights: cannot read the header of a .safetensors file ({error})"
        ) from None
    if device.type == "cpu":
        hint = "try --dtype bfloat16, or a smaller model" if dtype.itemsize > 2 else "try a smaller model"
        _require(sum(sizes.values()), device, "memory", dtype, hint)
        return
    if offload == "none":
        _require(sum(sizes.values()), device, "GPU memory", dtype, "try --offload model")
        return
    _require(
        sum(sizes.values()), torch.device("cpu"), "memory", dtype, "offloaded weights stay in main memory"
    )
    if offload == "model":
        largest = max(sizes.values(), default=0)
        _require(largest, device, "GPU memory", dtype, "try --offload group or --offload sequential")


def _parameters(file: Path) -> list[tuple[str, int]]:
    """(name, number of values) of every tensor in a safetensors file."""
    with open(file, "rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        header = json.loads(handle.read(length))
    return [(name, math.prod(entry["shape"])) for name, entry in header.items() if name != "__metadata__"]


def _require(size: int, device: torch.device, kind: str, dtype: torch.dtype, hint: str) -> None:
    needed, free = size * _OVERHEAD, available_memory(device)
    if needed > free:
        name = str(dtype).removeprefix("torch.")
        raise NotEnoughMemoryError(
            f"the model needs about {needed / _GIB:.1f} GiB of {kind} for its weights in {name}, "
            f"{max(free, 0) / _GIB:.1f} GiB is free; {hint}"
        )

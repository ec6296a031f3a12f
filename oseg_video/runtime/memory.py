"""Does a model fit? Estimated from its weight files, before they are read."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from oseg_video.types import OsegVideoError

# Beside the weights a run holds activations, latents and decoded frames. Their size depends on the clip;
# this factor only keeps out what cannot work.
_OVERHEAD = 1.1
_GIB = 1 << 30


class NotEnoughMemoryError(OsegVideoError):
    """The model does not fit; the message says how much it needs and what to do."""


def count_parameters(files: Sequence[Path]) -> int:
    """Number of values in safetensors files, from their headers."""
    total = 0
    for file in files:
        with open(file, "rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(length))
        total += sum(math.prod(v["shape"]) for name, v in header.items() if name != "__metadata__")
    return total


def available_memory(device: torch.device) -> int:
    """Bytes free for a new model: of the GPU, or of main memory within the container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    free = psutil.virtual_memory().available
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):  # no limit ("max"), or not a Linux with cgroup 2
        return free
    return min(free, limit - used)


def check_memory(
    components: Mapping[str, Sequence[Path]], dtype: torch.dtype, device: torch.device, offload: str
) -> None:
    """Compare the weights' size in `dtype` with the free memory. Raises an error that suggests --offload."""
    try:
        sizes = {name: count_parameters(files) * dtype.itemsize for name, files in components.items()}
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


def _require(size: int, device: torch.device, kind: str, dtype: torch.dtype, hint: str) -> None:
    needed, free = size * _OVERHEAD, available_memory(device)
    if needed > free:
        name = str(dtype).removeprefix("torch.")
        raise NotEnoughMemoryError(
            f"the model needs about {needed / _GIB:.1f} GiB of {kind} for its weights in {name}, "
            f"{max(free, 0) / _GIB:.1f} GiB is free; {hint}"
        )

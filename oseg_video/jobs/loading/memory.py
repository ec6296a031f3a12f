"""Does a job fit? From the weight files' headers and counted activations, before the weights are read.

Refused is only what cannot fit: weights alone that are larger than the memory they must stay in. Of the rest
there is a warning, as memory may become free and files may be read from where they are. Decoding in tiles,
and what kernels need for themselves, is not counted.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch

from oseg_video.config.job import OFFLOADS
from oseg_video.console import logger
from oseg_video.parallel.mesh import ONE_RANK, Mesh
from oseg_video.types import OsegVideoError

_GIB = 1 << 30
_CPU = torch.device("cpu")


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

    @cached_property
    def sizes(self) -> list[int]:
        """Bytes of every tensor once loaded, from the headers of the files.

        Raises NotEnoughMemoryError for a damaged file.
        """
        try:
            tensors = [tensor for file in self.files for tensor in _parameters(file)]
        except (OSError, ValueError, struct.error, KeyError, TypeError) as error:
            raise NotEnoughMemoryError(
                f"damaged weights: cannot read the header of a .safetensors file ({error})"
            ) from None
        return [count * self._dtype_of(name).itemsize for name, count in tensors]

    @property
    def bytes(self) -> int:
        """All of them."""
        return sum(self.sizes)

    def _dtype_of(self, name: str) -> torch.dtype:
        kept = any(part in self.float32_modules for part in name.split("."))
        return torch.float32 if kept else self.dtype


@dataclass(frozen=True)
class Load:
    """What one rank loads and runs."""

    components: Mapping[str, Weights]
    dtype: torch.dtype
    """What was asked for."""
    activations: int = 0
    """Bytes of them in a step of the denoiser."""
    decoding: int = 0
    """Bytes of them while the clip is decoded; 0 where they were not counted."""
    denoisers: Collection[str] = ()
    """Names of the components that are denoisers."""
    owners: int = 1
    """Devices that share the denoisers' weights."""

    @property
    def weights(self) -> int:
        """Bytes of all weights; in main memory even where devices share them."""
        return sum(one.bytes for one in self.components.values())

    @property
    def pinned(self) -> int:
        """The same in page-locked memory, where torch gives each tensor a power of two."""
        sizes = (size for one in self.components.values() for size in one.sizes)
        return sum(1 << (size - 1).bit_length() for size in sizes if size)

    def device_weights(self, offload: str) -> int:
        """Bytes of weights that are on the device at once."""
        if offload in ("group", "sequential"):
            largest = max((size for one in self.components.values() for size in one.sizes), default=0)
            return 2 * largest if offload == "group" else largest  # the next one comes in meanwhile
        parts = [
            one.bytes // (self.owners if name in self.denoisers else 1)
            for name, one in self.components.items()
        ]
        return max(parts, default=0) if offload == "model" else sum(parts)

    def device_peak(self, offload: str) -> int:
        """Bytes that are on the device at once in a step, or before where that is more."""
        weights = self.device_weights(offload)
        if offload != "model":
            return weights + self.activations
        denoisers = (one.bytes for name, one in self.components.items() if name in self.denoisers)
        return max(weights, max(denoisers, default=0) + self.activations)

    def decoding_peak(self, offload: str) -> int:
        """Bytes that are on the device at once while the clip is decoded."""
        vae = self.components.get("vae")
        alone = vae.bytes if vae else 0
        return self.decoding + (alone if offload == "model" else self.device_weights(offload))


def available_memory(device: torch.device) -> int:
    """Bytes free for a new model: of the GPU, or of main memory within the container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    free: int = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = int(counts["inactive_file"])  # of files read before, such as weights; given up when needed
    except (OSError, ValueError, KeyError):  # no limit ("max"), or not a Linux with cgroup 2
        return free
    return min(free, limit - used + cached)


def check_memory(
    load: Load,
    device: torch.device,
    offload: str,
    *,
    mesh: Mesh = ONE_RANK,
    narrow: Load | None = None,
    tiles: bool = False,
) -> bool:
    """Compare what a job needs with the free memory: of the device, and of the host for all its ranks.

    narrow: the same in bfloat16, if that is less. tiles: whether the VAE could decode in tiles, and does not.
    All ranks call it before any of them loads. Returns whether `--offload group` may pin the weights in main
    memory. Raises NotEnoughMemoryError that says what would fit; warns where that is not certain.
    """
    host = _Host.of(load, device, mesh)
    on_cpu = device.type == "cpu"
    kind, free = ("memory", host.free) if on_cpu else ("GPU memory", available_memory(device))
    advice = partial(_advice, load, narrow, offload, on_cpu, free, host)
    name = str(load.dtype).removeprefix("torch.")

    def refuse(needed: int, kind: str, free: int) -> None:
        if needed > free:
            raise NotEnoughMemoryError(
                f"the model needs about {gib(needed)} of {kind} for its weights in {name}, "
                f"{gib(free)} is free; {advice()}"
            )

    def warn(needed: int, what: str, kind: str, free: int) -> None:
        if needed > free and host.speaks:
            logger.warning(f"{what} about {gib(needed)} of {kind}, {gib(free)} is free; {advice()}")

    if offload in ("none", "model"):
        refuse(load.device_weights(offload), kind, free)
    if offload != "none":
        refuse(load.weights, "memory", host.free)
    if load.decoding and load.decoding_peak(offload) > free and host.speaks:
        way = "--vae-tiling" if tiles else "fewer frames or a smaller size"
        needed = gib(load.decoding_peak(offload))
        logger.warning(f"decoding needs about {needed} of {kind}, {gib(free)} is free; try {way}")
    ranks = f"the {host.ranks} ranks of this machine need" if host.ranks > 1 else "the weights need"
    activations = f"with {gib(load.activations)} of activations " if load.activations else ""
    if on_cpu:
        steps = f"steps of {host.ranks} ranks need" if host.ranks > 1 else "a step needs"
        warn(host.peak, f"{activations}{steps}", kind, free)
        return False
    warn(load.device_peak(offload), f"{activations}a step needs", kind, free)
    way = "memory on their way to the GPU" if offload == "none" else "memory"
    warn(host.weights, ranks, way, host.free)
    pins = offload == "group" and host.pinned <= host.free
    if offload == "group" and not pins and host.speaks:
        logger.warning(
            f"weights are pinned one by one, which is slower: all take {gib(host.pinned)} of memory in "
            f"torch's powers of two, {gib(host.free)} is free"
        )
    return pins


@dataclass(frozen=True)
class _Host:
    """The main memory of this machine, and what all ranks of the job there need of it."""

    free: int
    ranks: int
    weights: int
    pinned: int
    peak: int
    """Of a step, for ranks on the CPU."""
    speaks: bool
    """Whether this rank is the first one there."""

    @classmethod
    def of(cls, load: Load, device: torch.device, mesh: Mesh) -> _Host:
        free, name = available_memory(_CPU), socket.gethostname()
        peak = load.device_peak("none") if device.type == "cpu" else 0
        told = mesh.gather_objects((name, mesh.rank, load.weights, load.pinned, peak))
        here = [one for one in told if one[0] == name]
        weights, pinned, peak = (sum(values) for values in list(zip(*here, strict=True))[2:])
        return cls(free, len(here), weights, pinned, peak, speaks=here[0][1] == mesh.rank)


def _advice(load: Load, narrow: Load | None, offload: str, on_cpu: bool, free: int, host: _Host) -> str:
    """What would fit instead, the fastest first."""
    # Weights that devices share are not offloaded.
    modes = OFFLOADS[:1] if on_cpu or load.owners > 1 else OFFLOADS[OFFLOADS.index(offload) :]
    for other in (load, narrow):
        for mode in modes:
            if other is None or (other is load and mode == offload):
                continue
            share = other.weights / max(load.weights, 1)
            # On the CPU the ranks there need it all.
            needed = other.device_peak(mode) * (host.ranks if on_cpu else 1)
            if needed <= free and (on_cpu or host.weights * share <= host.free):
                flags = ["--dtype bfloat16"] if other is narrow else []
                flags += [f"--offload {mode}"] if mode != offload else []
                return f"try {' '.join(flags)}"
    smaller = "fewer frames, a smaller size or " if load.activations else ""
    return f"no --dtype or --offload makes it fit; try {smaller}a smaller model"


def _parameters(file: Path) -> list[tuple[str, int]]:
    """(name, number of values) of every tensor in a safetensors file."""
    with open(file, "rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        header = json.loads(handle.read(length))
    return [(name, math.prod(entry["shape"])) for name, entry in header.items() if name != "__metadata__"]


def gib(size: int) -> str:
    """For messages."""
    return f"{max(size, 0) / _GIB:.1f} GiB"

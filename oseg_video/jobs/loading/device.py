"""The device that a job runs on, and why."""

from __future__ import annotations

import torch

from oseg_video.jobs.loading.errors import LoadError
from oseg_video.types import Denoiser

AUTO = "auto"
_LARGE = 10**9
"""Parameters, 2 GB in bfloat16. The denoisers that a CPU runs in reasonable time have fewer."""


def resolve_device(name: str) -> torch.device:
    """The device; `auto` is the first GPU, else the CPU. Raises LoadError if it is not there."""
    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise LoadError(f"--device {name}: no such device; use auto, cpu, cuda or cuda:N") from None
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    count = available.get(device.type, 0)
    if (device.index or 0) >= count:
        present = ", ".join(kind for kind, number in available.items() if number)
        raise LoadError(f"--device {name}: not available; this machine has {present}")
    return device


def describe_device(name: str) -> str:
    """The device that `name` stands for, with the reason if it is a CPU that nobody asked for."""
    if name != AUTO:
        return name
    return f"cpu ({_why_no_gpu()})" if falls_back(name) else str(resolve_device(name))


def refuse_large(model: str, denoiser: Denoiser) -> None:
    """Raises LoadError for a large denoiser, to be asked where one would run on a CPU that nobody wanted."""
    parameters = sum(one.numel() for one in denoiser.parameters())
    if parameters > _LARGE:
        raise LoadError(
            f"{model} has {parameters / 1e9:.1f} billion parameters and would run on the CPU, for hours or "
            f"days: {_why_no_gpu()}; --device cpu runs it there all the same"
        )


def falls_back(name: str) -> bool:
    """Whether a job runs on the CPU because there is no GPU."""
    return name == AUTO and resolve_device(name).type == "cpu"


def _why_no_gpu() -> str:
    """What torch says. Its warning comes once, maybe before anyone listened; its error comes every time."""
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built without CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().splitlines()[0].rstrip(".")
    return "torch finds no GPU"

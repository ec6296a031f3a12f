"""The working precision of `guidance`: float64 stays float64, everything else is computed in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def upcast(x: Tensor) -> Tensor:
    """`x` in the working precision; no copy where it already has it."""
    return x if x.dtype == torch.float64 else x.float()


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Matrix products on `x`'s device keep the working precision, also inside a caller's `torch.autocast`."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()

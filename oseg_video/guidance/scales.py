"""Guidance scales: a number, or a tensor where a pipeline's scale grows over the frames (SVD)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oseg_video.waits import read_once

if TYPE_CHECKING:
    from torch import Tensor

    Scale = float | Tensor


def shown(scale: Scale, less: float = 0) -> str:
    """A scale, less a number, for the reader; one that grows over the frames shows both ends."""
    if isinstance(scale, int | float):
        return f"{scale - less:.6g}"
    low, high = read_once("ends", [scale], lambda: (float(scale.min()), float(scale.max())))
    return f"[{low - less:.6g} to {high - less:.6g}]"


def in_float32(scale: Scale) -> Scale:
    """A scale in the working precision of the rules. What is read off a scale is read off the one that was
    given, the same tensor in every step."""
    if isinstance(scale, int | float):
        return scale
    from oseg_video.guidance.numerics import upcast

    return upcast(scale)


def guides(scale: Scale) -> bool:
    """Whether a pipeline called with this guidance scale runs an unconditional branch: any entry above 1."""
    if isinstance(scale, int | float):
        return scale > 1
    return read_once("guides", [scale], lambda: bool((scale > 1).any()))


def is_off(scale: Scale) -> bool:
    """Whether a scale leaves the conditional prediction as it is: exactly 1 in every entry."""
    if isinstance(scale, int | float):
        return scale == 1
    return read_once("off", [scale], lambda: bool((scale == 1).all()))


def same_scale(first: Scale, second: Scale) -> bool:
    """Whether two scales are the same number in every entry."""
    numbers = tuple(one for one in (first, second) if isinstance(one, int | float))
    tensors = [one for one in (first, second) if not isinstance(one, int | float)]
    if not tensors:
        return first == second  # type: ignore[return-value]

    def same() -> bool:
        equal: Any = first == second
        return bool(equal.all())

    return read_once(("same", numbers), tensors, same)

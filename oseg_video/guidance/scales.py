"""Guidance scales: a number, or a tensor where a pipeline's scale grows over the frames (SVD)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    Scale = float | Tensor


def shown(scale: Scale, less: float = 0) -> str:
    """A scale, less a number, for the reader; one that grows over the frames shows both ends."""
    if isinstance(scale, int | float):
        return f"{scale - less:.6g}"
    return f"[{float(scale.min()) - less:.6g} to {float(scale.max()) - less:.6g}]"


def guides(scale: Scale) -> bool:
    """Whether a pipeline called with this guidance scale runs an unconditional branch: any entry above 1."""
    return scale > 1 if isinstance(scale, int | float) else bool((scale > 1).any())


def is_off(scale: Scale) -> bool:
    """Whether a scale leaves the conditional prediction as it is: exactly 1 in every entry."""
    return scale == 1 if isinstance(scale, int | float) else bool((scale == 1).all())


def same_scale(first: Scale, second: Scale) -> bool:
    """Whether two scales are the same number in every entry."""
    same = first == second
    return same if isinstance(same, bool) else bool(same.all())

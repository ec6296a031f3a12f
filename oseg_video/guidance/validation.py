"""Checks that the functions and the configuration objects share: one clear line, or the value unchanged."""

from __future__ import annotations

import re
from typing import TypeGuard

from torch import Tensor

from oseg_video.types import SettingError, ShapeError, TokenGrid

# B batch, N heads, S video tokens = F*H*W, D head dim

_SELECTOR = re.compile(r"[a-z0-9_.:-]+")


def is_number(value: object) -> TypeGuard[float]:
    """True for int and float, also infinite; False for bool and NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def validate_fraction(name: str, value: float) -> float:
    """`value` as a float. Raises SettingError unless it is a number in [0, 1]."""
    if not is_number(value) or not 0 <= value <= 1:
        raise SettingError(f"{name} must be a number in [0, 1], got {value!r}")
    return float(value)


def check_tokens(name: str, x_BNSD: Tensor, grid: TokenGrid) -> None:
    """Raises ShapeError unless `x_BNSD` is [B, N, S, D] with S the tokens of the grid."""
    if x_BNSD.ndim != 4:
        raise ShapeError(
            f"{name} must have dimensions [batch, heads, tokens, head dim], got {tuple(x_BNSD.shape)}"
        )
    if x_BNSD.shape[2] != grid.tokens:
        raise ShapeError(f"{name} has {x_BNSD.shape[2]} tokens, expected {grid} = {grid.tokens}")


def check_same_shape(**tensors: Tensor) -> None:
    """Raises ShapeError unless all have the shape of the first: broadcasting would hide a swapped branch."""
    (first_name, first), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape != first.shape:
            raise ShapeError(
                f"{name} {tuple(tensor.shape)} must have the shape of {first_name} {tuple(first.shape)}"
            )


def is_block_selector(value: object) -> TypeGuard[int | str]:
    """True for a running block index (an integer >= 0), and for a text such as "dual:2" or "up.1:temporal".

    Which texts name a block is the adapter's to say.
    """
    if isinstance(value, str):
        return bool(_SELECTOR.fullmatch(value))
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0

"""Checks that the functions and the configuration objects share: one clear line, or the value unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

from oseg_video.types import SettingError, ShapeError, TokenGrid

if TYPE_CHECKING:
    from torch import Tensor

# B batch, N heads, S video tokens = F*H*W, D head dim

BlurSigma = float | tuple[float, float]
"""Width in tokens (not pixels), from 0 = off to inf = mean: one for all axes, or (frames, space)."""

BOUNDARIES = ("symmetric", "reflect")
"""What smoothing does at the edges of the token grid, see `smoothing.smoothing_matrix`."""

_REFERENCE_KINDS = ("token", "frame", "clip", "principal")


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference: its kind, and the rank of its subspace (1 but for "principal")."""

    kind: str
    rank: int = 1


def parse_reference(reference: str) -> Reference:
    """Parses "token", "frame", "clip" or "principal:r", r = 1, 2, ... Raises SettingError for all else."""
    kind, colon, rank = reference.partition(":") if isinstance(reference, str) else ("", "", "")
    if kind == "principal" and rank.isascii() and rank.isdecimal() and int(rank) >= 1:
        return Reference(kind, int(rank))
    if kind not in _REFERENCE_KINDS or kind == "principal" or colon:
        raise SettingError(
            f"reference must be token, frame, clip or principal:r with r >= 1, got {reference!r}"
        )
    return Reference(kind)


def validate_blur_sigma(sigma: BlurSigma) -> tuple[float, float]:
    """(frames, space) of a blur sigma. Raises SettingError unless each is a number from 0 to inf."""
    pair = tuple(sigma) if isinstance(sigma, tuple | list) else (sigma, sigma)
    if len(pair) != 2 or not all(is_number(value) and value >= 0 for value in pair):
        raise SettingError(
            f"blur sigma must be a number >= 0 (or inf), or a pair (frames, space), got {sigma!r}"
        )
    return float(pair[0]), float(pair[1])


def validate_boundary(boundary: str) -> str:
    """`boundary` itself. Raises SettingError unless it is a known one."""
    if boundary not in list(BOUNDARIES):
        raise SettingError(f"boundary must be one of {', '.join(BOUNDARIES)}, got {boundary!r}")
    return boundary


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


def check_frames(x: Tensor, grid: TokenGrid | None) -> None:
    """Raises ShapeError unless x is frames [..., H, W], or with a grid a sequence [B, S, C] of its tokens."""
    if grid is None and x.ndim < 4:
        raise ShapeError(f"a prediction {tuple(x.shape)} has no height and width; a grid must say what it is")
    if grid is not None and (x.ndim != 3 or x.shape[1] < grid.tokens):
        raise ShapeError(f"a prediction {tuple(x.shape)} is no sequence of at least {grid} = {grid.tokens}")

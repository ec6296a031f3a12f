"""Frequency bands of predictions, over height and width of each latent frame."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from oseg_video.guidance.numerics import upcast, without_autocast
from oseg_video.guidance.validation import check_frames
from oseg_video.types import TokenGrid

# L latents along one axis of a frame
_TAPS = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def weigh_high_band(x: Tensor, weight: float, grid: TokenGrid | None = None, behind: int = 0) -> Tensor:
    """`low + weight (x - low)`, where low is what a two-level Laplacian pyramid keeps of each frame of x.

    Low is x blurred, halved, doubled and blurred again (arXiv 2506.19713, equations 7 and 8). It is linear,
    so that bands of a difference are differences of bands, in every prediction type.

    Args:
        x: [..., H, W], or with a `grid` [B, S, C] of which the last tokens before the `behind` last ones are
            the clip's, frame-major. The others keep both bands.
        weight: 1 returns x exactly.

    Returns:
        Like x, in float32 (float64 stays).

    Raises:
        ShapeError: a sequence without a grid, or with fewer tokens than it.
    """
    check_frames(x, grid)
    x = upcast(x)
    if weight == 1:
        return x
    if grid is None:
        return x + (weight - 1) * (x - low_band(x))
    stop = x.shape[1] - behind
    before, clip, after = x.tensor_split((stop - grid.tokens, stop), dim=1)
    frames = clip.unflatten(1, grid.shape).movedim(-1, 2)  # [B, F, C, H, W]
    weighed = weigh_high_band(frames, weight).movedim(2, -1).flatten(1, 3)
    return torch.cat([before, weighed, after], dim=1)


def low_band(x: Tensor) -> Tensor:
    """What a two-level Laplacian pyramid keeps of each frame of x [..., H, W]; constants stay."""
    with without_autocast(x):
        height_HH, width_WW = (_cached_low_matrix(size, x.device, x.dtype) for size in x.shape[-2:])
        return height_HH @ x @ width_WW.mT


def low_matrix(length: int) -> Tensor:
    """`low_band` along one axis, as a matrix [L, L] in float64; its rows sum to 1.

    As kornia's `pyrdown` and `pyrup`, which the paper uses: the binomial filter (1, 4, 6, 4, 1) / 16 at edges
    that are reflected without repeating them, and linear resampling between cells. kornia pads a frame to
    powers of two first; here an odd axis is halved to one more than half of it.
    """
    place = torch.arange(length)
    blur_LL = torch.zeros(length, length, dtype=torch.float64)
    for offset, tap in enumerate(_TAPS, start=-2):
        blur_LL[place, _reflected(place + offset, length)] += tap
    half = _resampling(length, (length + 1) // 2)
    return blur_LL @ _resampling(half.shape[0], length) @ half @ blur_LL


def _reflected(place: Tensor, length: int) -> Tensor:
    period = max(2 * (length - 1), 1)
    return (length - 1) - (place % period - (length - 1)).abs() if length > 1 else torch.zeros_like(place)


def _resampling(before: int, after: int) -> Tensor:
    """Linear resampling of an axis as a matrix [after, before]."""
    identity = torch.eye(before, dtype=torch.float64)[None]
    return interpolate(identity, size=after, mode="linear", align_corners=False)[0].mT


@lru_cache(maxsize=64)
def _cached_low_matrix(length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    # Made in inference mode it could never take part in autograd again, and the cache outlives the mode.
    with torch.inference_mode(False):
        return low_matrix(length).to(device, dtype)

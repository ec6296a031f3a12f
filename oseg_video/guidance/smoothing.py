"""Gaussian smoothing of queries over the token grid (SEG, arXiv 2408.00760, made exact for video).

Smoothing the queries over tokens equals smoothing the attention logits over the query axis:
`G (Q K^T) = (G Q) K^T`. Over a video grid `G = G_F (x) G_H (x) G_W`, and each axis is one small dense
matrix, so every sigma and every boundary costs the same three matrix products.

It needs all video tokens of a head: under sequence parallelism it belongs after the tokens-to-heads exchange.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from oseg_video.guidance.numerics import upcast, without_autocast
from oseg_video.guidance.validation import BlurSigma, check_tokens, validate_blur_sigma, validate_boundary
from oseg_video.types import TokenGrid

# B batch, N heads, S video tokens = F*H*W, D head dim; L tokens along one axis of the grid

# From this many axis lengths on, the slowest mode of the symmetric kernel, exp(-(pi sigma / L)^2 / 2), is
# below float64 resolution: the matrix *is* the mean.
_MEAN_FROM_LENGTHS = 3.0
# SEG-SDXL's `inf_blur_threshold`.
_REFLECT_MEAN_ABOVE = 9999.0


def smooth_queries(
    query_BNSD: Tensor, grid: TokenGrid, sigma: BlurSigma, *, boundary: str = "symmetric"
) -> Tensor:
    """Smooths the queries over the token grid with a Gaussian of `sigma` tokens.

    Args:
        query_BNSD: [B, N, S, D], video tokens only, S = `grid.tokens`.
        grid: the video tokens' frames, height and width.
        sigma: width in tokens, 0 to inf; a pair sets (frames, space). An axis with 0 is left exactly as it is
            (all 0 returns `query_BNSD` itself), inf takes the mean over the axis.
        boundary: "symmetric" or "reflect", see `smoothing_matrix`.

    Returns:
        [B, N, S, D] in the query's dtype; computed in float32, or float64 for float64.

    Raises:
        ShapeError: the query's tokens are not those of the grid.
        SettingError: sigma negative, NaN or not a number or pair; unknown boundary.
    """
    frame_sigma, space_sigma = validate_blur_sigma(sigma)
    validate_boundary(boundary)
    check_tokens("query", query_BNSD, grid)
    axes = enumerate(zip(grid.shape, (frame_sigma, space_sigma, space_sigma), strict=True), start=2)
    smoothed_axes = [(dim, length, width) for dim, (length, width) in axes if length > 1 and width > 0]
    if not smoothed_axes:
        return query_BNSD
    x: Tensor = upcast(query_BNSD).unflatten(2, grid.shape)
    dtype = query_BNSD.dtype
    del query_BNSD  # the caller may have no use for it, and at full size it is a gigabyte
    with without_autocast(x):
        for dim, length, width in smoothed_axes:
            matrix_LL = _axis_matrix(length, width, boundary, x)
            x = torch.matmul(matrix_LL, x.flatten(dim + 1)).view(x.shape)
    return x.flatten(2, 4).to(dtype)


def smoothing_matrix(
    length: int, sigma: float, boundary: str = "symmetric", device: torch.device | str = "cpu"
) -> Tensor:
    """The smoothing matrix [L, L] of one axis, in float64: row i holds the weights of output i.

    "symmetric" is the Neumann heat kernel: the sampled Gaussian, with all its images, on the half-sample
    symmetric extension (.. 1 0 | 0 1 .. L-1 | L-1 ..). With c the 2L-periodic, even sum of images, normalised
    over one period, `G_ij = c(i - j) + c(i + j + 1)`. As j runs over the axis, the two arguments run once
    over the period, so G is symmetric and doubly stochastic for every sigma: it keeps the mean over tokens
    and never raises the variance. Its eigenvalues (DCT-II basis) are ratios of theta functions: in (0, 1],
    and falling with sigma, so the mean is approached monotonically.

    "reflect" is SEG's reference (SusungHong/SEG-SDXL, `pipeline_seg.py`): a Gaussian of `ceil(6 sigma)` taps
    made odd, limited to the axis length (L if odd, L + 1 if even), on the extension that does not repeat the
    edge (torch's `pad(mode="reflect")`); above 9999 the mean. The reference knows square images only and
    limits by their side; here each axis, frames included, is limited by its own length: the same on a square
    image, and the padding is shorter than the axis on any grid. Rows sum to 1, columns need not.
    """
    build = _BOUNDARIES[validate_boundary(boundary)]
    return build(length, sigma, device) if sigma else torch.eye(length, dtype=torch.float64, device=device)


def _axis_matrix(length: int, sigma: float, boundary: str, x: Tensor) -> Tensor:
    # Dynamo traces past a cache: a compiled graph builds the (tiny) matrix on its device, without a copy.
    if torch.compiler.is_compiling():
        return smoothing_matrix(length, sigma, boundary, x.device).to(x.dtype)
    return _cached_axis_matrix(length, sigma, boundary, x.device, x.dtype)


@lru_cache(maxsize=256)
def _cached_axis_matrix(
    length: int, sigma: float, boundary: str, device: torch.device, dtype: torch.dtype
) -> Tensor:
    # Made in inference mode it could never take part in autograd again, and the cache outlives the mode.
    with torch.inference_mode(False):
        return smoothing_matrix(length, sigma, boundary).to(device, dtype)


def _mean_matrix(length: int, device: torch.device | str) -> Tensor:
    return torch.full((length, length), 1 / length, dtype=torch.float64, device=device)


def _symmetric_matrix(length: int, sigma: float, device: torch.device | str) -> Tensor:
    if sigma >= _MEAN_FROM_LENGTHS * length:
        return _mean_matrix(length, device)
    # Circular distances 0..L on the period 2L; exp(-9^2 / 2) is below float64 resolution.
    images = math.ceil(9 * sigma / (2 * length)) + 1
    shift = 2 * length * torch.arange(-images, images + 1, device=device)
    distance = torch.arange(length + 1, device=device)
    weight = torch.exp(-0.5 * ((distance[:, None] + shift).double() / sigma) ** 2).sum(dim=1)
    weight = weight / (weight[0] + 2 * weight[1:-1].sum() + weight[-1])
    # Both terms look up one table by distance, so the matrix equals its transpose bit for bit.
    index = torch.arange(length, device=device)
    mirrored = index[:, None] + index + 1
    return weight[(index[:, None] - index).abs()] + weight[torch.minimum(mirrored, 2 * length - mirrored)]


def _reflect_matrix(length: int, sigma: float, device: torch.device | str) -> Tensor:
    if sigma > _REFLECT_MEAN_ABOVE:
        return _mean_matrix(length, device)
    taps = math.ceil(6 * sigma)
    return reflected_matrix(length, sigma, taps + 1 - taps % 2, device)


def reflected_matrix(length: int, sigma: float, taps: int, device: torch.device | str = "cpu") -> Tensor:
    """A sampled Gaussian on the extension that does not repeat the edge (.. 2 1 | 0 1 ..): [L, L], float64.

    taps: how many, odd; at most L (if odd) or L + 1 are taken. Rows sum to 1.
    """
    taps = min(taps, length + 1 - length % 2)
    offset = torch.arange(-(taps // 2), taps // 2 + 1, device=device)
    weight = torch.exp(-0.5 * (offset.double() / sigma) ** 2)
    weight = weight / weight.sum()
    source = (torch.arange(length, device=device)[:, None] + offset).abs()
    source = torch.minimum(source, 2 * (length - 1) - source)
    matrix = torch.zeros(length, length, dtype=torch.float64, device=device)
    return matrix.scatter_add(1, source, weight.expand(length, taps))


_BOUNDARIES: dict[str, Callable[[int, float, torch.device | str], Tensor]] = {
    "symmetric": _symmetric_matrix,
    "reflect": _reflect_matrix,
}

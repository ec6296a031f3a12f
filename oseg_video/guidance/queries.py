"""Query transforms: what a perturbed branch does to the video queries of one attention site.

Keys, values and text queries stay as they are. `seg_queries` and `oseg_queries` belong after QK-norm and
before rotary embedding; `released_queries` before QK-norm. Each is one float32 (float64) computation with
one cast at the end.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from oseg_video.guidance.numerics import upcast, without_autocast
from oseg_video.guidance.projection import split_by_key, split_by_reference
from oseg_video.guidance.smoothing import smooth_queries
from oseg_video.guidance.validation import BlurSigma, validate_fraction
from oseg_video.types import ShapeError, TokenGrid

# B batch, N heads, S video tokens = F*H*W, D head dim, C = N*D channels

_RELEASED_ROWS = 64
_RELEASED_SIGMA = 1.0
_RELEASED_RADIUS = 2


def seg_queries(
    query_BNSD: Tensor, grid: TokenGrid, blur_sigma: BlurSigma, *, boundary: str = "symmetric"
) -> Tensor:
    """SEG (arXiv 2408.00760): `G(q)`, the queries smoothed over the token grid; `blur_sigma=0` is the input.

    [B, N, S, D] in and out. Arguments, precision and errors: `smooth_queries`.
    """
    return smooth_queries(query_BNSD, grid, blur_sigma, boundary=boundary)


def oseg_queries(
    query_BNSD: Tensor,
    key_BNSD: Tensor,
    grid: TokenGrid,
    *,
    blur_sigma: BlurSigma = 5.0,
    mix: float = 1.0,
    keep_parallel: float = 0.0,
    reference: str = "token",
    boundary: str = "symmetric",
) -> Tensor:
    """OSEG (WACV 2026): `(1 - mix) q + mix (keep_parallel q_par + G(q_perp))`.

    Only the component orthogonal to the reference key is smoothed.

    Args:
        query_BNSD, key_BNSD: [B, N, S, D], video tokens only.
        blur_sigma: width of G in tokens, or (frames, space); inf takes the mean.
        mix: in [0, 1]; 0 returns `query_BNSD` exactly.
        keep_parallel: in [0, 1]; 0 as in the released code, 1 leaves the parallel component whole.
        reference: what "parallel" refers to, see `split_by_reference`.
        boundary: see `smoothing_matrix`.

    Returns:
        [B, N, S, D] in the query's dtype.

    Raises:
        ShapeError: as `smooth_queries` and `split_by_reference`.
        SettingError: the same, and mix or keep_parallel outside [0, 1].
    """
    validate_fraction("mix", mix)
    validate_fraction("keep_parallel", keep_parallel)
    split = list(split_by_reference(query_BNSD, key_BNSD, grid, reference))
    if mix == 0:
        return query_BNSD
    if keep_parallel == 0:
        del split[0]
    # Handed over, not lent, so that large tensors are let go of as soon as they have been read.
    perturbed = smooth_queries(split.pop(), grid, blur_sigma, boundary=boundary)
    if keep_parallel != 0:
        perturbed = perturbed.add(split[0], alpha=keep_parallel)
    if mix != 1:
        perturbed = upcast(query_BNSD).lerp(perturbed, mix)
    return perturbed.to(query_BNSD.dtype)


def released_queries(query_BSC: Tensor, key_BSC: Tensor, *, mix: float) -> Tensor:
    """The transform of OSEG's released video code (saqibnazmus/OSEG), for reproduction only.

    `(1 - mix) q0 + mix B(q0_perp)`. q0 is the query less its mean over channels, also where mix = 0, so no
    value of it is the identity; q0_perp is orthogonal to the token's key over the full channel vector (all
    heads together); B is a 5 x 5 Gaussian of sigma 1, zero padded, over the *channels* of each token viewed
    as a 64 x (C / 64) image, not over tokens.

    Args:
        query_BSC, key_BSC: [B, S, C], full channels, before QK-norm and before the split into heads.
        mix: in [0, 1]; the released code has 0.67 for Mochi and 1 for HunyuanVideo.

    Returns:
        [B, S, C] in the query's dtype.

    Raises:
        ShapeError: query and key differ, are not [B, S, C], or C is not a multiple of 64.
        SettingError: mix outside [0, 1].
    """
    validate_fraction("mix", mix)
    if query_BSC.ndim != 3 or query_BSC.shape[-1] % _RELEASED_ROWS:
        raise ShapeError(
            f"the released query transform needs [batch, tokens, channels] with channels a multiple of "
            f"{_RELEASED_ROWS}, got {tuple(query_BSC.shape)}"
        )
    query = upcast(query_BSC)
    query = query - query.mean(dim=-1, keepdim=True)
    _, orthogonal = split_by_key(query, key_BSC)
    return ((1 - mix) * query + mix * _smooth_channels(orthogonal)).to(query_BSC.dtype)


def _smooth_channels(x_BSC: Tensor) -> Tensor:
    offset = torch.arange(-_RELEASED_RADIUS, _RELEASED_RADIUS + 1, dtype=x_BSC.dtype, device=x_BSC.device)
    kernel = torch.exp(-(offset**2) / (2 * _RELEASED_SIGMA**2))
    kernel = torch.outer(kernel, kernel)
    kernel = (kernel / kernel.sum()).expand(1, 1, -1, -1)
    image = x_BSC.reshape(-1, 1, _RELEASED_ROWS, x_BSC.shape[-1] // _RELEASED_ROWS)
    with without_autocast(x_BSC):
        return F.conv2d(image, kernel, padding=_RELEASED_RADIUS).view(x_BSC.shape)

"""Self-attention guidance: smooth the latents where a UNet's self-attention gathers (SAG, arXiv 2210.00939).

A denoiser's input is x = a x0 + b noise with a^2 + b^2 = 1 (schedulers of other scalings scale it to that).
What the network makes of x says what x0 is. Where the attention map gathers more than its mean, x0 is
smoothed, and the same noise is added again: `x + a M (G x0 - x0)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from oseg_video.guidance.numerics import upcast, without_autocast
from oseg_video.guidance.smoothing import reflected_matrix
from oseg_video.types import ShapeError, TokenGrid

# B batch (frames folded in), N heads, S tokens of one frame = h*w, D head dim, C channels, H W latents

PredictionType = Literal["epsilon", "sample", "v_prediction"]
PREDICTION_TYPES: tuple[PredictionType, ...] = get_args(PredictionType)
"""What a prediction p says: the noise, x0, or `a noise - b x0` (arXiv 2202.00512)."""

_SIGMAS_EACH_SIDE = 4  # with sigma 1 the 9 taps of diffusers' StableDiffusionSAGPipeline


@dataclass(frozen=True)
class Noise:
    """How a denoiser's input is made of data and noise, and what its prediction says of them."""

    level: float
    """Share of noise on the scale of flow matching: 1 is pure noise, 0 is clean."""
    prediction_type: PredictionType

    @property
    def coefficients(self) -> tuple[float, float]:
        """(a, b) of the input `a x0 + b noise`."""
        norm = math.hypot(self.level, 1 - self.level)
        return (1 - self.level) / norm, self.level / norm


def attention_mass(query_BNSD: Tensor, key_BNSD: Tensor) -> Tensor:
    """What each token is given by all queries, averaged over heads: [B, S]; its mean over tokens is 1.

    `sum_i softmax(q_i K^T / sqrt(d))_j`, one head at a time, in float32 (float64 stays).
    """
    query, key = upcast(query_BNSD), upcast(key_BNSD)
    heads, dim = query.shape[1], query.shape[-1]
    mass = torch.zeros_like(query[:, 0, :, 0])
    with without_autocast(query):
        for head in range(heads):
            logits = query[:, head] @ key[:, head].transpose(1, 2) / math.sqrt(dim)
            mass = mass + logits.softmax(dim=-1).sum(dim=1)
    return mass / heads


def scaled_clean(noisy: Tensor, prediction: Tensor, noise: Noise) -> Tensor:
    """`a x0` in the input `noisy` by what was predicted of it; without a division, so also of pure noise."""
    data, level = noise.coefficients
    if noise.prediction_type == "epsilon":
        return noisy - level * prediction
    clean = prediction if noise.prediction_type == "sample" else data * noisy - level * prediction
    return data * clean


def blur_attended(
    noisy_BCHW: Tensor,
    prediction_BCHW: Tensor,
    mass_BS: Tensor,
    grid: TokenGrid,
    *,
    noise: Noise,
    blur_sigma: float,
) -> Tensor:
    """The input with its clean part smoothed where `mass_BS` is above 1, the noise as it was.

    Args:
        noisy_BCHW: the denoiser's input.
        prediction_BCHW: what the denoiser made of it, under the same condition.
        mass_BS: `attention_mass` over the h x w tokens of `grid`, F = 1; its mask is enlarged to H x W by
            nearest neighbours.
        noise: of this step.
        blur_sigma: width in latents of the Gaussian, which is cut at 4 sigma and reflects at the edges (which
            do not repeat); above 0.

    Returns:
        [B, C, H, W] in the dtype of `noisy_BCHW`.

    Raises:
        ShapeError: the mass is not one row of the grid's tokens for each image.
    """
    images, _, height, width = noisy_BCHW.shape
    if mass_BS.shape != (images, grid.tokens) or grid.shape[0] != 1:
        raise ShapeError(
            f"attention over {grid} has shape {tuple(mass_BS.shape)}, which is no map over {images} images"
        )
    noisy = upcast(noisy_BCHW)
    clean = scaled_clean(noisy, upcast(prediction_BCHW), noise)
    mask = (mass_BS > 1).to(clean.dtype).unflatten(1, (1, *grid.shape[1:]))
    mask = F.interpolate(mask, (height, width), mode="nearest")
    with without_autocast(clean):
        smooth = _matrix(height, blur_sigma, clean) @ clean @ _matrix(width, blur_sigma, clean).T
    return (noisy + mask * (smooth - clean)).to(noisy_BCHW.dtype)


def _matrix(length: int, sigma: float, x: Tensor) -> Tensor:
    return _kept_matrix(length, sigma, x.device, x.dtype)


@lru_cache(maxsize=256)
def _kept_matrix(length: int, sigma: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    # As of `smoothing`: a matrix of inference mode could never take part in autograd again.
    with torch.inference_mode(False):
        matrix = reflected_matrix(length, sigma, 2 * math.ceil(_SIGMAS_EACH_SIDE * sigma) + 1)
        return matrix.to(device, dtype)

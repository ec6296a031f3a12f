"""Normalised attention guidance: what attention mixes for one text, away from what it mixes for another one.

NAG, arXiv 2505.21179, section 4; the authors' code is ChenDarYen/Normalized-Attention-Guidance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oseg_video.guidance.numerics import upcast
from oseg_video.guidance.validation import check_same_shape

# B batch, S tokens, C channels of all heads


def extrapolated_attention(
    positive_BSC: Tensor, negative_BSC: Tensor, *, scale: float, tau: float, alpha: float
) -> Tensor:
    """`alpha Z^ + (1 - alpha) Z+` with `Z^ = Z~ min(R, tau) / R` and `Z~ = Z- + scale (Z+ - Z-)`.

    Per token, over the channels of all heads, `R = ||Z~||_1 / ||Z+||_1`. The paper's phi is `scale - 1`, the
    authors' `nag_scale` is `scale`. Scale 1 with tau of at least 1, and alpha 0, return Z+ exactly.

    Args:
        positive_BSC: Z+, what the queries mix of the text's values, before the output projection.
        negative_BSC: Z-, what the same queries mix of the other text's values.
        scale: at least 1; 1 is off.
        tau: largest ratio of the norms.
        alpha: share of what was extrapolated, 0 to 1.

    Returns:
        [B, S, C] in float32 (float64 stays).

    Raises:
        ShapeError: tensors of unequal shape.
    """
    check_same_shape(positive=positive_BSC, negative=negative_BSC)
    positive, negative = upcast(positive_BSC), upcast(negative_BSC)
    pushed = positive + (scale - 1) * (positive - negative)
    size, limit = (torch.linalg.vector_norm(x, ord=1, dim=-1, keepdim=True) for x in (pushed, positive))
    # min(R, tau) / R, and of what is 0 any part is 0.
    shortened = pushed * (tau * limit / size.where(size > 0, 1.0)).clamp(max=1)
    return positive + alpha * (shortened - positive)  # type: ignore[no-any-return]

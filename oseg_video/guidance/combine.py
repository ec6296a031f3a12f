"""Rules that combine the branches' predictions into one; computed and returned in float32 (float64 stays).

C `cond`, U `uncond` (null or negative prompt), P `perturbed`, ~ the same branch with perturbed queries. All
predictions have one shape [B, ...], and "per sample" reduces every dimension but the first. A scale is a
number, or a tensor that broadcasts against the predictions (SVD's scale grows over the frames). A guided
prediction is a text part, `cfg` or `extrapolate`, to which `push_away` adds a perturbed term. The linear
rules hold in every prediction type; `projection_scale` and all that uses it, and `rescale`, do not: they act
on the type that the model predicts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oseg_video.guidance.numerics import upcast
from oseg_video.guidance.validation import check_same_shape, validate_fraction

Scale = float | Tensor


def cfg(cond: Tensor, uncond: Tensor, scale: Scale) -> Tensor:
    """`U + scale (C - U)` (arXiv 2207.12598), the very expression of diffusers' pipelines, in float32.

    Scale 0 returns U exactly. Scale 1 is C up to rounding; callers skip U there. Raises ShapeError.
    """
    check_same_shape(cond=cond, uncond=uncond)
    cond, uncond = upcast(cond), upcast(uncond)
    return uncond + scale * (cond - uncond)


def difference(cond: Tensor, uncond: Tensor) -> Tensor:
    """`C - U`, the text difference. Raises ShapeError."""
    check_same_shape(cond=cond, uncond=uncond)
    return upcast(cond) - upcast(uncond)


def zero_star_difference(cond: Tensor, uncond: Tensor) -> Tensor:
    """`C - a U` with `a = projection_scale(C, U)`: the part of C orthogonal to U (arXiv 2503.18886).

    Raises ShapeError.
    """
    return upcast(cond) - projection_scale(cond, uncond) * upcast(uncond)


def apg_update(
    cond: Tensor,
    uncond: Tensor,
    average: Tensor | None,
    *,
    eta: float,
    momentum: float,
    norm_threshold: float,
) -> tuple[Tensor, Tensor]:
    """The text difference of adaptive projected guidance (arXiv 2410.02416) and the new running average.

    In this order: `D = C - U + momentum * average`; D shortened to the norm `norm_threshold` where it is
    longer; its component along C times `eta`. Norm and projection are per sample.

    Args:
        average: the running average that the step before returned, None on the first step.
        eta: 1 keeps D whole, exactly; 0 keeps what is orthogonal to C.
        momentum: 0 is off.
        norm_threshold: 0 is off.

    Returns:
        (treated difference, D before it was shortened and projected), both like `cond` in the working
        precision.

    Raises:
        ShapeError: tensors of unequal shape.
    """
    update = difference(cond, uncond)
    if average is not None:
        check_same_shape(cond=cond, average=average)
        update = update + momentum * upcast(average)
    average = update
    if norm_threshold > 0:
        norm = torch.linalg.vector_norm(update, dim=tuple(range(1, update.ndim)), keepdim=True)
        update = update * (norm_threshold / norm).clamp(max=1)
    along_cond = projection_scale(update, cond) * upcast(cond)
    return update - (1 - eta) * along_cond, average


def extrapolate(cond: Tensor, difference: Tensor, scale: Scale) -> Tensor:
    """`C + (scale - 1) T`, with T a treated text difference; scale 1 returns C exactly. Raises ShapeError."""
    check_same_shape(cond=cond, difference=difference)
    return upcast(cond) + (scale - 1) * upcast(difference)


def push_away(prediction: Tensor, *, cond: Tensor, perturbed: Tensor, scale: Scale) -> Tensor:
    """`prediction + scale (C - P)`: what STG, PAG, SEG and OSEG add to the text part.

    Scale 0, and P = C, return the prediction exactly. Raises ShapeError.
    """
    check_same_shape(prediction=prediction, cond=cond, perturbed=perturbed)
    return upcast(prediction) + scale * (upcast(cond) - upcast(perturbed))


def oseg_released(
    *,
    cond: Tensor,
    uncond_perturbed: Tensor,
    cond_perturbed: Tensor | None = None,
    guidance_scale: Scale,
    scale: Scale,
    shrink: float = 0.98,
) -> Tensor:
    """`C + (guidance_scale - 1) (C - s a_U U~) + scale (C - s a_C C~)`, of OSEG's released code.

    `a_X = projection_scale(C, X)` per sample, s = `shrink` (saqibnazmus/OSEG, the Mochi and HunyuanVideo
    pipelines). Without `cond_perturbed` C~ is C itself, as in the Mochi pipeline, which leaves that branch
    unperturbed. On the first step the released code returns `0.1 C` instead; that is the caller's to do.
    Raises ShapeError for predictions of unequal shape.
    """
    cond_perturbed = cond if cond_perturbed is None else cond_perturbed
    check_same_shape(cond=cond, uncond_perturbed=uncond_perturbed, cond_perturbed=cond_perturbed)
    cond, uncond, perturbed = upcast(cond), upcast(uncond_perturbed), upcast(cond_perturbed)
    from_uncond = cond - shrink * projection_scale(cond, uncond) * uncond
    from_perturbed = cond - shrink * projection_scale(cond, perturbed) * perturbed
    return cond + (guidance_scale - 1) * from_uncond + scale * from_perturbed


def projection_scale(cond: Tensor, other: Tensor) -> Tensor:
    """`a = <C, X> / ||X||^2` per sample, [B, 1, ...], 0 where X = 0 (CFG-Zero*, arXiv 2503.18886).

    `a X` is the projection of `cond` on `other`. Raises ShapeError for unequal shapes.
    """
    check_same_shape(cond=cond, other=other)
    cond, other = upcast(cond), upcast(other)
    per_sample = tuple(range(1, cond.ndim))
    squared_norm = other.square().sum(dim=per_sample, keepdim=True)
    inner = (cond * other).sum(dim=per_sample, keepdim=True)
    return inner / squared_norm.where(squared_norm > 0, 1.0)


def rescale(prediction: Tensor, cond: Tensor, factor: float) -> Tensor:
    """`pred (factor f + 1 - factor)` with `f = std(C) / std(pred)` per sample (arXiv 2305.08891, 3.4).

    Raising the factor pulls the contrast back to that of the conditional prediction; 0 returns the prediction
    exactly, and a constant prediction stays as it is.

    Raises:
        SettingError: factor outside [0, 1].
        ShapeError: unequal shapes.
    """
    validate_fraction("rescale", factor)
    check_same_shape(cond=cond, prediction=prediction)
    prediction = upcast(prediction)
    if factor == 0:
        return prediction
    per_sample = tuple(range(1, prediction.ndim))
    std = prediction.std(dim=per_sample, keepdim=True)
    cond_std = upcast(cond).std(dim=per_sample, keepdim=True)
    ratio = torch.where(std > 0, cond_std / std, 1.0)
    return prediction * (factor * ratio + (1 - factor))

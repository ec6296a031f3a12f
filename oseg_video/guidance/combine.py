"""Rules that combine the branches' predictions into one; computed and returned in float32 (float64 stays).

C `cond`, U `uncond` (null or negative prompt), P `perturbed`, ~ the same branch with perturbed queries. All
predictions have one shape [B, ...], and "per sample" reduces every dimension but the first. A scale is a
number, or a tensor that broadcasts against the predictions (SVD's scale grows over the frames). Branches of
equal shape are easily swapped, so rules with three of them take keywords only; a term whose branch is left
out must have weight zero. The linear rules hold in every prediction type; `projection_scale`,
`oseg_published` and `rescale` do not: they act on the type that the model predicts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oseg_video.guidance.numerics import upcast
from oseg_video.guidance.validation import check_same_shape, validate_fraction
from oseg_video.types import SettingError

Scale = float | Tensor


def cfg(cond: Tensor, uncond: Tensor, scale: Scale) -> Tensor:
    """`U + scale (C - U)` (arXiv 2207.12598), the very expression of diffusers' pipelines, in float32.

    Scale 0 returns U exactly. Scale 1 is C up to rounding; callers skip U there. Raises ShapeError.
    """
    check_same_shape(cond=cond, uncond=uncond)
    cond, uncond = upcast(cond), upcast(uncond)
    return uncond + scale * (cond - uncond)


def perturbed_guidance(
    *,
    cond: Tensor,
    perturbed: Tensor,
    uncond: Tensor | None = None,
    guidance_scale: Scale = 1.0,
    perturbed_scale: Scale,
) -> Tensor:
    """`U + guidance_scale (C - U) + perturbed_scale (C - P)`: STG, PAG, SEG, and OSEG with a plain U.

    Without `uncond` the base is C. `perturbed_scale=0` is `cfg` exactly.

    Raises:
        SettingError: a guidance scale other than 1 without `uncond`.
        ShapeError: predictions of unequal shape.
    """
    check_same_shape(cond=cond, perturbed=perturbed)
    cond, perturbed = upcast(cond), upcast(perturbed)
    if uncond is None:
        _require("guidance_scale", guidance_scale, 1, without="uncond")
        prediction = cond
    else:
        prediction = cfg(cond, uncond, guidance_scale)
    return prediction + perturbed_scale * (cond - perturbed)


def oseg_slides(
    *,
    cond: Tensor,
    uncond_perturbed: Tensor | None = None,
    cond_perturbed: Tensor | None = None,
    guidance_scale: Scale = 1.0,
    oseg_scale: Scale,
) -> Tensor:
    """`C + (guidance_scale - 1) (C - U~) + oseg_scale (C - C~)`, from OSEG's slides (WACV 2026).

    Without `uncond_perturbed` it is the slides' form without text guidance; given the null prompt's two
    predictions, that is their `U + lambda (U - U~)`.

    Raises:
        SettingError: a guidance scale other than 1 without `uncond_perturbed`, or an OSEG scale other than 0
            without `cond_perturbed`.
        ShapeError: predictions of unequal shape.
    """
    prediction = cond = upcast(cond)
    if uncond_perturbed is None:
        _require("guidance_scale", guidance_scale, 1, without="uncond_perturbed")
    else:
        check_same_shape(cond=cond, uncond_perturbed=uncond_perturbed)
        prediction = prediction + (guidance_scale - 1) * (cond - upcast(uncond_perturbed))
    if cond_perturbed is None:
        _require("oseg_scale", oseg_scale, 0, without="cond_perturbed")
    else:
        check_same_shape(cond=cond, cond_perturbed=cond_perturbed)
        prediction = prediction + oseg_scale * (cond - upcast(cond_perturbed))
    return prediction


def oseg_published(
    *,
    cond: Tensor,
    uncond_perturbed: Tensor,
    cond_perturbed: Tensor | None = None,
    guidance_scale: Scale,
    oseg_scale: Scale,
    shrink: float = 0.98,
) -> Tensor:
    """`C + (guidance_scale - 1) (C - s a_U U~) + oseg_scale (C - s a_C C~)`, of OSEG's released code.

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
    return cond + (guidance_scale - 1) * from_uncond + oseg_scale * from_perturbed


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


def _require(setting: str, value: Scale, off: float, *, without: str) -> None:
    if not torch.as_tensor(value).eq(off).all():
        raise SettingError(f"{setting} must be {off} without a prediction `{without}`, got {value}")

"""Rules that combine the branches' predictions into one; computed and returned in float32 (float64 stays).

C `cond`, U `uncond` (null or negative prompt), P `perturbed`, ~ the same branch with perturbed queries. All
predictions have one shape [B, ...], and "per sample" reduces every dimension but the first. A scale is a
number, or a tensor that broadcasts against the predictions (SVD's scale grows over the frames). A guided
prediction is a text part, `cfg` or `extrapolate`, to which `push_away` adds a perturbed term. The linear
rules hold in every prediction type, and so do those on what is tangential to the noisy latents; others, such
as `projection_scale` and `rescale`, act on the type that the model predicts, for LTX-2 on denoised latents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from oseg_video.guidance.numerics import upcast
from oseg_video.guidance.validation import check_same_shape, validate_fraction

if TYPE_CHECKING:
    from oseg_video.guidance.scales import Scale


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
        update = update * (norm_threshold / _norm(update)).clamp(max=1)
    along_cond = projection_scale(update, cond) * upcast(cond)
    return update - (1 - eta) * along_cond, average


def damped_difference(cond: Tensor, uncond: Tensor, damping: float) -> Tensor:
    """`(C - U) exp(-damping r)` with `r = ||C - U|| / ||U||` per sample, the text difference of MAMBO-G.

    With it `C + (w - 1) T` is CFG at the scale `1 + (w - 1) exp(-damping r)` (arXiv 2508.03442). Damping 0
    returns `C - U` exactly; where U = 0, the ratio has no value and the difference is 0. Raises ShapeError.
    """
    update = difference(cond, uncond)
    if damping == 0:
        return update
    ratio = _norm(update) / _norm(upcast(uncond))
    # 0 / 0 is a difference of 0, whatever it is damped by.
    damped: Tensor = update * torch.exp(-damping * ratio.nan_to_num(0.0))
    return damped


def tangential(x: Tensor, sample: Tensor) -> Tensor:
    """What of `x` is orthogonal to the noisy latents `sample`, per sample (arXiv 2510.04533, equation 6).

    A prediction of another type is `a sample + b x` with numbers a and b, so that this part of it is b times
    as large: what is done to it does not depend on the type. Raises ShapeError.
    """
    return upcast(x) - projection_scale(x, sample) * upcast(sample)


def amplify_tangent(prediction: Tensor, sample: Tensor, factor: float) -> Tensor:
    """The tangential part of a prediction times `factor`, the rest as it is (arXiv 2510.04533, equation 7).

    The paper amplifies `x_next - x` of a solver's step. Where that is `a x + b prediction`, as of Euler and
    DDIM, it is the same. Factor 1 returns the prediction exactly. Raises ShapeError.
    """
    prediction = upcast(prediction)
    return prediction if factor == 1 else prediction + (factor - 1) * tangential(prediction, sample)


def aligned_tangent(cond: Tensor, uncond: Tensor, sample: Tensor, *, relative: bool) -> Tensor:
    """The projection of C on the tangential part of `C - U` (arXiv 2510.04533, equations 24 and 25).

    `(<C, g> / ||g||^2) g` with `g = tangential(C - U, x)` per sample; `relative` brings it to the norm of
    `C - U` (equation 28). 0 where g = 0. Raises ShapeError.
    """
    update = difference(cond, uncond)
    tangent = tangential(update, sample)
    aligned = projection_scale(cond, tangent) * tangent
    if not relative:
        return aligned
    norm = _norm(aligned)
    return aligned * (_norm(update) / norm.where(norm > 0, 1.0))


def push_from_history(
    prediction: Tensor, average: Tensor | None, *, scale: float, decay: float
) -> tuple[Tensor, Tensor]:
    """`v + scale (v - m)` and the next m, `(1 - decay) v + decay m` (arXiv 2602.20360, algorithm 1).

    Args:
        average: m, what the step before returned; None on the first step, where m is v and nothing changes.

    Raises:
        ShapeError: tensors of unequal shape.
    """
    prediction = upcast(prediction)
    if average is None:
        return prediction, prediction
    check_same_shape(prediction=prediction, average=average)
    average = upcast(average)
    return prediction + scale * (prediction - average), torch.lerp(prediction, average, decay)


def switched_difference(
    cond: Tensor, uncond: Tensor, before: Tensor | None, *, slope: float, gain: float
) -> Tensor:
    """`e - gain sign(s)` with `e = C - U` and `s = (e - e') + slope e'` (arXiv 2603.03281, algorithm 1).

    e' is what the step before returned; on the first step (None) e itself. Gain 0 returns `C - U` exactly.
    The sign is that of each element, as in the authors' code (hanyang-21/CFG-Ctrl). Raises ShapeError.
    """
    error = difference(cond, uncond)
    before = error if before is None else upcast(before)
    check_same_shape(cond=cond, before=before)
    return error - gain * torch.sign(error - before + slope * before)


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
    uncond_perturbed: Tensor | None = None,
    cond_perturbed: Tensor | None = None,
    guidance_scale: Scale,
    scale: Scale,
    shrink: float = 0.98,
) -> Tensor:
    """`C + (guidance_scale - 1) (C - s a_U U~) + scale (C - s a_C C~)`, of OSEG's released code.

    `a_X = projection_scale(C, X)` per sample, s = `shrink` (saqibnazmus/OSEG, the Mochi and HunyuanVideo
    pipelines). Without `cond_perturbed` C~ is C itself, as in the Mochi pipeline, which leaves that branch
    unperturbed. `uncond_perturbed` may be left out at a guidance scale of 1, where it counts for nothing. On
    the first step the released code returns `0.1 C` instead; that is the caller's to do. Raises ShapeError
    for predictions of unequal shape.
    """
    cond_perturbed = cond if cond_perturbed is None else cond_perturbed
    uncond_perturbed = cond if uncond_perturbed is None else uncond_perturbed
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
    squared_norm = other.square().sum(dim=_per_sample(other), keepdim=True)
    inner = (cond * other).sum(dim=_per_sample(cond), keepdim=True)
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
    std = prediction.std(dim=_per_sample(prediction), keepdim=True)
    cond_std = upcast(cond).std(dim=_per_sample(cond), keepdim=True)
    ratio = torch.where(std > 0, cond_std / std, 1.0)
    return prediction * (factor * ratio + (1 - factor))


def _per_sample(x: Tensor) -> tuple[int, ...]:
    """The dimensions that belong to one sample."""
    return tuple(range(1, x.ndim))


def _norm(x: Tensor) -> Tensor:
    """The norm of each sample, [B, 1, ...]."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=_per_sample(x), keepdim=True)
    return norm

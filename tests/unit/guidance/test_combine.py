"""Combination rules against scalar loops in Python floats."""

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from oseg_video.guidance.combine import (
    apg_update,
    cfg,
    difference,
    extrapolate,
    oseg_released,
    projection_scale,
    push_away,
    rescale,
    zero_star_difference,
)
from oseg_video.types import OsegVideoError

SEEDS = st.integers(0, 2**31 - 1)
SCALES = st.floats(-3, 12)
FRACTIONS = st.floats(0, 1)


def random_predictions(count, seed=0, dtype=torch.float64, shape=(2, 3, 2, 4)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64).to(dtype).unbind()


def elementwise(formula, *predictions):
    """The formula applied to Python floats, one element at a time."""
    rows = zip(*(p.flatten().tolist() for p in predictions), strict=True)
    return torch.tensor([formula(*row) for row in rows], dtype=torch.float64).view(predictions[0].shape)


def projection_by_loops(cond, other):
    scales = []
    for c, x in zip(cond.flatten(1).tolist(), other.flatten(1).tolist(), strict=True):
        inner, norm = sum(a * b for a, b in zip(c, x, strict=True)), sum(b * b for b in x)
        scales.append(inner / norm if norm else 0.0)
    return torch.tensor(scales, dtype=torch.float64).view(-1, *[1] * (cond.ndim - 1))


@given(SEEDS, SCALES)
def test_cfg(seed, w):
    c, u = random_predictions(2, seed)
    assert_close(cfg(c, u, w), elementwise(lambda c, u: u + w * (c - u), c, u))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cfg_is_bit_equal_to_the_pipelines_expression_in_float32(dtype):
    cond, uncond = random_predictions(2, dtype=dtype, shape=(2, 1000))
    noise_pred_uncond, noise_pred_text = torch.cat([uncond, cond]).to(torch.float32).chunk(2)
    for guidance_scale in (1.0, 3.5, 4.5, 7.25):
        expected = noise_pred_uncond + guidance_scale * (noise_pred_text - noise_pred_uncond)
        assert torch.equal(cfg(cond, uncond, guidance_scale), expected)


@given(SEEDS, SCALES)
def test_extrapolate_is_cfg_of_the_plain_difference(seed, w):
    c, u = random_predictions(2, seed)
    expected = elementwise(lambda c, u: c + (w - 1) * (c - u), c, u)
    assert_close(extrapolate(c, difference(c, u), w), expected)
    assert_close(extrapolate(c, difference(c, u), w), cfg(c, u, w))
    assert torch.equal(extrapolate(c, difference(c, u), 1.0), c)


@given(SEEDS, SCALES)
def test_push_away(seed, weight):
    b, c, p = random_predictions(3, seed)
    result = push_away(b, cond=c, perturbed=p, scale=weight)
    assert_close(result, elementwise(lambda b, c, p: b + weight * (c - p), b, c, p))
    assert torch.equal(push_away(b, cond=c, perturbed=p, scale=0.0), b)
    assert torch.equal(push_away(b, cond=c, perturbed=c, scale=weight), b)


@given(SEEDS)
def test_zero_star_difference_is_orthogonal_to_uncond_per_sample(seed):
    c, u = random_predictions(2, seed)
    a = projection_by_loops(c, u).expand_as(c)
    result = zero_star_difference(c, u)
    assert_close(result, elementwise(lambda c, u, a: c - a * u, c, u, a))
    assert_close((result * u).flatten(1).sum(1), torch.zeros(2).double(), rtol=0, atol=1e-12)
    assert torch.equal(zero_star_difference(c, torch.zeros_like(c)), c)


def apg_by_numpy(cond, uncond, average, eta, momentum, threshold):
    """One sample at a time, with an orthonormal vector along cond instead of a projection scale."""
    updates, averages = np.empty(cond.shape), np.empty(cond.shape)
    for b in range(len(cond)):
        c, u = cond[b].numpy().ravel(), uncond[b].numpy().ravel()
        d = c - u + (momentum * average[b].numpy().ravel() if average is not None else 0)
        averages[b] = d.reshape(cond.shape[1:])
        length = math.sqrt(sum(x * x for x in d))
        if threshold and length > threshold:
            d = d * threshold / length
        unit = c / math.sqrt(sum(x * x for x in c))
        along = sum(x * y for x, y in zip(d, unit, strict=True))
        updates[b] = (d - along * unit + eta * along * unit).reshape(cond.shape[1:])
    return torch.from_numpy(updates), torch.from_numpy(averages)


@given(SEEDS, FRACTIONS, st.floats(-0.99, 0.99), st.sampled_from([0.0, 0.5, 3.0, 1e6]))
def test_apg_update(seed, eta, momentum, threshold):
    c, u, average = random_predictions(3, seed)
    options = {"eta": eta, "momentum": momentum, "norm_threshold": threshold}
    for before in (None, average):
        result = apg_update(c, u, before, **options)
        expected = apg_by_numpy(c, u, before, eta, momentum, threshold)
        assert_close(result[0], expected[0])
        assert_close(result[1], expected[1])


@given(SEEDS, st.floats(0.1, 3))
def test_apg_keeps_parts_of_the_difference(seed, threshold):
    c, u = random_predictions(2, seed)
    whole, _ = apg_update(c, u, None, eta=1.0, momentum=0.0, norm_threshold=0.0)
    assert torch.equal(whole, c - u)
    orthogonal, _ = apg_update(c, u, None, eta=0.0, momentum=0.0, norm_threshold=0.0)
    assert_close((orthogonal * c).flatten(1).sum(1), torch.zeros(2).double(), rtol=0, atol=1e-12)
    parallel = (whole - orthogonal).flatten(1)
    assert_close(parallel, c.flatten(1) * (parallel[:, :1] / c.flatten(1)[:, :1]))
    short, average = apg_update(c, u, None, eta=1.0, momentum=0.0, norm_threshold=threshold)
    assert (short.flatten(1).norm(dim=1) <= threshold * (1 + 1e-12)).all()
    assert torch.equal(average, c - u)
    assert torch.equal(apg_update(c, c, None, eta=0.5, momentum=0.0, norm_threshold=1.0)[0], c - c)
    zero = torch.zeros_like(c)
    assert torch.equal(apg_update(zero, u, None, eta=0.0, momentum=0.0, norm_threshold=0.0)[0], -u)


@given(SEEDS, SCALES, SCALES, FRACTIONS)
def test_oseg_released(seed, w, weight, s):
    c, u, p = random_predictions(3, seed)
    a_u, a_p = projection_by_loops(c, u).expand_as(c), projection_by_loops(c, p).expand_as(c)
    expected = elementwise(
        lambda c, u, p, a_u, a_p: c + (w - 1) * (c - s * a_u * u) + weight * (c - s * a_p * p),
        c,
        u,
        p,
        a_u,
        a_p,
    )
    branches = {"cond": c, "uncond_perturbed": u, "cond_perturbed": p}
    assert_close(oseg_released(**branches, guidance_scale=w, scale=weight, shrink=s), expected)


def test_oseg_released_without_a_perturbed_cond_shrinks_cond_by_itself():
    c, u = random_predictions(2)
    result = oseg_released(cond=c, uncond_perturbed=u, guidance_scale=1.0, scale=0.62)
    assert_close(result, c * (1 + 0.62 * 0.02))


@given(SEEDS)
def test_projection_scale_leaves_an_orthogonal_rest_per_sample(seed):
    c, x = random_predictions(2, seed)
    scale = projection_scale(c, x)
    assert scale.shape == (2, 1, 1, 1)
    assert_close(scale, projection_by_loops(c, x))
    assert_close(((c - scale * x) * x).flatten(1).sum(dim=1), torch.zeros(2).double(), rtol=0, atol=1e-12)
    assert torch.equal(projection_scale(c, torch.zeros_like(c)), torch.zeros(2, 1, 1, 1).double())


@given(SEEDS, FRACTIONS)
def test_rescale(seed, factor):
    pred, c = random_predictions(2, seed)
    pred = 3 * pred + 1
    expected = torch.empty_like(pred)
    for b in range(len(pred)):
        ratio = statistics.stdev(c[b].flatten().tolist()) / statistics.stdev(pred[b].flatten().tolist())
        expected[b] = torch.from_numpy(pred[b].numpy() * (factor * ratio + 1 - factor))
    assert_close(rescale(pred, c, factor), expected)


def test_rescale_factor_one_has_the_contrast_of_cond_and_zero_is_exact():
    pred, c = random_predictions(2)
    assert_close(rescale(pred, c, 1).flatten(1).std(dim=1), c.flatten(1).std(dim=1))
    assert torch.equal(rescale(pred, c, 0.0), pred)
    half = pred.bfloat16()
    assert torch.equal(rescale(half, c, 0), half.float())
    constant = torch.full_like(pred, 0.3)
    assert torch.equal(rescale(constant, c, 0.5), constant)


def test_only_zeros_and_constants_are_taken_for_such():
    """Where noise is low, predictions of a tenth and less are no exception."""
    pred, c = random_predictions(2)
    small, small_c = pred / 1000, c / 1000
    assert_close(projection_scale(small_c, small), projection_scale(c, pred))
    assert_close(rescale(small, small_c, 0.5), rescale(pred, c, 0.5) / 1000)
    both = {"eta": 0.5, "momentum": 0.0}
    expected = apg_update(c, pred, None, **both, norm_threshold=3.0)[0] / 1000
    assert_close(apg_update(small_c, small, None, **both, norm_threshold=0.003)[0], expected)


@pytest.mark.parametrize("factor", [-0.1, 1.01, math.nan, "0.7"])
def test_rescale_factor_outside_the_unit_interval_is_refused(factor):
    pred, c = random_predictions(2)
    with pytest.raises(OsegVideoError, match=r"^rescale must be a number in \[0, 1\], got "):
        rescale(pred, c, factor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_rule_computes_and_returns_the_working_precision(dtype):
    working = torch.float64 if dtype == torch.float64 else torch.float32
    c, u, p = random_predictions(3, dtype=dtype)
    copies = [x.clone() for x in (c, u, p)]

    def rules(c, u, p):
        perturbed = {"cond": c, "uncond_perturbed": u, "cond_perturbed": p}
        return (
            cfg(c, u, 6.0),
            difference(c, u),
            zero_star_difference(c, u),
            *apg_update(c, u, p, eta=0.3, momentum=-0.5, norm_threshold=2.0),
            extrapolate(c, u, 6.0),
            push_away(u, cond=c, perturbed=p, scale=1.5),
            oseg_released(**perturbed, guidance_scale=6.0, scale=1.5),
            projection_scale(c, u),
            rescale(c, u, 0.7),
        )

    for result, expected in zip(rules(c, u, p), rules(*(x.to(working) for x in (c, u, p))), strict=True):
        assert result.dtype == working
        assert torch.equal(result, expected)
    assert all(torch.equal(x, copy) for x, copy in zip((c, u, p), copies, strict=True))


def test_a_scale_per_frame_broadcasts():
    c, u, p = random_predictions(3, shape=(2, 5, 3))
    per_frame = torch.linspace(1, 3, 5, dtype=torch.float64).view(1, 5, 1)
    for frame, scale in enumerate(per_frame.flatten().tolist()):
        assert_close(extrapolate(c, u, per_frame)[:, frame], extrapolate(c, u, scale)[:, frame])
        pushed = push_away(u, cond=c, perturbed=p, scale=per_frame)
        assert_close(pushed[:, frame], push_away(u, cond=c, perturbed=p, scale=scale)[:, frame])
        assert_close(cfg(c, u, per_frame)[:, frame], cfg(c, u, scale)[:, frame])


def test_predictions_of_unequal_shape_are_refused():
    c, other = torch.zeros(2, 3), torch.zeros(1, 3)
    apg = {"eta": 0.0, "momentum": 0.5, "norm_threshold": 0.0}
    calls = [
        lambda: cfg(c, other, 2.0),
        lambda: difference(c, other),
        lambda: zero_star_difference(c, other),
        lambda: apg_update(c, other, None, **apg),
        lambda: apg_update(c, c, other, **apg),
        lambda: extrapolate(c, other, 2.0),
        lambda: push_away(c, cond=c, perturbed=other, scale=1.0),
        lambda: push_away(c, cond=other, perturbed=c, scale=1.0),
        lambda: oseg_released(cond=c, uncond_perturbed=other, guidance_scale=2.0, scale=1.0),
        lambda: projection_scale(c, other),
        lambda: rescale(other, c, 0.5),
    ]
    for call in calls:
        with pytest.raises(OsegVideoError, match=r"\(1, 3\) must have the shape of \w+ \(2, 3\)"):
            call()

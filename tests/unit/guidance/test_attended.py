"""SAG's input: attention mass, clean part and smoothing under the mask, against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from oseg_video.guidance.attended import PREDICTION_TYPES, Noise, attention_mass, blur_attended, scaled_clean
from oseg_video.types import ShapeError, TokenGrid

LEVEL = 0.6  # a x0 + b noise with b / a = 1.5
DATA, NOISE = 1 / math.sqrt(1 + 1.5**2), 1.5 / math.sqrt(1 + 1.5**2)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mass_by_hand(query: Tensor, key: Tensor) -> Tensor:
    batch, heads, tokens, dim = query.shape
    mass = torch.zeros(batch, tokens, dtype=torch.float64)
    for b in range(batch):
        for n in range(heads):
            for i in range(tokens):
                weights = [
                    math.exp(float(query[b, n, i] @ key[b, n, j]) / math.sqrt(dim)) for j in range(tokens)
                ]
                for j in range(tokens):
                    mass[b, j] += weights[j] / sum(weights) / heads
    return mass


def test_the_mass_of_a_token_is_what_all_queries_give_it() -> None:
    query, key = randn(2, 3, 6, 4), randn(2, 3, 6, 4, seed=1)
    mass = attention_mass(query, key)
    assert_close(mass, mass_by_hand(query, key))
    assert_close(mass.mean(1), torch.ones(2, dtype=torch.float64))
    assert attention_mass(query.half(), key.half()).dtype == torch.float32


def test_equal_queries_and_keys_give_every_token_the_same() -> None:
    same = torch.ones(1, 2, 5, 4, dtype=torch.float64)
    assert_close(attention_mass(same, same), torch.ones(1, 5, dtype=torch.float64))


def prediction_of(kind: str, clean: Tensor, noise: Tensor) -> Tensor:
    return {"epsilon": noise, "sample": clean, "v_prediction": DATA * noise - NOISE * clean}[kind]


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_the_clean_part_is_that_of_the_prediction(kind: str) -> None:
    clean, noise = randn(2, 4, 5, 3), randn(2, 4, 5, 3, seed=1)
    noisy = DATA * clean + NOISE * noise
    assert Noise(LEVEL, kind).coefficients == pytest.approx((DATA, NOISE))
    assert_close(scaled_clean(noisy, prediction_of(kind, clean, noise), Noise(LEVEL, kind)), DATA * clean)


def test_pure_noise_has_no_clean_part() -> None:
    noisy = randn(1, 4, 5, 3)
    for kind in PREDICTION_TYPES:
        prediction = noisy if kind == "epsilon" else randn(1, 4, 5, 3, seed=1)
        assert not scaled_clean(noisy, prediction, Noise(1.0, kind)).any()


def smooth_by_hand(image: Tensor, sigma: float) -> Tensor:
    """Of [H, W]: 4 sigma to each side, edges reflected without being repeated."""
    height, width = image.shape
    reach = math.ceil(4 * sigma)
    taps = range(-reach, reach + 1)

    def inside(place: int, length: int) -> int:
        place = abs(place)
        return place if place < length else 2 * (length - 1) - place

    weight = {tap: math.exp(-0.5 * (tap / sigma) ** 2) for tap in taps}
    total = sum(weight.values())
    result = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            for di in taps:
                for dj in taps:
                    share = weight[di] * weight[dj] / total**2
                    result[i, j] += share * image[inside(i + di, height), inside(j + dj, width)]
    return result


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_the_clean_part_is_smoothed_where_attention_gathers_and_noise_stays(kind: str) -> None:
    clean, noise = randn(2, 2, 9, 8), randn(2, 2, 9, 8, seed=1)
    noisy = DATA * clean + NOISE * noise
    grid = TokenGrid(1, 4, 3)  # a token stands for 9 / 4 rows and 8 / 3 columns
    mass = torch.rand(2, grid.tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2
    changed = blur_attended(
        noisy, prediction_of(kind, clean, noise), mass, grid, noise=Noise(LEVEL, kind), blur_sigma=1.0
    )
    expected = torch.empty_like(noisy)
    for b in range(2):
        for c in range(2):
            smooth = smooth_by_hand(clean[b, c], 1.0)
            for i in range(9):
                for j in range(8):
                    gathers = mass[b, (i * 4 // 9) * 3 + j * 3 // 8] > 1
                    x0 = smooth[i, j] if gathers else clean[b, c, i, j]
                    expected[b, c, i, j] = DATA * x0 + NOISE * noise[b, c, i, j]
    assert_close(changed, expected)
    assert (
        blur_attended(
            noisy.half(), noise.half(), mass, grid, noise=Noise(LEVEL, "epsilon"), blur_sigma=1.0
        ).dtype
        == torch.float16
    )


def test_a_short_axis_has_fewer_taps() -> None:
    """So the reflected edge is shorter than the axis; rows still sum to 1."""
    clean = torch.full((1, 4, 2, 3), 5.0, dtype=torch.float64)
    mass = torch.full((1, 6), 2.0, dtype=torch.float64)
    grid, noise = TokenGrid(1, 2, 3), Noise(0.0, "sample")
    assert_close(blur_attended(clean, clean, mass, grid, noise=noise, blur_sigma=1.0), clean)


def test_a_map_of_another_size_is_refused() -> None:
    x = randn(2, 4, 8, 8)
    for mass, grid in ((torch.ones(2, 5), TokenGrid(1, 2, 3)), (torch.ones(2, 4), TokenGrid(4, 1, 1))):
        with pytest.raises(ShapeError, match="no map over 2 images"):
            blur_attended(x, x, mass, grid, noise=Noise(LEVEL, "epsilon"), blur_sigma=1.0)

"""Frequency bands of frames, against numpy: a two-level Laplacian pyramid step by step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from oseg_video.guidance.bands import low_band, low_matrix, weigh_high_band
from oseg_video.types import ShapeError, TokenGrid

SEEDS = st.integers(0, 2**31 - 1)
SIZES = st.integers(1, 13)


def blurred(x: np.ndarray, axis: int) -> np.ndarray:
    """The binomial filter at edges that are reflected without repeating them."""
    x = np.moveaxis(x, axis, -1)
    wide = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(2, 2)], mode="reflect")
    size = x.shape[-1]
    result = sum(tap * wide[..., k : k + size] for k, tap in enumerate((1, 4, 6, 4, 1))) / 16
    return np.moveaxis(result, -1, axis)


def halved(x: np.ndarray, axis: int) -> np.ndarray:
    """The mean of each pair: linear interpolation at the middle between two cells."""
    x = np.moveaxis(x, axis, -1)
    return np.moveaxis((x[..., ::2] + x[..., 1::2]) / 2, -1, axis)


def doubled(x: np.ndarray, axis: int) -> np.ndarray:
    """Each cell in two, a quarter of a cell before its middle and a quarter behind it."""
    x = np.moveaxis(x, axis, -1)
    before, behind = np.roll(x, 1, -1), np.roll(x, -1, -1)
    before[..., 0], behind[..., -1] = x[..., 0], x[..., -1]
    pairs = np.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * behind], axis=-1)
    return np.moveaxis(pairs.reshape(*x.shape[:-1], -1), -1, axis)


def pyramid_low(x: np.ndarray) -> np.ndarray:
    """Both axes of each frame, in the order of the pyramid: all of one stage before the next."""
    for stage in (blurred, halved, doubled, blurred):
        x = stage(stage(x, -1), -2)
    return x


@given(SEEDS, st.sampled_from([(8, 6), (4, 16), (6, 4)]))
def test_the_low_band_is_that_of_a_laplacian_pyramid(seed, size) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert_close(low_band(x), torch.from_numpy(pyramid_low(x.numpy())))


@given(SIZES)
def test_every_length_keeps_constants_and_mirrors(length) -> None:
    matrix = low_matrix(length)
    assert matrix.shape == (length, length)
    assert_close(matrix.sum(1), torch.ones(length, dtype=torch.float64))
    assert_close(matrix, matrix.flip(0, 1))


def test_the_finest_detail_is_high() -> None:
    checkers = torch.tensor([[1.0, -1.0] * 4, [-1.0, 1.0] * 4] * 4)[None, None]
    assert low_band(checkers).abs().max() < 1e-6
    assert_close(weigh_high_band(checkers, 3.0), 3 * checkers)
    flat = torch.full((1, 2, 5, 7), 0.3)
    assert_close(weigh_high_band(flat, 3.0), flat)


@given(SEEDS, st.floats(0, 5))
def test_bands_are_weighed_frame_by_frame_in_every_layout(seed, weight) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 4, 6, 5, dtype=torch.float64, generator=generator)  # [B, C, F, H, W]
    result = weigh_high_band(x, weight)
    for frame in range(4):
        low = low_band(x[:, :, frame])
        assert_close(result[:, :, frame], low + weight * (x[:, :, frame] - low))
    others = torch.randn(2, 7, 3, dtype=torch.float64, generator=generator)
    packed = torch.cat([others, x.flatten(2).mT], dim=1)  # [B, S, C]
    weighed = weigh_high_band(packed, weight, TokenGrid(4, 6, 5))
    assert torch.equal(weighed[:, :7], others)
    assert_close(weighed[:, 7:].mT.unflatten(2, (4, 6, 5)), result)


def test_weight_1_is_the_identity_and_the_working_precision_holds() -> None:
    x = torch.randn(1, 2, 4, 4)
    assert torch.equal(weigh_high_band(x, 1.0), x)
    assert weigh_high_band(x.bfloat16(), 2.0).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(weigh_high_band(x, 2.0), x + (x - low_band(x)))


def test_a_sequence_without_a_grid_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"a prediction \(1, 24, 3\) has no height and width"):
        weigh_high_band(torch.zeros(1, 24, 3), 2.0)
    for x in (torch.zeros(1, 23, 3), torch.zeros(1, 3, 2, 3, 4)):
        with pytest.raises(ShapeError, match="is no sequence of at least"):
            weigh_high_band(x, 2.0, TokenGrid(2, 3, 4))

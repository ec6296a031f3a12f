"""NAG's formula (arXiv 2505.21179) against a loop over tokens in float64, and what it promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from oseg_video.guidance.attention import extrapolated_attention
from oseg_video.types import ShapeError


def pair(seed: int, contrast: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, 2, 5, 12, dtype=torch.float64, generator=generator)
    return first, first + contrast * second


def by_hand(positive: Tensor, negative: Tensor, phi: float, tau: float, alpha: float) -> Tensor:
    """Equations of the paper, in its own letters and token by token."""
    result = torch.empty_like(positive)
    for row in range(positive.shape[0]):
        for token in range(positive.shape[1]):
            z_plus, z_minus = positive[row, token].tolist(), negative[row, token].tolist()
            z = [p + phi * (p - n) for p, n in zip(z_plus, z_minus, strict=True)]
            ratio = sum(map(abs, z)) / sum(map(abs, z_plus))
            hat = [min(ratio, tau) / ratio * one for one in z]
            mixed = [alpha * h + (1 - alpha) * p for h, p in zip(hat, z_plus, strict=True)]
            result[row, token] = torch.tensor(mixed, dtype=torch.float64)
    return result


@given(
    seed=st.integers(0, 99),
    contrast=st.floats(0.01, 3),
    phi=st.floats(0, 12),
    tau=st.floats(1, 6),
    alpha=st.floats(0, 1),
)
def test_it_is_the_papers_formula(seed: int, contrast: float, phi: float, tau: float, alpha: float) -> None:
    positive, negative = pair(seed, contrast)
    result = extrapolated_attention(positive, negative, scale=1 + phi, tau=tau, alpha=alpha)
    assert_close(result, by_hand(positive, negative, phi, tau, alpha))


def test_some_tokens_are_shortened_and_others_are_not() -> None:
    positive, negative = pair(0)
    free = positive + 4 * (positive - negative)
    ratio = free.abs().sum(-1) / positive.abs().sum(-1)
    assert (ratio > 6).any() and (ratio < 6).any()
    result = extrapolated_attention(positive, negative, scale=5.0, tau=6.0, alpha=1.0)
    kept = result.abs().sum(-1) / positive.abs().sum(-1)
    assert_close(kept, ratio.clamp(max=6))


@pytest.mark.parametrize("off", ({"scale": 1.0, "alpha": 0.7}, {"scale": 4.0, "alpha": 0.0}))
def test_neutral_values_and_equal_texts_change_nothing(off: dict[str, float]) -> None:
    positive, negative = pair(1)
    assert torch.equal(extrapolated_attention(positive, negative, tau=2.5, **off), positive)
    same = extrapolated_attention(positive, positive, scale=4.0, tau=2.5, alpha=0.5)
    assert torch.equal(same, positive)


def test_what_is_zero_stays_a_number() -> None:
    zero, (positive, _) = torch.zeros(1, 2, 3), pair(2)
    assert torch.equal(extrapolated_attention(zero, zero, scale=4.0, tau=2.5, alpha=0.5), zero)
    # Z~ = 0 where Z- = Z+ s / (s - 1).
    result = extrapolated_attention(positive, positive * 2, scale=2.0, tau=2.5, alpha=0.25)
    assert_close(result, 0.75 * positive)
    # Z+ = 0 leaves nothing to be pushed away from Z-.
    assert not extrapolated_attention(zero, torch.ones(1, 2, 3), scale=2.0, tau=2.5, alpha=0.5).any()


def test_half_precision_is_computed_in_float32() -> None:
    positive, negative = (x.bfloat16() for x in pair(3))
    result = extrapolated_attention(positive, negative, scale=5.0, tau=2.5, alpha=0.25)
    assert result.dtype == torch.float32
    expected = by_hand(positive.double(), negative.double(), 4.0, 2.5, 0.25)
    assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


def test_shapes_must_be_the_same() -> None:
    with pytest.raises(ShapeError, match="negative"):
        extrapolated_attention(torch.zeros(1, 2, 3), torch.zeros(1, 1, 3), scale=2.0, tau=2.5, alpha=0.5)

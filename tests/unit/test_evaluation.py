"""Fréchet distance and bootstrap against closed forms and an independent implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from oseg_video.evaluation.bootstrap import bootstrap, share
from oseg_video.evaluation.frechet import Moments, frechet_distance
from oseg_video.types import OsegVideoError


def moments(mean: list[float], covariance: list[list[float]]) -> Moments:
    return Moments(10, torch.tensor(mean).double(), torch.tensor(covariance).double())


def test_frechet_distance_of_diagonal_gaussians_is_the_closed_form() -> None:
    one = moments([1.0, 2.0], [[4.0, 0.0], [0.0, 9.0]])
    other = moments([0.0, 0.0], [[1.0, 0.0], [0.0, 16.0]])
    # Standard deviations 2, 3 against 1, 4: |m|^2 + (2-1)^2 + (3-4)^2.
    assert frechet_distance(one, other) == pytest.approx(5 + 1 + 1)


def test_frechet_distance_agrees_with_the_eigenvalues_of_the_plain_product() -> None:
    generator = torch.Generator().manual_seed(0)
    sets = [torch.randn(50, 6, generator=generator) @ torch.randn(6, 6, generator=generator) for _ in "ab"]
    one, other = (x.double().numpy() for x in sets)
    product = np.cov(one.T) @ np.cov(other.T)
    expected = (
        np.square(one.mean(0) - other.mean(0)).sum()
        + np.trace(np.cov(one.T) + np.cov(other.T))
        - 2 * np.sqrt(np.linalg.eigvals(product).astype(complex)).real.sum()
    )
    assert frechet_distance(Moments.of(sets[0]), Moments.of(sets[1])) == pytest.approx(expected)


def test_a_set_has_distance_zero_to_itself_in_any_order_also_when_degenerate() -> None:
    features = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    features[:, 7] = features[:, 0]
    assert frechet_distance(Moments.of(features), Moments.of(features.flip(0))) == pytest.approx(0, abs=1e-6)


def test_one_vector_has_no_moments() -> None:
    with pytest.raises(OsegVideoError, match="at least 2"):
        Moments.of(torch.zeros(1, 4))


def test_bootstrap_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(2)).double()
    interval = bootstrap(lambda rows: float(values[rows].mean()), len(values), resamples=4000)
    half = 1.96 * float(values.std()) / math.sqrt(len(values))
    assert interval.value == pytest.approx(float(values.mean()))
    assert interval.high - interval.value == pytest.approx(half, rel=0.1)
    assert interval.value - interval.low == pytest.approx(half, rel=0.1)


def test_a_paired_interval_is_narrower_than_an_unpaired_one() -> None:
    generator = torch.Generator().manual_seed(3)
    easy = torch.randn(300, generator=generator)
    one, other = easy + 0.1, easy + 0.05 * torch.randn(300, generator=generator)
    paired = bootstrap(lambda rows: float((one[rows] - other[rows]).mean()), 300)
    assert 0 < paired.low < 0.1 < paired.high


def test_the_share_of_all_right_clips_keeps_its_uncertainty() -> None:
    interval = share(100, 100)
    assert interval.value == interval.high == 1
    assert interval.low == pytest.approx(1 / (1 + 1.959964**2 / 100))  # closed form at a rate of 1
    half = share(50, 100)
    assert half.high - 0.5 == pytest.approx(0.5 - half.low) and half.low == pytest.approx(0.4038, abs=1e-4)


def test_an_interval_of_a_biased_statistic_still_holds_its_value() -> None:
    features = torch.randn(60, 8, generator=torch.Generator().manual_seed(4)).double()
    reference = Moments.of(torch.randn(500, 8, generator=torch.Generator().manual_seed(5)))
    interval = bootstrap(
        lambda rows: frechet_distance(Moments.of(features[rows]), reference), 60, resamples=100
    )
    assert interval.low < interval.value < interval.high

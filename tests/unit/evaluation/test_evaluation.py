"""Fréchet distance and bootstrap against closed forms and an independent implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from oseg_video.evaluation.bootstrap import (
    bootstrap,
    interval_of,
    resampled,
    share,
    share_difference,
    share_over,
)
from oseg_video.evaluation.features.frechet import Moments, frechet_distance, moments_of_rows
from oseg_video.types import OsegVideoError


class Colours(nn.Module):
    """A feature extractor that both sides can use: means over quarters of the image, per channel."""

    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images.double(), images.shape[-1] // 2).flatten(1)


def moments(mean: list[float], covariance: list[list[float]]) -> Moments:
    return Moments(10, torch.tensor(mean).double(), 9 * torch.tensor(covariance).double())


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


def test_one_vector_has_no_covariance() -> None:
    one = Moments.of(torch.zeros(1, 4))
    with pytest.raises(OsegVideoError, match="at least 2"):
        frechet_distance(one, one)
    with pytest.raises(OsegVideoError, match="feature vectors"):
        Moments.of(torch.zeros(0, 4))


# A mean far from zero: sums of squares would lose all digits of the covariance in float32, half in float64.
FAR = 1e6


@pytest.mark.parametrize("sizes", [[300], [1] * 300, [7, 1, 0, 192, 100], [299, 1]])
def test_moments_of_parts_are_those_of_the_whole(sizes: list[int]) -> None:
    features = torch.randn(300, 5, generator=torch.Generator().manual_seed(6)).double() + FAR
    total = Moments.empty(5)
    for part in features.split(sizes):
        total = total + (Moments.of(part) if len(part) else Moments.empty(5))
    assert total.count == 300
    torch.testing.assert_close(total.mean_D, features.mean(dim=0))
    expected = torch.from_numpy(np.cov(features.numpy().T))
    torch.testing.assert_close(total.covariance(), expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(total.covariance(ddof=0), expected * 299 / 300, rtol=1e-8, atol=1e-8)


def test_moments_of_chosen_rows_count_repetitions_in_any_order() -> None:
    rows = torch.randn(50, 3, generator=torch.Generator().manual_seed(7)).double()
    index = torch.randint(50, (120,), generator=torch.Generator().manual_seed(8))
    chunked = moments_of_rows(rows, index, chunk=7)
    torch.testing.assert_close(chunked.covariance(), Moments.of(rows[index]).covariance())
    torch.testing.assert_close(chunked.mean_D, rows[index].mean(dim=0))


def test_frechet_distance_is_that_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(9)
    real, fake = (torch.rand(n, 3, 8, 8, generator=generator) * scale for n, scale in ((40, 1.0), (30, 0.7)))
    oracle = FrechetInceptionDistance(feature=Colours(), input_img_size=(3, 8, 8), normalize=True)
    oracle.set_dtype(torch.float64)
    oracle.update(real, real=True)
    oracle.update(fake, real=False)
    sets = [Moments.of(Colours()(images)) for images in (fake, real)]
    assert frechet_distance(*sets) == pytest.approx(float(oracle.compute()), rel=1e-6)


def test_distance_between_samples_of_known_gaussians_comes_close_to_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(10)
    one = Moments.of(torch.randn(20_000, 2, generator=generator) * torch.tensor([2.0, 3.0]) + 1)
    other = Moments.of(torch.randn(20_000, 2, generator=generator) * torch.tensor([1.0, 4.0]))
    assert frechet_distance(one, other) == pytest.approx(2 + 1 + 1, rel=0.05)


def test_bootstrap_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(2)).double()
    interval = bootstrap(lambda rows: float(values[rows].mean()), len(values), resamples=4000)
    half = 1.96 * float(values.std()) / math.sqrt(len(values))
    assert interval.value == pytest.approx(float(values.mean()))
    assert interval.high - interval.value == pytest.approx(half, rel=0.1)
    assert interval.value - interval.low == pytest.approx(half, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_an_interval_over_few_holds_the_truth_as_often_as_it_says(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    held = 0
    for _ in range(500):
        values = torch.randn(count, generator=generator).double()
        interval = bootstrap(lambda rows, v=values: float(v[rows].mean()), count, resamples=200)
        held += interval.low < 0 < interval.high
    assert 0.91 <= held / 500 <= 0.98


@pytest.mark.slow
def test_an_interval_from_few_draws_holds_the_truth_as_often_as_it_says() -> None:
    """Of FID there are 20; their quantiles would hold it 88 times of 100."""
    generator = torch.Generator().manual_seed(1)
    held = 0
    for _ in range(1000):
        values = torch.randn(100, generator=generator).double()
        interval = bootstrap(lambda rows, v=values: float(v[rows].mean()), 100, resamples=20)
        held += interval.low < 0 < interval.high
    assert 0.93 <= held / 1000 <= 0.97


def test_a_paired_interval_is_narrower_than_an_unpaired_one() -> None:
    generator = torch.Generator().manual_seed(3)
    easy = torch.randn(300, generator=generator)
    one, other = easy + 0.1, easy + 0.05 * torch.randn(300, generator=generator)
    paired = bootstrap(lambda rows: float((one[rows] - other[rows]).mean()), 300)
    assert 0 < paired.low < 0.1 < paired.high


def test_the_share_of_all_right_clips_keeps_its_uncertainty() -> None:
    interval = share(1, 100)
    assert interval.value == interval.high == 1
    assert interval.low == pytest.approx(1 / (1 + 1.959964**2 / 100))  # closed form at a rate of 1
    half = share(0.5, 100)
    assert half.high - 0.5 == pytest.approx(0.5 - half.low) and half.low == pytest.approx(0.4038, abs=1e-4)


def test_the_difference_of_paired_shares_against_its_closed_form() -> None:
    """Newcombe 1998, method 10, from the four counts of a table of pairs."""
    for both, first, second, neither in (
        (36, 12, 2, 6),
        (50, 0, 0, 0),
        (49, 0, 0, 1),
        (3, 8, 9, 4),
        (20, 5, 0, 0),
    ):
        ours = [1.0] * (both + first) + [0.0] * (second + neither)
        theirs = [1.0] * both + [0.0] * first + [1.0] * second + [0.0] * neither
        count = len(ours)
        (p, p_low, p_high), (q, q_low, q_high) = (
            share((both + first) / count, count),
            share((both + second) / count, count),
        )
        product = both * neither - first * second
        corrected = product if product <= 0 else max(product - count / 2, 0)
        margins = (both + first) * (second + neither) * (both + second) * (first + neither)
        phi = corrected / margins**0.5 if margins else 0
        low = ((p - p_low) ** 2 - 2 * phi * (p - p_low) * (q_high - q) + (q_high - q) ** 2) ** 0.5
        high = ((p_high - p) ** 2 - 2 * phi * (p_high - p) * (q - q_low) + (q - q_low) ** 2) ** 0.5
        found = share_difference(ours, theirs)
        assert found == pytest.approx(((first - second) / count, p - q - low, p - q + high))
        assert found.low < found.value < found.high


def test_the_difference_of_paired_shares_covers_the_truth() -> None:
    generator = torch.Generator().manual_seed(6)
    for rates in ((0.97, 0.0, 0.01, 0.02), (0.5, 0.2, 0.1, 0.2)):
        true = rates[1] - rates[2]
        held = 0
        for _ in range(1000):
            pairs = torch.tensor(rates).multinomial(60, replacement=True, generator=generator)
            ours, theirs = ((pairs == 0) | (pairs == 1)).tolist(), ((pairs == 0) | (pairs == 2)).tolist()
            found = share_difference([float(x) for x in ours], [float(x) for x in theirs])
            held += found.low <= true <= found.high
        assert 930 <= held


def test_clips_of_a_prompt_count_as_many_as_they_are_worth() -> None:
    generator = torch.Generator().manual_seed(7)
    prompts = [place // 4 for place in range(800)]

    def width(hits: torch.Tensor) -> float:
        found = share_over(hits.double().tolist(), prompts)
        assert found.value == pytest.approx(float(hits.double().mean()))
        return found.high - found.low

    apart = torch.rand(800, generator=generator) < 0.3
    alike = (torch.rand(200, generator=generator) < 0.3).repeat_interleave(4)
    assert width(apart) == pytest.approx(2 * 1.96 * (0.3 * 0.7 / 800) ** 0.5, rel=0.1)
    assert width(alike) == pytest.approx(2 * 1.96 * (0.3 * 0.7 / 200) ** 0.5, rel=0.1)
    ones = torch.ones(800, dtype=torch.bool)  # says nothing of how alike they are: one a prompt
    assert share_over(ones.double().tolist(), prompts) == share(1, 200)


@pytest.mark.slow
@pytest.mark.parametrize(("prompts", "clips", "rate"), [(6, 5, 0.5), (40, 2, 0.9), (60, 4, 0.3)])
def test_shares_over_prompts_cover_the_truth(prompts: int, clips: int, rate: float) -> None:
    """Chances differ between prompts, by a Beta distribution, and methods share the prompt's."""
    generator = torch.Generator().manual_seed(8)
    groups = [place // clips for place in range(prompts * clips)]
    held = of_difference = 0
    chances = torch.distributions.Beta(4 * rate, 4 * (1 - rate))
    torch.manual_seed(8)
    for _ in range(1000):
        chance = chances.sample((prompts,)).repeat_interleave(clips)
        ours, theirs = ((torch.rand(len(groups), generator=generator) < chance).double() for _ in range(2))
        found = share_over(ours.tolist(), groups)
        held += found.low <= rate <= found.high
        difference = share_difference(ours.tolist(), theirs.tolist(), groups)
        of_difference += difference.low <= 0 <= difference.high
    assert 930 <= held and 930 <= of_difference


def test_a_mean_that_one_clip_moves_may_be_nothing() -> None:
    """Centred on its own draws, chance would decide on which side of 0 the interval ends."""
    for place in range(20):
        values = torch.zeros(200).double()
        values[10 * place] = 1
        interval = bootstrap(lambda rows, v=values: float(v[rows].mean()), 200)
        assert interval.low < 0 < interval.high


def test_an_interval_of_a_biased_statistic_still_holds_its_value() -> None:
    features = torch.randn(60, 8, generator=torch.Generator().manual_seed(4)).double()
    reference = Moments.of(torch.randn(500, 8, generator=torch.Generator().manual_seed(5)))
    interval = bootstrap(
        lambda rows: frechet_distance(Moments.of(features[rows]), reference),
        60,
        resamples=100,
        biased=True,
    )
    assert interval.low < interval.value < interval.high


def test_clips_of_a_prompt_are_resampled_together() -> None:
    prompts = ["a", "b", "a", "c", "b", "a"]
    for index in resampled(prompts, 50):
        counts = torch.bincount(index, minlength=6).tolist()
        assert counts[0] == counts[2] == counts[5] and counts[1] == counts[4]
        assert counts[0] + counts[1] + counts[3] == 3


def test_an_interval_over_prompts_is_wider_where_clips_of_a_prompt_are_alike() -> None:
    values = torch.randn(40, generator=torch.Generator().manual_seed(11)).repeat_interleave(10)
    value = float(values.mean())

    def width(groups: list[int]) -> float:
        interval = interval_of(
            value, [float(values[index].mean()) for index in resampled(groups, 1000)], len(set(groups))
        )
        return interval.high - interval.low

    over_prompts = width([clip // 10 for clip in range(400)])
    assert over_prompts == pytest.approx(2 * 1.96 * float(values.std()) / math.sqrt(40), rel=0.1)
    assert width(list(range(400))) == pytest.approx(over_prompts / math.sqrt(10), rel=0.1)

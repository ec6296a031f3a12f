"""Uncertainty of metric values over clips: bootstrap, paired where methods are compared, and shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from oseg_video.types import OsegVideoError

_Z = 1.959964
"""97.5 % quantile of the normal distribution."""
_FOR_QUANTILES = 100
"""Draws."""


class Interval95(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def resampled(groups: Sequence[Hashable], resamples: int, seed: int = 0) -> Iterator[Tensor]:
    """Clip indices, int64, with repetitions, of sets with as many groups as there are (Efron 1979).

    groups: what each clip belongs to (its prompt); clips of a group come and go together, because they are
        not independent. Clips of two methods with equal groups in equal order get equal resamples.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    indices = [torch.tensor(group) for group in members.values()]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(resamples):
        chosen = torch.randint(len(indices), (len(indices),), generator=generator)
        yield torch.cat([indices[group] for group in chosen.tolist()])


def interval_of(value: float, draws: Sequence[float], groups: int, *, biased: bool = False) -> Interval95:
    """Interval of a value from the values of resampled sets, widened; of a biased statistic, centred.

    Centred on the value, because a resampled set repeats clips, which biases statistics of whole sets: it
    raises every Fréchet distance by about the same amount. A mean has no such bias, and the mean of its draws
    is off by chance: where one clip in a thousand differs, that would decide on which side of 0 an interval
    ends. Widened by Student's t, as Hesterberg expands percentile intervals (The
    American Statistician 69, 2015, 371-386): resampled sets of a few groups vary too little. For the mean of
    3 normal groups the plain interval holds the truth three times of four, the widened one 19 times of 20.
    Quantiles of few draws lie inside their extremes: below 100, Student's t of the draws' standard deviation
    takes their place.

    draws: at least 2. groups: number of groups that were resampled, at least 2. biased: whether the statistic
    is anything but a mean over clips.
    """
    values = torch.tensor(draws, dtype=torch.float64)
    if len(values) < _FOR_QUANTILES:
        spread = values.std() * _t_quantile(len(values) - 1) * torch.tensor([-1.0, 1.0], dtype=torch.float64)
    else:
        centre = float(values.mean()) if biased else value
        spread = (values - centre).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    low, high = (value + widening(groups) * spread).tolist()
    return Interval95(value, low, high)


def widening(groups: int) -> float:
    """What a bootstrap interval's halves are multiplied with: 9.2 for 2 groups, 1.2 for 10, 1.02 for 100."""
    return math.sqrt(groups / (groups - 1)) * _t_quantile(groups - 1) / _Z


def _t_quantile(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def bootstrap(
    statistic: Callable[[Tensor], float],
    count: int,
    *,
    resamples: int = 1000,
    seed: int = 0,
    biased: bool = False,
) -> Interval95:
    """Interval of `statistic(indices)` over resampled clips; `biased` as of `interval_of`.

    statistic: takes int64 clip indices [count], with repetitions, and returns a number. A statistic that
        indexes the results of two methods over the same prompts and seeds gives a paired interval.
    count: number of clips, at least 2.
    """
    if count < 2:
        raise OsegVideoError(f"a bootstrap interval needs at least 2 clips, got {count}")
    draws = [statistic(index) for index in resampled(range(count), resamples, seed)]
    return interval_of(statistic(torch.arange(count)), draws, count, biased=biased)


def share(rate: float, count: float) -> Interval95:
    """A share of independent clips with its Wilson score interval (1927), which keeps a width at 0 and 1."""
    z = _Z
    centre = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (rate * (1 - rate) / count + z**2 / (4 * count**2)) ** 0.5
    return Interval95(rate, max(centre - half, 0.0), min(centre + half, 1.0))


def share_over(hits: Sequence[float], groups: Sequence[Hashable]) -> Interval95:
    """A share of clips, each 0 or 1, with Wilson's interval of as many clips as they are worth.

    groups: as of `resampled`. Clips of a group are not independent: they are worth as many independent ones
    as have their variance between groups, by Student's t fewer where groups are few (Korn and Graubard,
    Survey Methodology 24, 1998, 193-201), at least one a group.
    """
    return share(sum(hits) / len(hits), _worth(_by_group(hits, groups), len(hits)))


def share_difference(
    ours: Sequence[float], theirs: Sequence[float], groups: Sequence[Hashable] | None = None
) -> Interval95:
    """The difference of two shares over the same clips, with Newcombe's interval for paired ones.

    Method 10 of Newcombe (Statistics in Medicine 17, 1998, 2635-2650): Wilson's intervals, here those of
    `share_over`, joined with the correlation of the pairs. A bootstrap's would have no width where no pair
    differs.

    ours, theirs: of each clip 0 or 1, of equal length. groups: as of `share_over`; by default each its own.
    """
    groups = range(len(ours)) if groups is None else groups
    own, own_low, own_high = share_over(ours, groups)
    base, base_low, base_high = share_over(theirs, groups)
    correlation = _corrected_correlation(_by_group(ours, groups), _by_group(theirs, groups))

    def distance(one: float, other: float) -> float:
        return float(max(0.0, one**2 - 2 * correlation * one * other + other**2) ** 0.5)

    difference = own - base
    low = difference - distance(own - own_low, base_high - base)
    return Interval95(difference, low, difference + distance(own_high - own, base - base_low))


def _by_group(values: Sequence[float], groups: Sequence[Hashable]) -> list[float]:
    """The mean of each group."""
    found: dict[Hashable, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        found.setdefault(group, []).append(value)
    return [sum(some) / len(some) for some in found.values()]


def _worth(rates: Sequence[float], clips: int) -> float:
    """How many independent clips are worth so many in groups that have these shares."""
    count, rate = len(rates), sum(rates) / len(rates)
    if count == clips or count == 1:
        return count
    variance = sum((one - rate) ** 2 for one in rates) / (count - 1) / count
    if variance == 0:  # as where every clip is right
        return count
    worth = rate * (1 - rate) / variance * (_Z / _t_quantile(count - 1)) ** 2
    return min(max(worth, count), clips)


def _corrected_correlation(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Correlation with the continuity correction of Newcombe's method 10; 0 where one of both is constant."""
    count = len(ours)
    x, y = torch.tensor(ours, dtype=torch.float64), torch.tensor(theirs, dtype=torch.float64)
    spread = float(x.std(correction=0) * y.std(correction=0))
    if spread == 0:
        return 0.0
    common = float((x * y).mean() - x.mean() * y.mean())
    if common > 0:
        common = max(0.0, common - 0.5 / count)
    return common / spread

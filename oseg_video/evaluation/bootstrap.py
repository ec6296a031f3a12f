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


def interval_of(value: float, draws: Sequence[float], groups: int) -> Interval95:
    """Interval of a value from the values of resampled sets, centred on the value, and widened.

    Centred, because a resampled set repeats clips, which biases some statistics: it raises every Fréchet
    distance by about the same amount. Widened by Student's t, as Hesterberg expands percentile intervals (The
    American Statistician 69, 2015, 371-386): resampled sets of a few groups vary too little. For the mean of
    3 normal groups the plain interval holds the truth three times of four, the widened one 19 times of 20.
    Quantiles of few draws lie inside their extremes: below 100, Student's t of the draws' standard deviation
    takes their place.

    draws: at least 2. groups: number of groups that were resampled, at least 2.
    """
    values = torch.tensor(draws, dtype=torch.float64)
    if len(values) < _FOR_QUANTILES:
        spread = values.std() * _t_quantile(len(values) - 1) * torch.tensor([-1.0, 1.0], dtype=torch.float64)
    else:
        spread = (values - values.mean()).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    low, high = (value + widening(groups) * spread).tolist()
    return Interval95(value, low, high)


def widening(groups: int) -> float:
    """What a bootstrap interval's halves are multiplied with: 9.2 for 2 groups, 1.2 for 10, 1.02 for 100."""
    return math.sqrt(groups / (groups - 1)) * _t_quantile(groups - 1) / _Z


def _t_quantile(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def bootstrap(
    statistic: Callable[[Tensor], float], count: int, *, resamples: int = 1000, seed: int = 0
) -> Interval95:
    """Interval of `statistic(indices)` over resampled clips.

    statistic: takes int64 clip indices [count], with repetitions, and returns a number. A statistic that
        indexes the results of two methods over the same prompts and seeds gives a paired interval.
    count: number of clips, at least 2.
    """
    if count < 2:
        raise OsegVideoError(f"a bootstrap interval needs at least 2 clips, got {count}")
    draws = [statistic(index) for index in resampled(range(count), resamples, seed)]
    return interval_of(statistic(torch.arange(count)), draws, count)


def share(hits: float, count: int) -> Interval95:
    """A share of clips with its Wilson score interval (1927), which does not shrink to nothing at 0 or 1.

    count: of independent clips; where several share a prompt, the number of prompts, and `hits` the sum of
        their mean shares.
    """
    z, rate = _Z, hits / count
    centre = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (rate * (1 - rate) / count + z**2 / (4 * count**2)) ** 0.5
    return Interval95(rate, max(centre - half, 0.0), min(centre + half, 1.0))


def share_difference(ours: Sequence[float], theirs: Sequence[float]) -> Interval95:
    """The difference of two shares over the same clips, with Newcombe's interval for paired ones.

    Method 10 of Newcombe (Statistics in Medicine 17, 1998, 2635-2650): Wilson's intervals, joined with the
    correlation of the pairs. A bootstrap's would have no width where no pair differs.

    ours, theirs: of each independent clip 0 or 1, or of each prompt the mean over its clips; of equal length.
    """
    count = len(ours)
    own, own_low, own_high = share(sum(ours), count)
    base, base_low, base_high = share(sum(theirs), count)
    correlation = _corrected_correlation(ours, theirs)

    def distance(one: float, other: float) -> float:
        return float(max(0.0, one**2 - 2 * correlation * one * other + other**2) ** 0.5)

    difference = own - base
    low = difference - distance(own - own_low, base_high - base)
    return Interval95(difference, low, difference + distance(own_high - own, base - base_low))


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

"""Uncertainty of figures over clips: percentile bootstrap, paired where methods are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from oseg_video.types import OsegVideoError


class Interval95(NamedTuple):
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def bootstrap(
    statistic: Callable[[Tensor], float], count: int, *, resamples: int = 1000, seed: int = 0
) -> Interval95:
    """Percentile interval (Efron 1979) of `statistic(indices)` over resampled clips.

    statistic: takes int64 clip indices [count], with repetitions, and returns a number. A statistic that
        indexes the results of two methods over the same prompts and seeds gives a paired interval.
    count: number of clips, at least 2.
    """
    if count < 2:
        raise OsegVideoError(f"a bootstrap interval needs at least 2 clips, got {count}")
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor(
        [statistic(torch.randint(count, (count,), generator=generator)) for _ in range(resamples)],
        dtype=torch.float64,
    )
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval95(statistic(torch.arange(count)), low, high)

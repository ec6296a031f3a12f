"""Values of arms and paired differences between them, with 95 % intervals over prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oseg_video.evaluation.bootstrap import Interval95, interval_of, resampled, share_difference, share_over
from oseg_video.evaluation.features.frechet import Moments, frechet_distance, moments_of_rows
from study.bench import CLIPS_PER_PROMPT, Rows

SHARES = ("colour", "shape", "motion", "binding", "all")
"""Parts that are told, where a task has them."""
MEANS_RESAMPLES = 1000


def score(rows: Rows) -> Tensor:
    """What a search goes by: the mean over what is right of each clip, which tells more than `all` alone."""
    return torch.stack([rows.part(name) for name in _shares(rows) if name != "all"]).mean(dim=0)


def _shares(rows: Rows) -> list[str]:
    return [name for name in SHARES if name in rows.parts]


def quartile_clips(rows: Rows, other: Rows) -> list[int]:
    """Places of the clips at the quartiles of the score's difference, `rows` minus `other`."""
    order = (score(rows) - score(other)).argsort(stable=True)
    return [int(order[round(share * (len(order) - 1))]) for share in (0.25, 0.5, 0.75)]


@dataclass(frozen=True)
class Statistics:
    """Over clips that are paired by their place: two of each caption that was drawn, one after the other."""

    clips: int
    captions: Sequence[str]
    """Of the clips; some are drawn twice, and their clips are not independent."""
    reference: Moments
    """Of drawn clips."""
    resamples: int = 200
    """For Fréchet distances, which take longer than means."""

    def mean(self, values: Tensor) -> Interval95:
        """Of one value a clip."""
        draws = [float(values[index].mean()) for index in self._resamples(MEANS_RESAMPLES)]
        return interval_of(float(values.mean()), draws, self._groups)

    def frechet(self, rows: Rows) -> Interval95:
        """Distance to drawn clips."""
        return self._of_sets(lambda index: self._distance(rows, index))

    def frechet_minus(self, rows: Rows, other: Rows) -> Interval95:
        """Difference of two distances, paired."""
        return self._of_sets(lambda index: self._distance(rows, index) - self._distance(other, index))

    def values(self, rows: Rows) -> dict[str, Any]:
        """All values of an arm."""
        return {
            **{name: share_over(rows.part(name).tolist(), self._prompts) for name in _shares(rows)},
            "score": self.mean(score(rows)),
            "frechet": self.frechet(rows),
            "flicker": self.mean(rows.flicker.double()),
            "diversity": self.mean(rows.diversity.double()),
            "passes": float(rows.passes.mean()),
        }

    def differences(self, rows: Rows, other: Rows) -> dict[str, Interval95]:
        """All paired differences, `rows` minus `other`."""
        return {
            **{
                name: share_difference(rows.part(name).tolist(), other.part(name).tolist(), self._prompts)
                for name in _shares(rows)
            },
            "score": self.mean(score(rows) - score(other)),
            "frechet": self.frechet_minus(rows, other),
            "flicker": self.mean((rows.flicker - other.flicker).double()),
            "diversity": self.mean((rows.diversity - other.diversity).double()),
        }

    def distance(self, rows: Rows, other: Rows) -> Interval95:
        """From each clip to its pair, in the judge's features; that between two clips of a prompt is 1."""
        own, paired = rows.features.double(), other.features.double()
        apart = (paired[::CLIPS_PER_PROMPT] - paired[1::CLIPS_PER_PROMPT]).norm(dim=1).mean()
        return self.mean((own - paired).norm(dim=1) / apart)

    @property
    def _prompts(self) -> Sequence[str]:
        return self.captions[: self.clips]

    @property
    def _groups(self) -> int:
        return len(set(self._prompts))

    def _resamples(self, count: int) -> list[Tensor]:
        return list(resampled(self._prompts, count))

    def _of_sets(self, statistic: Callable[[Tensor], float]) -> Interval95:
        draws = [statistic(index) for index in self._resamples(self.resamples)]
        return interval_of(statistic(torch.arange(self.clips)), draws, self._groups, biased=True)

    def _distance(self, rows: Rows, index: Tensor) -> float:
        return frechet_distance(moments_of_rows(rows.features.float(), index), self.reference)

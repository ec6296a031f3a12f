"""One metric's view of one method's clips: value, interval, difference to a baseline."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from oseg_video.evaluation.bootstrap import interval_of, resampled, share_difference, share_over
from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.errors import EvaluationError
from oseg_video.evaluation.metrics.base import Metric, MetricResult, MetricValue, Observations
from oseg_video.evaluation.results import Difference


class Sample:
    """What one metric saw of one method's clips."""

    def __init__(self, metric: Metric, seen: Observations, method: str) -> None:
        self.metric = metric
        self.seen = seen
        self.method = method
        self.values = metric.values
        places = [place for place, clip in enumerate(seen.clips) if clip.method == method]
        self.index = torch.tensor(places, dtype=torch.int64)
        self.clips = [seen.clips[place] for place in places]
        self._draws: dict[tuple[str, tuple[int, ...]], list[float]] = {}

    def result(self, wanted: MetricValue, versions: Mapping[str, str]) -> MetricResult:
        """Raises EvaluationError if clips had to be skipped and the metric does not work without them."""
        self._check_fit()
        rows = self.seen.rows
        index, values = self._about(wanted)
        clips = [self.seen.clips[place] for place in index.tolist()]
        groups, units = independent([self.metric.group(clip) for clip in clips], clips)
        value = self.metric.compute(wanted.name, rows, index)
        interval = self._interval(wanted, value, index, groups)
        details = dict(self.metric.details(wanted.name, rows, index))
        if interval is not None:
            details["interval"] = {
                "by": "Wilson score" if wanted.share else "centred, t-widened bootstrap",
                "over": units,
                "units": len(set(groups)),
                "resamples": 0 if wanted.share else wanted.resamples,
            }
        return MetricResult(
            name=wanted.name,
            protocol=wanted.protocol,
            value=value,
            interval=interval,
            clips=len(clips),
            per_clip={clip.name: one for clip, one in zip(clips, values, strict=False)},
            details=details,
            versions={**versions, **wanted.versions},
        )

    def minus(self, base: Sample, wanted: MetricValue) -> Difference:
        """This method's value minus the baseline's over common requests."""
        base._check_fit()
        mine, theirs = self._by_key(wanted), base._by_key(wanted)
        keys = [key for key in mine if key in theirs]
        if not keys:
            raise EvaluationError(f"no clip with a value has its pair of {base.method}")
        if wanted.clips not in (None, len(keys)):
            raise EvaluationError(
                f"{wanted.name} is defined for {wanted.clips} clips; {len(keys)} have a pair"
            )
        ours, others = (torch.tensor([places[key] for key in keys]) for places in (mine, theirs))
        clips = [self.seen.clips[place] for place in ours.tolist()]
        groups, _ = independent([self.metric.group(clip) for clip in clips], clips)
        value = self.metric.compute(wanted.name, self.seen.rows, ours) - self.metric.compute(
            wanted.name, base.seen.rows, others
        )
        interval = None
        if len(set(groups)) > 1 and wanted.share:
            own, other = (self._hits(wanted, places) for places in (ours, others))
            interval = share_difference(own, other, groups)[1:]
        elif len(set(groups)) > 1:
            with contextlib.suppress(EvaluationError):
                pairs = zip(self.draws(wanted, ours, groups), base.draws(wanted, others, groups), strict=True)
                draws, biased = [a - b for a, b in pairs], self._biased(wanted)
                interval = interval_of(value, draws, len(set(groups)), biased=biased)[1:]
        return Difference(
            name=wanted.name,
            method=self.method,
            baseline=base.method,
            value=value,
            interval=interval,
            pairs=len(keys),
        )

    def draws(self, wanted: MetricValue, index: Tensor, groups: Sequence[Hashable]) -> list[float]:
        """The value over resampled clips; kept, for a method's interval and its differences."""
        key = (wanted.name, tuple(index.tolist()))
        if key not in self._draws:
            self._draws[key] = [
                self.metric.compute(wanted.name, self.seen.rows, index[chosen])
                for chosen in resampled(groups, wanted.resamples)
            ]
        return self._draws[key]

    def _about(self, wanted: MetricValue) -> tuple[Tensor, list[float]]:
        """The clips that a value is about, and the value of each; no values if it is one of whole sets.

        A metric of many values need not look at every clip for each; those without a value are left out.
        """
        every = self.metric.per_clip(wanted.name, self.seen.rows)
        if every is None:
            return self.index, []
        index = self.index[~every[self.index].isnan()]
        return index, every[index].tolist()

    def _interval(
        self, wanted: MetricValue, value: float, index: Tensor, groups: Sequence[Hashable]
    ) -> tuple[float, float] | None:
        units = len(set(groups))
        if units < 2:
            return None
        if wanted.share:
            return share_over(self._hits(wanted, index), groups)[1:]
        try:
            draws = self.draws(wanted, index, groups)
            _, low, high = interval_of(value, draws, units, biased=self._biased(wanted))
            return max(low, wanted.least), min(high, wanted.most)
        except EvaluationError:  # some resamples have no value, e.g. no clip that shows the object asked for
            return None

    def _biased(self, wanted: MetricValue) -> bool:
        return self.metric.per_clip(wanted.name, self.seen.rows) is None

    def _hits(self, wanted: MetricValue, index: Tensor) -> list[float]:
        """Of each clip 0 or 1."""
        every = self.metric.per_clip(wanted.name, self.seen.rows)
        assert every is not None
        hits: list[float] = every[index].tolist()
        return hits

    def _check_fit(self) -> None:
        if self.method in self.seen.unfit:
            raise EvaluationError(self.seen.unfit[self.method])

    def _by_key(self, wanted: MetricValue) -> dict[tuple[str, int], int]:
        index, _ = self._about(wanted)
        return {self.seen.clips[place].key: place for place in index.tolist()}


def independent(groups: Sequence[Hashable], clips: Sequence[ClipFile]) -> tuple[list[Hashable], str]:
    """What to resample: prompts where there are several, otherwise clips; a group per clip, and the word.

    groups: equal for clips of one prompt.
    """
    count = len(set(groups))
    if count > 1:
        known = count < len(groups) or any(clip.settings for clip in clips)
        return list(groups), "prompts" if known else "clips"
    return list(range(len(clips))), "clips of one prompt"

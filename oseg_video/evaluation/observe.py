"""Metrics that look at the frames of one clip at a time: every clip is read once for all of them.

Frames are handed on one by one, and what is seen of a clip is kept on disk row by row: memory depends neither
on the length of clips nor on their number, and a run that was interrupted goes on where it stopped.

N clips, B clips of a batch, T frames kept, C colour channels (RGB), H rows, W columns, D numbers a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from oseg_video import console
from oseg_video.evaluation.clips import ClipFile, by_method
from oseg_video.evaluation.errors import EvaluationError
from oseg_video.evaluation.metrics.base import Metric, MetricOptions, Observations
from oseg_video.evaluation.rows import RowStore, file_state
from oseg_video.media import Frame, MediaError, stream_clip
from oseg_video.types import OsegVideoError

_PENDING_BYTES = 2**28
"""What is seen of clips waits for a full batch no longer than until it takes so much memory."""


class Look(ABC):
    """What a metric gathers of one clip while its frames go by."""

    done: bool = False
    """Whether it needs no more frames; when all looks are done, the rest of the clip is not decoded."""

    @abstractmethod
    def add(self, frame: Frame) -> None:
        """The next frame. Raises OsegVideoError if the clip is not fit for the metric."""

    @abstractmethod
    def seen(self) -> Tensor:
        """What the metric needs of the clip, after the last frame. Raises OsegVideoError as `add`."""


class ChosenFrames(Look):
    """Keeps the frames at given places, in the order of the clip: uint8 [T, C, H, W]."""

    def __init__(self, clip: ClipFile, places: Sequence[int]) -> None:
        self.clip = clip
        self._places = sorted(set(places))
        shape = (len(self._places), 3, clip.height, clip.width)
        self._kept_TCHW = torch.empty(shape, dtype=torch.uint8)  # filled in place: frames may be large
        self._count = 0

    def add(self, frame: Frame) -> None:
        if not self.done and frame.index == self._places[self._count]:
            self._kept_TCHW[self._count].numpy()[:] = frame.rgb_HWC.transpose(2, 0, 1)
            self._count += 1
        self.done = self._count == len(self._places)

    def seen(self) -> Tensor:
        if not self.done:
            raise EvaluationError(f"{self.clip.name} has fewer frames than its header says")
        return self._kept_TCHW


class ClipMetric(Metric):
    """A metric whose rows come from the frames of one clip each."""

    row_protocol: Mapping[str, Any]
    """All that a row depends on besides the clip; rows of an interrupted run are used if it is equal."""
    batch: int = 1
    """Clips that `rows` gets at once."""

    def __init__(self, names: Sequence[str], options: MetricOptions) -> None:
        """As of `Builder`; a metric without weights and options has nothing to do here."""

    def begin(self) -> Mapping[str, str]:
        """Called once before the first clip is read. Returns what preparations had to skip, and why."""
        return {}

    @abstractmethod
    def look(self, clip: ClipFile) -> Look:
        """What is to gather what the metric needs of a clip."""

    def rows(self, seen: Tensor) -> Tensor:
        """Rows [B, D] of clips from what was seen of them, stacked; by default what was seen is the row."""
        return seen

    def observe(self, clips: Sequence[ClipFile]) -> Observations:
        """As `Metric.observe`; several metrics share the reading by `observe_together`."""
        (seen,) = observe_together([(self, clips)], work=None)
        return seen


class MeanMetric(ClipMetric):
    """A clip metric whose columns are its values, and whose values are means over clips."""

    def column(self, name: str) -> int:
        """The column of a value."""
        return [known.name for known in self.values].index(name)

    def compute(self, name: str, rows: Tensor, index: Tensor) -> float:
        return float(rows[index, self.column(name)].mean())

    def per_clip(self, name: str, rows: Tensor) -> Tensor | None:
        return rows[:, self.column(name)]


Prepared = TypeVar("Prepared")
"""What a metric of neighbouring frames keeps of a frame."""


class PairMetric(MeanMetric, Generic[Prepared]):
    """A metric of one value: the mean over neighbouring frames of a number, then over clips."""

    @abstractmethod
    def prepare(self, frame: Frame) -> Prepared | None:
        """What `between` needs of a frame, worked out once; None for a frame that does not count."""

    @abstractmethod
    def between(self, before: Prepared, after: Prepared) -> float:
        """The number of two neighbouring frames, as prepared."""

    def refuses(self, clip: ClipFile) -> str | None:
        return too_short(self.values[0].name, clip, 2)

    def look(self, clip: ClipFile) -> Look:
        return _Pairs(self)


class _Pairs(Look, Generic[Prepared]):
    def __init__(self, metric: PairMetric[Prepared]) -> None:
        self._metric = metric
        self._before: Prepared | None = None
        self._sum, self._pairs = 0.0, 0

    def add(self, frame: Frame) -> None:
        after = self._metric.prepare(frame)
        if after is None:
            return
        if self._before is not None:
            self._sum += self._metric.between(self._before, after)
            self._pairs += 1
        self._before = after

    def seen(self) -> Tensor:
        if not self._pairs:
            raise EvaluationError(f"{self._metric.values[0].name} needs at least 2 frames")
        return torch.tensor([self._sum / self._pairs], dtype=torch.float64)


def too_short(metric: str, clip: ClipFile, least: int) -> str | None:
    """For `Metric.refuses`: why a clip of fewer frames cannot be looked at."""
    if clip.frames >= least:
        return None
    return f"{metric} needs clips of at least {least} frames; {clip.name} has {clip.frames}"


def watch(clip: ClipFile, looks: Sequence[Look]) -> list[Tensor | OsegVideoError]:
    """What each look has seen of a clip, or why it has not; the clip is decoded once, as far as needed."""
    failed: dict[Look, OsegVideoError] = {}
    frames = 0
    try:
        with closing(stream_clip(clip.path)) as stream:
            for frame in stream:
                frames += 1
                for look in looks:
                    if look not in failed and not look.done:
                        try:
                            look.add(frame)
                        except OsegVideoError as error:
                            failed[look] = error
                if all(look.done or look in failed for look in looks):
                    break
            else:
                if frames != clip.frames:
                    raise MediaError(
                        f"cannot read {clip.path}: it has {frames} frames, and its index says {clip.frames}"
                    )
    except MediaError as error:
        return [failed.get(look, error) for look in looks]
    return [failed[look] if look in failed else _seen(look) for look in looks]


def _seen(look: Look) -> Tensor | OsegVideoError:
    try:
        return look.seen()
    except OsegVideoError as error:
        return error


@torch.no_grad()
def observe_together(
    wanted: Sequence[tuple[ClipMetric, Sequence[ClipFile]]], *, work: Path | None
) -> list[Observations]:
    """What each metric sees of its clips. A clip is read once for all; those that cannot be read are named.

    work: folder that keeps the rows of an unfinished run; None for a temporary one.
    """
    lookers = [_Looker(metric, clips, work, metric.begin()) for metric, clips in wanted]
    every = {clip.name: clip for _, clips in wanted for clip in clips}
    for clip in console.bar(every.values(), "looking at clips"):
        # The prompt, too: some metrics compare with it.
        state = f"{file_state(clip.path)}|{clip.prompt}"
        asking = [looker for looker in lookers if looker.needs(clip, state)]
        if asking:
            found = watch(clip, [looker.metric.look(clip) for looker in asking])
            for looker, seen in zip(asking, found, strict=True):
                looker.take(clip, state, seen)
    return [looker.observations() for looker in lookers]


class _Looker:
    """One metric at work: its batch, its rows on disk, and what it had to skip."""

    def __init__(
        self, metric: ClipMetric, clips: Sequence[ClipFile], work: Path | None, skipped: Mapping[str, str]
    ) -> None:
        self.metric = metric
        self.clips = {clip.name: clip for clip in clips}
        self.store = RowStore(work, metric.row_protocol)
        self.skipped = dict(skipped)
        self.looked_at: list[tuple[ClipFile, str]] = []
        self.pending: list[tuple[str, Tensor]] = []

    def needs(self, clip: ClipFile, state: str) -> bool:
        """Whether the clip is to be looked at; one whose row is there already is not."""
        if clip.name in self.clips and state in self.store:
            self.looked_at.append((clip, state))
        return clip.name in self.clips and state not in self.store

    def take(self, clip: ClipFile, state: str, seen: Tensor | OsegVideoError) -> None:
        """What was seen of a clip, or why it was not."""
        if isinstance(seen, OsegVideoError):
            self.skipped[clip.name] = str(seen)
            return
        if self.pending and self.pending[0][1].shape != seen.shape:
            self.flush()
        self.pending.append((state, seen))
        self.looked_at.append((clip, state))
        if len(self.pending) * seen.nbytes > _PENDING_BYTES or len(self.pending) >= self.metric.batch:
            self.flush()

    def flush(self) -> None:
        """Make rows of what waits."""
        if self.pending:
            states, seen = zip(*self.pending, strict=True)
            together = torch.stack(seen) if len(seen) > 1 else seen[0][None]
            self.store.append(states, self.metric.rows(together))
            self.pending = []

    def observations(self) -> Observations:
        """All of it."""
        self.flush()
        return Observations(
            clips=tuple(clip for clip, _ in self.looked_at),
            rows=self.store.take([state for _, state in self.looked_at]),
            skipped=self.skipped,
            unfit=unfit_methods(self.metric, list(self.clips.values()), self.skipped),
        )


def unfit_methods(metric: Metric, clips: Sequence[ClipFile], skipped: Mapping[str, str]) -> dict[str, str]:
    """For `Observations.unfit`: the methods whose clips are not enough without those that were skipped."""
    unfit = {}
    for method, group in by_method(clips).items():
        kept = [clip for clip in group if clip.name not in skipped]
        lost = [clip.name for clip in group if clip.name in skipped]
        if not kept:
            unfit[method] = "none of the clips can be looked at"
        elif lost:
            try:
                metric.check(kept)
            except EvaluationError as error:
                unfit[method] = f"{error} ({len(lost)} of its clips cannot be looked at, first {lost[0]})"
    return unfit

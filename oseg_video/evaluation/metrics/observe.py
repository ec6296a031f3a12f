"""Metrics that look at the frames of one clip at a time: every clip is read once for all of them.

What they see is kept on disk row by row, so memory does not depend on the number of clips, and a run that was
interrupted goes on where it stopped.

N clips, B clips of a batch, F frames, C colour channels (RGB), H rows, W columns, D numbers a row.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from oseg_video.evaluation.clips import ClipFile, unfit_methods
from oseg_video.evaluation.metrics.base import Figure, Observations
from oseg_video.evaluation.rows import RowStore, file_state
from oseg_video.media import Clip, read_clip
from oseg_video.types import OsegVideoError


class OpenClip:
    """A clip whose frames are decoded when first asked for, and then kept."""

    def __init__(self, file: ClipFile) -> None:
        self.file = file

    @cached_property
    def _clip(self) -> Clip:
        return read_clip(self.file.path)

    @property
    def frames_FCHW(self) -> Tensor:
        """All frames, uint8. Raises MediaError naming the file."""
        return self._clip.frames

    @property
    def read_by(self) -> str:
        """What decoded the clip; "" if nothing asked for its frames yet."""
        return self._clip.reader if "_clip" in self.__dict__ else ""


class ClipMetric(ABC):
    """A metric whose rows come from the frames of one clip each."""

    figures: Sequence[Figure]
    row_protocol: Mapping[str, Any]
    """All that a row depends on besides the clip; rows of an interrupted run are used if it is equal."""
    batch: int = 1
    """Clips that `rows` gets at once."""

    def check(self, clips: Sequence[ClipFile]) -> Sequence[str]:
        """As `Metric.check`."""
        return ()

    def begin(self, *, quiet: bool) -> Mapping[str, str]:
        """Called once before the first clip is read. Returns what preparations had to skip, and why."""
        return {}

    @abstractmethod
    def see(self, clip: OpenClip) -> Tensor:
        """What the metric needs of a clip. Raises OsegVideoError if the clip is not fit for it."""

    def rows(self, seen: Tensor) -> Tensor:
        """Rows [B, D] of clips from what was seen of them, stacked; by default what was seen is the row."""
        return seen

    @abstractmethod
    def value(self, figure: str, rows: Tensor, index: Tensor) -> float:
        """As `Metric.value`."""

    def per_clip(self, figure: str, rows: Tensor) -> Tensor | None:
        """As `Metric.per_clip`."""
        return None

    def details(self, figure: str, rows: Tensor, index: Tensor) -> Mapping[str, Any]:
        """As `Metric.details`."""
        return {}

    def observe(self, clips: Sequence[ClipFile], *, quiet: bool) -> Observations:
        """As `Metric.observe`; several metrics share the reading by `observe_together`."""
        (seen,) = observe_together([(self, clips)], work=None, quiet=quiet)
        return seen


class MeanMetric(ClipMetric):
    """A clip metric whose columns are its figures, and whose values are means over clips."""

    def column(self, figure: str) -> int:
        """The column of a figure."""
        return [known.name for known in self.figures].index(figure)

    def value(self, figure: str, rows: Tensor, index: Tensor) -> float:
        return float(rows[index, self.column(figure)].mean())

    def per_clip(self, figure: str, rows: Tensor) -> Tensor | None:
        return rows[:, self.column(figure)]


def observe_together(
    wanted: Sequence[tuple[ClipMetric, Sequence[ClipFile]]], *, work: Path | None, quiet: bool
) -> list[Observations]:
    """What each metric sees of its clips. A clip is read once for all; those that cannot be read are named.

    work: folder that keeps the rows of an unfinished run; None for a temporary one.
    """
    lookers = [_Looker(metric, clips, work, metric.begin(quiet=quiet)) for metric, clips in wanted]
    every = {clip.name: clip for _, clips in wanted for clip in clips}
    for clip in tqdm(every.values(), desc="looking at clips", unit="clip", disable=quiet, file=sys.stderr):
        # The prompt, too: some metrics compare with it.
        opened, state = OpenClip(clip), f"{file_state(clip.path)}|{clip.prompt}"
        for looker in lookers:
            looker.look(opened, state)
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
        self.seen: list[tuple[ClipFile, str]] = []
        self.pending: list[tuple[str, str, Tensor]] = []

    def look(self, clip: OpenClip, state: str) -> None:
        if clip.file.name not in self.clips:
            return
        if state not in self.store:
            try:
                seen = self.metric.see(clip)
            except OsegVideoError as error:
                self.skipped[clip.file.name] = str(error)
                return
            if self.pending and self.pending[0][-1].shape != seen.shape:
                self.flush()
            self.pending.append((state, clip.read_by, seen))
            if len(self.pending) >= self.metric.batch:
                self.flush()
        self.seen.append((clip.file, state))

    @torch.no_grad()
    def flush(self) -> None:
        if self.pending:
            states, readers, seen = zip(*self.pending, strict=True)
            self.store.append(states, readers, self.metric.rows(torch.stack(seen)))
            self.pending = []

    def observations(self) -> Observations:
        self.flush()
        read_by = {clip.name: self.store.read_by(state) for clip, state in self.seen}
        return Observations(
            clips=tuple(clip for clip, _ in self.seen),
            rows=self.store.take([state for _, state in self.seen]),
            skipped=self.skipped,
            unfit=unfit_methods(self.metric, list(self.clips.values()), self.skipped),
            read_by={name: reader for name, reader in read_by.items() if reader},
        )

"""Whether clips of the shipped models show what their prompts say, as a shipped network sees it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from oseg_video.embedded.tasks import ONE_SHAPE, TWO_SHAPES, Judge, Task
from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.features.judged import judge_protocol, no_caption, no_embedded
from oseg_video.evaluation.metrics.base import MetricOptions, MetricValue, register_metrics
from oseg_video.evaluation.observe import ChosenFrames, Look, MeanMetric


class Alignment(MeanMetric):
    """Shares of clips that are right in each part of a task."""

    def __init__(self, task: Task, names: Sequence[str], options: MetricOptions) -> None:
        (self.name,) = names
        self.task, self.judge = task, task.load_judge()
        self.row_protocol = protocol = {"metric": self.name, **judge_protocol(task)}
        self.values = tuple(
            MetricValue(name=f"{self.name}:{part}", better="higher", protocol=protocol, share=True)
            for part in task.parts
        )

    def refuses(self, clip: ClipFile) -> str | None:
        """Sizes, lengths, and prompts of the data set's grammar."""
        return no_embedded(self.name, clip) or no_caption(self.name, clip, self.task.parse_caption)

    def look(self, clip: ClipFile) -> Look:
        return _Judgement(clip, self.task, self.judge)


class _Judgement(ChosenFrames):
    def __init__(self, clip: ClipFile, task: Task, judge: Judge) -> None:
        super().__init__(clip, task.seen_frames(clip.frames))
        self._task, self._judge = task, judge

    def seen(self) -> Tensor:
        (shown,) = self._judge.judge_frames(super().seen()[None] / 255)
        right = self._task.agreement(self._task.parse_caption(self.clip.prompt or ""), shown)
        return torch.tensor([right[part] for part in self._task.parts], dtype=torch.float64)


register_metrics(
    {
        "alignment:embedded": "shares of clips right in colour, shape, motion, all three (shipped model's "
        "data set)"
    },
    partial(Alignment, ONE_SHAPE),
    compared="embedded",
)
register_metrics(
    {
        "alignment:two": "shares of clips of two shapes right in number, colours, kinds, motions, their "
        "binding, and all"
    },
    partial(Alignment, TWO_SHAPES),
    compared="embedded-two",
)

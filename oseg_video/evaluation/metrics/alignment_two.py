"""Whether clips of two shapes show what their prompts say, as the shipped judge sees it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from oseg_video.embedded.two_shapes import parse_caption
from oseg_video.embedded.two_shapes_judge import TwoShapeJudge, agreement, load_two_shape_judge
from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.features.classifier import JUDGE_PROTOCOL, TWO_SHAPES, no_caption, no_embedded
from oseg_video.evaluation.metrics.base import MetricOptions, MetricValue, register_metrics
from oseg_video.evaluation.observe import ChosenFrames, Look, MeanMetric

NAME = "alignment:two"
PROTOCOL = {"metric": NAME, **JUDGE_PROTOCOL}
PARTS = ("count", "colour", "shape", "motion", "binding", "all")
"""Of what `agreement` tells, in the order of the columns."""


class TwoShapesAlignment(MeanMetric):
    """Shares of clips that are right in each part of `agreement`."""

    row_protocol = PROTOCOL
    values = tuple(
        MetricValue(name=f"{NAME}:{part}", better="higher", protocol=PROTOCOL, share=True) for part in PARTS
    )

    def __init__(self, names: Sequence[str], options: MetricOptions) -> None:
        self.judge = load_two_shape_judge()

    def refuses(self, clip: ClipFile) -> str | None:
        """Sizes, lengths, and prompts of the data set's grammar."""
        return no_embedded(NAME, clip) or no_caption(NAME, clip, parse_caption)

    def look(self, clip: ClipFile) -> Look:
        return _Judgement(clip, self.judge)


class _Judgement(ChosenFrames):
    def __init__(self, clip: ClipFile, judge: TwoShapeJudge) -> None:
        super().__init__(clip, TWO_SHAPES.seen_frames(clip.frames))
        self._judge = judge

    def seen(self) -> Tensor:
        (shown,) = self._judge.judge_frames(super().seen()[None] / 255)
        right = agreement(parse_caption(self.clip.prompt or ""), shown)
        return torch.tensor([right[part] for part in PARTS], dtype=torch.float64)


register_metrics(
    {NAME: "shares of clips of two shapes right in number, colours, kinds, motions, their binding, and all"},
    TwoShapesAlignment,
    compared="embedded-two",
)

"""Whether clips of the embedded data set show what their prompts say, as the shipped classifier sees it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from oseg_video.embedded.classifier import ClipClassifier, load_classifier
from oseg_video.embedded.dataset import VOCABULARIES, parse_caption
from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.features.classifier import CLASSIFIER_PROTOCOL, ONE_SHAPE, no_caption, no_embedded
from oseg_video.evaluation.metrics.base import MetricOptions, MetricValue, register_metrics
from oseg_video.evaluation.observe import ChosenFrames, Look, MeanMetric

NAME = "alignment:embedded"
PROTOCOL = {"metric": NAME, **CLASSIFIER_PROTOCOL}
ATTRIBUTES = ("colour", "shape", "motion")
"""What is judged, in the order of the columns; a last column says whether all three are right."""


class EmbeddedAlignment(MeanMetric):
    """Shares of clips that are right in colour, shape, motion, and in all three."""

    row_protocol = PROTOCOL
    values = tuple(
        MetricValue(name=f"{NAME}:{part}", better="higher", protocol=PROTOCOL, share=True)
        for part in (*ATTRIBUTES, "all")
    )

    def __init__(self, names: Sequence[str], options: MetricOptions) -> None:
        self.classifier = load_classifier()

    def refuses(self, clip: ClipFile) -> str | None:
        """Sizes, lengths, and prompts of the data set's grammar."""
        return no_embedded(NAME, clip) or no_caption(NAME, clip, parse_caption)

    def look(self, clip: ClipFile) -> Look:
        return _Judgement(clip, self.classifier)


class _Judgement(ChosenFrames):
    def __init__(self, clip: ClipFile, classifier: ClipClassifier) -> None:
        super().__init__(clip, ONE_SHAPE.seen_frames(clip.frames))
        self._classifier = classifier

    def seen(self) -> Tensor:
        logits = self._classifier.read(self._classifier.frame_features(super().seen()[None] / 255))
        judged = [int(logits[name].argmax()) for name in VOCABULARIES]
        return right_attributes(judged, parse_caption(self.clip.prompt or "").indices())


def right_attributes(judged: Sequence[int], truth: Sequence[int]) -> Tensor:
    """1 or 0 for colour, shape, motion and all three: [4]. Arguments as of `ClipAttributes.indices`."""
    columns = [list(VOCABULARIES).index(name) for name in ATTRIBUTES]
    right = [judged[column] == truth[column] for column in columns]
    return torch.tensor([*right, all(right)], dtype=torch.float64)


register_metrics(
    {NAME: "shares of clips right in colour, shape, motion, all three (shipped model's data set)"},
    EmbeddedAlignment,
    compared="embedded",
)

"""Whether clips of the embedded data set show what their prompts say, as the shipped classifier sees it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from oseg_video.embedded.classifier import load_classifier
from oseg_video.embedded.dataset import VOCABULARIES, parse_caption
from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.metrics.base import EvaluationError, Figure, MetricOptions, register_metrics
from oseg_video.evaluation.metrics.embedded import CLASSIFIER_PROTOCOL, classifier_frames, require_embedded
from oseg_video.evaluation.metrics.observe import MeanMetric, OpenClip

NAME = "alignment:embedded"
ATTRIBUTES = ("colour", "shape", "motion")
"""What is judged, in the order of the columns; a last column says whether all three are right."""


class EmbeddedAlignment(MeanMetric):
    """Shares of clips that are right in colour, shape, motion, and in all three."""

    def __init__(self, names: Sequence[str], options: MetricOptions) -> None:
        self.row_protocol = {"metric": NAME, **CLASSIFIER_PROTOCOL}
        self.figures = [
            Figure(name=f"{NAME}:{part}", better="higher", protocol=self.row_protocol, share=True)
            for part in (*ATTRIBUTES, "all")
        ]
        self.classifier = load_classifier()

    def check(self, clips: Sequence[ClipFile]) -> Sequence[str]:
        """Sizes, lengths, and prompts of the data set's grammar."""
        require_embedded(NAME, clips)
        for clip in clips:
            if clip.prompt is None:
                raise EvaluationError(
                    f"{NAME} needs each clip's prompt; {clip.name} has no manifest beside it"
                )
            try:
                parse_caption(clip.prompt)
            except ValueError as error:
                raise EvaluationError(f"{NAME} cannot judge {clip.name}: {error}") from None
        return ()

    @torch.no_grad()
    def see(self, clip: OpenClip) -> Tensor:
        logits = self.classifier.read(self.classifier.frame_features(classifier_frames(clip)[None] / 255))
        judged = [int(logits[name].argmax()) for name in VOCABULARIES]
        return right_attributes(judged, parse_caption(clip.file.prompt or "").indices())


def right_attributes(judged: Sequence[int], truth: Sequence[int]) -> Tensor:
    """1 or 0 for colour, shape, motion and all three: [4]. Arguments as of `ClipAttributes.indices`."""
    columns = [list(VOCABULARIES).index(name) for name in ATTRIBUTES]
    right = [judged[column] == truth[column] for column in columns]
    return torch.tensor([*right, all(right)], dtype=torch.float64)


register_metrics(
    {NAME: "shares of clips right in colour, shape, motion, all three (shipped model's data set)"},
    EmbeddedAlignment,
)

"""Inception score for clips (arXiv 1606.03498): how sure a classifier is, and over how many classes.

N clips, K classes, T frames that a network sees, C colour channels (RGB), H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oseg_video.embedded.classifier import load_classifier
from oseg_video.embedded.dataset import VOCABULARIES
from oseg_video.embedded.tasks import ONE_SHAPE
from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.errors import EvaluationError
from oseg_video.evaluation.features.judged import judge_protocol, no_embedded
from oseg_video.evaluation.features.networks import call_script
from oseg_video.evaluation.features.weights import load_torchscript
from oseg_video.evaluation.metrics.base import MetricOptions, MetricValue, register_metrics
from oseg_video.evaluation.observe import ChosenFrames, ClipMetric, Look, too_short

SPLITS = 10
SHUFFLE_SEED = 0
C3D_FRAMES = 16
RESAMPLES = 200


def inception_score(probabilities_NK: Tensor, splits: int = SPLITS) -> tuple[float, float]:
    """Mean and standard deviation (divided by the number of splits) over splits of N >= `splits` clips.

    The score of a split is exp of the mean over its clips of KL(p(class | clip) || mean of p over the split).
    """
    scores = []
    for part_NK in probabilities_NK.double().tensor_split(splits):
        mean_K = part_NK.mean(dim=0)
        divergence_NK = torch.xlogy(part_NK, part_NK) - torch.xlogy(part_NK, mean_K)
        scores.append(divergence_NK.sum(dim=1).mean().exp())
    return float(torch.stack(scores).mean()), float(torch.stack(scores).std(correction=0))


class InceptionScore(ClipMetric):
    """What the scores of all classifiers share: rows are probabilities, splits are drawn once."""

    name: str
    values: Sequence[MetricValue] = ()

    def describe(self, protocol: Mapping[str, Any]) -> None:
        """Set what follows from the classifier's protocol."""
        self.row_protocol = {"metric": self.name, **protocol}
        shown = {**self.row_protocol, "splits": SPLITS, "shuffle_seed": SHUFFLE_SEED}
        self.values = (
            MetricValue(name=self.name, better="higher", protocol=shown, least=1.0, resamples=RESAMPLES),
        )

    def check(self, clips: Sequence[ClipFile]) -> Sequence[str]:
        count = len(clips)
        if count < SPLITS:
            raise EvaluationError(f"{self.name} has {SPLITS} splits; {clips[0].method} has {count} clips")
        if count < 100 * SPLITS:
            return [
                f"{self.name}: {count} clips of {clips[0].method} in {SPLITS} splits bound the score by "
                f"{count / SPLITS:.4g}, whatever the clips; compare it only with scores of as many clips"
            ]
        return ()

    def probabilities(self, rows: Tensor) -> Tensor:
        """Class probabilities [n, K] from rows [n, D]."""
        return rows

    def compute(self, name: str, rows: Tensor, index: Tensor) -> float:
        return self._score(rows, index)[0]

    def details(self, name: str, rows: Tensor, index: Tensor) -> Mapping[str, Any]:
        return {"std over splits": self._score(rows, index)[1]}

    def _score(self, rows: Tensor, index: Tensor) -> tuple[float, float]:
        if len(index) < SPLITS:
            raise EvaluationError(f"{self.name} has {SPLITS} splits and got {len(index)} clips")
        # Clips come sorted by prompt: splits in that order would hold few classes each.
        order = torch.randperm(len(index), generator=torch.Generator().manual_seed(SHUFFLE_SEED))
        return inception_score(self.probabilities(rows[index[order]]))


class C3DInceptionScore(InceptionScore):
    """IS with C3D trained on UCF-101, as StyleGAN-V's torchscript file, over the first 16 frames.

    The file takes uint8 clips of any size and returns the probabilities of 101 classes.
    """

    name = "is:c3d"

    def __init__(self, names: Sequence[str], options: MetricOptions) -> None:
        if self.name not in options.weights:
            raise EvaluationError(
                f"{self.name} needs C3D's weights: give --weights {self.name}=c3d_ucf101.pt, the torchscript "
                "file of StyleGAN-V"
            )
        self.network, digest = load_torchscript(
            Path(options.weights[self.name]), expected=None, trusted=options.trust_weights, metric=self.name
        )
        self.network.to(options.device)
        self.device, self.batch = options.device, options.batch
        self.describe(
            {"network": "C3D, UCF-101 (torchscript)", "sha256": digest, "frames": C3D_FRAMES, "stride": 1}
        )

    def refuses(self, clip: ClipFile) -> str | None:
        return too_short(self.name, clip, C3D_FRAMES)

    def look(self, clip: ClipFile) -> Look:
        return ChosenFrames(clip, range(C3D_FRAMES))

    def rows(self, seen: Tensor) -> Tensor:
        probabilities = call_script(self.network, seen.transpose(1, 2).contiguous().to(self.device))
        sums = probabilities.double().sum(dim=1)
        if probabilities.min() < 0 or not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
            raise EvaluationError(f"the network of {self.name} does not return probabilities")
        return probabilities


class EmbeddedInceptionScore(InceptionScore):
    """IS with the shipped classifier: a class is a colour, shape, motion and background, 576 in all."""

    name = "is:embedded"

    def __init__(self, names: Sequence[str], options: MetricOptions) -> None:
        self.classifier = load_classifier().to(options.device)
        self.device, self.batch = options.device, options.batch
        self.describe({**judge_protocol(ONE_SHAPE), "classes": "product of the four heads"})

    def refuses(self, clip: ClipFile) -> str | None:
        return no_embedded(self.name, clip)

    def look(self, clip: ClipFile) -> Look:
        return ChosenFrames(clip, ONE_SHAPE.seen_frames(clip.frames))

    def rows(self, seen: Tensor) -> Tensor:
        logits = self.classifier.read(self.classifier.frame_features(seen.to(self.device) / 255))
        return torch.cat([logits[name].double().softmax(dim=1) for name in VOCABULARIES], dim=1)

    def probabilities(self, rows: Tensor) -> Tensor:
        """Products of the heads' probabilities: 21 columns become 576."""
        joint = torch.ones(len(rows), 1, dtype=rows.dtype)
        for head in rows.split([len(words) for words in VOCABULARIES.values()], dim=1):
            joint = (joint[:, :, None] * head[:, None, :]).flatten(1)
        return joint


register_metrics(
    {C3DInceptionScore.name: "inception score with C3D (UCF-101), 10 splits; needs weights"},
    C3DInceptionScore,
    reads=("weights", "trust_weights", "device", "batch"),
)
register_metrics(
    {
        EmbeddedInceptionScore.name: "inception score with the shipped classifier, 10 splits "
        "(shipped model's data set)"
    },
    EmbeddedInceptionScore,
    reads=("device", "batch"),
    compared="embedded",
)

"""What the metrics with the shipped clip classifier share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import Tensor

from oseg_video.embedded.classifier import WEIGHTS, seen_frames
from oseg_video.embedded.dataset import FRAMES, SIZE
from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.metrics.base import EvaluationError
from oseg_video.evaluation.metrics.observe import OpenClip


@cache
def _digest() -> str:
    return hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()


CLASSIFIER_PROTOCOL: dict[str, Any] = {
    "classifier": "shipped with oseg-video",
    "sha256": _digest(),
    "frames": "7 spread evenly over the clip",
}


def require_embedded(metric: str, clips: Sequence[ClipFile]) -> None:
    """Raise EvaluationError naming the first clip that the classifier cannot look at."""
    for clip in clips:
        if (clip.height, clip.width) != (SIZE, SIZE) or clip.frames < FRAMES:
            raise EvaluationError(
                f"{metric} needs clips of the shipped model, {SIZE} x {SIZE} pixels and at least {FRAMES} "
                f"frames; {clip.name} has {clip.height} x {clip.width} and {clip.frames}"
            )


def classifier_frames(clip: OpenClip) -> Tensor:
    """The frames that the classifier looks at, uint8 [7, C, H, W]. Raises EvaluationError if it cannot."""
    frames_FCHW = clip.frames_FCHW
    if tuple(frames_FCHW.shape[2:]) != (SIZE, SIZE) or len(frames_FCHW) < FRAMES:
        raise EvaluationError(f"{clip.file.name} has other frames than its header says")
    return frames_FCHW[seen_frames(len(frames_FCHW))]

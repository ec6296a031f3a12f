"""What the metrics with the shipped clip classifier share."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

from oseg_video.embedded.classifier import WEIGHTS, seen_frames
from oseg_video.embedded.drawing import FRAMES, SIZE
from oseg_video.evaluation.clips import ClipFile


@cache
def _digest() -> str:
    return hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()


CLASSIFIER_PROTOCOL: dict[str, Any] = {
    "classifier": "shipped with oseg-video",
    "sha256": _digest(),
    "frames": "7 spread evenly over the clip",
}


def no_embedded(metric: str, clip: ClipFile) -> str | None:
    """For `Metric.refuses`: why the classifier cannot look at a clip; None if it can."""
    if (clip.height, clip.width) == (SIZE, SIZE) and clip.frames >= FRAMES:
        return None
    return (
        f"{metric} needs clips of the shipped model, {SIZE} x {SIZE} pixels and at least {FRAMES} "
        f"frames; {clip.name} has {clip.height} x {clip.width} and {clip.frames}"
    )


def classifier_places(clip: ClipFile) -> list[int]:
    """The 7 frames that the classifier looks at, spread over the clip."""
    return seen_frames(clip.frames)

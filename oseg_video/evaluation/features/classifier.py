"""What the metrics with the shipped clip classifiers share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from oseg_video.embedded import classifier, dataset, two_shapes, two_shapes_judge
from oseg_video.embedded.drawing import FRAMES, SIZE
from oseg_video.evaluation.clips import ClipFile


@cache
def _digest(weights: Path) -> str:
    return hashlib.sha256(weights.read_bytes()).hexdigest()


CLASSIFIER_PROTOCOL: dict[str, Any] = {
    "classifier": "shipped with oseg-video",
    "sha256": _digest(classifier.WEIGHTS),
    "frames": "7 spread evenly over the clip",
}
JUDGE_PROTOCOL: dict[str, Any] = {
    "classifier": "judge of two shapes, shipped with oseg-video",
    "sha256": _digest(two_shapes_judge.WEIGHTS),
    "frames": "10 spread evenly over the clip",
}


@dataclass(frozen=True, kw_only=True)
class DrawnData:
    """A data set of drawn clips, and which frames the shipped network for it looks at."""

    about: str
    sample_clips: Callable[[int, Sequence[int], Sequence[int]], tuple[Tensor, Any]]
    """Seed, indices, frames -> uint8 clips [B, T, C, H, W], and what they show."""
    seen_frames: Callable[[int], list[int]]
    """Places of the frames looked at, by the number of frames of a clip."""


ONE_SHAPE = DrawnData(
    about="embedded data set", sample_clips=dataset.sample_clips, seen_frames=classifier.seen_frames
)
TWO_SHAPES = DrawnData(
    about="data set of two shapes",
    sample_clips=two_shapes.sample_clips,
    seen_frames=two_shapes_judge.seen_frames,
)


def no_embedded(metric: str, clip: ClipFile) -> str | None:
    """For `Metric.refuses`: why the shipped classifiers cannot look at a clip; None if it can."""
    if (clip.height, clip.width) == (SIZE, SIZE) and clip.frames >= FRAMES:
        return None
    return (
        f"{metric} needs clips of the shipped model, {SIZE} x {SIZE} pixels and at least {FRAMES} "
        f"frames; {clip.name} has {clip.height} x {clip.width} and {clip.frames}"
    )


def no_caption(metric: str, clip: ClipFile, parse: Callable[[str], object]) -> str | None:
    """For `Metric.refuses`: why a clip's prompt is none that `parse` takes; None if it is one."""
    if clip.prompt is None:
        return f"{metric} needs each clip's prompt; {clip.name} has no manifest beside it"
    try:
        parse(clip.prompt)
    except ValueError as error:
        return f"{metric} cannot judge {clip.name}: {error}"
    return None

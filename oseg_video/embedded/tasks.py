"""What the shipped models are asked: clips that can be drawn, their captions, a network that reads clips.

B clips, F frames, T seen frames, C colour channels (RGB), H rows, W columns, D feature dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from oseg_video.embedded import MODEL_PATH, MODEL_TWO_PATH, classifier, dataset, two_shapes, two_shapes_judge


class Judge(Protocol):
    """Tells what clips show; its features are for Fréchet distances."""

    def to(self, device: torch.device | str) -> Self:
        """As of `torch.nn.Module`."""
        ...

    def features(self, clips_BFCHW: Tensor) -> Tensor:
        """[B, D] of float clips in 0 ... 1."""
        ...

    def frame_features(self, frames_BTCHW: Tensor) -> Tensor:
        """`features` of the seen frames only."""
        ...

    def judge(self, clips_BFCHW: Tensor) -> Sequence[Any]:
        """What each clip shows."""
        ...

    def judge_frames(self, frames_BTCHW: Tensor) -> Sequence[Any]:
        """`judge` of the seen frames only."""
        ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the clips of a model are asked to show, and how it is told whether they do."""

    model: Path
    """diffusers directory of the model."""
    data: str
    """Name of the data set in tables."""
    sample_attributes: Callable[[int, int], Any]
    """Seed and index -> what a drawn clip shows."""
    sample_clips: Callable[[int, Sequence[int], Sequence[int]], tuple[Tensor, Any]]
    """Seed, indices, frames -> uint8 clips [B, T, C, H, W], and what they show."""
    caption: Callable[[Any], str]
    """Of what a clip shows."""
    parse_caption: Callable[[str], Any]
    """Back; raises ValueError."""
    network: str
    """Name of the judge in protocols."""
    weights: Path
    """Of the judge."""
    load_judge: Callable[[], Judge]
    width: int
    """D of the judge."""
    seen_frames: Callable[[int], list[int]]
    """Places of the frames that the judge sees, by the number of frames of a clip."""
    agreement: Callable[[Any, Any], Mapping[str, bool]]
    """Which parts of what is wanted are seen."""
    parts: tuple[str, ...]
    """Of `agreement`; the last one is all of them."""


ONE_SHAPE = Task(
    model=MODEL_PATH,
    data="embedded data set",
    sample_attributes=dataset.sample_attributes,
    sample_clips=dataset.sample_clips,
    caption=dataset.caption,
    parse_caption=dataset.parse_caption,
    network="shipped with oseg-video",
    weights=classifier.WEIGHTS,
    load_judge=classifier.load_classifier,
    width=classifier.FEATURE_DIM,
    seen_frames=classifier.seen_frames,
    agreement=classifier.agreement,
    parts=("colour", "shape", "motion", "all"),
)
TWO_SHAPES = Task(
    model=MODEL_TWO_PATH,
    data="data set of two shapes",
    sample_attributes=two_shapes.sample_attributes,
    sample_clips=two_shapes.sample_clips,
    caption=two_shapes.caption,
    parse_caption=two_shapes.parse_caption,
    network="judge of two shapes, shipped with oseg-video",
    weights=two_shapes_judge.WEIGHTS,
    load_judge=two_shapes_judge.load_two_shape_judge,
    width=two_shapes_judge.FEATURE_DIM,
    seen_frames=two_shapes_judge.seen_frames,
    agreement=two_shapes_judge.agreement,
    parts=("count", "colour", "shape", "motion", "binding", "all"),
)

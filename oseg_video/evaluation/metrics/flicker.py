"""Temporal flickering as VBench defines it, without VBench.

VBench (arXiv 2311.17982, "Temporal Flickering"; package 0.1.5): the mean over neighbouring frames of the mean
absolute difference of all 8-bit values, taken from 255 and divided by it. 1 is a still picture. VBench means
it for clips of static scenes; motion lowers it too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.metrics.base import EvaluationError, Figure, MetricOptions, register_metrics
from oseg_video.evaluation.metrics.observe import MeanMetric, OpenClip
from oseg_video.media import stream_frames

# VBench reads with OpenCV, at most 4.11 because it needs numpy < 2. That converts YUV by BT.601 whatever the
# file says; OpenCV 4.14 heeds the file, which moves values by about 1e-3. With this graph frames are those of
# OpenCV 4.11 to the last bit (tests/unit/test_evaluation_native.py).
_OPENCV_COLOURS = "scale=in_color_matrix=bt601:flags=bicubic,format=bgr24"


def temporal_flickering(frames: Iterator[np.ndarray]) -> float:
    """VBench's temporal flickering of frames, uint8 [H, W, C]. Raises EvaluationError for fewer than two."""
    differences = []
    before: np.ndarray | None = None
    for frame in frames:
        current = frame.astype(np.int16)
        if before is not None:
            differences.append(np.abs(current - before).mean(dtype=np.float64))
        before = current
    if not differences:
        raise EvaluationError("temporal flickering needs at least 2 frames")
    return float((255 - np.mean(differences)) / 255)


class TemporalFlickering(MeanMetric):
    """VBench's `temporal_flickering` of every clip, read as VBench reads it."""

    def __init__(self, names: Sequence[str], options: MetricOptions) -> None:
        self.row_protocol: dict[str, Any] = {
            "metric": "temporal_flickering",
            "definition": "VBench 0.1.5: (255 - mean absolute difference of neighbouring frames) / 255",
            "reading": "video files and GIFs as OpenCV 4.11 does (BT.601); folders of PNG as they are",
        }
        self.figures = [
            Figure(
                name="temporal_flickering", better="higher", protocol=self.row_protocol, least=0.0, most=1.0
            )
        ]

    def check(self, clips: Sequence[ClipFile]) -> Sequence[str]:
        require_frames("temporal_flickering", clips, 2)
        return ()

    def see(self, clip: OpenClip) -> Tensor:
        frames: Iterator[np.ndarray]
        if clip.file.kind == "png":
            frames = (frame.permute(1, 2, 0).numpy() for frame in clip.frames_FCHW)
        else:
            frames = stream_frames(clip.file.path, filters=_OPENCV_COLOURS)
        return torch.tensor([temporal_flickering(frames)], dtype=torch.float64)


def require_frames(metric: str, clips: Sequence[ClipFile], least: int) -> None:
    """Raise EvaluationError naming the first clip with fewer frames."""
    for clip in clips:
        if clip.frames < least:
            raise EvaluationError(
                f"{metric} needs clips of at least {least} frames; {clip.name} has {clip.frames}"
            )


register_metrics(
    {"temporal_flickering": "VBench's temporal flickering, computed here (1 is a still picture)"},
    TemporalFlickering,
)

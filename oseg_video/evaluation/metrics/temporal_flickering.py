"""Temporal flickering as VBench defines it, without VBench.

VBench (arXiv 2311.17982, "Temporal Flickering"; package 0.1.5): the mean over neighbouring frames of the mean
absolute difference of all 8-bit values, taken from 255 and divided by it. 1 is a still image. VBench means
it for clips of static scenes; motion lowers it too.

VBench reads with OpenCV, at most 4.11 because it needs numpy < 2. That converts YUV by BT.601 whatever the
file says; OpenCV 4.14 heeds the file, which moves values by about 1e-3.
"""

from __future__ import annotations

from oseg_video.evaluation.metrics.base import MetricValue, register_metrics
from oseg_video.evaluation.metrics.frame_difference import mean_difference
from oseg_video.evaluation.observe import PairMetric
from oseg_video.media import Frame, Pixels

NAME = "temporal_flickering"
PROTOCOL = {
    "metric": NAME,
    "definition": "VBench 0.1.5: (255 - mean absolute difference of neighbouring frames) / 255",
    "reading": "as OpenCV 4.11 does: video files by BT.601, pauses of GIFs as one frame",
}


class TemporalFlickering(PairMetric[Pixels]):
    """VBench's `temporal_flickering` of every clip, read as VBench reads it."""

    row_protocol = PROTOCOL
    values = (MetricValue(name=NAME, better="higher", protocol=PROTOCOL, least=0.0, most=1.0),)

    def prepare(self, frame: Frame) -> Pixels | None:
        return None if frame.repeats else frame.opencv_HWC

    def between(self, before: Pixels, after: Pixels) -> float:
        return (255 - mean_difference(before, after)) / 255


register_metrics(
    {NAME: "VBench's temporal flickering, computed here (1 is a still image)"},
    TemporalFlickering,
    compared="always",
)

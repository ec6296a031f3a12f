"""How much neighbouring frames differ. A description, not quality: neither more nor less is better."""

from __future__ import annotations

import numpy as np

from oseg_video.evaluation.metrics.base import MetricValue, register_metrics
from oseg_video.evaluation.observe import PairMetric
from oseg_video.media import Frame, Pixels

NAME = "frame_difference"
SUMMARY = "mean absolute difference of neighbouring frames, in 8-bit levels"
PROTOCOL = {"definition": SUMMARY}


def mean_difference(before_HWC: Pixels, after_HWC: Pixels) -> float:
    """Mean absolute difference of two frames, uint8, in 8-bit levels, 0 to 255; exact."""
    difference_HWC = np.maximum(before_HWC, after_HWC) - np.minimum(before_HWC, after_HWC)
    return float(difference_HWC.sum(dtype=np.uint64)) / difference_HWC.size


class FrameDifference(PairMetric[Pixels]):
    """Mean absolute difference of neighbouring frames of every clip."""

    row_protocol = PROTOCOL
    values = (MetricValue(name=NAME, better=None, protocol=PROTOCOL, least=0.0),)

    def prepare(self, frame: Frame) -> Pixels:
        return frame.rgb_HWC

    def between(self, before: Pixels, after: Pixels) -> float:
        return mean_difference(before, after)


register_metrics({NAME: SUMMARY}, FrameDifference, compared="always")

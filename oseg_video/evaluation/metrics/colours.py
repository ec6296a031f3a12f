"""How saturated and how contrasty images are. Descriptions, not quality: too much guidance raises both."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.metrics.base import MetricValue, register_metrics
from oseg_video.evaluation.observe import Look, MeanMetric
from oseg_video.media import Frame, Pixels

SUMMARIES = {
    "saturation": "mean saturation S of HSV over pixels and frames, 0 to 1",
    "contrast": "standard deviation of a frame's luminance (BT.601), mean of frames, 0 to 0.5",
}
_LUMINANCE = (0.299, 0.587, 0.114)


def saturation(rgb_HWC: Pixels) -> float:
    """Mean over the pixels of a uint8 image of (max - min) / max over channels; 0 where one is black."""
    high = rgb_HWC.max(axis=2)
    return float(((high - rgb_HWC.min(axis=2)) / np.maximum(high, 1)).mean(dtype=np.float64))


def contrast(rgb_HWC: Pixels) -> float:
    """Standard deviation of the luminance of a uint8 image, in units of its range."""
    luminance_HW = np.zeros(rgb_HWC.shape[:2])
    # A product with the weights would hold all three channels in float64.
    for channel, weight in enumerate(_LUMINANCE):
        luminance_HW += rgb_HWC[:, :, channel] * weight
    return float(luminance_HW.std() / 255)


class Colours(MeanMetric):
    """Means over the frames of every clip."""

    row_protocol = SUMMARIES
    values = tuple(
        MetricValue(name=f"colours:{name}", better=None, protocol={"definition": text}, least=0.0, most=most)
        for (name, text), most in zip(SUMMARIES.items(), (1.0, 0.5), strict=True)
    )

    def look(self, clip: ClipFile) -> Look:
        return _Means()


class _Means(Look):
    def __init__(self) -> None:
        self._sums = np.zeros(2)
        self._frames = 0

    def add(self, frame: Frame) -> None:
        self._sums += saturation(frame.rgb_HWC), contrast(frame.rgb_HWC)
        self._frames += 1

    def seen(self) -> Tensor:
        return torch.from_numpy(self._sums / self._frames)


_SUMMARY = "; ".join(f"{name}: {text}" for name, text in SUMMARIES.items())
register_metrics({"colours": _SUMMARY}, Colours, compared="images")

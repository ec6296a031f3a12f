"""How far blocks move, without a network. A description, not quality: neither more nor less is better.

H rows, W columns, S shifts, Y and X rows and columns of blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.metrics.base import MetricValue, register_metrics
from oseg_video.evaluation.observe import PairMetric, too_short
from oseg_video.media import Frame, Pixels

NAME = "block_motion"
SUMMARY = "mean displacement of 16 x 16 blocks between neighbouring frames, in pixels"
BLOCK = 16
"""Side of a block in pixels of the scaled frame."""
REACH = 7
"""Largest displacement along each axis that is searched, in pixels of the scaled frame."""
SMALLEST_SIDE = BLOCK + 2 * REACH
LARGEST_SIDE = 128
"""Frames whose short side is longer are scaled down to it before the search."""
PROTOCOL = {
    "definition": SUMMARY,
    "search": f"full, {REACH} pixels along each axis, luma, short side at most {LARGEST_SIDE}",
}
_STEPS = range(-REACH, REACH + 1)
# From short to long, so that the first of equal costs is the shortest.
_SHIFTS = sorted(((y, x) for y in _STEPS for x in _STEPS), key=lambda shift: shift[0] ** 2 + shift[1] ** 2)
_LENGTHS_S = np.array([(y * y + x * x) ** 0.5 for y, x in _SHIFTS])

Luma = NDArray[np.float32]
"""[H, W], 0 to 255."""


def luma_of(frame_HWC: Pixels) -> tuple[Luma, float]:
    """Luma (BT.601) of a frame, uint8, scaled down if it is large; and the factor, at most 1."""
    luma_HW = frame_HWC[:, :, 0] * np.float32(0.299)
    for channel, weight in ((1, 0.587), (2, 0.114)):
        luma_HW += frame_HWC[:, :, channel] * np.float32(weight)
    scale = min(1.0, LARGEST_SIDE / min(luma_HW.shape))
    if scale < 1:
        size = [round(scale * side) for side in luma_HW.shape]
        luma_HW = functional.interpolate(torch.from_numpy(luma_HW)[None, None], size, mode="area")[
            0, 0
        ].numpy()
    return luma_HW, scale


def block_lengths(before_HW: Luma, after_HW: Luma) -> NDArray[np.float64]:
    """How far every block moves to the next frame, [Y, X]; blocks near the border are left out.

    Full search: for each block of 16 x 16 pixels of a frame, the shift of at most 7 pixels along each axis
    with the least sum of absolute differences to the next frame; the shorter of equals, so that flat blocks
    rest. Faster motion than 7 pixels is not seen.
    """
    rows, columns = ((side - 2 * REACH) // BLOCK for side in before_HW.shape)
    height, width = rows * BLOCK, columns * BLOCK
    inner_HW = np.ascontiguousarray(before_HW[REACH : REACH + height, REACH : REACH + width])
    of_column_WX = np.repeat(np.eye(columns, dtype=np.float32), BLOCK, axis=0)
    difference_HW = np.empty_like(inner_HW)
    costs_SHX = np.empty((len(_SHIFTS), height, columns), np.float32)
    for shift, (y, x) in enumerate(_SHIFTS):
        moved_HW = after_HW[REACH + y : REACH + y + height, REACH + x : REACH + x + width]
        np.subtract(moved_HW, inner_HW, out=difference_HW)
        np.abs(difference_HW, out=difference_HW)
        np.matmul(difference_HW, of_column_WX, out=costs_SHX[shift])
    costs_SYX = costs_SHX.reshape(len(_SHIFTS), rows, BLOCK, columns).sum(axis=2)
    lengths: NDArray[np.float64] = _LENGTHS_S[costs_SYX.argmin(axis=0)]  # the first of equals
    return lengths


class BlockMotion(PairMetric):
    """Mean length of block displacements between neighbouring frames, in pixels of the clip per frame."""

    row_protocol = PROTOCOL
    values = (MetricValue(name=NAME, better=None, protocol=PROTOCOL, least=0.0),)

    def refuses(self, clip: ClipFile) -> str | None:
        if reason := too_short(NAME, clip, 2):
            return reason
        if min(clip.height, clip.width) < SMALLEST_SIDE:
            size = f"{clip.height} x {clip.width}"
            return f"{NAME} needs {SMALLEST_SIDE} pixels along each side; {clip.name} has {size}"
        return None

    def prepare(self, frame: Frame) -> Any:
        return luma_of(frame.rgb_HWC)

    def between(self, before: Any, after: Any) -> float:
        (before_HW, scale), (after_HW, _) = before, after
        return float(block_lengths(before_HW, after_HW).mean()) / scale


register_metrics({NAME: SUMMARY}, BlockMotion, compared="always")

"""How much a clip moves, without a network. Descriptions, not quality: neither more nor less is better.

F frames, C colour channels (RGB), H rows, W columns, S shifts, Y and X rows and columns of blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.metrics.base import EvaluationError, Figure, MetricOptions, register_metrics
from oseg_video.evaluation.metrics.flicker import require_frames
from oseg_video.evaluation.metrics.observe import MeanMetric, OpenClip

BLOCK = 16
"""Side of a block in pixels of the scaled frame."""
REACH = 7
"""Largest displacement along each axis that is searched, in pixels of the scaled frame."""
_SMALLEST_SIDE = BLOCK + 2 * REACH
LARGEST_SIDE = 128
"""Frames whose short side is longer are scaled down to it before the search."""


def frame_difference(frames_FCHW: Tensor) -> float:
    """Mean absolute difference of neighbouring frames (uint8), in 8-bit levels, 0 to 255."""
    pairs = itertools.pairwise(frames_FCHW)
    return float(torch.stack([(b.int() - a.int()).abs().double().mean() for a, b in pairs]).mean())


def block_motion(frames_FCHW: Tensor) -> float:
    """Mean length of block displacements between neighbouring frames (uint8), in pixels per frame.

    Full search: for each block of 16 x 16 pixels of a frame, the shift of at most 7 pixels along each axis
    with the least sum of absolute differences to the next frame, in luma (BT.601); the shorter of equals, so
    that flat blocks rest. Faster motion than 7 pixels is not seen.
    """
    luma_FHW = torch.einsum("fchw,c->fhw", frames_FCHW.float(), torch.tensor([0.299, 0.587, 0.114]))
    scale = min(1.0, LARGEST_SIDE / min(luma_FHW.shape[1:]))
    if scale < 1:
        size = [round(scale * side) for side in luma_FHW.shape[1:]]
        luma_FHW = functional.interpolate(luma_FHW[:, None], size, mode="area")[:, 0]
    return float(_block_lengths(luma_FHW).mean()) / scale


def _block_lengths(luma_FHW: Tensor) -> Tensor:
    """How far every block moves to the next frame, [F - 1, Y, X]; blocks near the border are left out."""
    height, width = luma_FHW.shape[1:]
    inner_FHW = luma_FHW[:-1, REACH : height - REACH, REACH : width - REACH]
    steps = range(-REACH, REACH + 1)
    # From short to long, so that the first of equal costs is the shortest.
    shifts = sorted(((y, x) for y in steps for x in steps), key=lambda shift: shift[0] ** 2 + shift[1] ** 2)
    costs = []
    for y, x in shifts:
        moved_FHW = luma_FHW[1:, REACH + y : height - REACH + y, REACH + x : width - REACH + x]
        costs.append(functional.avg_pool2d((moved_FHW - inner_FHW).abs(), BLOCK))
    costs_SFYX = torch.stack(costs)
    # argmin alone does not promise the first of equals.
    first_FYX = (costs_SFYX == costs_SFYX.amin(dim=0)).int().argmax(dim=0)
    return torch.tensor([(y * y + x * x) ** 0.5 for y, x in shifts])[first_FYX]


_STATISTICS = {"frame_difference": frame_difference, "block_motion": block_motion}
_SUMMARIES = {
    "frame_difference": "mean absolute difference of neighbouring frames, in 8-bit levels",
    "block_motion": "mean displacement of 16 x 16 blocks between neighbouring frames, in pixels",
}
_PROTOCOLS: dict[str, dict[str, Any]] = {
    "frame_difference": {"definition": _SUMMARIES["frame_difference"]},
    "block_motion": {
        "definition": _SUMMARIES["block_motion"],
        "search": f"full, {REACH} pixels along each axis, luma, short side at most {LARGEST_SIDE}",
    },
}


class MotionStatistics(MeanMetric):
    """The statistics of this module that were asked for, a column each."""

    def __init__(self, names: Sequence[str], options: MetricOptions) -> None:
        self.names = list(names)
        self.row_protocol: dict[str, Any] = {name: _PROTOCOLS[name] for name in names}
        self.figures = [
            Figure(name=name, better=None, protocol=_PROTOCOLS[name], least=0.0) for name in names
        ]

    def check(self, clips: Sequence[ClipFile]) -> Sequence[str]:
        require_frames(", ".join(self.names), clips, 2)
        if "block_motion" in self.names:
            for clip in clips:
                if min(clip.height, clip.width) < _SMALLEST_SIDE:
                    raise EvaluationError(
                        f"block_motion needs {_SMALLEST_SIDE} pixels along each side; {clip.name} has "
                        f"{clip.height} x {clip.width}"
                    )
        return ()

    def see(self, clip: OpenClip) -> Tensor:
        return torch.tensor([_STATISTICS[name](clip.frames_FCHW) for name in self.names], dtype=torch.float64)


register_metrics(_SUMMARIES, MotionStatistics)

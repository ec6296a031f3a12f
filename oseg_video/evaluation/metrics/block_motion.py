"""How far blocks move, without a network. A description, not quality: neither more nor less is better.

H rows, W columns, S shifts, Y and X rows and columns of blocks, N blocks, P side of a block, K candidates.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
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
_CELL = 4
_AT_ONCE = 4096
"""Candidates whose exact cost is worked out at once: 4 MB."""
_GRID_S2 = np.stack(np.meshgrid(*[np.arange(-REACH, REACH + 1)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
# From short to long, so that the first of equal costs is the shortest.
_GRID_ORDER_S = np.argsort((_GRID_S2**2).sum(axis=1), kind="stable")
_SHIFTS_S2 = _GRID_S2[_GRID_ORDER_S]
_LENGTHS_S = np.sqrt((_SHIFTS_S2**2).sum(axis=1))

Luma: TypeAlias = NDArray[np.float32]
"""[H, W], 0 to 255."""


def luma_of(frame_HWC: Pixels) -> tuple[Luma, float]:
    """Luma (BT.601) of a frame, uint8, scaled down if it is large; and the factor, at most 1."""
    luma_HW = frame_HWC[:, :, 0] * np.float32(0.299)
    for channel, weight in ((1, 0.587), (2, 0.114)):
        luma_HW += frame_HWC[:, :, channel] * np.float32(weight)
    scale = min(1.0, LARGEST_SIDE / min(luma_HW.shape))
    if scale < 1:
        size = [round(scale * side) for side in luma_HW.shape]
        luma_11HW = torch.from_numpy(luma_HW)[None, None]
        luma_HW = functional.interpolate(luma_11HW, size, mode="area")[0, 0].numpy()
    return luma_HW, scale


def block_lengths(before_HW: Luma, after_HW: Luma) -> NDArray[np.float64]:
    """How far every block moves to the next frame, [Y, X]; blocks near the border are left out.

    Full search: for each block of 16 x 16 pixels of a frame, the shift of at most 7 pixels along each axis
    with the least sum of absolute differences to the next frame; the shorter of equals, so that flat blocks
    rest. Faster motion than 7 pixels is not seen.
    """
    rows, columns = ((side - 2 * REACH) // BLOCK for side in before_HW.shape)
    inner_HW = before_HW[REACH : REACH + rows * BLOCK, REACH : REACH + columns * BLOCK]
    blocks_NPP = inner_HW.reshape(rows, BLOCK, columns, BLOCK).swapaxes(1, 2).reshape(-1, BLOCK, BLOCK)
    bounds_SN = _bounds(inner_HW, after_HW)
    patches_HWPP = sliding_window_view(after_HW, (BLOCK, BLOCK))
    tops_N, lefts_N = np.divmod(np.arange(rows * columns), columns)

    def costs(shifts_K: NDArray[np.intp], places_K: NDArray[np.intp]) -> NDArray[np.float32]:
        y_K = tops_N[places_K] * BLOCK + REACH + _SHIFTS_S2[shifts_K, 0]
        x_K = lefts_N[places_K] * BLOCK + REACH + _SHIFTS_S2[shifts_K, 1]
        found_K: NDArray[np.float32] = np.abs(patches_HWPP[y_K, x_K] - blocks_NPP[places_K]).sum(axis=(1, 2))
        return found_K

    every_N = np.arange(rows * columns)
    least_N = costs(bounds_SN.argmin(axis=0), every_N)
    # Sums of absolute differences are at least those of sums (Li and Salari 1995), but for rounding.
    shifts_K, places_K = np.nonzero(bounds_SN * (1 - 1e-4) <= least_N + 1e-2)
    costs_K = np.concatenate(
        [
            costs(shifts_K[first : first + _AT_ONCE], places_K[first : first + _AT_ONCE])
            for first in range(0, len(shifts_K), _AT_ONCE)
        ]
    )
    best_N = np.full(len(every_N), np.inf, np.float32)
    np.minimum.at(best_N, places_K, costs_K)
    # Shifts come from short to long: of equal costs the shorter is written last.
    found_K = np.flatnonzero(costs_K == best_N[places_K])[::-1]
    length_N = np.empty(len(every_N))
    length_N[places_K[found_K]] = _LENGTHS_S[shifts_K[found_K]]
    return length_N.reshape(rows, columns)


def _bounds(inner_HW: Luma, after_HW: Luma) -> NDArray[np.float32]:
    """For every shift and block a number that its cost is not below: [S, N], from sums over 4 x 4 pixels."""
    cells_YX = inner_HW.reshape(inner_HW.shape[0] // _CELL, _CELL, -1, _CELL).sum(axis=(1, 3))
    sums_HW: Any = sum(after_HW[y : after_HW.shape[0] - _CELL + 1 + y] for y in range(_CELL))
    sums_HW = sum(sums_HW[:, x : sums_HW.shape[1] - _CELL + 1 + x] for x in range(_CELL))
    # Every fourth sum beside the next, so that those of one shift lie together; a shift more than there are,
    # which may lie outside, fills the fourth row of four.
    rows, columns = (side + REACH // 2 for side in cells_YX.shape)
    sums_HW = np.pad(sums_HW, (0, 1))[: rows * _CELL, : columns * _CELL]
    apart = sums_HW.reshape(rows, _CELL, columns, _CELL)
    windows = sliding_window_view(apart.transpose(1, 3, 0, 2).copy(), cells_YX.shape, axis=(2, 3))
    differences = windows - cells_YX
    np.abs(differences, out=differences)
    of_rows = differences.reshape(*differences.shape[:4], -1, BLOCK // _CELL, cells_YX.shape[1]).sum(axis=5)
    of_column = np.repeat(
        np.eye(cells_YX.shape[1] * _CELL // BLOCK, dtype=np.float32), BLOCK // _CELL, axis=0
    )
    of_block = of_rows @ of_column
    of_shift = of_block.transpose(2, 0, 3, 1, 4, 5).reshape(2 * REACH + 2, 2 * REACH + 2, -1)
    bounds_SN: NDArray[np.float32] = of_shift[:-1, :-1].reshape(len(_SHIFTS_S2), -1)[_GRID_ORDER_S]
    return bounds_SN


class BlockMotion(PairMetric[tuple[Luma, float]]):
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

    def prepare(self, frame: Frame) -> tuple[Luma, float]:
        return luma_of(frame.rgb_HWC)

    def between(self, before: tuple[Luma, float], after: tuple[Luma, float]) -> float:
        (before_HW, scale), (after_HW, _) = before, after
        return float(block_lengths(before_HW, after_HW).mean() / scale)


register_metrics({NAME: SUMMARY}, BlockMotion, compared="always")

"""Memory and time of the metrics without weights, against the implementation that held whole clips in memory.

    python scripts/bench_evaluation.py                    # minutes; the older block_motion takes most of them
    python scripts/bench_evaluation.py --frames 5000      # as in the README

Each line is a process of its own, on clips that ffmpeg draws: wall-clock seconds from opening the clip to its
value, and the peak of the process's resident memory, imports included (they are the line "imports").
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from oseg_video.evaluation.clips import find_clips
from oseg_video.evaluation.metrics.base import MetricOptions, build_metrics
from oseg_video.media import read_clip
from oseg_video.media.writing import run_ffmpeg

METRICS = ("frame_difference", "temporal_flickering", "block_motion")
_BLOCK, _REACH, _LARGEST_SIDE = 16, 7, 128


def whole_clip_block_motion(frames_FCHW: Tensor) -> float:
    """The older implementation: every shift of every frame of the clip at once."""
    luma_FHW = torch.einsum("fchw,c->fhw", frames_FCHW.float(), torch.tensor([0.299, 0.587, 0.114]))
    scale = min(1.0, _LARGEST_SIDE / min(luma_FHW.shape[1:]))
    if scale < 1:
        size = [round(scale * side) for side in luma_FHW.shape[1:]]
        luma_FHW = functional.interpolate(luma_FHW[:, None], size, mode="area")[:, 0]
    height, width = luma_FHW.shape[1:]
    inner_FHW = luma_FHW[:-1, _REACH : height - _REACH, _REACH : width - _REACH]
    steps = range(-_REACH, _REACH + 1)
    shifts = sorted(((y, x) for y in steps for x in steps), key=lambda shift: shift[0] ** 2 + shift[1] ** 2)
    costs = []
    for y, x in shifts:
        moved_FHW = luma_FHW[1:, _REACH + y : height - _REACH + y, _REACH + x : width - _REACH + x]
        costs.append(functional.avg_pool2d((moved_FHW - inner_FHW).abs(), _BLOCK))
    costs_SFYX = torch.stack(costs)
    first_FYX = (costs_SFYX == costs_SFYX.amin(dim=0)).int().argmax(dim=0)
    return float(torch.tensor([(y * y + x * x) ** 0.5 for y, x in shifts])[first_FYX].mean()) / scale


def whole_clip_frame_difference(frames_FCHW: Tensor) -> float:
    """The older implementation."""
    pairs = itertools.pairwise(frames_FCHW)
    return float(torch.stack([(b.int() - a.int()).abs().double().mean() for a, b in pairs]).mean())


OLDER: dict[str, Callable[[Tensor], float]] = {
    "frame_difference": whole_clip_frame_difference,
    "block_motion": whole_clip_block_motion,
}


def measured(what: str, metric: str, path: Path) -> dict[str, float]:
    """Value, seconds and peak MB of a metric in this process."""
    begun = time.perf_counter()
    value = 0.0
    if what == "older":
        value = OLDER[metric](read_clip(path).frames)
    elif what == "streaming":
        (built,) = build_metrics([metric], MetricOptions())
        value = built.compute(metric, built.observe(find_clips([path]).clips).rows, torch.tensor([0]))
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"value": value, "seconds": seconds, "MB": peak}


def in_process(what: str, metric: str, path: Path) -> dict[str, float]:
    """As `measured`, in a fresh process with one thread."""
    command = [sys.executable, __file__, "--measure", what, metric, str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def draw(path: Path, size: str, frames: int) -> None:
    """A clip of moving test patterns."""
    done = run_ffmpeg(
        *("-v", "error", "-f", "lavfi", "-i", f"testsrc2=size={size}:rate=25", "-frames:v", str(frames)),
        *("-preset", "ultrafast", "-pix_fmt", "yuv420p", "-y", str(path)),
    )
    if done.returncode:
        sys.exit(done.stderr.decode())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=500, metavar="N", help="of the small clip (500)")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, metric, path = options.measure
        print(json.dumps(measured(what, metric, Path(path))))
        return
    print("| clip | metric | implementation | seconds | peak MB | value |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder, "small.mp4"), Path(folder, "large.mp4")
        draw(small, "256x144", options.frames)
        draw(large, "3840x2160", 300)

        def line(clip: str, metric: str, what: str, path: Path) -> dict[str, float]:
            found = in_process(what, metric, path)
            cells = f"{found['seconds']:.1f} | {found['MB']:.0f} | {found['value']:.6g}"
            print(f"| {clip} | {metric} | {what} | {cells} |", flush=True)
            return found

        line("-", "-", "imports", small)
        clip = f"{options.frames} frames of 256 x 144"
        for metric in METRICS:
            ways = ("older", "streaming") if metric in OLDER else ("streaming",)
            found = {what: line(clip, metric, what, small) for what in ways}
            if "older" in found:
                faster = found["older"]["seconds"] / found["streaming"]["seconds"]
                less = found["older"]["MB"] / found["streaming"]["MB"]
                print(f"| | | older / streaming | {faster:.1f} | {less:.1f} | |", flush=True)
        for metric in METRICS:
            line("300 frames of 3840 x 2160", metric, "streaming", large)


if __name__ == "__main__":
    main()

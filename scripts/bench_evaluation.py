"""Memory and time of the metrics without networks, against older ones that held whole clips in memory.

    python scripts/bench_evaluation.py --out scripts/bench_evaluation.json   # half an hour on a busy machine
    python scripts/bench_evaluation.py --frames 500                          # minutes
    python scripts/bench_evaluation.py --write-readme                        # the stored table into README.md

Each line is a process of its own with one thread, on clips that ffmpeg draws: processor seconds from opening
the clip to its value (which other work on the machine moves little), and the peak of the process's resident
memory, imports included (they are the line "imports").
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
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from marked import made_with, markdown, read_stored, store, write_readme
from torch import Tensor
from torch.nn import functional

from oseg_video.evaluation.clips import find_clips
from oseg_video.evaluation.metrics.base import MetricOptions, build_metrics
from oseg_video.media import read_clip
from oseg_video.media.writing import run_ffmpeg

STORED = Path(__file__).with_suffix(".json")
METRICS = ("frame_difference", "temporal_flickering", "colours:saturation", "block_motion")
LARGE = "3840x2160"
LARGE_FRAMES = 300
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
    """Value, processor seconds and peak MB of a metric in this process."""
    begun = time.process_time()
    value = 0.0
    if what == "older":
        value = OLDER[metric](read_clip(path).frames)
    elif what == "streaming":
        (built,) = build_metrics([metric.partition(":")[0]], MetricOptions())
        value = built.compute(metric, built.observe(find_clips([path]).clips).rows, torch.tensor([0]))
    seconds = time.process_time() - begun
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


def rows(frames: int) -> Iterator[dict[str, Any]]:
    """A row for every clip, metric and implementation, one after the other."""
    small = "256x144"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        yield {"clip": "-", "metric": "-", "way": "imports", **in_process("imports", "-", path)}
        for size, count in ((small, frames // 10), (small, frames), (LARGE, LARGE_FRAMES)):
            draw(path, size, count)
            clip = f"{count} frames of {size.replace('x', ' x ')}"
            for metric in METRICS:
                older = metric in OLDER and (size, count) == (small, frames)
                for way in ("older", "streaming") if older else ("streaming",):
                    yield {"clip": clip, "metric": metric, "way": way, **in_process(way, metric, path)}


def tables(measured_rows: list[dict[str, Any]]) -> list[str]:
    """The results as Markdown, and how many times faster and smaller the streaming metrics are."""
    lines = [markdown("clip", "metric", "implementation", "seconds", "peak MB", "value"), "|---" * 6 + "|"]
    for row in measured_rows:
        numbers = f"{row['seconds']:.1f}", f"{row['MB']:.0f}", f"{row['value']:.6g}"
        lines.append(markdown(row["clip"], row["metric"], row["way"], *numbers))
    for older, streaming in itertools.pairwise(measured_rows):
        if (older["way"], streaming["way"]) == ("older", "streaming"):
            ratios = (f"{older[name] / streaming[name]:.1f}" for name in ("seconds", "MB"))
            lines.append(markdown(older["clip"], older["metric"], "older / streaming", *ratios, ""))
    return ["\n".join(lines)]


def stored_tables() -> list[str]:
    """What the README has: the table of the stored results, and what they were made with."""
    stored = json.loads(STORED.read_text())
    return [*tables(stored["measured"]["rows"]), made_with(stored)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=5000, metavar="N", help="of the small clip (5000)")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    parser.add_argument(
        "--write-readme", action="store_true", help=f"write the table of {STORED.name} into README.md only"
    )
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, metric, path = options.measure
        print(json.dumps(measured(what, metric, Path(path))))
        return
    if options.write_readme:
        write_readme("bench_evaluation", stored_tables())
        return
    read_stored(options.out)  # refuses a file of others before the work
    found = []
    for row in rows(options.frames):
        print(json.dumps(row), flush=True)
        found.append(row)
    if options.out:
        versions = {name: version(name) for name in ("torch", "numpy", "av")}
        store(options.out, "bench_evaluation", {"measured": {"versions": versions, "rows": found}})
    print("\n\n".join(tables(found)))


if __name__ == "__main__":
    main()

"""Runs jobs in VBench's interpreter, over all the devices, and reads what each clip adds to the scores."""

from __future__ import annotations

import math
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .clips import ClipFile
from .vbench_environment import Environment, VBenchError
from .vbench_jobs import Job
from .vbench_process import Event, run_workers
from .vbench_scores import tally

Tallies = dict[str, dict[str, tuple[float, float]]]
"""Job name -> clip name -> (numerator, denominator)."""


@dataclass(frozen=True)
class Machine:
    """Where VBench runs."""

    environment: Environment
    device: str
    """"cpu" or "cuda"."""
    gpus: tuple[int, ...]
    """Indices of the GPUs that share the work, among the visible ones; () on a CPU."""

    def requests(self, count: int) -> list[dict[str, Any]]:
        """A request for each process, without its work; no more of them than `count`."""
        if not self.gpus:
            return [{"device": self.device}]
        return [{"device": self.device, "gpu": gpu} for gpu in self.gpus[:count]]


def run_jobs(machine: Machine, jobs: Sequence[Job], *, quiet: bool, title: str = "VBench") -> Tallies:
    """Run the jobs one after the other, each spread over all processes. Raises VBenchError.

    A clip that VBench gave no value for is missing in the result.
    """
    requests = machine.requests(max(len(job.groups) for job in jobs))
    tallies: Tallies = {job.name: {} for job in jobs}
    with tempfile.TemporaryDirectory(prefix="oseg-video-vbench-") as work:
        shares = []
        for number, request in enumerate(requests):
            parts = [job.part(number, len(requests)) for job in jobs]
            shares.append({part.name: part for part in parts if part.groups})
            folder = Path(work) / str(number)
            request["task"] = "evaluate"
            request["jobs"] = [
                part.lay_out(folder / str(place)) for place, part in enumerate(shares[-1].values())
            ]
        with _Bar(title, sum(len(job.clips) for job in jobs), quiet) as bar:

            def on_event(number: int, event: Event) -> None:
                if event["event"] == "progress":
                    bar.move(number, event["done"] / event["total"])
                    return
                part = shares[number][event["job"]]
                if event["event"] == "started":
                    bar.start(number, f"{title} {part.dimension}", len(part.clips))
                else:
                    tallies[part.name].update(_read(part, event))
                    bar.move(number, 1)

            run_workers(machine.environment, requests, on_event)
    return tallies


def run_static_filter(
    machine: Machine, candidates: Mapping[str, Sequence[ClipFile]], keep: int, *, quiet: bool
) -> dict[str, list[ClipFile]]:
    """The first `keep` static clips of every prompt, by VBench's own filter. Raises VBenchError.

    First in the order of VBench's command: of file names as text, 0, 1, 10, 11, ..., 2, 20, ...
    """
    prompts = list(candidates)
    requests = machine.requests(len(prompts))
    kept: dict[str, list[ClipFile]] = {}
    with tempfile.TemporaryDirectory(prefix="oseg-video-vbench-") as work:
        links = {}
        for place, clips in enumerate(candidates.values()):
            for number, clip in enumerate(clips):
                link = Path(work) / f"{place:03d}-{number}.mp4"
                link.symlink_to(clip.path.resolve())
                links[str(link)] = (prompts[place], clip)
        for number, request in enumerate(requests):
            mine = prompts[number :: len(requests)]
            request.update(task="filter", keep=keep)
            request["clips"] = {p: [link for link, (of, _) in links.items() if of == p] for p in mine}
        with _Bar("VBench static filter", len(prompts), quiet) as bar:
            for number, request in enumerate(requests):
                bar.start(number, "VBench static filter", len(request["clips"]))

            def on_event(number: int, event: Event) -> None:
                if event["event"] == "progress":
                    bar.move(number, event["done"] / event["total"])
                elif event["event"] == "filtered":
                    for prompt, paths in event["kept"].items():
                        kept[prompt] = [links[path][1] for path in paths]

            run_workers(machine.environment, requests, on_event)
    return kept


def _read(part: Job, event: Event) -> dict[str, tuple[float, float]]:
    """What each clip adds; refused where that does not make the score that VBench itself reports."""
    names = part.clips
    found = {}
    for entry in event["entries"]:
        clip = names[Path(entry["video_path"]).name]
        added = tally(part.dimension, entry, clip.frames)
        if all(map(math.isfinite, added)):
            found[clip.name] = added
    numerator, denominator = (
        (sum(column) for column in zip(*found.values(), strict=True)) if found else (0, 0)
    )
    if denominator and not math.isclose(numerator / denominator, event["score"], rel_tol=1e-5):
        raise VBenchError(
            f"VBench's {part.dimension} is {event['score']:.6g}, but the values of its clips give "
            f"{numerator / denominator:.6g}: it read other numbers of frames, or is not version 0.1.5"
        )
    return found


class _Bar:
    """One bar over the clips of all jobs and processes."""

    def __init__(self, title: str, total: int, quiet: bool) -> None:
        from tqdm import tqdm

        self._bar: Any = tqdm(total=total, desc=title, unit="clip", disable=quiet, file=sys.stderr)
        self._lock = threading.Lock()
        self._finished: dict[int, float] = {}
        self._current: dict[int, tuple[int, float]] = {}

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def start(self, process: int, title: str, clips: int) -> None:
        """A process begins with something over so many clips."""
        with self._lock:
            before, share = self._current.get(process, (0, 0.0))
            self._finished[process] = self._finished.get(process, 0) + before * share
            self._current[process] = (clips, 0.0)
            self._bar.set_description(title, refresh=False)

    def move(self, process: int, share: float) -> None:
        """It has done this share of them."""
        with self._lock:
            self._current[process] = (self._current[process][0], share)
            now = sum(self._finished.values()) + sum(clips * done for clips, done in self._current.values())
            self._bar.update(int(now) - self._bar.n)

"""Runs jobs in VBench's interpreter, over all the devices, and reads what each clip adds to the scores."""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oseg_video import console
from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.errors import VBenchError
from oseg_video.evaluation.rows import file_state
from oseg_video.evaluation.vbench.environment import Environment
from oseg_video.evaluation.vbench.jobs import Group, Job
from oseg_video.evaluation.vbench.kept import KeptAnswers
from oseg_video.evaluation.vbench.process import Event, run_workers
from oseg_video.evaluation.vbench.scores import tally

Tally = Sequence[float]
"""What a clip adds to numerator and denominator of a score."""
Tallies = dict[str, dict[str, Tally]]
"""Job name -> clip name -> its tally."""


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


def run_jobs(machine: Machine, jobs: Sequence[Job], kept: KeptAnswers, *, title: str = "VBench") -> Tallies:
    """Run the jobs one after the other, each spread over all processes. Raises VBenchError.

    What `kept` has is not run again, and what is run is added to it. A clip that VBench gave no value for is
    missing in the result.
    """
    left = []
    for job in jobs:
        groups = tuple(group for group in job.groups if kept.find(_question(job, group)) is None)
        if groups:
            left.append(Job(job.name, job.dimension, groups))
    if left:
        _run_in_processes(machine, left, kept, title)
    return {
        job.name: {
            clip: tally for group in job.groups for clip, tally in kept.find(_question(job, group)).items()
        }
        for job in jobs
    }


def _run_in_processes(machine: Machine, jobs: Sequence[Job], kept: KeptAnswers, title: str) -> None:
    requests = machine.requests(max(len(job.groups) for job in jobs))
    with tempfile.TemporaryDirectory(prefix="oseg-video-vbench-") as work:
        shares = []
        for number, request in enumerate(requests):
            pieces = [piece for job in jobs for piece in job.part(number, len(requests)).pieces()]
            shares.append({piece.name: piece for piece in pieces})
            folder = Path(work) / str(number)
            request["task"] = "evaluate"
            request["jobs"] = [
                part.lay_out(folder / str(place)) for place, part in enumerate(shares[-1].values())
            ]
        with _Bar(title, sum(len(job.clips) for job in jobs)) as bar:

            def on_event(number: int, event: Event) -> None:
                if bar.shows(number, event):
                    return
                part = shares[number][event["job"]]
                if event["event"] == "started":
                    bar.start(number, f"{title} {part.dimension}", len(part.clips))
                    return
                found = _read(part, event)
                for group in part.groups:
                    mine = {c.name: found[c.name] for c in group[1].values() if c.name in found}
                    kept.add(_question(part, group), mine)
                bar.move(number, 1)

            run_workers(machine.environment, requests, on_event)


def _question(job: Job, group: Group) -> Any:
    """All that VBench's values for a group depend on, besides versions."""
    entry, clips = group
    return [
        job.dimension,
        entry,
        [[clip.name, clip.prompt, file_state(clip.path)] for clip in clips.values()],
    ]


def run_static_filter(
    machine: Machine,
    candidates: Mapping[str, Sequence[ClipFile]],
    keep: int,
    kept: KeptAnswers,
) -> dict[str, list[ClipFile]]:
    """The first `keep` static clips of every prompt, by VBench's own filter. Raises VBenchError.

    First in the order of VBench's command: of file names as text, 0, 1, 10, 11, ..., 2, 20, ...
    """
    questions = {
        prompt: ["static filter", keep, [file_state(clip.path) for clip in clips]]
        for prompt, clips in candidates.items()
    }
    left = [prompt for prompt, question in questions.items() if kept.find(question) is None]
    if left:
        requests = machine.requests(len(left))
        with (
            tempfile.TemporaryDirectory(prefix="oseg-video-vbench-") as work,
            _Bar("VBench static filter", sum(len(candidates[prompt]) for prompt in left)) as bar,
        ):
            for number, request in enumerate(requests):
                mine = left[number :: len(requests)]
                clips = {
                    prompt: _links(candidates[prompt], Path(work) / str(left.index(prompt)))
                    for prompt in mine
                }
                request.update(task="filter", keep=keep, clips=clips)
                bar.start(number, "VBench static filter", sum(map(len, clips.values())))

            def on_event(number: int, event: Event) -> None:
                if not bar.shows(number, event):
                    kept.add(questions[event["prompt"]], [int(Path(path).stem) for path in event["kept"]])

            run_workers(machine.environment, requests, on_event)
    return {
        prompt: [candidates[prompt][place] for place in kept.find(question)]
        for prompt, question in questions.items()
    }


def _links(clips: Sequence[ClipFile], folder: Path) -> list[str]:
    """Links `0.mp4`, `1.mp4`, ... to clips."""
    folder.mkdir()
    links = [folder / f"{number}.mp4" for number in range(len(clips))]
    for link, clip in zip(links, clips, strict=True):
        link.symlink_to(clip.path.resolve())
    return list(map(str, links))


def _read(part: Job, event: Event) -> dict[str, Tally]:
    """What each clip adds; refused where that does not make the score that VBench itself reports."""
    names = part.clips
    found: dict[str, Tally] = {}
    for entry in event["entries"]:
        clip = names[Path(entry["video_path"]).name]
        added = tally(part.dimension, entry, clip.frames)
        if all(map(math.isfinite, added)):
            found[clip.name] = added
    numerator, denominator = (
        (sum(column) for column in zip(*found.values(), strict=True)) if found else (0, 0)
    )
    # VBench's own score has no value where that of one clip has none.
    comparable = denominator and math.isfinite(event["score"])
    if comparable and not math.isclose(numerator / denominator, event["score"], rel_tol=1e-5):
        raise VBenchError(
            f"VBench's {part.dimension} is {event['score']:.6g}, but the values of its clips give "
            f"{numerator / denominator:.6g}: it read other numbers of frames, or is not version 0.1.5"
        )
    return found


class _Bar:
    """One bar over the clips of all jobs and processes."""

    def __init__(self, title: str, total: int) -> None:
        self._bar = console.bar(None, title, total=total)
        self._lock = threading.Lock()
        self._finished: dict[int, float] = {}
        self._current: dict[int, tuple[int, float]] = {}

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def shows(self, process: int, event: Event) -> bool:
        """Whether the event was only to be shown, which is done."""
        if event["event"] == "progress":
            self.move(process, event["done"] / event["total"])
        elif event["event"] == "fetching":
            console.logger.info("VBench fetches %s", event["url"])
        return event["event"] in ("progress", "fetching")

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

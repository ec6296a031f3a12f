"""Jobs for VBench: which clips a dimension looks at, under which names, and over how many processes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.errors import VBenchError
from oseg_video.evaluation.vbench.checks import action_of
from oseg_video.evaluation.vbench.suite import SAMPLES, Suite

PIECE = 100
"""Clips that VBench sees at once. Every time it loads the dimension's network again, which takes seconds."""

Group = tuple[Mapping[str, Any] | None, Mapping[str, ClipFile]]
"""Clips by the name that VBench sees. In the standard suite a group is a prompt, with VBench's entry for it;
otherwise a clip, with None."""


@dataclass(frozen=True)
class Job:
    """One dimension over clips; VBench sees a folder of links, whose names it takes prompts from.

    So any names will do on disk, also those that a prompt cannot be part of.
    """

    name: str
    """Unique, and fit for a file name."""
    dimension: str
    groups: tuple[Group, ...]
    """What is spread over processes."""

    @property
    def clips(self) -> dict[str, ClipFile]:
        """All clips by the name that VBench sees."""
        return {name: clip for _, clips in self.groups for name, clip in clips.items()}

    def part(self, number: int, parts: int) -> Job:
        """Every `parts`-th group, from the given one: what one of several processes does."""
        return Job(self.name, self.dimension, self.groups[number::parts])

    def pieces(self) -> list[Job]:
        """Jobs of up to `PIECE` clips, each with a name of its own: a stop loses no more than one of them."""
        size = max(1, PIECE // max((len(clips) for _, clips in self.groups), default=1))
        return [
            Job(f"{self.name}-{first}", self.dimension, self.groups[first : first + size])
            for first in range(0, len(self.groups), size)
        ]

    def lay_out(self, folder: Path) -> dict[str, Any]:
        """Make the folder, and say what the worker needs to know, as plain JSON types."""
        videos = folder / "videos"
        videos.mkdir(parents=True)
        for name, clip in self.clips.items():
            try:
                (videos / name).symlink_to(clip.path.resolve())
            except OSError as error:  # names that differ in letter case, or a file system without links
                raise VBenchError(
                    f"cannot link {name!r} in {videos} ({error.strerror}); set TMPDIR to another disk"
                ) from None
        entries = [entry for entry, _ in self.groups if entry is not None]
        (folder / "suite.json").write_text(json.dumps(entries), encoding="utf-8")
        prompts = {name: clip.prompt or "" for name, clip in self.clips.items()}
        return {
            "name": self.name,
            "dimension": self.dimension,
            "mode": "vbench_standard" if entries else "custom_input",
            "videos": str(videos),
            "prompts": [] if entries else prompts,
            "suite": str(folder / "suite.json"),
            "output": str(folder),
        }


def custom_job(dimension: str, clips: Sequence[ClipFile]) -> Job:
    """A dimension over any clips."""
    names = [f"{number:06d}.mp4" for number in range(len(clips))]
    if dimension == "human_action":  # the one that reads from the file name what to look for
        names = [
            f"a person is {action_of(clip.prompt or '')}-{number}.mp4" for number, clip in enumerate(clips)
        ]
    groups = tuple((None, {name: clip}) for name, clip in zip(names, clips, strict=True))
    return Job(dimension, dimension, groups)


def standard_job(name: str, dimension: str, suite: Suite, found: Mapping[str, Sequence[ClipFile]]) -> Job:
    """A dimension over the first five clips of each of its prompts."""
    groups = []
    for entry in suite.of(dimension):
        prompt = entry["prompt_en"]
        clips = found[prompt][:SAMPLES]
        if clips:  # the static filter may leave none
            groups.append((entry, {f"{prompt}-{number}.mp4": clip for number, clip in enumerate(clips)}))
    return Job(name, dimension, tuple(groups))

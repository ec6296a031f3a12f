"""VBench's standard suite: its prompts, how many clips of each, and which of the given clips are those.

Source: `VBench_full_info.json` of the package: 946 entries (944 prompts), each with its dimensions.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.errors import VBenchError
from oseg_video.evaluation.vbench.checks import listed

SAMPLES = 5
"""Clips per prompt that count."""
FLICKERING_SAMPLES = 25
"""Clips per prompt of temporal_flickering, of which the first five static ones count."""


@dataclass(frozen=True)
class Suite:
    """The entries of VBench's file: `prompt_en`, `dimension` (a list) and, for some, `auxiliary_info`."""

    entries: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, path: Path) -> Suite:
        """From `VBench_full_info.json`."""
        return cls(tuple(json.loads(path.read_text(encoding="utf-8"))))

    def of(self, dimension: str) -> list[Mapping[str, Any]]:
        """The entries of a dimension; within one, no prompt comes twice."""
        return [entry for entry in self.entries if dimension in entry["dimension"]]

    def prompts(self, dimensions: Sequence[str]) -> list[str]:
        """The prompts that any of the dimensions needs, each once, in the suite's order."""
        wanted = set(dimensions)
        return list(
            dict.fromkeys(entry["prompt_en"] for entry in self.entries if wanted & set(entry["dimension"]))
        )

    @cached_property
    def _by_composed(self) -> dict[str, str]:
        return {_composed(entry["prompt_en"]): entry["prompt_en"] for entry in self.entries}

    def prompt_of(self, clip: ClipFile) -> str | None:
        """The prompt of a clip: of its manifest or, without one, of a file name `PROMPT-NUMBER.mp4`."""
        return self._by_composed.get(_composed(_named(clip)[0] if clip.prompt is None else clip.prompt))


def match(suite: Suite, clips: Sequence[ClipFile]) -> tuple[dict[str, list[ClipFile]], list[ClipFile]]:
    """The clips of every prompt of the suite, and the clips that belong to none.

    The clips of a prompt are in the order of seeds or numbers.
    """
    found: dict[str, list[tuple[int, str, ClipFile]]] = {entry["prompt_en"]: [] for entry in suite.entries}
    strangers = []
    for clip in clips:
        number = _named(clip)[1] if clip.prompt is None else clip.seed or 0
        prompt = suite.prompt_of(clip)
        if prompt is None:
            strangers.append(clip)
        else:
            found[prompt].append((number, clip.name, clip))
    ordered = {
        prompt: [clip for *_, clip in sorted(entries, key=_order)] for prompt, entries in found.items()
    }
    return ordered, strangers


def check_complete(suite: Suite, found: Mapping[str, Sequence[ClipFile]], dimensions: Sequence[str]) -> None:
    """Raises VBenchError where a prompt has fewer than five clips: VBench itself would go on without them."""
    prompts = suite.prompts(dimensions)
    short = [prompt for prompt in prompts if len(found[prompt]) < SAMPLES]
    if not short:
        return
    missing = sum(SAMPLES - len(found[prompt]) for prompt in short)
    one = short[0]
    lines = (
        f"VBench's standard suite needs {SAMPLES} clips of each of the {len(prompts)} prompts of "
        f"{listed(dimensions)}; {missing} clips are missing (prompts with too few: {len(short)}), first of "
        f"{one!r}, which has {len(found[one])}"
    )
    twins = _differ_by_case(prompts)
    if all(prompt in twins and not found[prompt] for prompt in short):
        lines += "; these prompts differ only in letter case, which some file systems do not keep apart"
    raise VBenchError(lines)


def check_surplus(
    found: Mapping[str, Sequence[ClipFile]], strangers: Sequence[ClipFile], flickering: Sequence[str]
) -> list[str]:
    """Warnings about clips that will not count, and about prompts without clips for the static filter.

    flickering: the prompts of temporal_flickering if it is asked for, else none.
    """
    warnings = []
    if strangers:
        warnings.append(
            f"{len(strangers)} clips have no prompt of VBench's standard suite and do not count: "
            f"{listed([clip.name for clip in strangers])}"
        )
    many = [prompt for prompt, clips in found.items() if len(clips) > SAMPLES and prompt not in flickering]
    if many:
        warnings.append(
            f"{len(many)} prompts have more than {SAMPLES} clips, of which the first {SAMPLES} count"
        )
    few = [prompt for prompt in flickering if len(found[prompt]) < FLICKERING_SAMPLES]
    if few:
        warnings.append(
            f"temporal_flickering asks for {FLICKERING_SAMPLES} clips per prompt, of which the static filter "
            f"keeps {SAMPLES}; {len(few)} prompts have fewer, and those with {SAMPLES} are taken as filtered"
        )
    return warnings


def check_static(method: str, static: Mapping[str, Sequence[ClipFile]]) -> list[str]:
    """A warning about prompts that keep too few clips after the static filter; VBench goes on with those."""
    few = [prompt for prompt, clips in static.items() if len(clips) < SAMPLES]
    if not few:
        return []
    left = sum(len(static[prompt]) for prompt in few)
    return [
        f"temporal_flickering of {method}: {len(few)} of {len(static)} prompts have fewer than {SAMPLES} "
        f"clips that pass the static filter ({left} instead of {SAMPLES * len(few)}), first {few[0]!r}; they "
        "weigh less"
    ]


def static_candidates(
    suite: Suite, found: Mapping[str, Sequence[ClipFile]], dimensions: Sequence[str]
) -> dict[str, Sequence[ClipFile]]:
    """The clips that the static filter has to choose from; those of prompts with just five are chosen."""
    prompts = suite.prompts([d for d in dimensions if d == "temporal_flickering"])
    return {prompt: found[prompt] for prompt in prompts if len(found[prompt]) > SAMPLES}


def _composed(text: str) -> str:
    """Some file systems take accented letters apart."""
    return unicodedata.normalize("NFC", text)


def _named(clip: ClipFile) -> tuple[str, int]:
    parts = re.fullmatch(r"(.*)-(\d+)", clip.path.stem)
    return (parts[1], int(parts[2])) if parts else (clip.path.stem, 0)


def _order(entry: tuple[int, str, ClipFile]) -> tuple[int, str]:
    return entry[:2]


def _differ_by_case(prompts: Sequence[str]) -> set[str]:
    folded: dict[str, list[str]] = {}
    for prompt in prompts:
        folded.setdefault(prompt.casefold(), []).append(prompt)
    return {prompt for group in folded.values() if len(group) > 1 for prompt in group}

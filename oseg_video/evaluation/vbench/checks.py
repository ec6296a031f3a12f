"""What VBench would find out after hours, or never: checked on the clips before it starts.

Facts are those of the package 0.1.5, read from its source; the docstrings name the place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.vbench.environment import VBenchError
from oseg_video.evaluation.vbench.scores import DIMENSIONS

LONG_SECONDS = 5.0
"""Clips as long as this, or longer, belong to VBench-Long."""

_UNDOCUMENTED = ("temporal_flickering", "human_action", "temporal_style", "overall_consistency")
"""Custom input does them, but the README's list of dimensions for custom input does not have them."""


def check_files(clips: Sequence[ClipFile], dimensions: Sequence[str]) -> list[str]:
    """Formats and lengths. Returns warnings; raises VBenchError for clips that VBench cannot do."""
    if wrong := [clip.name for clip in clips if clip.path.suffix.lower() != ".mp4" or clip.path.is_dir()]:
        # motion_smoothness and dynamic_degree read nothing else, and other readers differ between dimensions.
        raise VBenchError(f"VBench is given mp4 files only, not {listed(wrong)}")
    for dimension in dimensions:
        needed = 3 if dimension == "motion_smoothness" else 2
        if short := [clip for clip in clips if clip.frames < needed]:
            raise VBenchError(
                f"VBench's {dimension} needs {needed} frames; {len(short)} of {len(clips)} clips have fewer, "
                f"first {short[0].name} with {short[0].frames}"
            )
    if "dynamic_degree" in dimensions:
        _check_sampled(clips)
    return _long(clips)


def _check_sampled(clips: Sequence[ClipFile]) -> None:
    """dynamic_degree looks at about 8 frames a second, and asks for round(frames / 4) large motions.

    For two frames that is round(0.5) = 0, and every clip counts as dynamic.
    """
    for clip in clips:
        seen = math.ceil(clip.frames / max(1, round((clip.fps or 0) / 8)))
        if seen < 3:
            raise VBenchError(
                f"VBench's dynamic_degree needs 3 frames at 8 frames a second; {clip.name} has {clip.frames} "
                f"at {clip.fps:g}, of which it sees {seen}"
            )


def _long(clips: Sequence[ClipFile]) -> list[str]:
    long = [clip for clip in clips if clip.fps and clip.frames / clip.fps >= LONG_SECONDS]
    if not long:
        return []
    seconds = long[0].frames / (long[0].fps or 1)
    return [
        f"{len(long)} of {len(clips)} clips last {LONG_SECONDS:g} s or longer, first {long[0].name} with "
        f"{seconds:.1f} s; VBench has VBench-Long for those, whose scores do not compare with these"
    ]


def check_custom(clips: Sequence[ClipFile], dimensions: Sequence[str], actions: Sequence[str]) -> list[str]:
    """What custom input asks for. Returns warnings; raises VBenchError.

    actions: the names of actions that human_action can recognise (Kinetics-400), in lower case.
    """
    for dimension in dimensions:
        without = [clip.name for clip in clips if clip.prompt is None]
        if DIMENSIONS[dimension].needs_prompt and without:
            raise VBenchError(
                f"VBench's {dimension} compares with the prompt, which manifests hold; there is none for "
                f"{listed(without)}"
            )
    if "human_action" in dimensions:
        for clip in clips:
            if action_of(clip.prompt or "") not in actions:
                raise VBenchError(
                    f"VBench's human_action needs prompts `A person is ACTION`, an action of Kinetics-400; "
                    f"{clip.name} has {clip.prompt!r}"
                )
    warnings = []
    if undocumented := [dimension for dimension in dimensions if dimension in _UNDOCUMENTED]:
        warnings.append(
            f"VBench computes {listed(undocumented, 4)} for own prompts, but does not list them for that"
        )
    if "temporal_flickering" in dimensions:
        warnings.append(
            "VBench's temporal_flickering is meant for clips that its static filter has passed; in others, "
            "motion counts as flicker"
        )
    return warnings


def check_dimensions(dimensions: Sequence[str]) -> None:
    """Raises VBenchError for dimensions that custom input refuses: they need more than a prompt."""
    if refused := [dimension for dimension in dimensions if not DIMENSIONS[dimension].custom]:
        raise VBenchError(
            f"VBench computes {listed(refused, 6)} only for the prompts of its standard suite: "
            f"vbench_standard:{refused[0]}"
        )


def check_imports(failures: Mapping[str, str]) -> None:
    """Raises VBenchError with the real reason why dimensions cannot be imported.

    VBench itself calls every such dimension "UnImplemented".
    """
    if not failures:
        return
    first = next(iter(failures.values()))
    alike = [dimension for dimension, reason in failures.items() if reason == first]
    raise VBenchError(f"VBench cannot run {listed(alike, 16)}: {first}{missing_package(first)}")


def missing_package(reason: str) -> str:
    """What to add to the reason why a dimension cannot be imported: how to get the package."""
    return "; `oseg-video vbench setup --detectron2` adds it" if "detectron2" in reason else ""


def action_of(prompt: str) -> str:
    """The action that human_action looks for, as it reads it from a file name."""
    return prompt.lower().split("-")[0].split("person is ")[-1].split("_")[0]


def listed(names: Sequence[str], limit: int = 3) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown

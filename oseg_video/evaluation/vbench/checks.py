"""What VBench would find out after hours, or never: checked on the clips before it starts.

Facts are those of the package 0.1.5, read from its source; the docstrings name the place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.errors import VBenchError
from oseg_video.evaluation.vbench.scores import DIMENSIONS

LONG_SECONDS = 5.0
"""Clips as long as this, or longer, belong to VBench-Long."""


def file_fault(clip: ClipFile, dimensions: Sequence[str]) -> str | None:
    """Why VBench cannot do a clip, of its format or length; None if it can."""
    if clip.path.suffix.lower() != ".mp4" or clip.path.is_dir():
        # motion_smoothness and dynamic_degree read nothing else, and other readers differ between dimensions.
        return f"VBench is given mp4 files only, not {clip.name}"
    for dimension in dimensions:
        least = DIMENSIONS[dimension].frames
        if clip.frames < least:
            return f"VBench's {dimension} needs {least} frames; {clip.name} has {clip.frames}"
    # dynamic_degree looks at about 8 frames a second, and asks for round(frames / 4) large motions. For two
    # frames that is round(0.5) = 0, and every clip counts as dynamic.
    seen = math.ceil(clip.frames / max(1, round((clip.fps or 0) / 8)))
    if "dynamic_degree" in dimensions and seen < 3:
        return (
            f"VBench's dynamic_degree needs 3 frames at 8 frames a second; {clip.name} has {clip.frames} "
            f"at {clip.fps or 0:g}, of which it sees {seen}"
        )
    return None


def prompt_fault(clip: ClipFile, dimensions: Sequence[str], actions: Sequence[str]) -> str | None:
    """Why custom input cannot do a clip, of its prompt; None if it can.

    actions: the names of actions that human_action can recognise (Kinetics-400), in lower case.
    """
    for dimension in dimensions:
        if DIMENSIONS[dimension].needs_prompt and clip.prompt is None:
            return (
                f"VBench's {dimension} compares with the prompt, which manifests hold; there is none for "
                f"{clip.name}"
            )
    if "human_action" in dimensions and action_of(clip.prompt or "") not in actions:
        return (
            f"VBench's human_action needs prompts `A person is ACTION`, an action of Kinetics-400; "
            f"{clip.name} has {clip.prompt!r}"
        )
    return None


def long_clips(clips: Sequence[ClipFile]) -> list[str]:
    """A warning about clips that VBench is not meant for."""
    long = [clip for clip in clips if clip.fps and clip.frames / clip.fps >= LONG_SECONDS]
    if not long:
        return []
    seconds = long[0].frames / (long[0].fps or 1)
    return [
        f"{len(long)} of {len(clips)} clips last {LONG_SECONDS:g} s or longer, first {long[0].name} with "
        f"{seconds:.1f} s; VBench has VBench-Long for those, whose scores do not compare with these"
    ]


def custom_warnings(dimensions: Sequence[str]) -> list[str]:
    """What custom input does, but is not meant for."""
    warnings = []
    if undocumented := [name for name in dimensions if not DIMENSIONS[name].documented]:
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

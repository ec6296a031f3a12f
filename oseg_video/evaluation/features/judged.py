"""What the metrics share that see clips through a judge of the shipped models."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from typing import Any

from oseg_video.embedded.drawing import FRAMES, SIZE
from oseg_video.embedded.tasks import Task
from oseg_video.evaluation.clips import ClipFile


@cache
def _digest(task: Task) -> str:
    return hashlib.sha256(task.weights.read_bytes()).hexdigest()


def judge_protocol(task: Task) -> dict[str, Any]:
    """What judgements and features depend on besides the clips."""
    return {
        "classifier": task.network,
        "sha256": _digest(task),
        "frames": f"{len(task.seen_frames(FRAMES))} spread evenly over the clip",
    }


def no_embedded(metric: str, clip: ClipFile) -> str | None:
    """For `Metric.refuses`: why the shipped classifiers cannot look at a clip; None if it can."""
    if (clip.height, clip.width) == (SIZE, SIZE) and clip.frames >= FRAMES:
        return None
    return (
        f"{metric} needs clips of the shipped model, {SIZE} x {SIZE} pixels and at least {FRAMES} "
        f"frames; {clip.name} has {clip.height} x {clip.width} and {clip.frames}"
    )


def no_caption(metric: str, clip: ClipFile, parse: Callable[[str], object]) -> str | None:
    """For `Metric.refuses`: why a clip's prompt is none that `parse` takes; None if it is one."""
    if clip.prompt is None:
        return f"{metric} needs each clip's prompt; {clip.name} has no manifest beside it"
    try:
        parse(clip.prompt)
    except ValueError as error:
        return f"{metric} cannot judge {clip.name}: {error}"
    return None

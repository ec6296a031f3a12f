"""The real clips that a Fréchet distance compares with: moments of their features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oseg_video import console
from oseg_video.embedded.drawing import FRAMES
from oseg_video.embedded.tasks import Task
from oseg_video.evaluation.clips import ClipFile, find_clips, find_images
from oseg_video.evaluation.errors import EvaluationError
from oseg_video.evaluation.features.frechet import Moments
from oseg_video.evaluation.features.protocols import FvdProtocol
from oseg_video.evaluation.observe import watch
from oseg_video.evaluation.rows import RowStore, file_state
from oseg_video.types import OsegVideoError

DRAWN_CLIPS, DRAWN_SEED = 2048, 77
"""The reference where none is given and the protocol has data that can be drawn."""
_DRAWN_BATCH = 64

Features = Callable[[Tensor], Tensor]
"""Features [B, D] of uint8 clips [B, T, C, H, W]."""


@dataclass(frozen=True)
class RealClips:
    """Real clips that fit a protocol."""

    folder: Path
    clips: Sequence[ClipFile]
    too_short: int
    """Clips of the folder with fewer frames than the protocol needs; they are left out."""
    broken: Mapping[str, str]
    """Files that cannot be read: name -> why."""

    @property
    def kinds(self) -> list[str]:
        """Kinds of file among the clips."""
        return sorted({clip.kind for clip in self.clips})


def find_real(metric: str, plan: FvdProtocol, folder: Path) -> RealClips:
    """The clips of a folder that a protocol takes. Raises EvaluationError if they are too few."""
    found = find_images(folder) if plan.still else find_clips([folder])
    for name, why in found.left_out.items():
        console.logger.info("not part of the reference: %s: %s", name, why)
    clips = [clip for clip in found.clips if clip.frames >= plan.span]
    for clip in clips:
        if reason := plan.refuses(f"the reference of {metric}", clip):
            raise EvaluationError(reason)
    least = plan.clips or 2
    if len(clips) < least:
        raise EvaluationError(
            f"{metric} needs {least} real clips of at least {plan.span} frames; {folder} has {len(clips)}"
        )
    # Data sets are sorted by class: the first clips would be of one kind.
    shuffled = sorted(clips, key=lambda clip: hashlib.sha256(clip.name.encode()).digest())
    broken = {f"{folder.name}/{name}": reason for name, reason in found.broken.items()}
    return RealClips(folder, shuffled[: plan.clips], len(found.clips) - len(clips), broken)


@torch.no_grad()
def look_at(
    real: RealClips, metric: str, plan: FvdProtocol, features: Features, *, store: RowStore, batch: int
) -> tuple[Moments, dict[str, Any], dict[str, str]]:
    """Moments of real clips, what they were, and those that cannot be read with the reason.

    store: keeps the features; those that it has are not computed again.

    Raises EvaluationError if the clips that can be read are too few.
    """
    skipped = dict(real.broken)
    moments = Moments.empty(0)
    with console.bar(None, "reference", total=len(real.clips)) as bar:
        for first in range(0, len(real.clips), batch):
            some = {file_state(clip.path): clip for clip in real.clips[first : first + batch]}
            same_size: dict[torch.Size, dict[str, Tensor]] = {}
            for state, clip in some.items():
                if state in store:
                    continue
                (seen,) = watch(clip, [plan.look(clip, real=True)])
                if isinstance(seen, OsegVideoError):
                    skipped[f"{real.folder.name}/{clip.name}"] = str(seen)
                else:
                    same_size.setdefault(seen.shape, {})[state] = seen
            for group in same_size.values():
                store.append([*group], features(torch.stack([*group.values()])))
            if there := [state for state in some if state in store]:
                moments = moments + Moments.of(store.take(there))
            bar.update(len(some))
    if moments.count < (plan.clips or 2):
        raise EvaluationError(
            f"{metric}: only {moments.count} clips of {real.folder} can be read; the first that cannot: "
            f"{next(iter(skipped.values()))}"
        )
    about = {
        "folder": str(real.folder),
        "clips": moments.count,
        "too_short": real.too_short,
        "skipped": len(skipped),
        "kinds": real.kinds,
    }
    return moments, about, skipped


@torch.no_grad()
def look_at_drawn(features: Features, task: Task) -> tuple[Moments, dict[str, Any]]:
    """Moments of drawn clips of a task, and what they were."""
    moments = Moments.empty(0)
    with console.bar(None, "reference", total=DRAWN_CLIPS) as bar:
        for first in range(0, DRAWN_CLIPS, _DRAWN_BATCH):
            indices = range(first, min(first + _DRAWN_BATCH, DRAWN_CLIPS))
            clips_BTCHW, _ = task.sample_clips(DRAWN_SEED, indices, task.seen_frames(FRAMES))
            moments = moments + Moments.of(features(clips_BTCHW))
            bar.update(len(indices))
    return moments, {
        "drawn": f"{task.data}, seed {DRAWN_SEED}",
        "clips": moments.count,
        "kinds": ["drawn"],
    }

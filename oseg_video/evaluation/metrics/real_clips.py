"""The real clips that a Fréchet distance compares with: moments of their features."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from oseg_video.embedded.classifier import seen_frames
from oseg_video.embedded.dataset import FRAMES, sample_clips
from oseg_video.evaluation.clips import ClipFile, find_clips
from oseg_video.evaluation.metrics.base import EvaluationError
from oseg_video.evaluation.metrics.embedded import require_embedded
from oseg_video.evaluation.metrics.frechet import Moments
from oseg_video.evaluation.metrics.fvd_protocols import FvdProtocol
from oseg_video.evaluation.metrics.observe import OpenClip
from oseg_video.evaluation.rows import RowStore, file_state
from oseg_video.types import OsegVideoError

DRAWN_CLIPS, DRAWN_SEED = 2048, 77
"""The reference of `fvd:embedded` where none is given: clips of the embedded data set."""
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


def find_real(metric: str, plan: FvdProtocol, folder: Path, *, quiet: bool) -> RealClips:
    """The clips of a folder that a protocol takes. Raises EvaluationError if they are too few."""
    found = find_clips([folder], quiet=quiet)
    clips = [clip for clip in found.clips if clip.frames >= plan.span]
    if plan.frames is None:
        require_embedded(f"the reference of {metric}", clips)
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
    real: RealClips,
    metric: str,
    plan: FvdProtocol,
    features: Features,
    *,
    store: RowStore,
    batch: int,
    quiet: bool,
) -> tuple[Moments, dict[str, Any], dict[str, str]]:
    """Moments of real clips, what they were, and those that cannot be read with the reason.

    store: keeps the features; those that it has are not computed again.

    Raises EvaluationError if the clips that can be read are too few.
    """
    skipped = dict(real.broken)
    bar = tqdm(total=len(real.clips), desc="reference", unit="clip", disable=quiet, file=sys.stderr)

    def look(some: Sequence[ClipFile]) -> Tensor:
        states = [file_state(clip.path) for clip in some]
        same_size: dict[torch.Size, dict[str, Tensor]] = {}
        for clip, state in zip(some, states, strict=True):
            if state in store:
                continue
            try:
                frames = plan.choose(OpenClip(clip), real=True)
            except OsegVideoError as error:
                skipped[f"{real.folder.name}/{clip.name}"] = str(error)
            else:
                same_size.setdefault(frames.shape, {})[state] = frames
        for group in same_size.values():
            store.append([*group], [""] * len(group), features(torch.stack([*group.values()])))
        bar.update(len(some))
        return store.take([state for state in states if state in store])

    with bar:
        moments = reduced_moments(real.clips, look, batch=batch)
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
def look_at_drawn(features: Features, *, quiet: bool) -> tuple[Moments, dict[str, Any]]:
    """Moments of drawn clips of the embedded data set, and what they were."""
    bar = tqdm(total=DRAWN_CLIPS, desc="reference", unit="clip", disable=quiet, file=sys.stderr)

    def look(indices: Sequence[int]) -> Tensor:
        clips_BTCHW, _ = sample_clips(DRAWN_SEED, indices, seen_frames(FRAMES))
        bar.update(len(indices))
        return features(clips_BTCHW)

    with bar:
        moments = reduced_moments(range(DRAWN_CLIPS), look, batch=_DRAWN_BATCH)
    return moments, {
        "drawn": f"embedded data set, seed {DRAWN_SEED}",
        "clips": moments.count,
        "kinds": ["drawn"],
    }


def reduced_moments(items: Sequence[Any], look: Callable[[Sequence[Any]], Tensor], *, batch: int) -> Moments:
    """Moments of the features of all items, `batch` of them in memory at a time.

    Where torch.distributed runs, each of P ranks looks at every P-th item, and all get the moments of all.

    look: takes at least one item and returns [B, D]; B may be less, for items that cannot be used.
    """
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    mine = items[dist.get_rank() :: ranks] if ranks > 1 else items
    total = Moments.empty(0)
    for first in range(0, len(mine), batch):
        found_BD = look(mine[first : first + batch])
        if len(found_BD):
            total = total + Moments.of(found_BD)
    if ranks == 1:
        return total
    # A rank that had no item does not know the number of dimensions.
    widths: list[Any] = [None] * ranks
    dist.all_gather_object(widths, len(total.mean_D))
    return (total if total.count else Moments.empty(max(widths))).all_reduce()

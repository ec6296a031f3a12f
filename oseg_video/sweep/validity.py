"""Is an item's clip there and whole?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from oseg_video.media import read_clip
from oseg_video.runtime.manifest import read_manifest
from oseg_video.runtime.naming import manifest_path
from oseg_video.sweep.records import Record
from oseg_video.sweep.store import Stat, Store
from oseg_video.sweep.table import SweepItem, item_key


def is_unchanged(known: Record, listing: Mapping[str, Stat]) -> bool:
    """Whether the clip of a "done" record is as it was then, by its size and time."""
    clip = listing.get(known.file)
    return (
        manifest_name(known.file) in listing
        and clip is not None
        and clip == Stat(known.size or 0, known.modified)
    )


def is_whole(store: Store, item: SweepItem) -> bool:
    """Whether clip and manifest are there, are this item's, and the clip has all frames of its manifest.

    Every frame is read. Raises StoreError.
    """
    names = item.file, manifest_name(item.file)
    if any(store.stat(name) is None for name in names):
        return False
    with store.fetched(names) as folder:
        try:
            manifest = read_manifest(folder / names[1])
            return manifest_key(manifest, item.format) == item.key and _holds(
                folder / names[0], manifest["clip"], item.format
            )
        except Exception:  # readers of damaged files raise errors of many types
            return False


def manifest_name(clip: str) -> str:
    """Name of a clip's manifest."""
    return manifest_path(Path(clip)).name


def manifest_key(manifest: Mapping[str, Any], format: str) -> str:
    """Key of the item that a clip of this manifest is."""
    model, image = manifest["model"], manifest.get("image") or {}
    return item_key(manifest["job"], format, model.get("commit") or model.get("sha256"), image.get("sha256"))


def _holds(path: Path, clip: Mapping[str, Any], format: str) -> bool:
    """Whether a file or folder holds the frames of a manifest's clip. Raises what reading it raises."""
    height, width = clip["height"], clip["width"]
    if format == "picture":
        with Image.open(path) as picture:
            picture.load()
            return picture.size == (width, height)
    frames = read_clip(path).frames
    # A GIF shows equal neighbouring frames as one.
    complete = len(frames) <= clip["frames"] if format == "gif" else len(frames) == clip["frames"]
    return complete and tuple(frames.shape[2:]) == (height, width)

"""Is an item's clip there and whole?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from oseg_video.config import job_to_plain
from oseg_video.config.manifest import Manifest, manifest_path, read_manifest
from oseg_video.media import read_clip
from oseg_video.sweeps.stores import Stat, Store
from oseg_video.sweeps.table import SweepItem, item_key

_GIF_TRAILER = b";"


def item_stat(clip: str, listing: Mapping[str, Stat]) -> Stat | None:
    """A clip and its manifest from outside, taken together; None unless both are there."""
    both = [listing[name] for name in names_of(clip) if name in listing]
    if len(both) < 2:
        return None
    times = [one.modified for one in both if one.modified is not None]
    return Stat(sum(one.size for one in both), max(times, default=None))


def is_whole(store: Store, item: SweepItem) -> bool:
    """Whether clip and manifest are there, are this item's, and the clip has all frames of its manifest.

    Every frame is read. Raises StoreError.
    """
    names = names_of(item.file)
    if item_stat(item.file, store.listing(names)) is None:
        return False
    with store.fetched(names) as folder:
        try:
            manifest = read_manifest(folder / names[1])
            return manifest_key(manifest, item.format) == item.key and _holds(
                folder / names[0], manifest.clip, item.format
            )
        except Exception:  # readers of damaged files raise errors of many types
            return False


def names_of(clip: str) -> tuple[str, str]:
    """Names of a clip and of its manifest."""
    return clip, manifest_path(Path(clip)).name


def manifest_key(manifest: Manifest, format: str) -> str:
    """Key of the item that a clip of this manifest is."""
    model, image = manifest.model, manifest.image or {}
    settings = job_to_plain(manifest.read_job(), defaults=False)
    return item_key(settings, format, str(model.get("commit") or model.get("sha256")), image.get("sha256"))


def _holds(path: Path, clip: Mapping[str, Any], format: str) -> bool:
    """Whether a file or folder holds the frames of a manifest's clip. Raises what reading it raises."""
    height, width = clip["height"], clip["width"]
    if format == "image":
        with Image.open(path) as image:
            image.load()
            return image.size == (width, height)
    frames = read_clip(path).frames
    if format == "gif":  # it shows equal neighbouring frames as one, so only its last byte says that it ends
        complete = len(frames) <= clip["frames"] and path.read_bytes().endswith(_GIF_TRAILER)
    else:
        complete = len(frames) == clip["frames"]
    return complete and tuple(frames.shape[2:]) == (height, width)

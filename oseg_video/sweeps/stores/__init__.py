"""Where a sweep keeps its clips: a folder, or a URL."""

from oseg_video.sweeps.stores.base import ASIDE, WORK, Stat, Store, StoreError
from oseg_video.sweeps.stores.bucket import Bucket
from oseg_video.sweeps.stores.folder import Folder

__all__ = ["ASIDE", "WORK", "Stat", "Store", "StoreError", "open_store"]


def open_store(location: str) -> Store:
    """The store at a path, or at a URL that fsspec knows, such as s3://bucket/folder. Raises StoreError."""
    return Bucket(location) if "://" in location else Folder(location)

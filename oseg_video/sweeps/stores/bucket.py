"""A sweep's clips at a URL: an object store, or whatever else fsspec knows."""

from __future__ import annotations

import contextlib
import datetime
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from oseg_video.config.manifest import manifest_path
from oseg_video.files import FileError, check_place
from oseg_video.sweeps.records import INDEX, Record, from_lines, to_lines
from oseg_video.sweeps.stores.base import ASIDE, WORK, Stat, Store, StoreError, aside, workspace_key
from oseg_video.sweeps.stores.leases import LeaseClaims


class Bucket(Store):
    """Clips are made on a local disk, uploaded to a temporary key and moved.

    Object stores cannot append, so every run has an index of its own, `index-RUN.jsonl`.
    """

    def __init__(self, location: str) -> None:
        import fsspec

        self.location = location
        try:
            # What other machines write must be seen.
            self._files, root = fsspec.core.url_to_fs(location, use_listings_cache=False)
        except Exception as error:  # of many types, by file system
            raise StoreError(f"cannot use {location}: {error}") from None
        self._root = root.rstrip("/")
        now = datetime.datetime.now(datetime.UTC)
        self._index = f"{INDEX.removesuffix('.jsonl')}-{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}.jsonl"
        self._mine = ""
        self._sizes: dict[str, int] = {}
        self._seen: dict[str, int] = {}

    def listing(self, names: Iterable[str] | None = None) -> dict[str, Stat]:
        sizes: dict[str, int] = {}
        with self._naming("read"):
            for below in ("",) if names is None else names:
                for path, size in self._find(below):
                    name = path.split("/")[0]  # files of a folder of images count together
                    sizes[name] = sizes.get(name, 0) + size
        return {name: Stat(size, None) for name, size in sizes.items()}

    @contextlib.contextmanager
    def fetched(self, names: Iterable[str]) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="oseg-video-") as folder:
            with self._naming("read"):
                for name in names:
                    self._files.get(self._path(name), str(Path(folder) / name), recursive=True)
            yield Path(folder)

    @contextlib.contextmanager
    def workspace(self, key: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="oseg-video-") as folder:
            yield Path(folder)

    def publish(self, key: str, clip: Path) -> tuple[str, ...]:
        work = f"{WORK}/{key}-{uuid.uuid4().hex}"
        with self._naming("write to"):
            both = clip, manifest_path(clip)
            kept = tuple(path.name for path in both if self._set_aside(path.name, folder=path.is_dir()))
            for path in both:
                self._put(path, work)
            self._remove(work)
        return kept

    def _set_aside(self, name: str, *, folder: bool) -> bool:
        """Keep what must not be replaced elsewhere. What is there says who made it, so it is downloaded."""
        there = self._path(name)
        if not self._files.exists(there):
            return False
        with self.fetched([name]) as local:
            try:
                check_place(local / name, folder=folder)
            except FileError:
                self._files.makedirs(self._path(ASIDE), exist_ok=True)
                self._files.mv(there, self._path(aside(name)), recursive=True)
                return True
        return False

    def discard_unfinished(self) -> None:
        with self._naming("read"):
            works = {path.split("/")[1] for path, _ in self._find(WORK)}
        for name in works:
            key = workspace_key(name)
            if key is not None and self.claim(key):
                self._remove(f"{WORK}/{name}")
                self.release(key)

    def read_records(self) -> list[Record]:
        records = []
        with self._naming("read"):
            parts = {path: size for path, size in self._find(depth=1) if _is_index(path)}
            for path, size in parts.items():
                if path != self._index and self._sizes.get(path) != size:
                    text = self._files.cat_file(self._path(path)).decode("utf-8", errors="replace")
                    lines = from_lines(text)
                    records += lines[self._seen.get(path, 0) :]
                    self._sizes[path], self._seen[path] = size, len(lines)
        return sorted(records, key=lambda one: one.time)

    def add_records(self, records: Iterable[Record]) -> None:
        self._mine += to_lines(records)
        temporary = self._path(f"{WORK}/{self._index}")
        with self._naming("write to"):
            self._files.makedirs(self._path(WORK), exist_ok=True)
            self._files.pipe_file(temporary, self._mine.encode())
            self._files.mv(temporary, self._path(self._index))

    def claim(self, key: str) -> bool:
        with self._naming("claim an item in"):
            return self._claims.take(key)

    def release(self, key: str) -> None:
        with self._naming("write to"):
            self._claims.release(key)

    def close(self) -> None:
        if "_claims" in self.__dict__:
            self._claims.close()
            del self._claims

    @cached_property
    def _claims(self) -> LeaseClaims:
        return LeaseClaims(self._files, self._path(f"{WORK}/claims"))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _find(self, below: str = "", depth: int | None = None) -> Iterator[tuple[str, int]]:
        """(name relative to the root, size in bytes) of every file."""
        root = self._path(below).rstrip("/")
        try:
            found = self._files.find(root, maxdepth=depth, detail=True)
        except FileNotFoundError:
            return
        for path, info in found.items():
            yield path.removeprefix(f"{self._root}/"), int(info["size"] or 0)

    def _put(self, path: Path, work: str) -> None:
        """Upload to temporary keys, then move: a file, or the files of a folder one by one."""
        if path.is_dir():
            self._remove(path.name)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        for file in files:
            name = file.relative_to(path.parent).as_posix()
            temporary, target = self._path(f"{work}/{name}"), self._path(name)
            for key in (temporary, target):
                self._files.makedirs(self._files._parent(key), exist_ok=True)
            self._files.put_file(str(file), temporary)
            if self._files.exists(target):
                self._files.rm_file(target)
            self._files.mv(temporary, target)

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.rm(self._path(name), recursive=True)

    @contextlib.contextmanager
    def _naming(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # every kind of storage has its own errors
            line = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise StoreError(f"cannot {what} {self.location}: {line}") from error


def _is_index(path: str) -> bool:
    return path.startswith(INDEX.removesuffix(".jsonl")) and path.endswith(".jsonl")

"""A sweep's folder in the file system, with the system's own locks."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from oseg_video.config.manifest import manifest_path
from oseg_video.files import FileError, check_place, expanded, put
from oseg_video.sweeps.records import INDEX, Record, from_lines, to_lines
from oseg_video.sweeps.stores.base import ASIDE, WORK, Stat, Store, StoreError, aside, workspace_key
from oseg_video.sweeps.stores.claims import FileClaims


class Folder(Store):
    """A folder on a disk that all its users share."""

    def __init__(self, location: str) -> None:
        self._root = expanded(location).absolute()
        self.location = str(self._root)
        self._read = 0
        if self._root.exists() and not self._root.is_dir():
            raise StoreError(f"{location} is a file; a sweep needs a folder")

    def listing(self, names: Iterable[str] | None = None) -> dict[str, Stat]:
        found = {}
        with self._naming("read"):
            passed_over: type[OSError] = FileNotFoundError
            if names is None:
                names = os.listdir(self._root) if self._root.is_dir() else ()
                passed_over = OSError  # others' folders need not be open to us
            for name in names:
                with contextlib.suppress(passed_over):
                    found[name] = _stat(self._root / name)
        return found

    @contextlib.contextmanager
    def fetched(self, names: Iterable[str]) -> Iterator[Path]:
        yield self._root

    @contextlib.contextmanager
    def workspace(self, key: str) -> Iterator[Path]:
        with self._naming("write to"):
            self._work.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f"{key}-", dir=self._work))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, key: str, clip: Path) -> tuple[str, ...]:
        with self._naming("write to"):
            both = [(path, self._root / path.name) for path in (clip, manifest_path(clip))]
            kept = tuple(place.name for new, place in both if self._set_aside(place, folder=new.is_dir()))
            for new, place in both:
                put(new, place)
        return kept

    def _set_aside(self, place: Path, *, folder: bool) -> bool:
        """Keep what must not be replaced elsewhere: a clip so damaged that it no longer says who made it."""
        try:
            check_place(place, folder=folder)
        except FileError:
            (self._root / ASIDE).mkdir(exist_ok=True)
            place.rename(self._root / aside(place.name))
            return True
        return False

    def discard_unfinished(self) -> None:
        for folder in self._work.iterdir() if self._work.is_dir() else ():
            key = workspace_key(folder.name)
            if key is not None and self.claim(key):
                shutil.rmtree(folder, ignore_errors=True)
                self.release(key)

    def read_records(self) -> list[Record]:
        with self._naming("read"), contextlib.suppress(FileNotFoundError):
            with open(self._root / INDEX, "rb") as file:
                file.seek(self._read)
                text = file.read()
            # What comes after the last line end is being written, or torn by a crash.
            whole = text[: text.rfind(b"\n") + 1]
            self._read += len(whole)
            return from_lines(whole.decode("utf-8", errors="replace"))
        return []

    def add_records(self, records: Iterable[Record]) -> None:
        lines = to_lines(records).encode()
        with self._naming("write to"), self._claims.exclusive(), open(self._root / INDEX, "a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                lines = lines if file.read(1) == b"\n" else b"\n" + lines  # after a torn line
            file.write(lines)

    def claim(self, key: str) -> bool:
        with self._naming("lock"):
            return self._claims.take(key)

    def release(self, key: str) -> None:
        self._claims.release(key)

    def close(self) -> None:
        if "_claims" in self.__dict__:
            self._claims.close()
            del self._claims

    @property
    def _work(self) -> Path:
        return self._root / WORK

    @cached_property
    def _claims(self) -> FileClaims:
        self._work.mkdir(parents=True, exist_ok=True)
        return FileClaims(self._work / "claims")

    @contextlib.contextmanager
    def _naming(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"cannot {what} {self.location}: {error.strerror or error}") from error


def _stat(path: Path) -> Stat:
    info = path.stat()
    size = sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else info.st_size
    return Stat(size, info.st_mtime_ns)

"""What a sweep asks of the place of its clips."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from oseg_video.sweeps.records import Record
from oseg_video.types import OsegVideoError

WORK = ".work"
"""Subfolder of claims and of what is unfinished."""
ASIDE = ".damaged"
"""Subfolder of what stood in the place of a clip and was none that this program can have left there."""


def aside(name: str) -> str:
    """Where in a store something goes that stood in the place of a clip."""
    return f"{ASIDE}/{time.time_ns()}-{name}"


def workspace_key(name: str) -> str | None:
    """The item that something below `WORK` is the work on; None for what is no such work."""
    found = re.fullmatch(r"([0-9a-f]+)-.+", name)
    return found[1] if found else None


class StoreError(OsegVideoError):
    """A folder or URL that cannot be used; the message names it."""


@dataclass(frozen=True)
class Stat:
    """What a clip or manifest looks like from outside."""

    size: int
    """Bytes, of a folder of images all together."""
    modified: int | None
    """Nanoseconds, where the storage has a time that stays; else None."""


class Store(ABC):
    """A place with clips, their manifests, and the index of one or several sweeps.

    Names are those of files in it. Nothing is made there before something is written. Its methods raise
    StoreError.
    """

    location: str
    """Path or URL, as `open_store` takes it."""

    @abstractmethod
    def listing(self, names: Iterable[str] | None = None) -> dict[str, Stat]:
        """What is there, or which of `names` are there."""

    @abstractmethod
    def fetched(self, names: Iterable[str]) -> AbstractContextManager[Path]:
        """A local folder that holds these clips and manifests, to read only."""

    @abstractmethod
    def workspace(self, key: str) -> AbstractContextManager[Path]:
        """A new local folder for the work on one item; afterwards it is gone."""

    @abstractmethod
    def publish(self, key: str, clip: Path) -> tuple[str, ...]:
        """Move an item's clip and manifest here from its workspace: clip first, each whole or not at all.

        Returns the names of those in whose place something was that is now in `ASIDE`.
        """

    @abstractmethod
    def discard_unfinished(self) -> None:
        """Remove what dead runs left behind at work."""

    @abstractmethod
    def read_records(self) -> list[Record]:
        """Lines of the index, the oldest first: at the first call all, then those that came since."""

    @abstractmethod
    def add_records(self, records: Iterable[Record]) -> None:
        """Write lines to the index."""

    @abstractmethod
    def claim(self, key: str) -> bool:
        """Become the run that works on an item; False if another one is. A dead run's claims end."""

    @abstractmethod
    def release(self, key: str) -> None:
        """Let other runs work on an item."""

    @abstractmethod
    def close(self) -> None:
        """Let go of every claim."""

"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from oseg_video.evaluation.errors import EvaluationError

LOCK = ".oseg-video.lock"


@contextlib.contextmanager
def alone_in(folder: Path, who: str) -> Iterator[IO[str]]:
    """Make the folder and keep others out of it while this is open; the lock ends with the process.

    who: what another process may be, for the message. Yields the lock's file, for children that inherit it.
    Raises EvaluationError if the folder cannot be written to, or another process is in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "w")
    except OSError as error:
        raise EvaluationError(f"cannot write to {folder}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EvaluationError(f"another {who} is at work in {folder}") from None
        yield lock

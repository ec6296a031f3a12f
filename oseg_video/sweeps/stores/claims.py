"""Which run is at work on which item of a folder, so that two runs do not make a clip twice."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class FileClaims:
    """Claims as locks on single bytes of one file: the system lets go of a dead process's.

    POSIX record locks, since they also hold on NFS. They belong to the process, so this excludes other
    processes, not other objects of this one.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def take(self, key: str) -> bool:
        """Claim an item; False if another process has it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte(key))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def release(self, key: str) -> None:
        """Let go of an item."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _byte(key))

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Be the only process between its start and its end, waiting for one that is."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, 0)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, 0)

    def close(self) -> None:
        """Let go of everything."""
        os.close(self._file)


def _byte(key: str) -> int:
    """Place of an item's lock: after byte 0, within a signed 64-bit offset."""
    return 1 + int(key, 16) % (2**62)

"""Which run is at work on which item, in storage that has no locks."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from typing import Any

_LEASE_SECONDS = 120
"""After so long without a sign of life a run counts as dead. Clocks may differ by less than that."""
_RENEW_SECONDS = 20


class LeaseClaims:
    """Claims as small objects that say when they end, renewed in a thread while the run lives.

    The n-th owner of an item has the object KEY.n, which only one can create: of two runs that find the claim
    before it ended, one becomes the next.
    """

    def __init__(self, filesystem: Any, folder: str) -> None:
        self._filesystem = filesystem
        self._folder = folder
        self._held: dict[str, int] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def take(self, key: str) -> bool:
        """Claim an item; False if another run has it."""
        number = self._last(key)
        if number is not None and not self._ended(key, number):
            return False
        number = 0 if number is None else number + 1
        try:
            _create(self._filesystem, self._object(key, number), self._lease())
        except FileExistsError:
            return False
        with self._lock:
            self._held[key] = number
        return True

    def release(self, key: str) -> None:
        """Let go of an item."""
        with self._lock:
            number = self._held.pop(key, None)
        if number is not None:
            self._remove(key, number)

    def close(self) -> None:
        """Let go of everything."""
        self._stop.set()
        self._thread.join()
        for key in list(self._held):
            self.release(key)

    def _object(self, key: str, number: int) -> str:
        return f"{self._folder}/{key}.{number}"

    def _last(self, key: str) -> int | None:
        """Number of the item's latest owner."""
        return max(self._numbers(key), default=None)

    def _numbers(self, key: str) -> list[int]:
        try:
            names = self._filesystem.ls(self._folder, detail=False, refresh=True)
        except FileNotFoundError:
            return []
        names = [name.rstrip("/").rsplit("/", 1)[-1] for name in names]
        return sorted(int(name.removeprefix(f"{key}.")) for name in names if name.startswith(f"{key}."))

    def _lease(self) -> bytes:
        return json.dumps({"until": time.time() + _LEASE_SECONDS}).encode()

    def _ended(self, key: str, number: int) -> bool:
        for _ in range(2):
            try:
                return bool(
                    json.loads(self._filesystem.cat_file(self._object(key, number)))["until"] < time.time()
                )
            except FileNotFoundError:  # let go of this moment; the next look will tell
                return False
            except (ValueError, KeyError, TypeError):  # being written, or torn by a crash: then it stays so
                time.sleep(1)
        return True

    def _renew(self) -> None:
        while not self._stop.wait(_RENEW_SECONDS):
            with self._lock:
                for key, number in self._held.items():
                    # Storage that cannot be reached for once is no reason to stop: the lease lasts longer.
                    # What it raises then is its own affair; not all of it is an OSError.
                    with contextlib.suppress(Exception):
                        self._filesystem.pipe_file(self._object(key, number), self._lease())

    def _remove(self, key: str, number: int) -> None:
        """Remove an owner's object and those of the dead before it."""
        for earlier in self._numbers(key):
            if earlier <= number:
                with contextlib.suppress(FileNotFoundError):
                    self._filesystem.rm_file(self._object(key, earlier))


def _create(filesystem: Any, path: str, data: bytes) -> None:
    """Write an object that must not exist yet. Raises FileExistsError.

    One conditional request on S3, Google Cloud Storage and Azure. Storage without such a request only looks
    first, so that two runs may, rarely, make the same clip; which does no harm.
    """
    if "file" in (filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,)):
        filesystem.makedirs(filesystem._parent(path), exist_ok=True)
        with open(path, "xb") as file:
            file.write(data)
    else:
        filesystem.pipe_file(path, data, mode="create")

"""Ranks look after each other: when one fails or falls silent, all end, and the first to fail says why.

A collective cannot notice that another rank is gone: with NCCL it hangs until a timeout of many minutes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from torch.distributed.distributed_c10d import Store

from oseg_video.parallel.group import ParallelError

_FAILED = "oseg_video/failed"
_DONE = b"done"
_POLL = 0.1  # seconds


class Watch:
    """A thread of one rank that beats in the ranks' common store and listens for the others."""

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        on_loss: Callable[[str, bool], None],
        *,
        period: float = 2.0,
        patience: float = 45.0,
        start_patience: float = 600.0,
    ) -> None:
        """on_loss: called when another rank has failed or fallen silent, with one line and whether this rank
        is the first to know it; then the process ends with exit code 1.
        period, patience: seconds between beats, and of silence that are suffered.
        start_patience: the same before a rank's first beat: it may still be starting."""
        self._store = store
        self._rank = rank
        self._others = [other for other in range(size) if other != rank]
        self._on_loss = on_loss
        self._period = period
        self._patience = patience
        self._start_patience = start_patience
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch of the ranks", daemon=True)

    def start(self) -> None:
        """Begin to beat and to listen."""
        self._thread.start()

    def stop(self) -> None:
        """This rank is done; the others need not wait for its beat.

        The first one may hold the store, so it waits for all others: for as long as they beat. One that is
        silent for longer than `patience` ends it. Raises ParallelError if the store is gone.
        """
        while self._rank == 0 and not all(map(self._is_done, self._others)):
            time.sleep(_POLL)
        self._stopped.set()
        self._thread.join()
        try:
            self._store.set(self._key(self._rank), _DONE.decode())
        except RuntimeError as error:
            raise ParallelError("the first rank ended before this one had said that it is done") from error

    def fail(self, reason: str) -> bool:
        """Tell the others that this rank has failed. Whether it is the first."""
        self._stopped.set()
        self._thread.join()
        return self._first_to_say(f"rank {self._rank}: {reason}")

    def _run(self) -> None:
        beats = 0
        heard = {other: (b"", time.monotonic()) for other in self._others}
        while not self._stopped.wait(self._period if beats else 0):
            beats += 1
            first = False
            try:
                self._store.set(self._key(self._rank), str(beats))
                if self._store.check([_FAILED]):
                    loss: str | None = self._store.get(_FAILED).decode()
                else:
                    loss = self._silence(heard)
                    first = loss is not None and self._first_to_say(loss)
            except RuntimeError:  # torch.distributed.DistError among them: the store was at the first rank
                loss, first = "the connection to the first rank is lost", True
            if loss and not self._stopped.is_set():
                self._on_loss(loss, first)
                os._exit(1)

    def _first_to_say(self, message: str) -> bool:
        return bool(self._store.compare_set(_FAILED, "", message) == message.encode())

    def _silence(self, heard: dict[int, tuple[bytes, float]]) -> str | None:
        for other, (before, when) in heard.items():
            now = self._store.get(self._key(other)) if self._store.check([self._key(other)]) else b""
            if now != before or now == _DONE:
                heard[other] = (now, time.monotonic())
                continue
            patience = self._patience if now else self._start_patience
            if time.monotonic() - when > patience:
                return f"rank {other} has not been heard of for {patience:.0f} s; it is gone or stuck"
        return None

    def _is_done(self, other: int) -> bool:
        key = self._key(other)
        return self._store.check([key]) and self._store.get(key) == _DONE

    @staticmethod
    def _key(rank: int) -> str:
        return f"oseg_video/beat/{rank}"

"""Workers on this machine."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from oseg_video.runtime.quiet import quiet_libraries
from oseg_video.sweep.store import Store, open_store
from oseg_video.sweep.worker import Outcome, Task, Worker

_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)
_STOP_SECONDS = 5


class InProcess:
    """The one worker is this process: a task runs when its outcome is asked for."""

    size = 1

    def __init__(self, store: Store) -> None:
        self._worker = Worker(store)
        self._task: Task | None = None

    @property
    def busy(self) -> int:
        return int(self._task is not None)

    def start(self, task: Task) -> None:
        assert self._task is None
        self._task = task

    def finished(self, timeout: float) -> list[Outcome]:
        if self._task is None:
            return []
        task, self._task = self._task, None
        return [self._worker.make(task)]

    def close(self) -> None:
        self._task = None


@dataclass
class _Slot:
    """A place for one worker process."""

    device: str | None
    process: Any = None
    connection: Connection | None = None
    task: Task | None = None


class Processes:
    """A process for each device. They end with this one, however it ends."""

    def __init__(self, location: str, devices: Sequence[str | None]) -> None:
        """location: of the store. devices: one a worker, as in `Worker`; two workers may share one."""
        self._location = location
        self._slots = [_Slot(device) for device in devices]

    @property
    def size(self) -> int:
        return len(self._slots)

    @property
    def busy(self) -> int:
        return sum(slot.task is not None for slot in self._slots)

    def start(self, task: Task) -> None:
        slot = next(slot for slot in self._slots if slot.task is None)
        slot.task = task
        if slot.process is None:
            self._spawn(slot)
        assert slot.connection is not None
        slot.connection.send(task)

    def finished(self, timeout: float) -> list[Outcome]:
        busy = {slot.connection: slot for slot in self._slots if slot.task is not None and slot.connection}
        ready = wait(list(busy), timeout)
        return [self._receive(slot) for connection, slot in busy.items() if connection in ready]

    def close(self) -> None:
        for slot in self._slots:
            if slot.connection is not None and slot.task is None:
                slot.connection.close()  # an idle worker then ends by itself
            elif slot.process is not None:
                slot.process.terminate()
        for slot in self._slots:
            if slot.process is not None:
                slot.process.join(_STOP_SECONDS)
                slot.process.kill()
                slot.process.join()

    def _spawn(self, slot: _Slot) -> None:
        # A forked process cannot use CUDA.
        context = multiprocessing.get_context("spawn")
        slot.connection, theirs = context.Pipe()
        threads = max(1, len(os.sched_getaffinity(0)) // len(self._slots))
        arguments = (theirs, self._location, slot.device, threads, os.getpid())
        slot.process = context.Process(target=_work, args=arguments, daemon=True)
        slot.process.start()
        theirs.close()

    def _receive(self, slot: _Slot) -> Outcome:
        assert slot.task is not None and slot.connection is not None
        task, slot.task = slot.task, None
        try:
            return slot.connection.recv()
        except (EOFError, OSError):
            slot.process.join()
            code = slot.process.exitcode
            slot.process = slot.connection = None
            how = (
                f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            )
            return Outcome(task.item.key, "lost", {"reason": f"its worker process {how}"})


def _work(connection: Connection, location: str, device: str | None, threads: int, parent: int) -> None:
    """A worker process: tasks in, outcomes out."""
    # The terminal's Ctrl-C is for the parent, which then ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be asked for
        return
    with quiet_libraries():
        import torch
        from tqdm import tqdm

        torch.set_num_threads(threads)
        tqdm.set_lock(
            threading.RLock()
        )  # its own is a semaphore, which a process that is ended leaves behind
        worker = Worker(open_store(location), device)
        while True:
            try:
                task = connection.recv()
            except EOFError:
                return
            connection.send(worker.make(task))

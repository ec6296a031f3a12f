"""One worker as processes of its own: a single one, or ranks that make each clip together."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import tempfile
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

from oseg_video.jobs.launch import FOLDER_PREFIX, start_rank
from oseg_video.jobs.quiet import quiet_libraries
from oseg_video.jobs.ranks import Ranks
from oseg_video.plugins import load_plugins
from oseg_video.sweeps.stores import open_store
from oseg_video.sweeps.worker import Outcome, Task, Worker

_GRACE_SECONDS = 5


class WorkerProcesses:
    """A worker that this process starts, and that ends with it, however it ends.

    Ranks of which one fails, is lost or is stuck are ended all together; the next task starts new ones.
    """

    def __init__(self, location: str, gpus: Sequence[int | None], threads: int) -> None:
        """location: of the store. gpus: number of each rank's GPU on this machine, None for the processor.

        threads: of each rank, where it runs on the processor.
        """
        self._location = location
        self._gpus = gpus
        self._threads = threads
        self._processes: list[Any] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._replies: dict[int, Outcome] = {}
        self.connections: list[Connection] = []
        """One of each rank, to wait on for replies."""
        self.task: Task | None = None
        """What it is at work on."""

    def start(self, task: Task) -> None:
        """Begin a task; the worker must be idle."""
        assert self.task is None
        self.task = task
        self._replies = {}
        if not self._processes:
            self._spawn()
        for connection in self.connections:
            with contextlib.suppress(OSError):  # it has died, which receiving will tell
                connection.send(task)

    def receive(self) -> Outcome | None:
        """The outcome of the task, once every rank has replied or one is lost; does not wait for it."""
        assert self.task is not None
        waiting = [self.connections[rank] for rank in self._waiting()]
        lost = not self._read(wait(waiting, 0))
        if not lost and any(one.state != "done" for one in self._replies.values()):
            # The others are at the same error, or wait for this one in a collective for good.
            while not lost and (
                ready := wait([self.connections[rank] for rank in self._waiting()], _GRACE_SECONDS)
            ):
                lost = not self._read(ready)
        elif not lost and self._waiting():
            return None
        outcome = self._lost() if lost else self._first_failure() or self._replies[0]
        # Ranks that failed at different places have collectives left that nobody will answer.
        if outcome.state == "lost" or (outcome.state != "done" and len(self._gpus) > 1):
            self.end()
        self.task = None
        return outcome

    def stop(self) -> None:
        """Ask it to end, at once if it is at work."""
        for connection, process in zip(self.connections, self._processes, strict=True):
            if self.task is None:
                connection.close()  # an idle process then ends by itself
            else:
                process.terminate()

    def end(self) -> None:
        """Wait until it has ended after `stop`, or make it."""
        self.stop()
        for process in self._processes:
            process.join(_GRACE_SECONDS)
            process.kill()
            process.join()
        self._processes, self.connections = [], []
        if self._folder is not None:
            self._folder.cleanup()

    def _waiting(self) -> list[int]:
        return [rank for rank in range(len(self._gpus)) if rank not in self._replies]

    def _read(self, ready: Sequence[Any]) -> bool:
        """Take replies. False if a rank is lost."""
        for rank, connection in enumerate(self.connections):
            if connection in ready:
                try:
                    self._replies[rank] = connection.recv()
                except (EOFError, OSError):
                    return False
        return True

    def _first_failure(self) -> Outcome | None:
        return next((one for one in self._replies.values() if one.state != "done"), None)

    def _lost(self) -> Outcome:
        assert self.task is not None
        how = "is gone"
        for process in self._processes:
            process.join(_GRACE_SECONDS / len(self._processes))
            if process.exitcode:
                code = process.exitcode
                killed = code < 0
                how = (
                    f"was killed by {signal.Signals(-code).name}"
                    if killed
                    else f"ended with exit code {code}"
                )
                break
        return Outcome(self.task.item.key, "lost", {"reason": f"its worker process {how}"})

    def _spawn(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX)
        for rank, gpu in enumerate(self._gpus):
            ours, theirs = multiprocessing.Pipe()
            process = start_rank(
                partial(_work, theirs, self._location, gpu, self._threads),
                self._folder.name,
                rank=rank,
                size=len(self._gpus),
                local_rank=rank if gpu is None else gpu,
            )
            theirs.close()
            self._processes.append(process)
            self.connections.append(ours)


def _work(connection: Connection, location: str, gpu: int | None, threads: int) -> int:
    """A process: tasks in, outcomes out."""
    device = "cpu" if gpu is None else f"cuda:{gpu}"
    load_plugins()
    with quiet_libraries():
        import torch

        torch.set_num_threads(threads)
        ranks = Ranks.started()
        worker = Worker(open_store(location), device=device, ranks=ranks)
        with ranks.joined(device), contextlib.suppress(EOFError):
            while True:
                connection.send(worker.make(connection.recv()))
    return 0

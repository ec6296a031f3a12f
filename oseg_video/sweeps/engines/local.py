"""Workers on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from multiprocessing.connection import wait

from oseg_video.sweeps.engines.processes import WorkerProcesses
from oseg_video.sweeps.stores import Store
from oseg_video.sweeps.table import SweepError
from oseg_video.sweeps.worker import Outcome, Task, Worker


class InProcess:
    """The one worker is this process: a task runs when its outcome is asked for.

    It cannot be replaced: if it is lost, `finished` raises SweepError.
    """

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
        outcome = self._worker.make(task)
        if outcome.state == "lost":
            raise SweepError(
                f"this process cannot make any more clips: {outcome.results['reason']}; finished clips are "
                f"kept, and the same command goes on"
            )
        return [outcome]

    def close(self) -> None:
        self._task = None


class Processes:
    """Workers that are processes of their own, one or several ranks each."""

    def __init__(self, location: str, workers: Sequence[Sequence[int | None]]) -> None:
        """location: of the store. workers: of each one the GPUs of its ranks, as in `WorkerProcesses`."""
        ranks = sum(len(gpus) for gpus in workers)
        threads = max(1, len(os.sched_getaffinity(0)) // ranks)
        self._workers = [WorkerProcesses(location, gpus, threads) for gpus in workers]

    @property
    def size(self) -> int:
        return len(self._workers)

    @property
    def busy(self) -> int:
        return sum(worker.task is not None for worker in self._workers)

    def start(self, task: Task) -> None:
        next(worker for worker in self._workers if worker.task is None).start(task)

    def finished(self, timeout: float) -> list[Outcome]:
        busy = [worker for worker in self._workers if worker.task is not None]
        wait([connection for worker in busy for connection in worker.connections], timeout)
        return [outcome for worker in busy if (outcome := worker.receive())]

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.end()

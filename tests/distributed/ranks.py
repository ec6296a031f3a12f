"""Real processes over gloo that stay alive between tests.

Between tests they are stopped: gloo has a thread for each group that wakes a hundred times a second, and so
many of them take a good part of the machine.
"""

from __future__ import annotations

import ctypes
import os
import signal
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from tests.processes import FORKS

_PR_SET_PDEATHSIG = 1


class RankError(AssertionError):
    """What went wrong on one rank, with its traceback."""


class Ranks:
    """`size` processes that run functions together."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._start()

    def _start(self) -> None:
        size = self.size
        self._folder = tempfile.TemporaryDirectory()
        store = Path(self._folder.name) / "store"
        self._pipes, self._processes = [], []
        for rank in range(size):
            ours, theirs = FORKS.Pipe()
            process = FORKS.Process(target=_serve, args=(rank, size, str(store), theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = 300) -> list[Any]:
        """`function(*args)` on every rank at once; the results in order of rank. Raises RankError."""
        self._signal(signal.SIGCONT)
        for pipe in self._pipes:
            pipe.send((function, args))
        results, failures = [], []
        for rank, pipe in enumerate(self._pipes):
            answered = pipe.poll(1 if failures else timeout)
            ok, value = pipe.recv() if answered else (False, f"no answer within {timeout} s")
            results.append(value)
            if not ok:
                failures.append(f"rank {rank}: {value}")
        if failures:
            self.close()  # a rank may still wait for one that failed
            self._start()
            raise RankError("\n".join(failures))
        self._signal(signal.SIGSTOP)
        return results

    def close(self) -> None:
        """End the processes."""
        self._signal(signal.SIGCONT)
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(timeout=3)
            if process.is_alive():
                process.kill()
        self._folder.cleanup()

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            if process.is_alive():
                os.kill(process.pid, number)


def _serve(rank: int, size: int, store: str, pipe: Any) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    # A process that is stopped does not see that its parent is gone.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=120),
    )
    while (task := pipe.recv()) is not None:
        function, args = task
        try:
            pipe.send((True, function(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
    torch.distributed.destroy_process_group()

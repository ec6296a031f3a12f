"""Ranks of this machine (`--gpus`): processes that find each other in a folder, with no port for others."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import cast

from oseg_video import console
from oseg_video.jobs.ranks import ONE_MACHINE
from oseg_video.types import OsegVideoError, SaidElsewhereError

FOLDER_PREFIX = "oseg-video-ranks-"
_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)
_GRACE_SECONDS = 5
INTERRUPTED = 130
"""Exit code of a rank that heeded a signal."""


class LaunchError(OsegVideoError):
    """Ranks that cannot be started, or one that was killed."""


def launch(run: Callable[[], int], count: int, device: str) -> None:
    """Have `count` ranks call `run`, which returns an exit code, and wait for them. When one fails, all end.

    run: what can be pickled. device: that of the job: "auto", "cuda" or "cpu". Raises LaunchError if the
    machine has not so many GPUs or a rank was killed, SaidElsewhereError if a rank has failed and said why.
    """
    if device != "cpu":
        import torch

        _check_gpus(count, torch.cuda.device_count(), device)
    ranks: list[BaseProcess] = []
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as folder:
        try:
            # Ranks on one processor share its cores.
            with _in_environment("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count))):
                for rank in range(count):
                    ranks.append(start_rank(run, folder, rank=rank, size=count, local_rank=rank))
            failed = _first_to_fail(ranks)
        finally:
            killed = _end(ranks)
    if failed is not None and ranks[failed].exitcode in (-signal.SIGTERM, INTERRUPTED):
        killed = {failed: signal.SIGTERM}
    for rank, number in killed.items():
        name = signal.Signals(number).name
        raise LaunchError(f"rank {rank} was killed ({name}); the other ranks were ended")
    if failed is not None:
        raise SaidElsewhereError("a rank has failed")


def start_rank(run: Callable[[], int], folder: str, *, rank: int, size: int, local_rank: int) -> BaseProcess:
    """Start a process of this machine, one of several ranks, that calls `run` and exits with its value.

    run: what can be pickled. folder: where the ranks find each other; empty at first, and closed to other
    users, as `tempfile` makes it. The process ends with this one, however this one ends, and leaves Ctrl-C
    to it.
    """
    environment = {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(local_rank),
        ONE_MACHINE: folder,
        # What ranks say to each other goes through this machine's own interface, which no other one reaches.
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    process = context.Process(target=_rank, args=(run, environment, os.getpid()), daemon=True)
    # The working directory is no place for modules.
    with _in_environment("PYTHONSAFEPATH", "1"):
        resource_tracker.ensure_running()  # starting it would unblock the signals
        # From the terminal they reach every process of the command: this one heeds them, and ends the others.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def _rank(run: Callable[[], int], environment: Mapping[str, str], parent: int) -> None:
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be asked for
        return
    os.environ.update(environment)
    console.lock_bars()
    try:
        code = run()
    except KeyboardInterrupt:  # a signal that came when `run` had done with signals
        code = INTERRUPTED
    sys.exit(code)


def _first_to_fail(ranks: Sequence[BaseProcess]) -> int | None:
    """Wait until all have ended well, or one has not: which."""
    running = {one.sentinel: rank for rank, one in enumerate(ranks)}
    while running:
        for sentinel in wait(list(running)):
            rank = running.pop(cast(int, sentinel))
            ranks[rank].join()
            if ranks[rank].exitcode:
                return rank
    return None


def _end(ranks: Sequence[BaseProcess]) -> dict[int, int]:
    """End those that still run. Which ones others had killed, and with which signal."""
    for rank in ranks:
        rank.terminate()
    for rank in ranks:
        rank.join(_GRACE_SECONDS)
    stuck = [rank for rank in ranks if rank.is_alive()]
    killed = {number: -(one.exitcode or 0) for number, one in enumerate(ranks) if (one.exitcode or 0) < 0}
    for rank in stuck:
        rank.kill()
        rank.join()
    return {number: sent for number, sent in killed.items() if sent != signal.SIGTERM}


@contextlib.contextmanager
def _in_environment(name: str, value: str) -> Iterator[None]:
    """Processes that are started in here find the variable, with its own value where it has one."""
    before = os.environ.get(name)
    os.environ.setdefault(name, value)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _check_gpus(count: int, present: int, device: str) -> None:
    if device.startswith("cuda:") or device == "mps":
        raise LaunchError(f"--gpus {count} with --device {device}: each rank has its own; leave out --device")
    if not present:
        raise LaunchError(
            f"--gpus {count}: this machine has no GPU; --device cpu runs as many ranks on the processor"
        )
    if count > present:
        raise LaunchError(f"--gpus {count}: this machine has {present}")

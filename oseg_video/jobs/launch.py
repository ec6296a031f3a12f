"""Start this command once more, on several ranks of this machine (`--gpus`)."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence

from oseg_video.jobs.ranks import ONE_MACHINE, Ranks
from oseg_video.types import OsegVideoError, SaidElsewhereError


class LaunchError(OsegVideoError):
    """Ranks that cannot be started, or one that was killed."""


def launch(arguments: Sequence[str], count: int, device: str) -> None:
    """Run `oseg-video` with these arguments on `count` ranks and wait for them.

    device: that of the job: "auto", "cuda" or "cpu". When a rank fails, torch's elastic agent ends the rest.
    Raises LaunchError if the machine has not so many GPUs or a rank was killed, SaidElsewhereError if a rank
    has failed and said why, KeyboardInterrupt if the agent was told to end.
    """
    import torch
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if device != "cpu":
        _check_gpus(count, torch.cuda.device_count(), device)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        with _environment_of_ranks(count):
            elastic_launch(config, sys.executable)("-m", "oseg_video", *arguments)
    except ChildFailedError as error:
        killed = {rank: -one.exitcode for rank, one in error.failures.items() if one.exitcode < 0}
        killed = {rank: number for rank, number in killed.items() if number != signal.SIGTERM}
        for rank, number in killed.items():
            name = signal.Signals(number).name
            raise LaunchError(f"rank {rank} was killed ({name}); the other ranks were ended") from None
        raise SaidElsewhereError("a rank has failed") from None
    except SignalException:
        raise KeyboardInterrupt from None


@contextlib.contextmanager
def _environment_of_ranks(count: int) -> Iterator[None]:
    """What ranks find in their environment; this process itself is none and speaks for all."""
    before = dict(os.environ)
    os.environ[ONE_MACHINE] = "1"
    # Ranks on one processor share its cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def is_rank() -> bool:
    """Whether this process is a rank already, started by `launch` or among several by torchrun."""
    return ONE_MACHINE in os.environ or Ranks.started().size > 1


def _check_gpus(count: int, present: int, device: str) -> None:
    if device.startswith("cuda:") or device == "mps":
        raise LaunchError(f"--gpus {count} with --device {device}: each rank has its own; leave out --device")
    if not present:
        raise LaunchError(
            f"--gpus {count}: this machine has no GPU; --device cpu runs as many ranks on the processor"
        )
    if count > present:
        raise LaunchError(f"--gpus {count}: this machine has {present}")

"""Ranks that no torchrun watches over, as srun and mpirun start them: the first one holds the store."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.processes import Command


@contextmanager
def two_ranks(out: Path) -> Iterator[tuple[Command, Command]]:
    """Of `data=2`: the first one makes two of three clips."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    flags = ("--prompt", "a red circle", "--device", "cpu", "--parallel", "data=2", "--steps", "30")
    clips = ("--seed", "1", "2", "3", "--out", f"{out}/")
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(
                Command(
                    *("generate", *flags, *clips),
                    environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    terminal=rank == 0,
                )
            )
            for rank in range(2)
        )
        yield first, second


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_first_rank_waits_for_one_that_stands_still_for_a_while(
    tmp_path: Path, interrupted: bool
) -> None:
    with two_ranks(tmp_path) as (first, second):
        first.wait_for("step/s", "s/step")
        os.kill(second.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 300
        while len(list(tmp_path.glob("*.json"))) < 2:
            assert time.monotonic() < deadline and first.poll() is None, first.err
            time.sleep(0.05)
        time.sleep(4)
        assert first.poll() is None, first.err
        if interrupted:
            first.send_signal(signal.SIGINT)
            assert first.wait(timeout=20) == 130
            return
        os.kill(second.pid, signal.SIGCONT)
        codes = first.wait(timeout=120), second.wait(timeout=120)
        assert codes == (0, 0), (first.err, second.err)
    assert len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.glob("*.mp4"))) == 3

"""Ranks notice that another one has failed, fallen silent, or does not come to a collective."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from oseg_video.jobs.ranks import Ranks as Started
from oseg_video.parallel.degrees import Degrees
from oseg_video.parallel.group import ParallelError
from oseg_video.parallel.mesh import Mesh
from oseg_video.parallel.watch import Watch
from tests.processes import FORKS

from .ranks import Ranks


def _watched(rank: int, folder: str, behaviour: str) -> None:
    store = dist.FileStore(f"{folder}/store", 2)

    def on_loss(reason: str, first: bool) -> None:
        Path(folder, f"loss-{rank}").write_text(f"{reason}{' (first)' if first else ''}")

    watch = Watch(store, rank, 2, on_loss, period=0.1, patience=1.5, start_patience=5)
    if behaviour == "starts late":
        time.sleep(3)
    if behaviour == "never starts":
        time.sleep(60)
    watch.start()
    time.sleep(0.5)
    if behaviour in ("ends", "starts late"):
        watch.stop()
        time.sleep(2.5)
    elif behaviour == "fails":
        assert watch.fail("no memory")
        assert not watch.fail("again")
    elif behaviour == "freezes":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif behaviour == "waits a little":
        time.sleep(5)
        watch.stop()
    else:
        time.sleep(60)


def watch_two(folder: Path, behaviour: str) -> tuple[int | None, str | None]:
    """Exit code and complaint of a rank beside one that behaves so."""
    other = "ends" if behaviour == "ends" else "waits a little" if behaviour == "starts late" else "waits"
    processes = [
        FORKS.Process(target=_watched, args=(rank, str(folder), how), daemon=True)
        for rank, how in enumerate([other, behaviour])
    ]
    for process in processes:
        process.start()
    processes[0].join(timeout=50)
    processes[1].kill()
    loss = folder / "loss-0"
    return processes[0].exitcode, loss.read_text() if loss.exists() else None


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        ("fails", (1, "rank 1: no memory")),
        ("freezes", (1, "rank 1 has not been heard of for 2 s; it is gone or stuck (first)")),
        ("starts late", (0, None)),
        ("never starts", (1, "rank 1 has not been heard of for 5 s; it is gone or stuck (first)")),
        ("ends", (0, None)),
    ],
)
def test_a_rank_hears_of_the_other(tmp_path: Path, behaviour: str, expected: Any) -> None:
    assert watch_two(tmp_path, behaviour) == expected


def test_it_beats_at_once_and_then_once_a_period() -> None:
    store = dist.HashStore()
    watch = Watch(store, 1, 2, lambda *_: None, period=0.2)
    began = time.monotonic()
    watch.start()
    time.sleep(0.5)
    beats = int(store.get("oseg_video/beat/1"))
    assert 1 <= beats <= 1 + (time.monotonic() - began) / 0.2
    watch.stop()


def _absent(_: None) -> str:
    # Not over all ranks: that would be the pool's own group, and break it.
    mesh = Mesh.of(Degrees(branch=2, ulysses=2), timeout=2)
    if mesh.sequence.ulysses.rank == 1:
        time.sleep(4)
        return ""
    with pytest.raises(ParallelError) as error:
        mesh.sequence.ulysses.gather(torch.ones(3), [(3,), (3,)])
    return str(error.value)


def test_a_collective_that_hangs_is_named(four_ranks: Ranks) -> None:
    messages = four_ranks.run(_absent, None)
    for message in messages[::2]:
        assert message.startswith("all-gather over the ulysses axis (rank 0 of 2) failed: Timed out waiting")


def _descriptions(_: None) -> list[str]:
    mesh = Mesh.of(Degrees(ring=2, ulysses=2), timeout=20)
    groups = mesh.sequence.ring, mesh.sequence.ulysses
    return [group.process_group.group_desc for group in groups if group.process_group is not None]


def test_torch_knows_the_axes_for_what_it_says_itself(four_ranks: Ranks) -> None:
    """With NCCL a timeout ends the process from another thread, and torch's lines are all there is."""
    for found in four_ranks.run(_descriptions, None):
        assert found == ["mesh_ring", "mesh_ulysses"]


def _meet(rank: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=2))
    if rank == 0:
        time.sleep(60)
    try:
        Started(rank, 2, rank).meet()
    except ParallelError as error:
        Path(folder, "said").write_text(str(error))


def test_ranks_that_do_not_meet_say_so(tmp_path: Path) -> None:
    ranks = [FORKS.Process(target=_meet, args=(rank, str(tmp_path)), daemon=True) for rank in range(2)]
    for rank in ranks:
        rank.start()
    ranks[1].join(timeout=50)
    ranks[0].kill()
    said = (tmp_path / "said").read_text()
    assert said.startswith("broadcast over the world axis (rank 1 of 2) failed: Timed out waiting 2000ms")

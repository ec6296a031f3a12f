"""`--gpus N`: the command on several ranks, as a user runs it (here on the processor)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from oseg_video.cli import _speaks_for_all, main
from oseg_video.cli.parsing import UsageError
from oseg_video.cli.ranks import is_rank, ran_on_ranks
from oseg_video.jobs.launch import FOLDER_PREFIX, INTERRUPTED, _in_environment, start_rank
from oseg_video.jobs.ranks import ONE_MACHINE, Ranks
from oseg_video.media import read_clip
from oseg_video.types import OsegVideoError
from tests.processes import Command
from tests.sockets import listeners, open_to_others

PROMPT = "a red circle moving left on a white background"


def command(*arguments: str, terminal: bool = False) -> Command:
    fixed = ("generate", "--prompt", PROMPT, "--device", "cpu")
    environment = {"OMP_NUM_THREADS": "1", **open_to_others()}
    return Command(*fixed, *arguments, environment=environment, terminal=terminal)


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    with command(*arguments) as process:
        return process.wait(timeout=900), process.out, process.err


def two_clips(out: Path, *arguments: str) -> tuple[int, str, str]:
    flags = ("--steps", "3", "--seed", "1", "2", "--format", "png", "--out", f"{out}/", "--quiet")
    return run(*flags, *arguments)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one")
    code, _, error = two_clips(out)
    assert code == 0, error
    return out


@pytest.mark.parametrize("parallel", ["data=2", "ring=2 --shard-weights"])
def test_two_ranks_make_the_clips_of_one(one_rank: Path, tmp_path: Path, parallel: str) -> None:
    parallel, *more = parallel.split()
    code, out, error = two_clips(tmp_path, "--gpus", "2", "--parallel", parallel, *more)
    assert (code, error) == (0, "")
    names = sorted(path.name for path in one_rank.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert sorted(Path(line).name for line in out.splitlines()) == [n for n in names if "." not in n]
    for name in names:
        if name.endswith(".json"):
            one, other = (json.loads((folder / name).read_text()) for folder in (one_rank, tmp_path))
            assert other["machine"]["parallel"] == parallel
            assert other["passes"]["block_passes"] == one["passes"]["block_passes"]
            continue
        one_clip, other_clip = (read_clip(folder / name).frames.int() for folder in (one_rank, tmp_path))
        # Sums in another order; a value next to the middle of two may be rounded to the other one.
        assert (one_clip - other_clip).abs().max() <= 1
        assert (one_clip != other_clip).float().mean() < 1e-3


def test_a_mistake_is_said_once(tmp_path: Path) -> None:
    out = tmp_path / "a.mp4"
    code, _, error = run("--out", str(out), "--gpus", "2", "--frames", "8")
    assert code == 2
    assert re.fullmatch(r"oseg-video: error: frames[^\n]*\n", error), error
    assert not out.exists()


def test_a_clip_on_another_machine_is_kept_like_one_on_the_first(tmp_path: Path) -> None:
    """Each rank is the first of its machine, with a folder of its own; only the second one's has the clip."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    fixed = ("generate", "--prompt", PROMPT, "--device", "cpu", "--steps", "2", "--parallel", "ulysses=2")
    there = tmp_path / "1.mp4"
    there.write_bytes(b"a clip")
    ranks = [
        Command(
            *(*fixed, "--out", str(tmp_path / f"{rank}.mp4")),
            environment={
                **{"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"},
            },
        )
        for rank in range(2)
    ]
    with ranks[0], ranks[1]:
        assert [rank.wait(timeout=300) for rank in ranks] == [2, 2]
        assert f"{there} exists already; --overwrite replaces it" in ranks[1].err
        assert "Traceback" not in ranks[0].err + ranks[1].err
    assert there.read_bytes() == b"a clip" and not (tmp_path / "0.mp4").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--device", "cpu", "--gpus", "2", "--parallel", "branch=4"),
            "parallel branch=4 needs 4 ranks, this run has 2; start them with --gpus 4 or torchrun",
        ),
        (
            ("--device", "cuda:0", "--gpus", "2"),
            "--gpus 2 with --device cuda:0: each rank has its own; leave out --device",
        ),
        (
            ("--device", "cpu", "--shard-weights"),
            "weights can be shared among ranks of the ulysses and ring axes only, and there is one of them; "
            "give, for example, --parallel ulysses=2",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_any_rank_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture, arguments: tuple[str, ...], message: str
) -> None:
    assert main(["generate", "--prompt", PROMPT, "--out", str(tmp_path / "a.mp4"), *arguments]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"oseg-video: error: {message}"
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def two_ranks_at_work(out: Path) -> Iterator[Command]:
    """A run of 900 steps, of which the first is done."""
    arguments = ("--steps", "900", "--out", str(out), "--gpus", "2", "--parallel", "ulysses=2")
    with command(*arguments, terminal=True) as process:
        process.wait_for("step/s", "s/step")
        yield process


def ranks_of(launcher: int) -> list[psutil.Process]:
    """Its ranks, of the processes that a launcher has started."""
    children = psutil.Process(launcher).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_a_rank_that_dies_ends_all(tmp_path: Path) -> None:
    with two_ranks_at_work(tmp_path / "a.mp4") as process:
        ranks = ranks_of(process.pid)
        ranks[-1].kill()
        killed = time.monotonic()
        assert process.wait(timeout=60) == 2
        said = process.err
    assert time.monotonic() - killed < 60
    assert "was killed (SIGKILL); the other ranks were ended" in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
    assert psutil.wait_procs(ranks, timeout=60)[1] == []


def end_late() -> int:
    """As a rank whose signal comes between its last line and its end."""
    raise KeyboardInterrupt


def test_a_signal_in_a_ranks_last_moment_leaves_no_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rank = start_rank(end_late, str(tmp_path), rank=0, size=2, local_rank=0)
    rank.join(60)
    assert rank.exitcode == INTERRUPTED
    assert capfd.readouterr().err == ""


def test_no_other_machine_can_reach_the_ranks_and_a_signal_ends_them(tmp_path: Path) -> None:
    with two_ranks_at_work(tmp_path / "a.mp4") as process:
        ranks = ranks_of(process.pid)
        ours, others = listeners(process.pid)
        folders = list(Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"))
        open_to_others = [one for one in folders if stat.S_IMODE(one.stat().st_mode) & 0o77]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 130
        said = process.err
    assert ours != [] and others == []
    assert folders != [] and open_to_others == []
    assert said.splitlines()[-1] == "oseg-video: interrupted; finished clips are kept"
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
    assert psutil.wait_procs(ranks, timeout=60)[1] == []


def test_the_process_that_starts_ranks_is_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    with _in_environment("OMP_NUM_THREADS", "1"):
        assert not is_rank() and _speaks_for_all() and os.environ["OMP_NUM_THREADS"] == "1"
    assert not is_rank() and _speaks_for_all() and dict(os.environ) == before
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)  # as job managers leave it to single processes, too
    assert not is_rank() and _speaks_for_all()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert is_rank() and _speaks_for_all()
    assert not ran_on_ranks(Namespace(gpus=None), "cpu") and not ran_on_ranks(Namespace(gpus=2), "cpu")
    with pytest.raises(UsageError, match="--gpus 4: this process is one of 2 ranks already"):
        ran_on_ranks(Namespace(gpus=4), "cpu")
    monkeypatch.setenv(ONE_MACHINE, "/somewhere")
    assert is_rank() and not _speaks_for_all()


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:0", "device cuda:0: each rank has a GPU of its own"),
        ("cuda", "no GPU for rank 2 of this machine"),
    ],
)
def test_a_rank_without_a_gpu_of_its_own_is_refused(
    monkeypatch: pytest.MonkeyPatch, device: str, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(OsegVideoError, match=message):
        Ranks(rank=2, size=4, local_rank=2)._take_gpu(device)

"""The command as a process of its own: how it starts, and how it ends where the system says so."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = (sys.executable, "-m", "oseg_video")
LINE = "oseg-video: interrupted; finished clips are kept\n"
JOB = ("generate", "--prompt", "a red circle", "--quiet", "--out")


def heeds_signals(process: subprocess.Popen[str]) -> bool:
    """Whether it has come so far: what Python itself does before that is not ours."""
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{process.pid}/status").read_text(), re.M)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGHUP - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_any_moment_of_the_start_is_one_line(tmp_path: Path, number: int) -> None:
    """OSEG_VIDEO_TRIES=50 for more of them than two."""
    seed = time.time_ns()  # shown when the test fails
    chance = random.Random(seed)
    for _ in range(int(os.environ.get("OSEG_VIDEO_TRIES", "2"))):
        delay = chance.uniform(0, 5)
        command = [*COMMAND, *JOB, str(tmp_path / "a.mp4"), "--steps", "900"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            while not heeds_signals(process):
                assert process.poll() is None
                time.sleep(0.002)
            time.sleep(delay)
            process.send_signal(number)
            out, error = process.communicate(timeout=300)
        assert (process.returncode, out, error) == (130, "", LINE)
        assert list(tmp_path.iterdir()) == []


def test_modules_of_the_working_directory_are_not_imported(tmp_path: Path) -> None:
    for name in ("torch", "yaml", "diffusers", "sentencepiece", "random", "multiprocessing"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of the working directory has run')")
    out = tmp_path / "out" / "a.mp4"
    command = [*COMMAND, *JOB, str(out), "--steps", "4", "--device", "cpu", "--gpus", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert out.is_file()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", ["env", "--help", "generate --help", "--version"])
def test_a_full_disk_behind_standard_output_is_one_line(unbuffered: str, arguments: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, *arguments.split()], env=environment, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert re.fullmatch(r"oseg-video: error: (standard output: )?No space left on device\n", done.stderr)


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-"])
def test_what_was_for_a_stream_that_is_closed_goes_nowhere(closed: str) -> None:
    script = f'exec "$@" {closed}'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *COMMAND, "info", "nowhere"], capture_output=True, text=True
    )
    said = "" if "2>&-" in closed else "oseg-video: error: no such file: nowhere\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_python_without_docstrings_is_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONOPTIMIZE": "2"}
    command = [*COMMAND, *JOB, str(tmp_path / "a.gif"), "--steps", "4"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(
        "oseg-video: error: Python runs without docstrings .*, which transformers needs.*\n", done.stderr
    )


def test_a_working_directory_that_is_gone_is_one_line(tmp_path: Path) -> None:
    script = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    for command in (
        (*COMMAND, *JOB, str(tmp_path / "a.gif"), "--steps", "4"),
        (*COMMAND, *JOB, "a.gif", "--steps", "4"),
        (*COMMAND, "info", "a.gif"),
    ):
        done = subprocess.run(
            ["sh", "-c", script, "sh", *command], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 2, done.stderr
        assert re.fullmatch(r"oseg-video: error: the working directory [^\n]+\n", done.stderr), done.stderr

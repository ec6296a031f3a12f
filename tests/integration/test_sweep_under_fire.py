"""Sweeps of real clips by the shipped model, killed again and again: nothing is lost or made twice."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from oseg_video.cli import main
from oseg_video.config.manifest import read_manifest
from oseg_video.media import read_clip
from oseg_video.sweeps.records import from_lines
from tests.sockets import listeners, open_to_others
from tests.sweeps import SMALL, write_recipe

PROMPTS = [
    f"a {colour} {shape} moving left on a white background"
    for colour, shape in [("red", "circle"), ("blue", "square"), ("green", "cross"), ("red", "square")]
]
# What a test waits for comes within seconds; a busy machine gets all the time it needs.
PATIENCE = 600
AUTO = {name: value for name, value in SMALL.items() if name != "device"}


@contextlib.contextmanager
def sweep(path, *flags):
    """A run of the command; what it started is ended with the test."""
    command = [sys.executable, "-m", "oseg_video", "sweep", str(path), "--quiet", *flags]
    without = {"CUDA_VISIBLE_DEVICES": "", "RAY_USAGE_STATS_ENABLED": "0"}
    environment = {**os.environ, **without, **open_to_others()}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(process):
    """Standard output of a run that must end well."""
    out, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    return out


def done(folder):
    """Keys of the items that the index calls done."""
    lines = [line for index in folder.glob("index*.jsonl") for line in from_lines(index.read_text())]
    return {line.item for line in lines if line.state == "done"}


def wait_for(what, process):
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill_after(process, folder, count, delay):
    """kill -9 some time after another `count` items are done; the worker processes must go as well."""
    before = len(done(folder))
    wait_for(lambda: len(done(folder)) >= before + count, process)
    time.sleep(delay)
    children = descendants(process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=PATIENCE)
    assert alive == []


def descendants(process):
    return psutil.Process(process.pid).children(recursive=True)


def check_clips(folder, expected):
    """Every (prompt, seed, method) once, whole and with its manifest; nothing else in the folder."""
    clips = sorted(folder.glob("*.mp4"))
    made = [read_manifest(clip.with_suffix(".json")) for clip in clips]
    assert sorted((one.prompt, one.seed, one.method) for one in made) == sorted(expected)
    for clip in clips:
        assert read_clip(clip).frames.shape == (7, 3, 32, 32)
        assert read_manifest(clip).plain() == json.loads(clip.with_suffix(".json").read_text())
    beside = {path.name for path in folder.iterdir()} - {
        name for clip in clips for name in (clip.name, clip.with_suffix(".json").name)
    }
    assert {name for name in beside if not name.startswith("index")} == {".work"}
    assert [path for path in (folder / ".work").rglob("*") if path.name != "claims"] == []


def test_sixty_clips_survive_three_kills_and_a_killed_ray_worker(capsys, tmp_path):
    seed = time.time_ns()  # shown when the test fails
    chance = random.Random(seed)
    path = write_recipe(tmp_path, prompts=PROMPTS[:3], seeds={"count": 10}, settings=AUTO)
    folder = tmp_path / "out"
    for flags in ((), ("--workers", "2"), ()):
        with sweep(path, *flags) as process:
            kill_after(process, folder, chance.randint(3, 10), chance.uniform(0, 1))
    assert 9 <= len(done(folder)) < 60

    # A killed run may have finished a clip that the index does not know yet; its manifest comes last.
    before = sum(clip.with_suffix(".json").exists() for clip in folder.glob("*.mp4"))
    with sweep(path, "--engine", "ray", "--workers", "1") as process:
        wait_for(lambda: len(done(folder)) >= before + 2, process)
        time.sleep(chance.uniform(0, 1))
        ours, others = listeners(process.pid)
        assert ours != [] and others == []
        (actor,) = (one for one in descendants(process) if one.name().startswith("ray::_Actor"))
        actor.kill()
        assert finish(process) == f"60 of 60 clips are in {folder}, {60 - before} of them made now\n"
    expected = [(prompt, seed, m) for prompt in PROMPTS[:3] for seed in range(10) for m in ("cfg", "oseg")]
    check_clips(folder, expected)
    assert main(["sweep", str(path), "--quiet"]) == 0
    assert capsys.readouterr().out == f"60 of 60 clips are in {folder}, 0 of them made now\n"


def test_two_runs_at_once_share_the_work(tmp_path):
    path = write_recipe(tmp_path, prompts=PROMPTS[:2], seeds=[0, 1, 2], settings=SMALL)
    with sweep(path, "--json") as one, sweep(path, "--json") as other:
        made = [[json.loads(line)["item"] for line in finish(run).splitlines()] for run in (one, other)]
    assert len(made[0]) + len(made[1]) == 12 == len({*made[0], *made[1]})
    expected = [
        (prompt, seed, method) for prompt in PROMPTS[:2] for seed in range(3) for method in ("cfg", "oseg")
    ]
    check_clips(tmp_path / "out", expected)


def test_a_run_that_is_asked_to_stop_says_so_and_goes_on_later(tmp_path):
    path = write_recipe(tmp_path, prompts=PROMPTS[:1], seeds={"count": 10}, settings=SMALL)
    with sweep(path) as process:
        wait_for(lambda: len(done(tmp_path / "out")) >= 1, process)
        process.terminate()
        _, error = process.communicate(timeout=PATIENCE)
        assert (process.returncode, error) == (130, "oseg-video: interrupted; finished clips are kept\n")
    assert main(["sweep", str(path), "--quiet"]) == 0
    expected = [(PROMPTS[0], seed, method) for seed in range(10) for method in ("cfg", "oseg")]
    check_clips(tmp_path / "out", expected)


def test_a_url_holds_the_clips_of_a_cluster(tmp_path):
    """The store without locks, seen by the driver and by a Ray worker."""
    out = f"file://{tmp_path}/out"
    path = write_recipe(tmp_path, prompts=PROMPTS[:1], settings=AUTO, out=out)
    with sweep(path, "--engine", "ray", "--workers", "1") as process:
        assert finish(process) == f"4 of 4 clips are in {out}, 4 of them made now\n"
    check_clips(tmp_path / "out", [(PROMPTS[0], seed, m) for seed in (0, 1) for m in ("cfg", "oseg")])


def test_ranks_that_make_each_clip_together_survive_the_loss_of_one(tmp_path):
    path = write_recipe(tmp_path, prompts=PROMPTS[:1], seeds={"count": 2}, settings=SMALL)
    with sweep(path, "--gpus", "2") as process:
        wait_for(lambda: len(done(tmp_path / "out")) >= 1, process)
        ranks = [one for one in descendants(process) if "spawn_main" in " ".join(one.cmdline())]
        assert len(ranks) == 2
        ours, others = listeners(process.pid)
        assert ours != [] and others == []
        ranks[1].kill()
        assert finish(process) == f"4 of 4 clips are in {tmp_path}/out, 4 of them made now\n"
    check_clips(tmp_path / "out", [(PROMPTS[0], seed, m) for seed in (0, 1) for m in ("cfg", "oseg")])
    for clip in (tmp_path / "out").glob("*.mp4"):
        assert read_manifest(clip).machine["parallel"] in ("branch=2", "ulysses=2")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_worker_on_every_gpu(tmp_path):
    path = write_recipe(tmp_path, prompts=PROMPTS[:2], settings=AUTO)
    command = [sys.executable, "-m", "oseg_video", "sweep", str(path), "--quiet"]
    subprocess.run(command, check=True)
    for clip in (tmp_path / "out").glob("*.mp4"):
        assert read_manifest(clip).machine["device"].startswith("cuda")

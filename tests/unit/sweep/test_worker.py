"""What a worker of a sweep makes of an item: where it runs, when it loads, and which failures are its own."""

import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from oseg_video.jobs.loading.memory import NotEnoughMemoryError
from oseg_video.jobs.ranks import Ranks
from oseg_video.parallel.degrees import Degrees
from oseg_video.parallel.group import ParallelError
from oseg_video.parallel.mesh import Mesh
from oseg_video.sweeps import worker as worker_module
from oseg_video.sweeps.stores import open_store
from oseg_video.sweeps.worker import Task, Worker
from tests.sweeps import GIF, table

ILLEGAL = "CUDA error: an illegal memory access was encountered"
ADVICE = f"{ILLEGAL}\nCUDA kernel errors might be asynchronously reported at some other API call"


def outcome_of(error, tmp_path, painter, monkeypatch, device="cpu"):
    """What becomes of an item whose clip ends in an error."""

    def fail(*_):
        raise error

    monkeypatch.setattr(painter, "make_clip", fail)
    item = table(tmp_path)[0]
    item = dataclasses.replace(item, job=dataclasses.replace(item.job, device="auto"))
    return Worker(open_store(str(tmp_path / "clips")), device=device).make(Task(item))


@pytest.fixture
def cuda(monkeypatch):
    """CUDA as if it were in use; the devices that were synchronized, and a switch that breaks it."""

    state = SimpleNamespace(asked=[], dead=False)

    def synchronize(device=None):
        state.asked.append(device)
        if state.dead:
            raise RuntimeError(ADVICE)

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    return state


@pytest.mark.parametrize(
    "error",
    [ParallelError("all-gather failed"), dist.DistBackendError("NCCL error"), dist.DistNetworkError("reset")],
)
def test_ranks_that_lost_each_other_are_lost(tmp_path, painter, monkeypatch, error):
    outcome = outcome_of(error, tmp_path, painter, monkeypatch)
    assert outcome.state == "lost" and str(error) in outcome.results["reason"]


@pytest.mark.parametrize("error", [RuntimeError(ADVICE), ValueError("what came of it")])
def test_a_process_whose_cuda_is_dead_is_lost(tmp_path, painter, monkeypatch, cuda, error):
    cuda.dead = True
    outcome = outcome_of(error, tmp_path, painter, monkeypatch, device="cuda:3")
    first = str(error).splitlines()[0]
    assert (outcome.state, outcome.results["reason"]) == ("lost", f"{type(error).__name__}: {first}")
    assert cuda.asked == ["cuda:3"]


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: invalid argument"), ValueError("no")])
def test_an_error_that_cuda_survives_is_a_failure(tmp_path, painter, monkeypatch, cuda, error):
    outcome = outcome_of(error, tmp_path, painter, monkeypatch, device="cuda:3")
    assert outcome.state == "failed" and cuda.asked == ["cuda:3"]


def test_lack_of_gpu_memory_is_no_loss(tmp_path, painter, monkeypatch, cuda):
    monkeypatch.setattr(worker_module, "resolve_device", torch.device)
    outcome = outcome_of(NotEnoughMemoryError("too big"), tmp_path, painter, monkeypatch, device="cuda:3")
    assert outcome.state == "out of memory"


DEAD = """
import torch
from oseg_video.sweeps.worker import _cuda_is_dead
data = torch.ones(3, device="cuda")
try:
    torch.empty(1 << 50, device="cuda")
except torch.OutOfMemoryError:
    print(_cuda_is_dead("auto"), _cuda_is_dead("cuda:0"))
data[torch.tensor([5], device="cuda")]
print(_cuda_is_dead("auto"), _cuda_is_dead("cuda:0"))
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_failed_assertion_kills_cuda_and_lack_of_memory_does_not():
    command = [sys.executable, "-c", DEAD]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["False", "False", "True", "True"]


@pytest.mark.parametrize(
    ("asked", "used"), [("auto", "cuda:1"), ("cuda", "cuda:1"), ("cpu", "cpu"), ("cuda:5", "cuda:5")]
)
def test_an_item_runs_on_its_workers_gpu(tmp_path, painter, monkeypatch, asked, used):
    seen = []
    monkeypatch.setattr(painter, "make_clip", lambda self, job, *_: seen.append(job.device) or 1 / 0)
    item = table(tmp_path)[0]
    item = dataclasses.replace(item, job=dataclasses.replace(item.job, device=asked))
    Worker(open_store(str(tmp_path / "clips")), device="cuda:1").make(Task(item))
    assert seen == [used]


def test_ranks_load_once_for_methods_of_the_same_degrees(tmp_path, painter, monkeypatch):
    """cfg and seg are shared in the same way, oseg in another: on another mesh, with a model of its own."""
    made, used = [], []

    def degrees_for(ranks, parallel, job, source, clips):
        return Degrees(**{"ulysses" if job.guidance.name == "oseg" else "branch": ranks.size}), ""

    def make_mesh(ranks, degrees, job):
        made.append(Mesh.on_paper(degrees))
        return made[-1]

    monkeypatch.setattr(worker_module, "degrees_for", degrees_for)
    monkeypatch.setattr(worker_module, "make_mesh", make_mesh)
    paint = painter.make_clip
    monkeypatch.setattr(
        painter, "make_clip", lambda self, *given: used.append(self.mesh) or paint(self, *given)
    )
    guidance_scale = {"breakpoints": {1.0: 4, 0.5: 2}}  # a schedule is a setting like any other
    items = table(
        tmp_path, methods=["cfg", "seg", "oseg"], settings={**GIF, "guidance_scale": guidance_scale}
    )
    worker = Worker(open_store(str(tmp_path / "clips")), ranks=Ranks(0, 2))
    outcomes = [worker.make(Task(item)) for item in [*items, *items]]
    assert {one.state for one in outcomes} == {"done"}, outcomes
    assert painter.loaded == 4 and len(made) == 2
    assert len({id(mesh) for mesh in used}) == 2

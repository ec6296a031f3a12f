"""Joining the ranks that `torchrun` or `--gpus` has started, and what each of them is for."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from oseg_video.adapters import ClipSize, ModelAdapter
from oseg_video.adapters.base import Condition
from oseg_video.adapters.settings import ReadJson
from oseg_video.config import GenerateJob
from oseg_video.engine.assignment import assign_branches
from oseg_video.engine.branches import BranchRunner
from oseg_video.guidance.plan import Branch
from oseg_video.jobs.loading.meta import empty_denoiser
from oseg_video.jobs.loading.pipeline import ModelSource
from oseg_video.jobs.step_kinds import pipeline_scales, step_kinds
from oseg_video.parallel.auto import Work, check_degrees, choose_degrees
from oseg_video.parallel.degrees import Degrees, started_as
from oseg_video.parallel.group import Group, ParallelError
from oseg_video.parallel.mesh import ONE_RANK, Mesh, device_type
from oseg_video.parallel.watch import Watch
from oseg_video.types import Denoiser, SaidElsewhereError, SettingError

AUTO = "auto"
ONE_MACHINE = "OSEG_VIDEO_ONE_MACHINE"
"""Set in the environment of ranks that `--gpus` has started: the folder in which they find each other."""
COLLECTIVE_TIMEOUT = 600.0
"""Seconds after which a collective that hangs is an error."""


@dataclass(frozen=True)
class Ranks:
    """The processes of this run, as one of them sees it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Place among those on this machine, and the number of its GPU."""

    @classmethod
    def started(cls) -> Ranks:
        """From the environment that torchrun sets; a process of its own otherwise."""
        return cls(*started_as())

    def device(self, asked: str) -> str:
        """This rank's device where `auto` or `cuda` is asked for: the GPU with its number."""
        if self.size > 1 and (asked == "cuda" or (asked == "auto" and torch.cuda.is_available())):
            return f"cuda:{self.local_rank}"
        return asked

    def meet(self) -> None:
        """Wait for all ranks, inside `joined`. Raises ParallelError."""
        if self.size > 1:
            everyone = Group("world", self.rank, self.size, dist.group.WORLD)
            everyone.broadcast(torch.zeros(1))  # on the CPU: a barrier would take a GPU not chosen yet

    @contextmanager
    def joined(self, device: str, timeout: float = COLLECTIVE_TIMEOUT) -> Iterator[None]:
        """Join the process group for as long as this is open; nothing for a single process.

        An error in here ends all ranks. It is raised again on the first rank that has one, so that one says
        what is wrong; on the others `SaidElsewhereError`.
        """
        if self.size == 1:
            yield
            return
        cuda = device.startswith("cuda") or (device == AUTO and torch.cuda.is_available())
        seconds = datetime.timedelta(seconds=timeout)
        store = _meeting_place(seconds)
        store.set_timeout(seconds)
        beside = dist.PrefixStore("watch", store.clone())  # type: ignore[attr-defined]
        watch = Watch(beside, self.rank, self.size, self._say_loss, start_patience=timeout)
        watch.start()
        try:
            if cuda:
                self._take_gpu(device)
            backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
            dist.init_process_group(
                backend, store=store, rank=self.rank, world_size=self.size, timeout=seconds
            )
            yield
        except Exception as error:
            if not watch.fail(str(error) or type(error).__name__):
                raise SaidElsewhereError("another rank has failed") from error
            raise
        watch.stop()
        dist.destroy_process_group()

    def _take_gpu(self, device: str) -> None:
        present = torch.cuda.device_count()
        if device not in (AUTO, "cuda"):
            raise SettingError(f"device {device}: each rank has a GPU of its own; use auto or cuda")
        if self.local_rank >= present:
            raise ParallelError(
                f"there is no GPU for rank {self.local_rank} of this machine, which has {present}; start one "
                "rank for each"
            )
        torch.cuda.set_device(self.local_rank)

    def _say_loss(self, reason: str, first: bool) -> None:
        # A rank that failed has said so itself, for its machine.
        if first or (self.local_rank == 0 and ONE_MACHINE not in os.environ):
            print(f"oseg-video: error: {reason}", file=sys.stderr)


def _meeting_place(timeout: datetime.timedelta) -> Any:
    """The store of all ranks: torchrun's, or a file where `--gpus` has started them.

    Who can write in a store can run code on its ranks, and torch's own listens on every interface: the file
    is for this user alone.
    """
    if folder := os.environ.get(ONE_MACHINE):
        return dist.FileStore(os.path.join(folder, "store"))  # type: ignore[attr-defined]
    store, _, _ = next(dist.rendezvous("env://", timeout=timeout))  # type: ignore[attr-defined]
    return store


def degrees_for(
    ranks: Ranks, parallel: str, job: GenerateJob, source: ModelSource, clips: int
) -> tuple[Degrees, str]:
    """How many ranks work along each axis, and why.

    parallel: "auto" or degrees such as "ulysses=2,branch=2". clips: how many the job makes. Reads the model's
    configuration only. Raises SettingError or ParallelError for degrees that the job cannot use.
    """
    if ranks.size == 1 and parallel == AUTO:
        return Degrees(), ""
    denoiser = empty_denoiser(source)
    return plan_degrees(ranks.size, parallel, job, source.adapter, denoiser, clips, source.read_json)


def make_mesh(ranks: Ranks, degrees: Degrees, job: GenerateJob, timeout: float = COLLECTIVE_TIMEOUT) -> Mesh:
    """The mesh of the process group. timeout: of collectives, in seconds."""
    if ranks.size == 1:
        return ONE_RANK
    return Mesh.of(degrees, device_type(torch.device(ranks.device(job.device).replace(AUTO, "cpu"))), timeout)


def plan_degrees(
    ranks: int,
    parallel: str,
    job: GenerateJob,
    adapter: ModelAdapter,
    denoiser: Denoiser,
    clips: int,
    read: ReadJson,
) -> tuple[Degrees, str]:
    """As `degrees_for`, of a denoiser at hand.

    denoiser: needs no weights. read: what reads the model's files.
    """
    work = _work(job, adapter, denoiser, clips, read)
    if parallel == AUTO:
        degrees, why = choose_degrees(ranks, work)
    else:
        degrees, why = Degrees.parse(parallel), ""
        degrees.require(ranks)
        check_degrees(degrees, work)
    check_compiled(job, degrees)
    return degrees, why


def check_compiled(job: GenerateJob, degrees: Degrees) -> None:
    """Refuse, with a SettingError, compiled blocks whose tokens ranks would share."""
    if job.compile and degrees.ring * degrees.ulysses > 1:
        raise SettingError("compile: compiled blocks cannot share their tokens; leave out --compile")


def _work(job: GenerateJob, adapter: ModelAdapter, denoiser: Denoiser, clips: int, read: ReadJson) -> Work:
    scales = pipeline_scales(adapter, job, read)
    costs: dict[int, float] = {1: 0.0}
    for _, _, plan in step_kinds(job.guidance, job.steps, scales):
        for count, cost in _branch_costs(adapter, denoiser, plan.branches).items():
            costs[count] = max(costs.get(count, 0.0), cost)
    if not adapter.sequence_parallel:
        return Work(clips, costs, heads=0, tokens=0)
    address = adapter.blocks(denoiser)[0]
    clip = ClipSize(job.frames, job.height, job.width)
    tokens = adapter.video_tokens(denoiser, adapter.example_arguments(denoiser, clip, 1), address).video
    heads = adapter.site(denoiser.get_submodule(address.path), address).attention.heads
    return Work(clips, costs, heads, tokens)


def _branch_costs(
    adapter: ModelAdapter, denoiser: Denoiser, branches: Mapping[str, Branch]
) -> dict[int, float]:
    """Work of the busiest rank of a step, for every number of branch ranks."""
    selectors = [b for one in branches.values() if one.perturbation for b in one.perturbation.blocks]
    runner = BranchRunner(adapter, denoiser, selectors)
    conditions: tuple[Condition, ...] = ("uncond", "cond")
    costs = {}
    for ranks in range(1, len(branches) + 1):
        places = assign_branches(runner, branches, conditions, ranks)
        mine = [{n: branches[n] for n, place in places.items() if place == rank} for rank in range(ranks)]
        costs[ranks] = max(runner.cost(one, conditions) for one in mine)
    return costs

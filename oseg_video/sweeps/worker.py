"""What makes the items of a sweep: a process with a loaded model, alone or as one of several ranks."""

from __future__ import annotations

import dataclasses
import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from oseg_video.config import GenerateJob
from oseg_video.console import quietly
from oseg_video.files import is_disk_error
from oseg_video.jobs.generate import check_job
from oseg_video.jobs.image import load_image
from oseg_video.jobs.loading.device import resolve_device
from oseg_video.jobs.loading.memory import NotEnoughMemoryError
from oseg_video.jobs.model import LoadedModel
from oseg_video.jobs.outputs import ClipPlan
from oseg_video.jobs.ranks import AUTO, Ranks, degrees_for, make_mesh
from oseg_video.parallel.degrees import Degrees
from oseg_video.parallel.group import ParallelError
from oseg_video.parallel.mesh import ONE_RANK, Mesh
from oseg_video.sweeps.stores import ASIDE, Store, StoreError
from oseg_video.sweeps.table import SweepError, SweepItem
from oseg_video.sweeps.validity import item_stat, manifest_key, names_of
from oseg_video.types import OsegVideoError

_ALONE = Ranks()


@dataclass(frozen=True)
class Task:
    """An item for a worker."""

    item: SweepItem
    offload: str | None = None
    """In place of the job's own."""


@dataclass(frozen=True)
class Outcome:
    """What became of a task."""

    key: str
    state: Literal["done", "failed", "out of memory", "not written", "lost"]
    """"out of memory": of a GPU's. "not written": the disk is full or the store cannot be used. "lost": its
    worker died, cannot work any more, or could not be reached."""
    results: dict[str, Any] = field(default_factory=dict)
    """Fields of `Record`."""


class Worker:
    """Makes one item after another; keeps the model as long as items want the same."""

    def __init__(self, store: Store, *, device: str | None = None, ranks: Ranks = _ALONE) -> None:
        """device: where items run whose job leaves open which GPU; None: where `generate` would run them.

        ranks: those that make every clip together, of which this is one.
        """
        self._store = store
        self._device = device
        self._ranks = ranks
        self._degrees: dict[tuple[GenerateJob, bool], Degrees] = {}
        """How the ranks divide a job, without what it shows but whether it starts from an image."""
        self._meshes: dict[Degrees, Mesh] = {}
        self._mesh = ONE_RANK
        self._model: LoadedModel | None = None
        """Loaded for the mesh."""

    def make(self, task: Task) -> Outcome:
        """Make an item and publish it in the store. Every error but an interruption is an outcome.

        After "lost" this process can make no more items and must end.
        """
        job = self._placed(task)
        try:
            with quietly():
                return Outcome(task.item.key, "done", self._make(task.item, job))
        except NotEnoughMemoryError as error:
            on_gpu = resolve_device(job.device).type == "cuda"
            outcome = Outcome(task.item.key, "out of memory" if on_gpu else "failed", {"reason": str(error)})
        except Exception as error:
            if isinstance(error, StoreError) or is_disk_error(error):
                return Outcome(task.item.key, "not written", {"reason": _reason(error)})
            # When ranks have lost each other, nothing that they did together can go on.
            lost = isinstance(error, (ParallelError, dist.DistError)) or _cuda_is_dead(job.device)
            outcome = Outcome(task.item.key, "lost" if lost else "failed", {"reason": _reason(error)})
        if outcome.state == "out of memory":  # now that the error, which held on to tensors, is gone
            self._unload()
        return outcome

    def _make(self, item: SweepItem, job: GenerateJob) -> dict[str, Any]:
        model = self._loaded(job)
        start = load_image(Path(job.image), job.height, job.width) if job.image else None
        with self._store.workspace(item.key) as folder:
            plan = ClipPlan(item.prompt, item.seed, folder / item.file, item.format)
            result = model.make_clip(job, plan, start)
            if manifest_key(result.manifest, item.format) != item.key:
                raise SweepError("model or image changed while the sweep ran")
            aside = self._store.publish(item.key, plan.path) if self._ranks.rank == 0 else ()
        stat = item_stat(item.file, self._store.listing(names_of(item.file)))
        return {
            "seconds": round(result.seconds, 3),
            "seconds_per_step": result.seconds_per_step,
            "size": stat.size if stat else None,
            "modified": stat.modified if stat else None,
            "notes": (
                *model.cut_prompts(job),
                *(f"in the place of {name} was something else, which is in {ASIDE} now" for name in aside),
            ),
        }

    def _placed(self, task: Task) -> GenerateJob:
        job = task.item.job
        device = self._device if self._device and job.device in ("auto", "cuda") else job.device
        return dataclasses.replace(job, device=device, offload=task.offload or job.offload)

    def _loaded(self, job: GenerateJob) -> LoadedModel:
        mesh = self._divided(job)
        if self._model is None or mesh is not self._mesh or not self._model.serves(job):
            self._unload()  # first, so that two models need not fit at once
            self._model = LoadedModel(check_job(job), job, mesh=mesh)
            self._mesh = mesh
        return self._model

    def _divided(self, job: GenerateJob) -> Mesh:
        """How the ranks share the work, which depends on the method and the size of the clip.

        One mesh serves all jobs of the same degrees: the memory that its process groups take is never freed.
        """
        if self._ranks.size == 1:
            return ONE_RANK
        shared = dataclasses.replace(job, prompts=(), seeds=(0,), image=None), job.image is None
        if shared not in self._degrees:
            self._degrees[shared], _ = degrees_for(self._ranks, AUTO, job, check_job(job), clips=1)
        degrees = self._degrees[shared]
        if degrees not in self._meshes:
            self._meshes[degrees] = make_mesh(self._ranks, degrees, job)
        return self._meshes[degrees]

    def _unload(self) -> None:
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _cuda_is_dead(device: str) -> bool:
    """Whether an error has broken this process's CUDA for good: after some, every later call fails."""
    cuda: Any = torch.cuda  # its types are incomplete
    if device == "cpu" or not cuda.is_initialized():
        return False
    try:
        cuda.synchronize(None if device == "auto" else device)
    except RuntimeError:
        return True
    return False


def _reason(error: Exception) -> str:
    """The error in one line."""
    if isinstance(error, OsegVideoError):
        return str(error)
    # After the first line of a CUDA error comes advice on how to find it.
    text = str(error).split("\n")[0] if "CUDA error" in str(error) else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())}"

"""From a recipe to its clips: choose the workers, make the table, carry it out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial

import torch

from oseg_video import console
from oseg_video.jobs.counted import idle_reason
from oseg_video.jobs.loading.errors import LoadError
from oseg_video.jobs.loading.hub import HubError
from oseg_video.jobs.loading.pipeline import find_model
from oseg_video.jobs.model import check_device
from oseg_video.sweeps.engines.base import Engine
from oseg_video.sweeps.engines.cluster import RayActors
from oseg_video.sweeps.engines.local import InProcess, Processes
from oseg_video.sweeps.estimate import Estimate, estimate
from oseg_video.sweeps.recipe import SweepRecipe
from oseg_video.sweeps.records import Record
from oseg_video.sweeps.run import Summary, run_sweep, survey
from oseg_video.sweeps.stores import Store, open_store
from oseg_video.sweeps.table import SweepError, SweepItem, Variation, build_table, plan_variations


def sweep(
    recipe: SweepRecipe,
    out: str | None = None,
    *,
    cluster: bool = False,
    address: str | None = None,
    workers: int | None = None,
    gpus: int = 1,
    retry_failed: bool = False,
    on_record: Callable[[Record], None] | None = None,
) -> Summary:
    """Make the clips of a recipe that are not there yet.

    out: folder or URL, in place of the recipe's. cluster: on Ray, at `address`. gpus: how many make each clip
    together; without GPUs as many processes. workers: how many such groups; by default as many as there are
    GPUs for, and without GPUs one, or on a cluster one for each machine. The rest is that of `run_sweep`. All
    that can be refused before a model is loaded is. Raises OsegVideoError.
    """
    return make_variations(
        plan_variations(recipe),
        _place(recipe, out),
        cluster=cluster,
        address=address,
        workers=workers,
        gpus=gpus,
        retry_failed=retry_failed,
        on_record=on_record,
    )


def make_variations(
    variations: Sequence[Variation],
    place: str,
    *,
    cluster: bool = False,
    address: str | None = None,
    workers: int | None = None,
    gpus: int = 1,
    retry_failed: bool = False,
    on_record: Callable[[Record], None] | None = None,
) -> Summary:
    """`sweep` of variations that may come from several recipes, into the folder or URL `place`."""
    with contextlib.ExitStack() as stack:
        store = open_store(place)
        stack.callback(store.close)
        engine: Engine
        check: Callable[[Sequence[SweepItem]], None] | None = None
        if cluster:
            _require_free_devices(variations)
            engine = RayActors(store.location, address, workers, gpus)
            stack.callback(engine.close)
            items = build_table(variations, engine.device)
        else:
            engine = _local_engine(store, workers, gpus)
            if engine.size * gpus > 1:
                _require_free_gpus(variations)
            items = build_table(variations)
            check = _require_fit_devices
        for variation in variations:
            if idle := idle_reason(variation.job):
                console.logger.warning(f"warning: {variation.method} on {variation.model}: {idle}")
        stack.pop_all()  # from here on run_sweep closes both
        return run_sweep(items, store, engine, retry_failed=retry_failed, on_record=on_record, check=check)


def dry_run(
    recipe: SweepRecipe,
    out: str | None = None,
    *,
    cluster: bool = False,
    seconds_per_pass: float | None = None,
    retry_failed: bool = False,
) -> Estimate:
    """What `sweep` would do, without doing it. Raises OsegVideoError.

    Where the hub cannot be reached, families are counted at full size and every clip counts as one to make. A
    cluster is taken to have GPUs.
    """
    return estimate_variations(
        plan_variations(recipe),
        _place(recipe, out),
        cluster=cluster,
        seconds_per_pass=seconds_per_pass,
        retry_failed=retry_failed,
    )


def estimate_variations(
    variations: Sequence[Variation],
    place: str,
    *,
    cluster: bool = False,
    seconds_per_pass: float | None = None,
    retry_failed: bool = False,
) -> Estimate:
    """`dry_run` of variations that may come from several recipes; one of each model and method."""
    records: Sequence[Record] = ()
    try:
        items = build_table(variations, "cuda" if cluster else None)
    except HubError:
        pass
    else:
        with contextlib.closing(open_store(place)) as store:
            records, _ = survey(items, store)
        to_do = {one.item for one in records if one.state != "done"}
        try:
            if not cluster:
                _require_fit_devices([item for item in items if item.key in to_do])
        except LoadError as error:
            console.logger.warning(f"warning: this machine cannot make them: {error}")
    return estimate(variations, records, seconds_per_pass=seconds_per_pass, retry_failed=retry_failed)


def _place(recipe: SweepRecipe, out: str | None) -> str:
    place = out or recipe.out
    if place is None:
        raise SweepError("nothing says where the clips go: give --out, or out in the recipe")
    return place


def _local_engine(store: Store, workers: int | None, gpus: int) -> Engine:
    present = torch.cuda.device_count()
    if workers is None:
        workers = max(1, present // gpus)
    if present and workers * gpus > present:
        raise SweepError(f"{workers} workers of {gpus} GPUs each: this machine has {present}")
    if workers == gpus == 1:
        return InProcess(store)
    groups = [
        [worker * gpus + rank if present else None for rank in range(gpus)] for worker in range(workers)
    ]
    return Processes(store.location, groups)


def _require_fit_devices(items: Sequence[SweepItem]) -> None:
    """Raises LoadError, once for all clips of a model, for what no worker of this machine could do."""
    every = (item.job for item in items)
    jobs = {(job.model, job.revision, job.image is None, job.device, job.offload): job for job in every}
    for job in jobs.values():
        check_device(job, partial(find_model, job.model, job.revision, image=job.image is not None))


def _require_free_gpus(variations: Sequence[Variation]) -> None:
    for variation in variations:
        if variation.job.device.startswith("cuda:"):
            raise SweepError(
                f"device {variation.job.device}: of several processes each has its own GPU; use auto, or "
                f"--workers 1 --gpus 1"
            )


def _require_free_devices(variations: Sequence[Variation]) -> None:
    for variation in variations:
        if variation.job.device != "auto":
            raise SweepError(
                f"device {variation.job.device}: on a cluster it must be auto; Ray gives each worker its GPU"
            )

"""Workers on a Ray cluster: an actor for each GPU or group of GPUs, which keeps the loaded model."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
from multiprocessing.connection import wait
from typing import Any

import psutil

from oseg_video.jobs.quiet import quiet_libraries
from oseg_video.plugins import load_plugins
from oseg_video.sweeps.engines.places import plan_places
from oseg_video.sweeps.engines.processes import WorkerProcesses
from oseg_video.sweeps.stores import open_store
from oseg_video.sweeps.table import SweepError
from oseg_video.sweeps.worker import Outcome, Task, Worker


class RayActors:
    """Actors on the cluster. One that is lost, with its process or its machine, is replaced."""

    def __init__(self, location: str, address: str | None, workers: int | None, gpus: int) -> None:
        """location: of the store, which all machines must reach.

        address: of a running cluster; without it the one that Ray finds by RAY_ADDRESS or on this machine, or
        else a new one on this machine. workers, gpus: as in `plan_places`. Raises SweepError.
        """
        # Ray prints on standard output that a worker is lost, which the sweep says itself; this keeps it off.
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
        try:
            import ray
            from ray._private import ray_constants
        except ImportError:
            raise SweepError("--engine ray needs Ray: pip install 'oseg-video[cluster]'") from None
        self._ray: Any = ray
        options: dict[str, Any] = {} if address else {"include_dashboard": False}
        if not (address or os.environ.get("RAY_ADDRESS")):
            # Ray's own name for "this machine only": a cluster that it starts here opens no port to others.
            ray_constants.ENABLE_RAY_CLUSTER = False
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
            _require_loopback()
        except SweepError:
            ray.shutdown()
            raise
        except (ConnectionError, ValueError, RuntimeError) as error:
            line = next(iter(str(error).splitlines()), "")
            raise SweepError(f"cannot use the Ray cluster {address or 'of this machine'}: {line}") from error
        try:
            places = plan_places(
                [node["Resources"] for node in self._ray.nodes() if node["Alive"]], workers, gpus
            )
        except SweepError:
            ray.shutdown()
            raise
        self.device = "cuda" if places.on_gpus else "cpu"
        """Kind of device that the workers have."""
        self.size = places.workers
        numbers = [rank if places.on_gpus else None for rank in range(gpus)]
        threads = max(1, places.cpus // gpus)
        self._arguments = location, os.getcwd(), numbers, threads
        # Ray would ask for a whole CPU beside the GPUs.
        share = {"num_gpus": gpus, "num_cpus": 0} if places.on_gpus else {"num_cpus": places.cpus}
        self._actor_class: Any = self._ray.remote(_Actor).options(**share)
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, Task]] = {}

    @property
    def busy(self) -> int:
        return len(self._running)

    def start(self, task: Task) -> None:
        assert self.busy < self.size
        actor = self._idle.pop() if self._idle else self._actor_class.remote(*self._arguments)
        self._running[actor.make.remote(task)] = actor, task

    def finished(self, timeout: float) -> list[Outcome]:
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout)
        return [self._receive(reference) for reference in ready]

    def close(self) -> None:
        self._ray.shutdown()

    def _receive(self, reference: Any) -> Outcome:
        actor, task = self._running.pop(reference)
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._ray.kill(actor)  # in case it is only out of reach
            line = next(iter(str(error).splitlines()), "") or type(error).__name__
            return Outcome(task.item.key, "lost", {"reason": f"its Ray worker was lost: {line}"})
        if outcome.state == "lost":
            self._ray.kill(actor)
        else:
            self._idle.append(actor)
        return outcome


def _require_loopback() -> None:
    """Raises SweepError if other machines can reach a cluster that was started here."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            for one in process.net_connections("inet"):
                address = one.laddr.ip.removeprefix("::ffff:")
                if one.status == psutil.CONN_LISTEN and not ipaddress.ip_address(address).is_loopback:
                    raise SweepError(
                        f"this version of Ray opens a port to other machines ({process.name()}, {address});"
                        " start a cluster yourself, with `ray start`, and give its address"
                    )


class _Actor:
    """A worker on some machine of the cluster."""

    def __init__(self, location: str, folder: str, gpus: list[int | None], threads: int) -> None:
        """folder: the driver's working directory, from which models and images may be named."""
        if os.path.isdir(folder):
            os.chdir(folder)
        load_plugins()
        # Ray has made the GPUs of this actor the only ones, numbered from 0.
        self._ranks = WorkerProcesses(location, gpus, threads) if len(gpus) > 1 else None
        with quiet_libraries():
            self._worker = Worker(open_store(location))

    def make(self, task: Task) -> Outcome:
        if self._ranks is None:
            with quiet_libraries():
                return self._worker.make(task)
        self._ranks.start(task)
        while True:
            wait(self._ranks.connections)
            if outcome := self._ranks.receive():
                return outcome

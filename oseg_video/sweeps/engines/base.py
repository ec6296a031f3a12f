"""What the driver of a sweep asks of its workers, wherever they are."""

from __future__ import annotations

from typing import Protocol

from oseg_video.sweeps.worker import Outcome, Task


class Engine(Protocol):
    """Workers that make one task each at a time. A worker that is lost is replaced."""

    @property
    def size(self) -> int:
        """Number of workers."""

    @property
    def busy(self) -> int:
        """Number of tasks that were started and not yet returned by `finished`."""

    def start(self, task: Task) -> None:
        """Give a task to an idle worker; there must be one."""

    def finished(self, timeout: float) -> list[Outcome]:
        """Outcomes that have come, waiting up to `timeout` seconds for the first one."""

    def close(self) -> None:
        """Stop the workers, also in the middle of a task."""

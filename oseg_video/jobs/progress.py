"""What a person sees while a job runs: progress bars for loading, steps and decoding."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from oseg_video.console import bar, bars_shown


@contextlib.contextmanager
def loading_bars() -> Iterator[None]:
    """Show the hub's bars over downloads and diffusers' bar over components, not the bars inside it."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging
    from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined]

    transformers_logging.disable_progress_bar()  # and the hub's with it
    if bars_shown():
        enable_progress_bars()
    else:
        diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()
        diffusers_logging.enable_progress_bar()


class StepClock:
    """Counts and times the steps of one clip, and shows them."""

    def __init__(self, steps: int, title: str) -> None:
        self._steps = steps
        self._bar: Any = bar(None, title, "step", total=steps)
        self._decoding: Any = None
        self._done = 0
        self._first_end = self._last_end = time.perf_counter()

    def __enter__(self) -> StepClock:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._decoding is not None:
            self._decoding.close()

    def step(self) -> None:
        """One step is done; after the last one decoding begins."""
        self._done += 1
        self._last_end = time.perf_counter()
        if self._done == 1:
            self._first_end = self._last_end
        self._bar.update()
        if self._done == self._steps:
            self._bar.close()
            self._decoding = bar(None, "decoding", total=1)

    def decoded(self) -> None:
        """The clip's pixels are there."""
        if self._decoding is not None:
            self._decoding.update()

    @property
    def seconds_per_step(self) -> float | None:
        """Wall clock, mean over all steps but the first, which also waits for the text encoder."""
        return (self._last_end - self._first_end) / (self._done - 1) if self._done > 1 else None

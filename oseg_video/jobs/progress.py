"""What a person sees while a job runs: progress bars and notes on standard error."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm


class Progress:
    """Bars for loading, steps and decoding; shows nothing if `quiet`."""

    def __init__(self, *, quiet: bool = True) -> None:
        self.quiet = quiet

    def note(self, text: str) -> None:
        """Say one line."""
        if not self.quiet:
            tqdm.write(text, file=sys.stderr)

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Show the hub's bars over downloads and diffusers' bar over components, not the bars inside it."""
        import diffusers.utils.logging as diffusers_logging
        import transformers.utils.logging as transformers_logging
        from huggingface_hub.utils import enable_progress_bars

        transformers_logging.disable_progress_bar()  # and the hub's with it
        if self.quiet:
            diffusers_logging.disable_progress_bar()
        else:
            enable_progress_bars()
        try:
            yield
        finally:
            transformers_logging.enable_progress_bar()
            diffusers_logging.enable_progress_bar()

    @contextlib.contextmanager
    def sampling(self, steps: int, title: str) -> Iterator[StepClock]:
        """Bars for the steps and the decoding of one clip; call the clock's `step` after every step."""
        clock = StepClock(steps, self.quiet, title)
        try:
            yield clock
        finally:
            clock.close()


class StepClock:
    """Counts and times the steps of one clip."""

    def __init__(self, steps: int, quiet: bool, title: str) -> None:
        self._steps = steps
        self._quiet = quiet
        self._bar: Any = tqdm(total=steps, desc=title, unit="step", disable=quiet, file=sys.stderr)
        self._decoding: Any = None
        self._done = 0
        self._first_end = self._last_end = time.perf_counter()

    def step(self) -> None:
        """One step is done; after the last one decoding begins."""
        self._done += 1
        self._last_end = time.perf_counter()
        if self._done == 1:
            self._first_end = self._last_end
        self._bar.update()
        if self._done == self._steps:
            self._bar.close()
            self._decoding = tqdm(total=1, desc="decoding", unit="clip", disable=self._quiet, file=sys.stderr)

    def decoded(self) -> None:
        """The clip's pixels are there."""
        if self._decoding is not None:
            self._decoding.update()

    def close(self) -> None:
        """Leave the bars as they stand."""
        self._bar.close()
        if self._decoding is not None:
            self._decoding.close()

    @property
    def seconds_per_step(self) -> float | None:
        """Wall clock, mean over all steps but the first, which also waits for the text encoder."""
        return (self._last_end - self._first_end) / (self._done - 1) if self._done > 1 else None

"""Real processes without their ten seconds of imports: forked from one that has torch and diffusers already.

Every process that runs tests has one such server, started when it is first needed.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch.multiprocessing as multiprocessing

FORKS = multiprocessing.get_context("forkserver")
"""Where such processes come from."""
FORKS.set_forkserver_preload(["tests.integration.families"])


class Command:
    """`oseg-video ARGUMENTS` in a process of its own, which can be sent signals. To be used as a context."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._written = [Path(self._folder.name, name) for name in ("out", "err")]
        task = (arguments, [str(path) for path in self._written], dict(environment or {}))
        self._process = FORKS.Process(target=_run, args=task)
        self._process.start()
        self.pid: int = self._process.pid

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._folder.cleanup()

    @property
    def out(self) -> str:
        """Standard output so far."""
        return self._read(0)

    @property
    def err(self) -> str:
        """Standard error so far."""
        return self._read(1)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Exit code; negative that of a signal, None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """Exit code, once it has ended."""
        self._process.join(timeout)
        code = self.poll()
        assert code is not None, f"still running after {timeout} s; it said {self.err}"
        return code

    def _read(self, which: int) -> str:
        path = self._written[which]
        return path.read_text() if path.exists() else ""


def _run(arguments: tuple[str, ...], written: list[str], environment: dict[str, str]) -> None:
    # A script that runs tests in the background ignores SIGINT; a terminal's foreground does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, path in zip((1, 2), written, strict=True):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    os.environ.update(environment)
    sys.argv = ["oseg-video", *arguments]
    from oseg_video.__main__ import main

    sys.exit(main())

"""Real processes without their ten seconds of imports: forked from one that has torch and diffusers already.

Every process that runs tests has one such server, started when it is first needed.
"""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import torch.multiprocessing as multiprocessing

FORKS = multiprocessing.get_context("forkserver")
"""Where such processes come from."""
FORKS.set_forkserver_preload(["tests.integration.families"])


class Command:
    """`oseg-video ARGUMENTS` in a process of its own, which can be sent signals. To be used as a context.

    With `terminal` its standard error is one: progress is shown on nothing else.
    """

    def __init__(
        self, *arguments: str, environment: Mapping[str, str] | None = None, terminal: bool = False
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._out, self._err = (Path(self._folder.name, name) for name in ("out", "err"))
        self._terminal: tuple[int, int] | None = None
        written = [str(self._out), str(self._err)]
        if terminal:
            self._terminal = pty.openpty()
            termios.tcsetwinsize(self._terminal[1], (24, 100))  # without a width a bar is empty
            written[1] = os.ttyname(self._terminal[1])
            self._reader = threading.Thread(target=self._copy, args=(self._terminal[0],), daemon=True)
            self._reader.start()
        self._process = FORKS.Process(target=_run, args=(arguments, written, dict(environment or {})))
        self._process.start()
        self.pid: int = self._process.pid

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._end_of_terminal()
        self._folder.cleanup()

    @property
    def out(self) -> str:
        """Standard output so far."""
        return self._out.read_text() if self._out.exists() else ""

    @property
    def err(self) -> str:
        """Standard error so far."""
        if self.poll() is not None:
            self._end_of_terminal()
        written = self._err.read_bytes() if self._err.exists() else b""
        return written.decode(errors="replace").replace("\r\n", "\n")

    def wait_for(self, *texts: str, timeout: float = 300) -> None:
        """Return once standard error holds one of `texts`."""
        deadline = time.monotonic() + timeout
        while not any(text in self.err for text in texts):
            assert self.poll() is None, f"ended with {self.poll()} and said {self.err}"
            assert time.monotonic() < deadline, f"nothing of {texts} after {timeout} s in {self.err}"
            time.sleep(0.02)

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

    def _copy(self, terminal: int) -> None:
        with contextlib.suppress(OSError), self._err.open("wb", buffering=0) as file:
            while part := os.read(terminal, 4096):  # fails once nobody can write any more
                file.write(part)

    def _end_of_terminal(self) -> None:
        """Read what a process that has ended left in its terminal."""
        if self._terminal is not None:
            terminal, theirs = self._terminal
            self._terminal = None
            os.close(theirs)
            self._reader.join(60)
            os.close(terminal)


def _run(arguments: tuple[str, ...], written: list[str], environment: dict[str, str]) -> None:
    # A script that runs tests in the background ignores SIGINT; a terminal's foreground does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, path in zip((1, 2), written, strict=True):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOCTTY)
        os.dup2(file, stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    os.environ.update(environment)
    sys.argv = ["oseg-video", *arguments]
    from oseg_video.__main__ import main

    sys.exit(main())

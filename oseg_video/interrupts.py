"""Ctrl-C, SIGTERM and SIGHUP: each ends a command as `KeyboardInterrupt`, once, and is never lost.

An exception out of a signal is lost where Python or a library catches everything: in an import it becomes
an ImportError or half a module, in a destructor a message. So it is not raised inside an import, and raised
again when it has come to nothing. Imports nothing heavy: it is there before the imports that take seconds.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LATER, _AGAIN = 0.05, 1.0
"""Seconds until the next try, inside an import, and after an exception was raised."""

_received = False
_handlers: dict[int, Any] = {}


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """While this is open the signals raise KeyboardInterrupt. Nothing inside another one, or in a thread.

    A signal that is ignored, as `nohup` does, stays so.
    """
    global _received
    if _handlers:
        yield
        return
    try:
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                _handlers[number] = signal.signal(number, _receive)
        _handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, _try)
    except ValueError:  # not the main thread: signals are not ours
        yield
        return
    _received = False
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        while _handlers:
            signal.signal(*_handlers.popitem())


def received() -> bool:
    """Whether one of the signals has come: then an error may be but what it has become on its way."""
    return _received


def _receive(number: int, frame: FrameType | None) -> None:
    global _received
    if _received and not _on_its_way():  # someone insists, in an import that hangs
        raise KeyboardInterrupt
    _received = True
    _try(number, frame)


def _try(number: int, frame: FrameType | None) -> None:
    if _on_its_way() or _in_import(frame):
        signal.setitimer(signal.ITIMER_REAL, _LATER)
        return
    signal.setitimer(signal.ITIMER_REAL, _AGAIN)
    raise KeyboardInterrupt


def _on_its_way() -> bool:
    """Whether KeyboardInterrupt is being handled: temporary files are removed, say."""
    error: BaseException | None = sys.exception()
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _in_import(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None

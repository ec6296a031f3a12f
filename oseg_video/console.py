"""What a person sees while something runs: log lines and progress bars on standard error.

One logger, `oseg_video`, carries every line: `logger.info` for what one may want to know, `logger.warning`
for what one should know. A command shows it through `show`; in a Python program it is a logger like any
other, and progress bars appear when it shows INFO. Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, overload

if TYPE_CHECKING:
    from tqdm import tqdm

Item = TypeVar("Item")

logger = logging.getLogger("oseg_video")

# A path may have 4096 letters, of which 255 are one name; what is longer is a value that was mistyped.
_LONGEST_WORD, _LONGEST_LINE = 512, 1500


UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
"""What a terminal obeys, what ends a line, what no file can hold, and marks that turn what follows."""


def visible(text: str) -> str:
    """Text from outside on one line, with what a terminal would obey written out (ESC as `\\x1b`)."""
    return UNSAFE.sub(lambda one: " " if one[0].isspace() else one[0].encode("unicode_escape").decode(), text)


def say(text: str) -> None:
    """Print text, line by line as `visible` has it."""
    print("\n".join(map(visible, text.split("\n"))))


def visible_json(text: str) -> str:
    """JSON that means the same, in which no character is one that a terminal obeys or UTF-8 cannot hold."""
    return UNSAFE.sub(
        lambda one: one[0] if one[0] in "\n\t" else " " if one[0] == "\r" else f"\\u{ord(one[0]):04x}", text
    )


class _BesideBars(logging.Handler):
    """Writes lines to standard error, above the bars that stand there."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = one_line(self.format(record))
            if "tqdm" in sys.modules:
                from tqdm import tqdm

                tqdm.write(text, file=sys.stderr)
            else:
                print(text, file=sys.stderr)
        except Exception:
            self.handleError(record)


def one_line(text: str) -> str:
    """A text for a terminal: one line, nothing that it obeys, and what goes on and on without its middle."""
    words = " ".join(_ends(word, _LONGEST_WORD) for word in text.split())
    return visible(_ends(words, _LONGEST_LINE))


def _ends(text: str, most: int) -> str:
    half = most // 2
    return text if len(text) <= most else f"{text[:half]}[...]{text[-half:]}"


def show(*, quiet: bool = False) -> None:
    """Show the logger's lines on standard error, as the commands do; only warnings if `quiet`.

    Called again it changes the level only.
    """
    if not any(isinstance(handler, _BesideBars) for handler in logger.handlers):
        handler = _BesideBars()
        handler.setFormatter(logging.Formatter("oseg-video: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Warnings only and no bars for as long as this is open: for work that is part of something larger."""
    before = logger.level
    logger.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(before)


def bars_shown() -> bool:
    """Whether progress bars appear: the logger shows INFO, and standard error is a terminal."""
    return logger.isEnabledFor(logging.INFO) and _is_terminal(sys.stderr)


@overload
def bar(over: Iterable[Item], title: str, unit: str = ..., *, total: float | None = ...) -> tqdm[Item]: ...
@overload
def bar(over: None, title: str, unit: str = ..., *, total: float | None = ...) -> tqdm[Any]: ...
def bar(over: Any, title: str, unit: str = "clip", *, total: float | None = None) -> tqdm[Any]:
    """A progress bar over an iterable, or one of `total` updates; hidden unless `bars_shown`."""
    from tqdm import tqdm

    lock_bars()
    return tqdm(over, desc=title, unit=unit, total=total, disable=not bars_shown(), file=sys.stderr)


def lock_bars() -> None:
    """Give bars, those of other libraries as well, a lock of this process.

    tqdm's own lock is a semaphore between processes, which a process that is killed leaves behind.
    """
    import threading

    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()

"""One logger, one factory of bars."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest

from oseg_video import console
from oseg_video.cli.output import say


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    handlers, level, propagate = list(console.logger.handlers), console.logger.level, console.logger.propagate
    yield
    console.logger.handlers[:] = handlers
    console.logger.setLevel(level)
    console.logger.propagate = propagate


def test_a_command_shows_each_line_once_and_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.show()
    console.show()
    console.logger.info("loading\n  weights")
    assert capsys.readouterr().err == "oseg-video: loading weights\n"


def test_quiet_leaves_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    console.show(quiet=True)
    console.logger.info("loading")
    console.logger.warning("a clip is damaged")
    assert capsys.readouterr().err == "oseg-video: a clip is damaged\n"


@pytest.mark.parametrize(
    ("level", "terminal", "shown"),
    [(logging.INFO, True, True), (logging.INFO, False, False), (logging.WARNING, True, False)],
)
def test_bars_need_a_terminal_and_a_listener(
    monkeypatch: pytest.MonkeyPatch, level: int, terminal: bool, shown: bool
) -> None:
    console.logger.setLevel(level)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert console.bars_shown() is shown
    with console.bar(range(3), "counting") as bar:
        assert bar.disable is not shown
        assert list(bar) == [0, 1, 2]


def test_an_error_line_holds_nothing_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    say("error: cannot read \x1b]0;mine\x07 \x9b31m\u202e.mp4")
    error = capsys.readouterr().err
    assert error == "oseg-video: error: cannot read \\x1b]0;mine\\x07 \\x9b31m\\u202e.mp4\n"

"""Signals end a command once, whatever Python is at."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from oseg_video import cli
from oseg_video.interrupts import heeded, received

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    numbers = (*SIGNALS, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)


def wait() -> None:
    """Until a signal interrupts."""
    for _ in range(3000):
        time.sleep(0.01)
    pytest.fail("nothing came")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_keyboard_interrupt(number: int) -> None:
    with heeded(), heeded():
        assert not received()
        with pytest.raises(KeyboardInterrupt):
            send(number)
        assert received()


@pytest.mark.parametrize("number", SIGNALS)
def test_an_import_is_not_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Of modules that catch what their own imports raise, as libraries with optional parts do."""
    (tmp_path / "inner_part.py").write_text(
        f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(0.2)\nwhole = True\n"
    )
    (tmp_path / "outer_part.py").write_text(
        "try:\n    import inner_part\nexcept BaseException:\n    raise ImportError('none') from None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with heeded(), pytest.raises(KeyboardInterrupt):
        module = importlib.import_module("outer_part")
        assert module.inner_part.whole
        wait()
    for name in ("outer_part", "inner_part"):
        del sys.modules[name]


def test_what_is_caught_comes_again() -> None:
    caught = []
    with heeded(), pytest.raises(KeyboardInterrupt):
        try:
            send(signal.SIGTERM)
        except BaseException as error:
            caught.append(type(error))
        wait()
    assert caught == [KeyboardInterrupt]


def test_cleaning_up_is_not_interrupted_a_second_time() -> None:
    done = []
    with heeded(), pytest.raises(KeyboardInterrupt):
        try:
            send(signal.SIGINT)
        finally:
            send(signal.SIGTERM)
            time.sleep(1.2)  # longer than until the exception is raised again
            done.append(True)
    assert done == [True]


def test_what_is_ignored_stays_ignored() -> None:
    """As under nohup, and for commands that a shell runs in the background."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with heeded():
            send(signal.SIGHUP)
            assert not received() and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_an_error_is_said_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, number: int
) -> None:
    """As ranks get one, that lose their neighbour just before they are ended."""
    say = cli.say

    def interrupted(text: str) -> None:
        if text.startswith("error"):
            send(number)
        say(text)

    monkeypatch.setattr(cli, "say", interrupted)
    assert cli.main(["info", "no-such-clip.mp4"]) == 130
    assert capsys.readouterr().err == "oseg-video: interrupted; finished clips are kept\n"

"""The command `oseg-video`: parse, one library call, exit code.

Exit codes: 0 done, 1 the clip was not reproduced or the program failed, 2 a mistake in the call or something
that the user can fix (one line on standard error), 130 interrupted.

Every command is one module with a function `register` that adds its parser; a new one joins `_COMMANDS`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from oseg_video.cli import (
    compare,
    contact_sheet,
    env,
    evaluate,
    generate,
    info,
    landscape,
    models,
    probe,
    recipes,
    reproduce,
    sweep,
    tune,
    vbench,
)
from oseg_video.cli.completion import PrintCompletion
from oseg_video.cli.output import PROGRAM, say
from oseg_video.cli.parsing import Parser, UsageError
from oseg_video.console import show
from oseg_video.guidance.flat import RENAMED
from oseg_video.interrupts import heeded, received
from oseg_video.jobs.quiet import quiet_libraries
from oseg_video.plugins import load_plugins
from oseg_video.settings.suggest import known_or_nearest
from oseg_video.types import OsegVideoError, SaidElsewhereError

_COMMANDS = (
    generate,
    reproduce,
    sweep,
    compare,
    tune,
    evaluate,
    contact_sheet,
    probe,
    landscape,
    vbench,
    models,
    recipes,
    info,
    env,
)
"""The modules of the commands, in the order of `--help`."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, SIGTERM or SIGHUP."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    with heeded():
        try:
            return _code_or_error(arguments, debug)
        except KeyboardInterrupt as error:  # in here another one waits
            if debug:
                raise
            if _speaks_for_all():
                say(f"interrupted; {str(error) or 'finished clips are kept'}")
            return INTERRUPTED


def _code_or_error(arguments: Sequence[str], debug: bool) -> int:
    try:
        return _code_of(arguments, debug)
    except Exception as error:
        if debug and not isinstance(error, BrokenPipeError | SaidElsewhereError):
            raise
        if received():  # the error is what the signal has become
            raise KeyboardInterrupt from None
        return _code_of_error(error)


def _code_of(arguments: Sequence[str], debug: bool) -> int:
    _check_surroundings()
    load_plugins()
    try:
        options = parse(arguments)
    except SystemExit:  # of --help and its like, which have printed
        _flush_output()
        raise
    show(quiet=getattr(options, "quiet", False))
    with contextlib.nullcontext() if debug else quiet_libraries():
        code = int(options.run(options))
    _flush_output()
    if received() and not code:  # a library has caught it
        raise KeyboardInterrupt
    return code


def _check_surroundings() -> None:
    """Raises UsageError for what other libraries would fail on, in words of their own."""
    try:
        os.getcwd()
    except OSError:
        raise UsageError("the working directory is not there any more; change to another folder") from None
    if sys.flags.optimize > 1:
        raise UsageError(
            "Python runs without docstrings (-OO, PYTHONOPTIMIZE=2), which transformers needs; use -O at most"
        )


def _flush_output() -> None:
    """Before the interpreter does, so that a full disk is an error like others."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None


def _code_of_error(error: Exception) -> int:
    if isinstance(error, SaidElsewhereError):
        return 2
    if isinstance(error, BrokenPipeError):
        # The reader of standard output went away (`| head`): nothing left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, OsegVideoError):
        say(f"error: {error}")
        return 2
    if isinstance(error, OSError) and error.strerror:  # the system's own, which the user can fix
        place = f"{error.filename}: " if error.filename is not None else ""
        say(f"error: {place}{error.strerror}")
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    say(f"error: {type(error).__name__}: {error} (--debug shows where)")
    return 1


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command's options; `run` among them is the function that carries it out. Raises UsageError."""
    parser = Parser(prog=PROGRAM, description="Guided video generation (OSEG).", epilog=generate.EXAMPLES)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument("--print-completion", action=PrintCompletion, help="print a shell script and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.register(commands)
    options, unknown = parser.parse_known_args(arguments)
    options.arguments = arguments
    if unknown:
        flags = [
            flag for action in commands.choices[options.command]._actions for flag in action.option_strings
        ]
        name = unknown[0].split("=")[0]
        setting = name.removeprefix("--").replace("-", "_")
        if setting in RENAMED:
            raise UsageError(f"{name} is no argument any more: {RENAMED[setting]}")
        if name in flags:
            raise UsageError(f"{name} stands before {options.command}; flags come after the command")
        see = f"see {PROGRAM} {options.command} --help"
        hint = f"; {known_or_nearest(name, flags, see)}" if name.startswith("--") else ""
        raise UsageError(f"unknown argument {unknown[0]!r} of {options.command}{hint}")
    return options


def _speaks_for_all() -> bool:
    """Whether this is a process of its own, or the first of the ranks that torchrun has started."""
    from oseg_video.parallel.degrees import started_as

    rank, _, _ = started_as()
    return rank == 0 and "OSEG_VIDEO_ONE_MACHINE" not in os.environ


class _Version(argparse.Action):
    def __call__(self, *_: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"{PROGRAM} {version(PROGRAM)}")
        raise SystemExit(0)

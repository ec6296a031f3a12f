"""What the parsers of all commands share."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from typing import Any, NoReturn

from oseg_video.files import expanded
from oseg_video.types import OsegVideoError

Commands = Any
"""What `add_subparsers` returns; argparse keeps the type to itself."""


class UsageError(OsegVideoError):
    """A command line that cannot be parsed."""


def require_there(kind: str, *paths: str) -> None:
    """Refuse, with a UsageError, what is not there: before libraries are imported, which takes seconds."""
    for path in paths:
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"no such {kind}: {path}") from None
        except (OSError, ValueError):  # what reads it knows why
            pass


def folder_flag(place: str) -> str:
    """A flag's folder of results, `~` expanded, or its URL. Raises FileError, UsageError for a file."""
    if "://" in place:
        return place
    folder = expanded(place)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UsageError(f"cannot write into {folder}: it is a file")
    return str(folder)


class Parser(argparse.ArgumentParser):
    """argparse, but every mistake is one line, raised and not printed."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*arguments, **options)

    def print_help(self, file: Any = None) -> None:
        print(self.format_help(), end="", file=file)  # argparse's own says nothing of a full disk

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], **options: Any
) -> Parser:
    """The parser of a new command; `run(options)` carries it out and returns the exit code."""
    parser: Parser = commands.add_parser(name, **options)
    parser.set_defaults(run=run)
    return parser


def add_debug_flag(parser: argparse.ArgumentParser) -> None:
    """`--debug` of a command that runs no model; `main` heeds it."""
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def add_quiet_flags(group: argparse._ArgumentGroup, quiet: str = "no progress") -> None:
    """`--quiet`, and what it means, and `--debug` of a command that runs models; `main` heeds both."""
    group.add_argument("--quiet", action="store_true", help=quiet)
    group.add_argument("--debug", action="store_true", help="show tracebacks and the libraries' messages")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a command that makes clips."""
    group = parser.add_argument_group("this run")
    group.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    group.add_argument("--json", action="store_true", help="print one JSON object a clip")
    add_quiet_flags(group, "no progress; print only the path of each clip")


def whole_number(text: str) -> int:
    """An integer of at least 1. Raises ValueError, which argparse turns into a line of its own."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return number


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them; those in parentheses belong to a name."""
    found = tuple(name.strip() for name in re.split(r",(?![^(]*\))", text) if name.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"must name something, got {text!r}")
    return found


def add_batch(parser: argparse._ArgumentGroup) -> None:
    """`--batch` of the commands that measure clips."""
    parser.add_argument(
        "--batch", metavar="N", type=whole_number, default=8, help="clips that a network sees at once (8)"
    )


def numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between them; "inf" is one."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers with commas between them, got {text!r}") from None


def seconds(text: str) -> float:
    """A number above 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return number

"""`oseg-video --print-completion SHELL`: a script that completes commands, flags and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, NoReturn

_FILES = ("FILE", "FOLDER", "PATH", "RECIPE")
"""Words in the names of arguments that are completed with files."""


class PrintCompletion(argparse.Action):
    """Prints the script for one shell and ends, as `--version` does."""

    def __init__(self, **options: Any) -> None:
        super().__init__(choices=("bash", "zsh", "tcsh"), **options)

    def __call__(self, parser: argparse.ArgumentParser, _: Any, shell: Any, __: Any = None) -> NoReturn:
        import shtab

        for action in _actions(parser):
            if any(word in str(action.metavar) for word in _FILES):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, shell=shell))
        raise SystemExit(0)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every flag and argument, those of the commands too."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)

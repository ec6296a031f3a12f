"""`oseg-video vbench`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from oseg_video.cli.parsing import Commands, UsageError, add_command, add_debug_flag

if TYPE_CHECKING:
    from oseg_video.evaluation.vbench.environment import Environment

_ABOUT = """VBench needs numpy < 2 and an old transformers, so it gets an interpreter of its own. Afterwards:
  oseg-video evaluate FOLDER --metrics vbench:imaging_quality,vbench:motion_smoothness
"""


def register(commands: Commands) -> None:
    parser = commands.add_parser("vbench", help="build or check the interpreter that VBench's metrics run in")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    setup = add_command(
        actions,
        "setup",
        _setup,
        help="build it; after a stop, build it anew",
        epilog=_ABOUT,
    )
    setup.add_argument("--where", metavar="FOLDER", help="its place (default: as before, or the data folder)")
    setup.add_argument(
        "--python", metavar="PATH", help="the Python 3.11 to build from (default: one it finds)"
    )
    setup.add_argument(
        "--detectron2",
        action="store_true",
        help="also compile detectron2 from GitHub, for object_class, multiple_objects, color and "
        "spatial_relationship",
    )
    setup.add_argument("--quiet", action="store_true", help="print only the folder")
    add_debug_flag(setup)
    check = add_command(
        actions, "check", _check, help="say which dimensions can run; exit code 1 if one cannot"
    )
    check.add_argument("dimensions", nargs="*", metavar="DIMENSION", help="default: all 16")
    add_debug_flag(check)


def _setup(options: Namespace) -> int:
    from oseg_video.evaluation.vbench.environment import set_up
    from oseg_video.evaluation.vbench.scores import DIMENSIONS

    try:
        environment = set_up(
            where=Path(options.where) if options.where else None,
            python=Path(options.python) if options.python else None,
            detectron2=options.detectron2,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command begins anew, with what pip has downloaded") from None
    if options.quiet:
        print(environment.folder)
        return 0
    _describe(environment, list(DIMENSIONS))
    return 0


def _check(options: Namespace) -> int:
    from oseg_video.evaluation.vbench.environment import find_environment
    from oseg_video.evaluation.vbench.scores import DIMENSIONS

    for name in options.dimensions:
        if name not in DIMENSIONS:
            raise UsageError(f"VBench has no dimension {name!r}; it has: {', '.join(DIMENSIONS)}")
    return 0 if _describe(find_environment(), options.dimensions or list(DIMENSIONS)) else 1


def _describe(environment: Environment, dimensions: Sequence[str]) -> bool:
    """Print what the interpreter is and which dimensions can run. Returns whether all of them can."""
    from oseg_video.evaluation.vbench.checks import missing_package
    from oseg_video.evaluation.vbench.process import ask

    about = ask(environment, {"task": "describe", "dimensions": dimensions})
    failures = about["failures"]
    print(f"VBench {about['versions']['vbench']} is in {environment.folder}")
    print(f"{len(dimensions) - len(failures)} of {len(dimensions)} dimensions can run; GPUs: {about['gpus']}")
    for dimension, reason in failures.items():
        print(f"  {dimension}: {reason}{missing_package(reason)}")
    return not failures

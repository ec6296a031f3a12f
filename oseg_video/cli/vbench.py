"""`oseg-video vbench`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from oseg_video.cli.output import say
from oseg_video.cli.parsing import Commands, add_command, add_debug_flag

_ABOUT = """VBench needs numpy < 2 and an old transformers, so it gets an interpreter of its own. Afterwards:
  oseg-video evaluate FOLDER --metrics vbench:imaging_quality,vbench:motion_smoothness
"""


def register(commands: Commands) -> None:
    parser = commands.add_parser("vbench", help="build the interpreter that VBench's metrics run in")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    setup = add_command(
        actions, "setup", _setup, help="build it, or go on where an earlier call stopped", epilog=_ABOUT
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


def _setup(options: Namespace) -> int:
    from oseg_video.evaluation.vbench_environment import set_up
    from oseg_video.evaluation.vbench_process import ask
    from oseg_video.evaluation.vbench_scores import DIMENSIONS

    try:
        environment = set_up(
            where=Path(options.where) if options.where else None,
            python=Path(options.python) if options.python else None,
            detectron2=options.detectron2,
            quiet=options.quiet,
            say=(lambda text: None) if options.quiet else say,
        )
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here")
        return 130
    if options.quiet:
        print(environment.folder)
        return 0
    about = ask(environment, {"task": "describe", "dimensions": list(DIMENSIONS)})
    usable = len(DIMENSIONS) - len(about["failures"])
    print(f"VBench {about['versions']['vbench']} is in {environment.folder}")
    print(f"{usable} of {len(DIMENSIONS)} dimensions can run; GPUs: {about['gpus']}")
    for dimension, reason in about["failures"].items():
        print(f"  {dimension}: {reason}")
    return 0

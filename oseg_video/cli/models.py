"""`oseg-video models`."""

from __future__ import annotations

import json
from argparse import Namespace

from oseg_video.cli.parsing import Commands, add_command, add_debug_flag


def register(commands: Commands) -> None:
    parser = add_command(commands, "models", _run, help="list model families, pipelines and recipes")
    parser.add_argument("--json", action="store_true", help="one JSON object a family")
    add_debug_flag(parser)


def _run(options: Namespace) -> int:
    from oseg_video.jobs.loading.catalogue import catalogue, describe

    for entry in catalogue():
        print(json.dumps(entry) if options.json else describe(entry))
    return 0

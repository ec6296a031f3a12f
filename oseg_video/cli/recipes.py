"""`oseg-video recipes`."""

from __future__ import annotations

import json
from argparse import Namespace

from oseg_video.cli.parsing import Commands, add_command, add_debug_flag


def register(commands: Commands) -> None:
    parser = add_command(commands, "recipes", _run, help="list the shipped recipes and where they are")
    parser.add_argument("--json", action="store_true", help="one JSON object a recipe")
    add_debug_flag(parser)


def _run(options: Namespace) -> int:
    from oseg_video.config.recipes import shipped_files

    for entry in shipped_files():
        if options.json:
            print(json.dumps(entry))
        else:
            print(f"{entry['name']:<24}{entry['command']:<10}{entry['path']}")
            print(f"{'':<24}{entry['about']}")
            for sections in ("methods", "weights"):
                if entry[sections]:
                    print(f"{'':<24}{sections}: {', '.join(entry[sections])}")
    return 0

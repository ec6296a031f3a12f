"""`oseg-video info`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from oseg_video.cli.parsing import Commands, add_command, add_debug_flag


def register(commands: Commands) -> None:
    parser = add_command(commands, "info", _run, help="print how a clip was made")
    parser.add_argument("file", metavar="FILE", help="a clip or its .json manifest")
    parser.add_argument("--yaml", action="store_true", help="print its settings as a file for --config")
    add_debug_flag(parser)


def _run(options: Namespace) -> int:
    from oseg_video.config import dump_yaml
    from oseg_video.config.manifest import read_manifest

    manifest = read_manifest(Path(options.file))
    print(dump_yaml(manifest.read_job()) if options.yaml else manifest.text, end="")
    return 0

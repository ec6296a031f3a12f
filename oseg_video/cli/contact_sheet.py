"""`oseg-video contact-sheet`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from oseg_video import console
from oseg_video.cli.parsing import (
    Commands,
    add_command,
    add_debug_flag,
    names,
    require_there,
    whole_number,
)
from oseg_video.files import check_file

_EXAMPLES = """examples:
  oseg-video contact-sheet outputs/comparison --out sheet.pdf
  oseg-video contact-sheet cfg/ oseg/ --frames 4 --rows 12 --out sheet.png
"""


def register(commands: Commands) -> None:
    parser = add_command(
        commands,
        "contact-sheet",
        _run,
        help="an image of clips: rows are prompts, columns methods",
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="clips of several methods, or a folder for each method"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="sheet.png or sheet.pdf")
    parser.add_argument(
        "--methods", metavar="A,B", type=names, help="the columns, in this order (default: all)"
    )
    parser.add_argument("--frames", type=whole_number, default=3, metavar="N", help="of each clip (3)")
    parser.add_argument("--rows", type=whole_number, default=20, metavar="N", help="the first N (20)")
    parser.add_argument(
        "--height", type=whole_number, default=192, metavar="N", help="pixels of a frame (192)"
    )
    parser.add_argument(
        "--font", metavar="FILE", help="TrueType font, for prompts in other scripts than Latin"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a sheet that exists")
    parser.add_argument("--quiet", action="store_true", help="no progress; print only the path")
    add_debug_flag(parser)


def _run(options: Namespace) -> int:
    require_there("folder", *options.folders)
    from oseg_video.comparison.contact_sheet import write_contact_sheet
    from oseg_video.evaluation.clips import find_clips

    out = Path(options.out)
    check_file(out, overwrite=options.overwrite)
    found = find_clips([Path(folder) for folder in options.folders])
    drawn, there, broken = write_contact_sheet(
        found,
        out,
        methods=options.methods,
        frames=options.frames,
        rows=options.rows,
        height=options.height,
        font=Path(options.font) if options.font else None,
    )
    broken = {**found.broken, **broken}
    for name, reason in broken.items():
        console.logger.warning(f"skipped {name}: {reason}")
    if drawn < there:
        console.logger.info(f"the first {drawn} of {there} rows; --rows takes more")
    print(out)
    return 1 if broken else 0

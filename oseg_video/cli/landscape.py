"""`oseg-video landscape`."""

from __future__ import annotations

import argparse
from pathlib import Path

from oseg_video.cli.output import announce_loading
from oseg_video.cli.parsing import Commands, UsageError, add_command, add_quiet_flags, numbers
from oseg_video.cli.probe import LEFT_OUT, blocks, job_to_probe
from oseg_video.cli.settings import add_config_flag, add_setting_flags
from oseg_video.config import known_keys
from oseg_video.files import atomic_path, check_file

_EXAMPLES = """examples:
  oseg-video landscape --prompt "a red circle moving left on a white background" --block 3 --out landscape.png
  oseg-video landscape --model sdxl --prompt "a cat" --block mid:0 --sigmas 3,15,inf --out landscape.html
"""
_SUFFIXES = (".png", ".svg", ".html")


def register(commands: Commands) -> None:
    parser = add_command(
        commands,
        "landscape",
        _run,
        help="draw energy and attention of one block, before and after SEG and OSEG",
        epilog=_EXAMPLES,
    )
    group = parser.add_argument_group("what to draw")
    group.add_argument("--block", metavar="N|NAME", type=_block, required=True, help="by index or name")
    group.add_argument(
        "--noise-level",
        metavar="X",
        type=float,
        default=0.5,
        help="1 is pure noise; the first step at or below it (default: 0.5)",
    )
    group.add_argument(
        "--sigmas",
        metavar="X,X",
        type=numbers,
        default=(3.0, 15.0, float("inf")),
        help="widths of smoothing (default: 3,15,inf)",
    )
    group.add_argument(
        "--token",
        metavar="FRAME,ROW,COLUMN",
        type=_token,
        help="the one whose attention is drawn (default: the middle)",
    )
    add_setting_flags(parser, [name for name in known_keys() if name not in LEFT_OUT])
    add_config_flag(parser)
    run = parser.add_argument_group("this run")
    run.add_argument(
        "--out",
        metavar="FILE",
        default="landscape.png",
        help=f"{', '.join(_SUFFIXES)} (default: landscape.png)",
    )
    run.add_argument("--overwrite", action="store_true", help="replace a drawing that exists")
    add_quiet_flags(run, "no progress; print only the path")


def _run(options: argparse.Namespace) -> int:
    out = Path(options.out)
    if out.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"--out must end in {', '.join(_SUFFIXES)}, got {options.out!r}")
    check_file(out, overwrite=options.overwrite)
    job = job_to_probe(options)
    if len(job.prompts) > 1:
        raise UsageError(f"one prompt is drawn, got {len(job.prompts)}")
    announce_loading()
    from oseg_video.probing.drawing import draw
    from oseg_video.probing.job import landscape_job

    found = landscape_job(
        job,
        block=options.block,
        noise_level=options.noise_level,
        sigmas=options.sigmas,
        token=options.token,
    )
    with atomic_path(out) as temporary:
        temporary.write_bytes(draw(found, out.suffix.lower()))
    print(out)
    return 0


def _block(text: str) -> int | str:
    try:
        (block,) = blocks(text)
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"must be one block, by index or name, got {text!r}") from None
    return block


def _token(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"must be frame, row and column, such as 2,8,8, got {text!r}")
    return int(parts[0]), int(parts[1]), int(parts[2])

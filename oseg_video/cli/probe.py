"""`oseg-video probe`."""

from __future__ import annotations

import argparse
import json
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

from oseg_video.cli.output import announce_loading
from oseg_video.cli.parsing import (
    Commands,
    UsageError,
    add_command,
    add_quiet_flags,
    folder_flag,
    numbers,
    whole_number,
)
from oseg_video.cli.ranks import is_rank, ran_on_ranks, rank_count
from oseg_video.cli.settings import add_config_flag, add_setting_flags, job_of
from oseg_video.config import known_keys
from oseg_video.files import check_place, check_writable, write_text
from oseg_video.parallel.degrees import started_as
from oseg_video.settings.kinds import BLOCKS
from oseg_video.types import SettingError

if TYPE_CHECKING:
    from oseg_video.config import GenerateJob
    from oseg_video.probing.result import ProbeResult

_EXAMPLES = """examples:
  oseg-video probe --prompt "a red circle moving left on a white background" --steps 8
  oseg-video probe --model mochi --offload model --guidance stg --prompts prompts.txt --blocks 10,20,30,34

For each block: attention as it is and with smoothed queries, and what the method's perturbation of that
block alone does to the prediction, at a few noise levels of the sampling. The page shows blocks side by side.
"""
FILES = ("probe.json", "probe.html")
LEFT_OUT = ("blocks", "out", "format", "refresh", "cache")
"""Settings of a clip that a probe has no use for, or has a flag of its own for."""


def register(commands: Commands) -> None:
    parser = add_command(
        commands, "probe", _run, help="look into a model's blocks: which ones matter?", epilog=_EXAMPLES
    )
    group = parser.add_argument_group("what to look at")
    group.add_argument(
        "--blocks", metavar="all|N|NAME,..", type=blocks, default=(), help="by index or name (default: all)"
    )
    group.add_argument(
        "--noise-levels",
        metavar="X,X",
        type=numbers,
        default=(0.9, 0.7, 0.4),
        help="1 is pure noise; the first step at or below each (default: 0.9,0.7,0.4)",
    )
    group.add_argument(
        "--sigmas",
        metavar="X,X",
        type=numbers,
        default=(1.0, 5.0, float("inf")),
        help="widths of smoothing at which SEG's and OSEG's queries are looked at (default: 1,5,inf)",
    )
    group.add_argument(
        "--queries", metavar="N", type=whole_number, default=16, help="attention rows in each (default: 16)"
    )
    add_setting_flags(parser, [name for name in known_keys() if name not in LEFT_OUT])
    add_config_flag(parser)
    several = parser.add_argument_group("several GPUs")
    several.add_argument(
        "--gpus", metavar="N", type=whole_number, help="run on N GPUs of this machine, which share the tokens"
    )
    several.add_argument(
        "--parallel",
        metavar="TEXT",
        default="",
        help="ranks per axis of ulysses and ring, such as ring=2 (default: all on ulysses)",
    )
    run = parser.add_argument_group("this run")
    run.add_argument(
        "--out",
        metavar="FOLDER",
        default="outputs/probe",
        help="where probe.html and probe.json go (default: outputs/probe)",
    )
    run.add_argument("--json", action="store_true", help="print the result as JSON")
    add_quiet_flags(run, "no progress, no table; print only the page's path")


def _run(options: argparse.Namespace) -> int:
    job = job_to_probe(options)
    rank_count(options, free="")
    out = Path(folder_flag(options.out))
    if not is_rank():
        _check_folder(out)
        announce_loading()
    if ran_on_ranks(options, job.device):
        return 0
    from oseg_video.probing.job import probe_job

    result = probe_job(
        job,
        parallel=options.parallel,
        blocks=options.blocks,
        noise_levels=options.noise_levels,
        sigmas=options.sigmas,
        queries=options.queries,
    )
    rank, _, _ = started_as()
    if rank > 0:
        return 0
    page = _write(result, out)
    if options.json:
        print(json.dumps(result.to_dict()))
    elif options.quiet:
        print(page)
    else:
        print(f"{result.table()}\n{page}")
    return 0


def job_to_probe(options: argparse.Namespace) -> GenerateJob:
    """The job of the flags; whatever blocks its recipe names, the command has a flag of its own for them.

    Raises OsegVideoError, also for a method that perturbs no single block, and for a second seed.
    """
    from oseg_video.probing.method import perturbing

    without = copy(options)
    options.setting_blocks = "0"
    try:
        job = job_of(options)
    except SettingError as error:  # it may be about a method that has no blocks
        try:
            other = job_of(without)
        except SettingError:
            raise error from None
        perturbing(other.guidance)
        raise
    perturbing(job.guidance)
    if len(job.seeds) > 1:
        raise UsageError(f"one seed is probed, got {' '.join(map(str, job.seeds))}")
    return job


def _check_folder(out: Path) -> None:
    for name in FILES:
        check_place(out / name)
    check_writable(out)


def _write(result: ProbeResult, out: Path) -> Path:
    """Both files; the page's path."""
    from oseg_video.probing.page import page_text

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {out}: {error.strerror}") from None
    data, page = (out / name for name in FILES)
    write_text(data, json.dumps(result.to_dict(), indent=1) + "\n")
    write_text(page, page_text(result))
    return page


def blocks(text: str) -> tuple[int | str, ...]:
    """Blocks by index or name; none for all of them."""
    if text == "all":
        return ()
    try:
        found: tuple[int | str, ...] = BLOCKS.from_plain(BLOCKS.from_text(text))
    except SettingError as error:
        raise argparse.ArgumentTypeError(f"must be all or {error}") from None
    return found

"""`oseg-video sweep`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from oseg_video import console
from oseg_video.cli.axes import (
    add_axis_flags,
    add_dry_run_flags,
    add_worker_flags,
    check_dry_run_flags,
    check_worker_flags,
    with_flags,
    worker_options,
)
from oseg_video.cli.output import announce_loading
from oseg_video.cli.parsing import Commands, add_command, add_quiet_flags, folder_flag
from oseg_video.config import find_recipe

if TYPE_CHECKING:
    from oseg_video.sweeps.records import Record

_EXAMPLES = """examples:
  oseg-video sweep embedded --dry-run
  oseg-video sweep embedded --seeds 0,1,2 --steps 4
  oseg-video sweep mine.yaml --engine ray --address auto --out s3://bucket/clips

The same command goes on where a run stopped, was killed, or made only some of the clips. Exit code 0 says
that every clip is there, 1 that some failed; the index in the folder says why.
"""


def register(commands: Commands) -> None:
    parser = add_command(
        commands, "sweep", _run, help="make prompts x seeds x methods x models, each once", epilog=_EXAMPLES
    )
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="a YAML file, or the name of a shipped one: prompts, seeds, methods, models, settings, out",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="folder or URL of the clips, in place of the recipe's"
    )
    add_axis_flags(parser)
    add_worker_flags(parser)
    add_dry_run_flags(parser)
    run = parser.add_argument_group("this run")
    run.add_argument("--json", action="store_true", help="print one JSON object a clip, or one for a dry run")
    add_quiet_flags(run)


def _run(options: argparse.Namespace) -> int:
    check_worker_flags(options)
    check_dry_run_flags(options)
    from oseg_video.sweeps.recipe import read_sweep

    recipe = with_flags(read_sweep(find_recipe(options.recipe, "sweeps", "tables")), options, options.limit)
    if place := options.out or recipe.out:
        options.out = folder_flag(place)
    announce_loading()
    from oseg_video.sweeps.estimate import describe
    from oseg_video.sweeps.launch import dry_run, sweep

    if options.dry_run:
        found = dry_run(
            recipe,
            options.out,
            cluster=options.engine == "ray",
            seconds_per_pass=options.seconds_per_pass,
            retry_failed=options.retry_failed,
        )
        if options.json:
            print(json.dumps(found.to_dict()))
        else:
            console.say("\n".join(describe(found)))
        return 0
    summary = sweep(
        recipe,
        options.out,
        **worker_options(options),
        on_record=lambda settled: _print_record(settled, options),
    )
    if not options.json:
        there = f"{summary.done} of {summary.total} clips are in {options.out}"
        console.say(f"{there}, {summary.made} of them made now")
    if summary.failed:
        console.logger.warning(f"{len(summary.failed)} clips failed; --retry-failed tries them again")
    return 0 if summary.done == summary.total else 1


def _print_record(settled: Record, options: argparse.Namespace) -> None:
    """A clip that is done or failed: a line of JSON, or a word about a failure above the progress bar."""
    if options.json:
        print(json.dumps(dataclasses.asdict(settled)), flush=True)
    elif settled.state == "failed":
        console.logger.info(f"failed: {settled.file}: {settled.reason}")

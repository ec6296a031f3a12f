"""`oseg-video tune`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
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
from oseg_video.cli.evaluate import add_metric_flags, metric_options
from oseg_video.cli.output import announce_loading
from oseg_video.cli.parsing import (
    Commands,
    UsageError,
    add_command,
    add_quiet_flags,
    folder_flag,
    whole_number,
)
from oseg_video.config import find_recipe

if TYPE_CHECKING:
    from oseg_video.tuning.recipe import TuneRecipe

_EXAMPLES = """examples:
  oseg-video tune embedded --out outputs/tune --dry-run
  oseg-video tune embedded --out outputs/tune
  oseg-video generate --config outputs/tune/found.yaml --prompt "a red circle" --out a.mp4

The same command goes on where a run stopped or was killed, and makes nothing twice. Exit code 0 also where no
arm beat the baseline; 1: clips failed, or clips or metric values had to be left out.
"""


def register(commands: Commands) -> None:
    parser = add_command(
        commands,
        "tune",
        _run,
        help="search blocks, scales and other settings for a metric, and test what was found",
        description="Successive halving on paired clips; what it chooses is tested on clips that the search "
        "did not see. FOLDER/found.yaml is for generate --config.",
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="a YAML file, or the name of a shipped one: metric, baseline, methods with what is to be tried, "
        "prompts, seeds, test, clips",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="of clips, tables, plot and recipes")
    parser.add_argument(
        "--clips", metavar="N", type=whole_number, help="at most so many in all, those of the test among them"
    )
    add_axis_flags(parser, methods="of the recipe's methods only these", seeds="of the search")
    add_metric_flags(parser.add_argument_group("metric"))
    add_worker_flags(parser)
    add_dry_run_flags(parser)
    add_quiet_flags(parser.add_argument_group("this run"))


def _run(options: argparse.Namespace) -> int:
    check_worker_flags(options)
    check_dry_run_flags(options)
    if "://" in options.out:
        raise UsageError(f"--out must be a folder of this machine, which metrics read, got {options.out}")
    options.out = folder_flag(options.out)
    recipe = _recipe(options)
    announce_loading()
    if options.dry_run:
        return _dry_run(options, recipe)
    from oseg_video.tuning.tune import tune

    done = tune(recipe, Path(options.out), options=metric_options(options), **worker_options(options))
    console.say("\n".join(done.words))
    console.say(f"{done.recipe} is for generate --config; tables, plot and page are beside it")
    if not done.complete:
        console.logger.warning("clips or metric values are missing; --retry-failed tries failed clips again")
    return 0 if done.complete else 1


def _dry_run(options: argparse.Namespace, recipe: TuneRecipe) -> int:
    from oseg_video.sweeps.estimate import describe as describe_sweep
    from oseg_video.tuning.plan import describe, make_plan
    from oseg_video.tuning.tune import dry_run

    plan = make_plan(recipe, metric_options(options))
    searched, tested = dry_run(
        plan,
        Path(options.out),
        cluster=options.engine == "ray",
        seconds_per_pass=options.seconds_per_pass,
        retry_failed=options.retry_failed,
    )
    console.say("\n".join(describe(plan)))
    print("\nsearch, with the first arms in the place of those that will stay:")
    console.say("\n".join(describe_sweep(searched)))
    print("\ntest, with the first arm of every method in the place of its best:")
    console.say("\n".join(describe_sweep(tested)))
    return 0


def _recipe(options: argparse.Namespace) -> TuneRecipe:
    """What the recipe says and the flags change."""
    from oseg_video.tuning.recipe import read_tune

    recipe = with_flags(read_tune(find_recipe(options.recipe, "tune")), options, options.limit)
    return dataclasses.replace(recipe, clips=options.clips or recipe.clips)

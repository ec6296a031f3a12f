"""`oseg-video compare`."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from oseg_video import console
from oseg_video.cli.axes import (
    add_axis_flags,
    add_dry_run_flags,
    check_dry_run_flags,
    from_flags,
    with_flags,
)
from oseg_video.cli.evaluate import add_metric_flags, metric_options
from oseg_video.cli.output import announce_loading
from oseg_video.cli.parsing import (
    Commands,
    UsageError,
    add_command,
    add_quiet_flags,
    folder_flag,
    names,
    whole_number,
)
from oseg_video.cli.settings import flag_settings
from oseg_video.config import find_recipe

if TYPE_CHECKING:
    from oseg_video.comparison.recipe import ComparisonRecipe
    from oseg_video.evaluation.metrics.base import MetricOptions

_EXAMPLES = """examples:
  oseg-video compare --guidance cfg,stg,seg,oseg --prompt "a red circle moving left on a white background" \\
    --prompt "a blue square moving up on a black background" --seeds 0,1 --out outputs/comparison --open
  oseg-video compare --model mochi --guidance cfg,oseg --prompts prompts.txt --out outputs/mochi
  oseg-video compare table3-embedded --out outputs/toy --limit 2

Without --open, open index.html in the folder afterwards. The same command goes on where a run stopped or was
killed, and makes nothing twice. Exit code 1: clips failed, or clips or metric values had to be left out.
"""


def register(commands: Commands) -> None:
    parser = add_command(
        commands,
        "compare",
        _run,
        help="the same prompts and seeds under several methods: clips, metric values, and a page",
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "recipe",
        nargs="?",
        metavar="RECIPE",
        help="a YAML file, or the name of a shipped one: prompts, seeds, methods with settings, metrics; a "
        "sweep's will do",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="of clips, metric values and page; with --explain and no folder, what the methods and metrics "
        "are and cost is said, which needs no weights",
    )
    add_axis_flags(parser)
    measured = parser.add_argument_group("metrics")
    measured.add_argument(
        "--metrics",
        metavar="A,B",
        type=names,
        help="exact names, see evaluate --list-metrics (default: the recipe's, or what needs no downloads)",
    )
    measured.add_argument(
        "--baseline",
        metavar="METHOD",
        help="what the others of its model are compared with (default: the recipe's, or the first)",
    )
    add_metric_flags(measured, "; clips also for recipes that start from their frames")
    add_dry_run_flags(parser)
    run = parser.add_argument_group("this run")
    run.add_argument(
        "--workers", metavar="N", type=whole_number, help="processes (default: one for each GPU)"
    )
    run.add_argument("--retry-failed", action="store_true", help="try failed clips again")
    run.add_argument("--open", action="store_true", help="open the page in the browser at the end")
    add_quiet_flags(run)


def _run(options: argparse.Namespace) -> int:
    check_dry_run_flags(options)
    if options.out is None and options.dry_run:
        from oseg_video.comparison.explain import explain_comparison

        with tempfile.TemporaryDirectory(prefix="oseg-video-") as images:
            recipe = _recipe(options, Path(images))
            options.setting_device = "cpu"  # of metrics, which nothing runs here
            console.say(explain_comparison(recipe, _metric_options(options, recipe)))
        return 0
    if options.out is None:
        raise UsageError("the following arguments are required: --out")
    if "://" in options.out:
        raise UsageError(
            f"--out must be a folder of this machine, which a browser can open, got {options.out}"
        )
    options.out = folder_flag(options.out)
    if options.dry_run:
        with tempfile.TemporaryDirectory(prefix="oseg-video-") as images:
            return _dry_run(options, _recipe(options, Path(images)))
    from oseg_video.comparison.recipe import IMAGES

    recipe = _recipe(options, Path(options.out) / IMAGES)
    announce_loading()
    from oseg_video.comparison.compare import compare

    done = compare(
        recipe.sweep,
        Path(options.out),
        recipe.metrics,
        baseline=recipe.baseline,
        reported=recipe.reported,
        options=_metric_options(options, recipe),
        workers=options.workers,
        retry_failed=options.retry_failed,
    )
    print(done.table)
    summary = done.summary
    console.say(f"{summary.done} of {summary.total} clips, {summary.made} of them made now: {done.page}")
    warn = console.logger.warning
    for one in summary.failed:
        warn(f"failed: {one.file}: {one.reason}")
    if summary.failed:
        warn(f"{len(summary.failed)} clips failed; --retry-failed tries them again")
    said = {one.file for one in summary.failed}
    for name, reason in {**done.results["skipped"], **done.results["failed"]}.items():
        if name not in said:
            warn(f"left out: {name}: {reason}")
    if options.open:
        import webbrowser

        if not webbrowser.open(done.page.absolute().as_uri()):
            warn(f"there is no browser to open {done.page} with")
    return 0 if done.complete else 1


def _dry_run(options: argparse.Namespace, recipe: ComparisonRecipe) -> int:
    from oseg_video.comparison.compare import CLIPS, check_comparison
    from oseg_video.sweeps.estimate import describe
    from oseg_video.sweeps.launch import dry_run

    metrics, baselines = check_comparison(
        recipe.sweep, recipe.metrics, baseline=recipe.baseline, options=_metric_options(options, recipe)
    )
    found = dry_run(
        recipe.sweep,
        str(Path(options.out) / CLIPS),
        seconds_per_pass=options.seconds_per_pass,
        retry_failed=options.retry_failed,
    )
    console.say("\n".join(describe(found)))
    console.say(f"metrics: {', '.join(metrics)}")
    for method, baseline in baselines.items():
        console.say(f"difference: {method} minus {baseline}")
    return 0


def _recipe(options: argparse.Namespace, images: Path) -> ComparisonRecipe:
    """What the recipe says and the flags change."""
    from oseg_video.comparison.recipe import ComparisonRecipe, read_comparison

    if options.recipe is None:
        recipe = ComparisonRecipe(sweep=from_flags(options))
    else:
        path = find_recipe(options.recipe, "tables", "sweeps")
        if options.reference:  # whose first frames the recipe may ask for
            announce_loading()
        recipe = read_comparison(
            path,
            real=Path(options.reference) if options.reference else None,
            images=images,
            limit=options.limit,
        )
        replaced = {"prompts", "image"} & {*flag_settings(options)}
        limit = options.limit if replaced or not recipe.limited else None
        recipe = dataclasses.replace(recipe, sweep=with_flags(recipe.sweep, options, limit))
    baseline = recipe.baseline if recipe.baseline in recipe.sweep.methods else None
    return dataclasses.replace(
        recipe, metrics=options.metrics or recipe.metrics, baseline=options.baseline or baseline
    )


def _metric_options(options: argparse.Namespace, recipe: ComparisonRecipe) -> MetricOptions:
    from oseg_video.evaluation.metrics.base import reads_real

    found = metric_options(options)
    # Real clips may be there for the images alone, and no metric compares with them.
    only_images = recipe.starts_from_real and not reads_real(recipe.metrics or ())
    return dataclasses.replace(found, reference=None) if only_images else found

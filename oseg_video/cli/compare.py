"""`oseg-video compare`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from oseg_video.cli.output import say
from oseg_video.cli.parsing import Commands, UsageError, add_batch, add_command, names, whole_number
from oseg_video.cli.settings import add_setting_flags, flag_settings
from oseg_video.config import known_keys
from oseg_video.config.keys import JOB, Key
from oseg_video.guidance.methods import METHODS
from oseg_video.settings.suggest import known_or_nearest

if TYPE_CHECKING:
    from oseg_video.compare.recipe import ComparisonRecipe
    from oseg_video.evaluation.metrics.base import MetricOptions

_EXAMPLES = """examples:
  oseg-video compare --guidance cfg,stg,seg,oseg --prompt "a red circle moving left on a white background" \\
    --prompt "a blue square moving up on a black background" --seeds 0,1 --out outputs/comparison --open
  oseg-video compare --model mochi --guidance cfg,oseg --prompts prompts.txt --out outputs/mochi
  oseg-video compare configs/tables/table3.yaml --out outputs/table3 --limit 2

Without --open, open index.html in the folder afterwards. The same command goes on where a run stopped or was
killed, and makes nothing twice. Exit code 1: clips failed, or clips or figures had to be left out.
"""

# The axes have flags of their own; settings of single methods are those of their recipes, or of RECIPE.yaml.
_LEFT_OUT = ("seeds", "guidance", "out", "format")


def register(commands: Commands) -> None:
    parser = add_command(
        commands,
        "compare",
        _run,
        help="the same prompts and seeds under several methods: clips, figures, and a page",
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "recipe",
        nargs="?",
        metavar="RECIPE.yaml",
        help="prompts, seeds, methods with settings, metrics: in place of the flags; a sweep's will do",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="of clips, figures and page")
    parser.add_argument("--guidance", metavar="A,B", type=names, help=f"methods: {', '.join(METHODS)}")
    parser.add_argument("--seeds", metavar="N,N", help="one clip per method, prompt and seed (default: 0)")
    add_setting_flags(parser, [name for name, key in known_keys().items() if not _left_out(name, key)])
    figures = parser.add_argument_group("figures")
    figures.add_argument(
        "--metrics",
        metavar="A,B",
        type=names,
        help="exact names, see evaluate --list-metrics (default: the recipe's, or what needs no downloads)",
    )
    figures.add_argument(
        "--baseline",
        metavar="METHOD",
        help="what the others of its model are compared with (default: the recipe's, or the first)",
    )
    figures.add_argument(
        "--reference",
        metavar="PATH",
        help="real clips, or their statistics, for fvd; clips also for recipes that start from their frames",
    )
    figures.add_argument(
        "--weights", action="append", default=[], metavar="METRIC=PATH", help="weights of a metric"
    )
    figures.add_argument(
        "--trust-weights", action="store_true", help="load torchscript files whose checksum is not known"
    )
    add_batch(figures)
    run = parser.add_argument_group("this run")
    run.add_argument(
        "--limit", metavar="N", type=whole_number, help="of the recipe's prompts or pictures only the first N"
    )
    run.add_argument(
        "--workers", metavar="N", type=whole_number, help="processes (default: one for each GPU)"
    )
    run.add_argument("--retry-failed", action="store_true", help="try failed clips again")
    run.add_argument("--open", action="store_true", help="open the page in the browser at the end")
    run.add_argument("--quiet", action="store_true", help="no progress")
    run.add_argument("--debug", action="store_true", help="show tracebacks and the libraries' messages")


def _left_out(name: str, key: Key) -> bool:
    return name in _LEFT_OUT or key.group == "guidance"


def _run(options: argparse.Namespace) -> int:
    if "://" in options.out:
        raise UsageError(
            f"--out must be a folder of this machine, which a browser can open, got {options.out}"
        )
    from oseg_video.compare.compare import compare
    from oseg_video.evaluation.metrics.base import known_metrics

    recipe = _recipe(options)
    metrics = recipe.metrics if options.metrics is None else options.metrics
    known = known_metrics()
    read_real = any(name in known and "reference" in known[name].reads for name in metrics or ())
    done = compare(
        recipe.sweep,
        Path(options.out),
        metrics,
        baseline=options.baseline or recipe.baseline,
        published=recipe.published,
        options=_metric_options(options, recipe.starts_from_real and not read_real),
        workers=options.workers,
        retry_failed=options.retry_failed,
    )
    print(done.table)
    summary = done.summary
    print(f"{summary.done} of {summary.total} clips, {summary.made} of them made now: {done.page}")
    for one in summary.failed:
        say(f"failed: {one.file}: {one.reason}")
    if summary.failed:
        say(f"{len(summary.failed)} clips failed; --retry-failed tries them again")
    said = {one.file for one in summary.failed}
    for name, reason in {**done.results["skipped"], **done.results["failed"]}.items():
        if name not in said:
            say(f"left out: {name}: {reason}")
    if options.open:
        import webbrowser

        if not webbrowser.open(done.page.absolute().as_uri()):
            say(f"there is no browser to open {done.page} with")
    return 0 if done.complete else 1


def _recipe(options: argparse.Namespace) -> ComparisonRecipe:
    from oseg_video.compare.compare import PICTURES
    from oseg_video.compare.recipe import ComparisonRecipe, read_comparison
    from oseg_video.sweep.recipe import Subject, SweepRecipe

    given = flag_settings(options)
    if options.recipe is not None:
        flags = [f"--{name}" for name in ("guidance", "seeds") if getattr(options, name) is not None]
        flags += [known_keys()[name].setting.flag_of(name) for name in given]
        if flags:
            raise UsageError(f"{flags[0]} cannot be given with a recipe, which sets it")
        return read_comparison(
            Path(options.recipe),
            real=Path(options.reference) if options.reference else None,
            pictures=Path(options.out) / PICTURES,
            limit=options.limit,
        )
    if options.limit is not None:
        raise UsageError("--limit is for the prompts of a recipe, and there is none")
    _check_methods(options.guidance or ())
    for flag, missing in (
        ("--guidance", not options.guidance),
        ("--prompt (or --image)", not {"prompts", "image"} & {*given}),
    ):
        if missing:
            raise UsageError(f"a comparison needs {flag}, or a recipe")
    image = given.pop("image", None)
    prompts: list[str | None] = given.pop("prompts", None) or [None]
    model = given.pop("model", JOB["model"].default)
    sweep = SweepRecipe(
        subjects=tuple(Subject(prompt=prompt, image=image) for prompt in dict.fromkeys(prompts)),
        seeds=_seeds(options.seeds),
        methods={name: {"guidance": name} for name in options.guidance},
        models={model: {"model": model}},
        settings=given,
    )
    return ComparisonRecipe(sweep=sweep)


def _check_methods(methods: Sequence[str]) -> None:
    for name in methods:
        if name not in METHODS:
            raise UsageError(f"--guidance: unknown method {name!r}; {known_or_nearest(name, METHODS)}")
        if methods.count(name) > 1:
            raise UsageError(f"--guidance names {name} twice")


def _seeds(text: str | None) -> tuple[int, ...]:
    if text is None:
        return (0,)
    return tuple(JOB["seeds"].read_text("--seeds", text))


def _metric_options(options: argparse.Namespace, only_pictures: bool) -> MetricOptions:
    """only_pictures: the real clips are for the pictures alone, and no metric compares with them."""
    from oseg_video.cli.evaluate import read_weights, usable_device
    from oseg_video.evaluation.metrics.base import MetricOptions

    return MetricOptions(
        device=usable_device(getattr(options, "setting_device", "auto")),
        weights=read_weights(options.weights),
        trust_weights=options.trust_weights,
        reference=Path(options.reference) if options.reference and not only_pictures else None,
        batch=options.batch,
    )

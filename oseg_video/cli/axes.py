"""The flags of commands that make a table of clips: its axes and its settings, which win over a recipe's."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from oseg_video.cli.parsing import UsageError, names, seconds, whole_number
from oseg_video.cli.settings import add_setting_flags, flag_settings
from oseg_video.config import known_keys
from oseg_video.guidance.methods import METHODS
from oseg_video.settings.suggest import known_or_nearest

if TYPE_CHECKING:
    from oseg_video.sweeps.recipe import SweepRecipe
    from oseg_video.tuning.recipe import TuneRecipe

Recipe = TypeVar("Recipe", "SweepRecipe", "TuneRecipe")
# The axes have flags of their own; settings of single methods are those of their recipes, or of the file.
_LEFT_OUT = ("seeds", "guidance", "out", "format")


def add_axis_flags(
    parser: argparse.ArgumentParser,
    methods: str = f"methods: the recipe's, or {', '.join(METHODS)}",
    seeds: str = "one clip for each method, prompt and seed",
) -> None:
    """The axes of the table, and the settings of every clip; what the methods and the seeds are, for help."""
    axes = parser.add_argument_group("the table of clips (flags win over the recipe)")
    axes.add_argument(
        "--guidance",
        metavar="A,B",
        type=names,
        help=methods,
    )
    axes.add_argument(
        *("--seeds", "--seed"),
        dest="setting_seeds",
        nargs="+",
        metavar="N",
        default=argparse.SUPPRESS,
        help=f"{seeds}: --seeds 0 1 2 or 0,1,2 (default: 0)",
    )
    axes.add_argument(
        "--limit",
        metavar="N",
        type=whole_number,
        help="of the prompts or images only the first N; of a single one, of the seeds",
    )
    shown = {name for name, key in known_keys().items() if key.group != "guidance"}
    add_setting_flags(parser, shown - {*_LEFT_OUT})


def add_dry_run_flags(parser: argparse.ArgumentParser) -> None:
    """`--dry-run`, and what its hours rest on."""
    group = parser.add_argument_group("dry run")
    group.add_argument(
        *("--dry-run", "--explain"),
        action="store_true",
        help="count clips, passes through the denoiser and GPU hours; make nothing",
    )
    group.add_argument(
        "--seconds-per-pass",
        metavar="X",
        type=seconds,
        help="assumed time of a pass, for the hours of clips of which none is finished",
    )


def check_dry_run_flags(options: argparse.Namespace) -> None:
    """Raises UsageError for a flag that only a dry run reads."""
    if options.seconds_per_pass is not None and not options.dry_run:
        raise UsageError("--seconds-per-pass has no effect without --dry-run")


def add_worker_flags(parser: argparse.ArgumentParser) -> None:
    """Where and by how many the clips are made."""
    workers = parser.add_argument_group("workers")
    workers.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="where they run (default: local)"
    )
    workers.add_argument(
        "--workers",
        metavar="N",
        type=whole_number,
        help="how many (default: as there are GPUs for; without GPUs one, on a cluster one for each machine)",
    )
    workers.add_argument(
        "--gpus",
        metavar="N",
        type=whole_number,
        default=1,
        help="GPUs that make each clip together (default: 1)",
    )
    workers.add_argument(
        "--address",
        metavar="TEXT",
        help="ray: cluster to join (default: the one it finds, or a new one here)",
    )
    workers.add_argument("--retry-failed", action="store_true", help="try failed clips again")


def check_worker_flags(options: argparse.Namespace) -> None:
    """Raises UsageError for a flag that has no effect."""
    if options.address is not None and options.engine != "ray":
        raise UsageError("--address has no effect without --engine ray")


def worker_options(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `oseg_video.sweeps.launch.sweep` that these flags are."""
    return {
        "cluster": options.engine == "ray",
        "address": options.address,
        "workers": options.workers,
        "gpus": options.gpus,
        "retry_failed": options.retry_failed,
    }


def with_flags(recipe: Recipe, options: argparse.Namespace, limit: int | None) -> Recipe:
    """The recipe as the flags change it; limit: as of `--limit`. Raises OsegVideoError."""
    return recipe.changed(**_given(options, recipe.methods), limit=limit)


def from_flags(options: argparse.Namespace) -> SweepRecipe:
    """The table that the flags alone describe. Raises OsegVideoError."""
    from oseg_video.sweeps.recipe import SweepRecipe

    given = _given(options)
    for axis, flag in (("methods", "--guidance"), ("subjects", "--prompt (or --image)")):
        if axis not in given:
            raise UsageError(f"without a recipe there must be {flag}")
    return SweepRecipe(**given).changed(limit=options.limit)


def _given(options: argparse.Namespace, known: Iterable[str] = ()) -> dict[str, Any]:
    """The fields of a `SweepRecipe` that flags set; `known`: methods that have settings already."""
    from oseg_video.sweeps.recipe import Subject

    settings = flag_settings(options)
    given: dict[str, Any] = {}
    if {"prompts", "image"} & {*settings}:
        image, prompts = settings.pop("image", None), settings.pop("prompts", [None])
        given["subjects"] = tuple(Subject(prompt=prompt, image=image) for prompt in dict.fromkeys(prompts))
    if "seeds" in settings:
        given["seeds"] = tuple(settings.pop("seeds"))
    if "model" in settings:
        model = settings.pop("model")
        given["models"] = {model: {"model": model}}
    if options.guidance:
        methods = list(dict.fromkeys([*known, *METHODS]))
        for name in options.guidance:
            if name not in methods:
                raise UsageError(f"--guidance: unknown method {name!r}; {known_or_nearest(name, methods)}")
            if options.guidance.count(name) > 1:
                raise UsageError(f"--guidance names {name} twice")
        given["methods"] = {name: {"guidance": name} for name in options.guidance}
    return {**given, "settings": settings}

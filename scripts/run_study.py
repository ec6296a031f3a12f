"""Which guidance helps on the shipped models? Search, test, and the questions behind it.

    python scripts/run_study.py --run-dir runs/study
    python scripts/run_study.py --write-readme     # the stored results into scripts/study/README.md

Stages: search, test, inside, regimes, blocks, reuse on the model of two shapes, search-other and blocks-other
on --other weights of it; one-shape, one-shape-reuse on the other model. Every stage goes on where it was
stopped; results join `scripts/study/results.json` and replace those of the same stage, of other weights those
of the same name. Clips are sampled in batches, with bfloat16 autocast unless told otherwise.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import yaml
from marked import read_stored, store
from study import controls  # noqa: F401  (registers the method)
from study.bench import Bench
from study.questions import (
    GROUPS,
    TEST_SEED,
    Study,
    compared_in_regimes,
    cost_of_reuse,
    gain_of_blocks,
    one_shape,
    one_shape_reuse,
    policies,
    search_methods,
    test_winners,
    what_does_the_work,
    with_text,
)
from study.report import write_report
from study.statistics import Statistics

from oseg_video.embedded.tasks import ONE_SHAPE, TWO_SHAPES, Task
from oseg_video.evaluation.features.protocols import PROTOCOLS
from oseg_video.evaluation.features.reference import load_reference
from oseg_video.evaluation.metrics.base import MetricOptions
from oseg_video.evaluation.metrics.fvd import SHIPPED, FrechetVideoDistance
from oseg_video.evaluation.results import evaluation_versions

FOLDER = Path(__file__).with_name("study")


def main() -> int:
    """Run the stages asked for, in order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", nargs="+", choices=STAGES, help="all; those of others with --other")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/study"), help="rows of clips")
    parser.add_argument("--out", type=Path, default=FOLDER / "results.json")
    parser.add_argument("--methods", type=Path, default=FOLDER / "methods.yaml")
    parser.add_argument("--model", type=Path, help="folder of the pipeline, instead of the shipped one")
    parser.add_argument("--regimes", type=int, nargs="*", default=[8, 25], help="other numbers of steps")
    parser.add_argument(
        "--other",
        type=Path,
        nargs="*",
        default=[],
        help="folders of other weights, for regimes, blocks-other and search-other",
    )
    parser.add_argument(
        "--groups",
        type=int,
        choices=range(1, len(GROUPS) + 1),
        default=len(GROUPS),
        help=f"how many of {', '.join(GROUPS)} to search; other stages take what was found",
    )
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--one-shape-steps", type=int, default=20)
    parser.add_argument("--budget", type=int, default=640, help="clips of a method's search")
    parser.add_argument("--clips", type=int, default=1024, help="clips of an arm of the test")
    parser.add_argument("--fewer", type=int, default=512, help="clips of an arm in regimes and blocks")
    parser.add_argument("--resamples", type=int, default=200, help="for intervals of Fréchet distances")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler; 1.3 times as fast")
    parser.add_argument("--float32", action="store_true", help="for a CPU without instructions for bfloat16")
    parser.add_argument("--write-readme", action="store_true", help="write tables and plots only")
    arguments = parser.parse_args()
    if arguments.write_readme:
        write_report(read_stored(arguments.out), FOLDER)
        return 0
    if not arguments.float32 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        parser.error("this CPU has no instructions for bfloat16, which would take days: add --float32")
    stages = arguments.stage or [name for name in STAGES if arguments.other or name not in OF_OTHERS]
    if not arguments.other and (nothing := [name for name in stages if name in OF_OTHERS]):
        parser.error(f"--stage {nothing[0]} needs the folder of other weights: --other DIR")
    torch.set_num_threads(arguments.threads)
    study_of = cache(partial(_study, arguments))
    for stage in stages:
        study = study_of(ONE_SHAPE if stage.startswith("one-shape") else TWO_SHAPES)
        found = _plain(STAGES[stage](study, read_stored(arguments.out), arguments))
        others = _others(study, arguments) if stage in (*OF_OTHERS, "regimes") else {}
        made = {
            "made with": {
                "model": study.bench.digest,
                "other weights": {name: other.bench.digest for name, other in others.items()},
                "steps": study.steps,
                "clips": {"search": arguments.budget, "test": arguments.clips, "fewer": arguments.fewer},
                "precision": "float32" if arguments.float32 else "bfloat16 autocast",
                "machine": f"{platform.machine()}, {arguments.threads} threads",
            },
            "versions": evaluation_versions(),
            "found": found,
        }
        # Read again: another run may have stored its stage meanwhile.
        stored = read_stored(arguments.out)
        store(arguments.out, "run_study", {**stored, stage: _joined(stored.get(stage), made, others)})
    return 0


def _joined(
    before: Mapping[str, Any] | None, made: dict[str, Any], others: Mapping[str, Study]
) -> dict[str, Any]:
    """What a stage found, and of other weights also what it found before."""
    if before is not None:
        for name in before["made with"]["other weights"].keys() - others.keys():
            made["made with"]["other weights"][name] = before["made with"]["other weights"][name]
            made["found"][name] = before["found"][name]
    return made


def _study(arguments: argparse.Namespace, task: Task) -> Study:
    name = next(name for name, plan in PROTOCOLS.items() if plan.task is task)
    reference = load_reference(SHIPPED, name, FrechetVideoDistance([name], MetricOptions()).real_protocol)
    two = task is TWO_SHAPES
    bench = _bench(arguments, task, arguments.model if two else None)
    return Study(
        bench=bench,
        statistics=Statistics(
            arguments.clips,
            bench.captions(TEST_SEED, range(arguments.clips)),
            reference.moments,
            arguments.resamples,
        ),
        recipe=_recipe(arguments),
        steps=arguments.steps if two else arguments.one_shape_steps,
        budget=arguments.budget,
    )


def _bench(arguments: argparse.Namespace, task: Task, model: Path | None) -> Bench:
    return Bench(task, arguments.run_dir, model=model, float32=arguments.float32, compiled=arguments.compile)


def _recipe(arguments: argparse.Namespace) -> dict[str, Any]:
    recipe: dict[str, Any] = yaml.safe_load(arguments.methods.read_text())
    for group in GROUPS[arguments.groups :]:
        del recipe[group]
    return recipe


def _found(results: dict[str, Any], *groups: str) -> dict[str, Any]:
    if "search" not in results:
        raise SystemExit("the other stages need what search finds: run --stage search first")
    found: dict[str, Any] = results["search"]["found"]
    if lacking := [group for group in groups if group not in found]:
        raise SystemExit(
            f"this stage needs what search finds {lacking[0]}: run --stage search with more --groups"
        )
    return found


def _fewer(study: Study, arguments: argparse.Namespace) -> Study:
    return replace(study, statistics=replace(study.statistics, clips=arguments.fewer))


def _regimes(study: Study, results: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """`compared_in_regimes` with fewer and more steps, and on other weights."""
    study, found = _fewer(study, arguments), compared_in_regimes(_found(results, "with text"))
    steps = {f"{one} steps": replace(study, steps=one) for one in arguments.regimes}
    regimes = steps | _others(study, arguments)
    return {name: test_winners(one, found) for name, one in regimes.items()}


def _others(study: Study, arguments: argparse.Namespace) -> dict[str, Study]:
    """The study of each of the other weights."""
    benches = {model.name: _bench(arguments, TWO_SHAPES, model) for model in arguments.other}
    return {name: replace(study, bench=bench) for name, bench in benches.items()}


def _search_on_others(study: Study, results: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Search and test on other weights."""
    table = {}
    for name, other in _others(study, arguments).items():
        found = _plain(search_methods(other))
        table[name] = {"search": found, "test": test_winners(_fewer(other, arguments), found)}
    return table


def _blocks_of_others(study: Study, results: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Whether what says the block on one network does so on others, with the settings of the search."""
    found = _found(results, "alone")
    others = _others(_fewer(study, arguments), arguments)
    return {name: gain_of_blocks(other, found) for name, other in others.items()}


STAGES: dict[str, Callable[[Study, dict[str, Any], argparse.Namespace], Any]] = {
    "search": lambda study, results, arguments: search_methods(study),
    "test": lambda study, results, arguments: test_winners(study, _found(results)),
    "inside": lambda study, results, arguments: what_does_the_work(study, _found(results, "alone")),
    "regimes": _regimes,
    "blocks": lambda study, results, arguments: gain_of_blocks(
        _fewer(study, arguments), _found(results, "alone")
    ),
    "blocks-other": _blocks_of_others,
    "search-other": _search_on_others,
    "one-shape": lambda study, results, arguments: one_shape(study),
    "one-shape-reuse": lambda study, results, arguments: one_shape_reuse(study),
    "reuse": lambda study, results, arguments: cost_of_reuse(
        study, with_text(_found(results, "with text")), policies
    ),
}

OF_OTHERS = ("blocks-other", "search-other")
"""Stages that are about other weights alone."""


def _plain(value: Any) -> Any:
    """As JSON has it: an interval is [value, low, high], rounded to what its width tells."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())

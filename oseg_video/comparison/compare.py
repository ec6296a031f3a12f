"""From a recipe to a folder with clips, metric values and a page; what is there already is not made again.

```
FOLDER/
  clips/        the sweep: clips, manifests, index
  results.json  metric values of all methods, as of `oseg-video evaluate`; the same as a table in results.md
  index.html    the page
  .images/      what clips start from, where the recipe takes it from real clips
  .metrics/     what the metrics saw of each clip
```
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oseg_video import console
from oseg_video.comparison.page import Gap, write_page
from oseg_video.comparison.planned import check_metrics, default_metrics, planned_clips
from oseg_video.comparison.recipe import label, require_baseline
from oseg_video.evaluation.clips import FoundClips, find_clips
from oseg_video.evaluation.evaluate import evaluate
from oseg_video.evaluation.metrics.base import MetricOptions
from oseg_video.evaluation.results import Reported, evaluation_versions
from oseg_video.evaluation.rows import file_state
from oseg_video.evaluation.tables import as_json, as_markdown
from oseg_video.files import check_place, expanded, read_text, write_text
from oseg_video.jobs.counted import count_job
from oseg_video.sweeps.launch import sweep
from oseg_video.sweeps.recipe import SweepRecipe
from oseg_video.sweeps.records import Record
from oseg_video.sweeps.run import Summary
from oseg_video.sweeps.table import Variation, plan_variations
from oseg_video.types import OsegVideoError

CLIPS, RESULTS, TABLE, PAGE = "clips", "results.json", "results.md", "index.html"
_SEEN = ".metrics"


class CompareError(OsegVideoError):
    """A comparison that cannot be made; the message says why."""


@dataclass(frozen=True)
class Comparison:
    """What came of a comparison."""

    summary: Summary
    """Of the clips."""
    results: dict[str, Any]
    """The metric values, as in the file."""
    table: str
    """The same as Markdown."""
    page: Path

    @property
    def complete(self) -> bool:
        """Whether every clip was made and looked at, and every metric has a value."""
        left_out = self.results["skipped"] or self.results["failed"]
        return self.summary.done == self.summary.total and not left_out


def compare(
    recipe: SweepRecipe,
    out: Path,
    metrics: Sequence[str] | None = None,
    *,
    baseline: str | None = None,
    reported: Reported | None = None,
    options: MetricOptions | None = None,
    workers: int | None = None,
    retry_failed: bool = False,
    on_record: Callable[[Record], None] | None = None,
) -> Comparison:
    """Make the clips of a recipe, measure them, and write a page that shows both.

    metrics: exact names; by default what needs no weights that would have to be fetched and suits the clips.
    baseline: method that the others of the same model are compared with, by default the first.
    reported: values to show beside these.
    workers, retry_failed, on_record: as of `sweep`.

    What can be refused before the first clip is made is. Raises OsegVideoError.
    """
    options, out = options or MetricOptions(), expanded(out)
    metrics, baselines = check_comparison(recipe, metrics, baseline=baseline, options=options)
    for name in (RESULTS, TABLE, PAGE):
        check_place(out / name)
    folder = out / CLIPS
    summary = sweep(recipe, str(folder), workers=workers, retry_failed=retry_failed, on_record=on_record)
    if not summary.done:
        raise CompareError(f"none of the {summary.total} clips could be made: {summary.failed[0].reason}")
    found = made_clips(summary, folder, lambda one: _of(recipe, one))
    results, table = _results(found, out, metrics, baselines, reported, options)
    gaps = [
        Gap(one.prompt, one.image, one.seed, _of(recipe, one), one.reason or "") for one in summary.failed
    ]
    page = out / PAGE
    columns = [label(recipe, model, method) for model in recipe.models for method in recipe.methods]
    write_page(page, found.clips, columns, gaps=gaps, results=results)
    return Comparison(summary, results, table, page)


def check_comparison(
    recipe: SweepRecipe,
    metrics: Sequence[str] | None,
    *,
    baseline: str | None,
    options: MetricOptions,
) -> tuple[Sequence[str], dict[str, str]]:
    """The metrics, and of every method the baseline; refuses what `compare` would refuse.

    Warnings about the clips to come go to the console. Raises OsegVideoError.
    """
    variations = plan_variations(recipe)
    require_shown(variations)
    baselines = _baselines(recipe, baseline)
    planned = planned_clips(variations)
    if metrics is None:
        return default_metrics(variations, planned, options), baselines
    for line in check_metrics(metrics, planned, options):
        console.logger.warning(f"warning: {line}")
    return metrics, baselines


def require_shown(variations: Sequence[Variation]) -> None:
    """Refuse, with a CompareError, clips that the page cannot show."""
    images = {one.model: count_job(one.job).adapter.makes_images for one in _of_models(variations)}
    for one in variations:
        if one.job.format not in (None, "png" if images[one.model] else "mp4"):
            raise CompareError(f"the page plays mp4 files only, got format {one.job.format}")


def _of_models(variations: Sequence[Variation]) -> Sequence[Variation]:
    """One variation of every model."""
    return list({one.model: one for one in variations}.values())


def _baselines(recipe: SweepRecipe, baseline: str | None) -> dict[str, str]:
    """Of every model, label of a method -> label of the method that it is compared with."""
    require_baseline(recipe, baseline)
    base = baseline or next(iter(recipe.methods))
    return {
        label(recipe, model, method): label(recipe, model, base)
        for model in recipe.models
        for method in recipe.methods
        if method != base
    }


def _of(recipe: SweepRecipe, one: Record) -> str:
    return label(recipe, one.model, one.method)


def made_clips(summary: Summary, folder: Path, called: Callable[[Record], str]) -> FoundClips:
    """The clips of a sweep in the table's order, and the broken ones; `folder` may hold those of others too.

    called: the name of a clip's method in the results.
    """
    everything = find_clips([folder])
    there = {clip.name: clip for clip in everything.clips}
    done = [one for one in summary.records if one.state == "done"]
    clips = [dataclasses.replace(there[one.file], method=called(one)) for one in done if one.file in there]
    ours = {one.file for one in done}
    broken = {name: reason for name, reason in everything.broken.items() if name in ours}
    return FoundClips(tuple(clips), {**broken, **{one.file: one.reason or "" for one in summary.failed}})


def _results(
    found: FoundClips,
    out: Path,
    metrics: Sequence[str],
    baselines: Mapping[str, str],
    reported: Reported | None,
    options: MetricOptions,
) -> tuple[dict[str, Any], str]:
    """The metric values as JSON types and as Markdown: those of the last run, if nothing has changed."""
    question = _digest(found, metrics, baselines, reported, options)
    last = _last(out)
    if last is not None and last[0].get("of") == question:
        return last
    evaluation = evaluate(found, metrics, options=options, baseline=baselines, work=out / _SEEN)
    evaluation = dataclasses.replace(evaluation, reported=reported)
    results = {"of": question if evaluation.complete else None, **json.loads(as_json(evaluation))}
    table = as_markdown(evaluation)
    write_text(out / TABLE, table)
    # The table first: the digest in this file speaks for both.
    write_text(out / RESULTS, json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return results, table


def _digest(
    found: FoundClips,
    metrics: Sequence[str],
    baselines: Mapping[str, str],
    reported: Reported | None,
    options: MetricOptions,
) -> str:
    """Hash of all that the metric values depend on."""
    clips = [[clip.name, clip.method, file_state(clip.path)] for clip in found.clips]
    reference = file_state(options.reference) if options.reference else None
    beside = {"reported": dataclasses.asdict(reported)} if reported else None
    weights = {name: [given, file_state(Path(given))] for name, given in options.weights.items()}
    depends = [clips, dict(found.broken), list(metrics), dict(baselines), beside, weights]
    text = json.dumps([*depends, reference, evaluation_versions()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _last(out: Path) -> tuple[dict[str, Any], str] | None:
    try:
        results = json.loads((out / RESULTS).read_text(encoding="utf-8"))
        table = read_text(out / TABLE)
    except (OSError, ValueError, RecursionError):
        return None
    return (results, table) if isinstance(results, dict) else None

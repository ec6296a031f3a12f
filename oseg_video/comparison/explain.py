"""What a comparison would make and cost, before anything is there: no weights, no reference, no folder."""

from __future__ import annotations

from collections.abc import Iterator

from oseg_video.comparison.recipe import ComparisonRecipe, label, require_baseline
from oseg_video.evaluation.metrics.base import MetricOptions, check_options, known_metrics
from oseg_video.jobs.counted import CountedJob, count_job
from oseg_video.sweeps.table import Variation, plan_variations


def explain_comparison(recipe: ComparisonRecipe, options: MetricOptions) -> str:
    """Text for the reader: methods with rule and passes, metrics with what they need, reported values.

    Reads the models' configurations only, or counts the families' full size where the hub is not reached.
    Raises OsegVideoError for what cannot be made.
    """
    require_baseline(recipe.sweep, recipe.baseline)
    if recipe.metrics is not None:
        check_options(recipe.metrics, options)
    counted = [(one, count_job(one.job)) for one in plan_variations(recipe.sweep)]
    total = sum(one.count for one, _ in counted)
    fewest, most = (sum(one.count * job.passes[end] for one, job in counted) for end in (0, 1))
    lines = [line for one, job in counted for line in _described(recipe, one, job)]
    lines += ["", f"total    {total} clips, {_range(fewest, most)} passes through the denoiser", ""]
    return "\n".join([*lines, *_measured(recipe)])


def _described(recipe: ComparisonRecipe, one: Variation, job: CountedJob) -> Iterator[str]:
    size = f"{one.job.frames} x {one.job.height} x {one.job.width}, {one.job.steps} steps"
    yield f"{label(recipe.sweep, one.model, one.method)}: {one.count} clips of {size} by {one.job.model}"
    for kind in job.kinds:
        passes = _range(*kind.pass_count, digits=2)
        yield f"  rule     {kind.plan.formula}, {passes} passes a step ({kind.when})"
    yield f"  cost     {_range(*job.passes)} passes a clip"
    if job.idle:
        yield f"  warning  {job.idle}"


def _measured(recipe: ComparisonRecipe) -> Iterator[str]:
    known = known_metrics()
    for name in recipe.metrics or ():
        yield f"metric   {name}: {known[name].summary}" + (
            "; needs --reference" if known[name].needs_reference else ""
        )
    if recipe.metrics is None:
        yield "metrics  those that suit the clips and need no download"
    yield f"baseline {recipe.baseline or next(iter(recipe.sweep.methods))}"
    if recipe.reported is not None:
        yield f"reported {recipe.reported.source}"
        for method, values in recipe.reported.values.items():
            shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
            yield f"  {method:<7}{shown}"


def _range(low: float, high: float, digits: int = 0) -> str:
    shown = [f"{value:,.{digits}f}" for value in (low, high)]
    return shown[0] if shown[0] == shown[1] else " to ".join(shown)

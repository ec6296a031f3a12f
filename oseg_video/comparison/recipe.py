"""The YAML file of a comparison: that of a sweep (`oseg_video.sweeps.recipe`), and what is to be measured.

```yaml
metrics: [fvd:embedded, temporal_flickering]
baseline: cfg          # of every model
reported:              # what others report, shown beside our values
  source: where the numbers stand
  values: {oseg: {temporal_flickering: 0.98}}
```

Its prompts may also be `{first_frames: LIST}`: the first frames of the real clips that a file lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oseg_video.config import ConfigError
from oseg_video.config.prompts import read_prompts
from oseg_video.config.strict_yaml import load_yaml
from oseg_video.evaluation.errors import EvaluationError
from oseg_video.evaluation.metrics.base import known_metrics, metric_of
from oseg_video.evaluation.results import Reported
from oseg_video.settings.suggest import known_or_nearest
from oseg_video.sweeps.recipe import SweepRecipe, sweep_of

IMAGES = ".images"
"""Folder of first frames in that of a comparison."""


@dataclass(frozen=True, kw_only=True)
class ComparisonRecipe:
    """The clips, and what is to be said about them."""

    sweep: SweepRecipe
    metrics: tuple[str, ...] | None = None
    """Exact names, or None for those that suit the clips."""
    baseline: str | None = None
    """Name of the method that the others of the same model are compared with, or None for the first."""
    reported: Reported | None = None
    starts_from_real: bool = False
    """Whether the images are first frames of real clips."""
    limited: bool = False
    """Whether `limit` has chosen among several of them, and has no more to say."""


def read_comparison(
    path: Path,
    *,
    real: Path | None = None,
    images: Path,
    limit: int | None = None,
) -> ComparisonRecipe:
    """The comparison of a YAML file; a sweep's file is one, too.

    real: folder of the real clips whose first frames it may ask for; these are written into `images`.
    limit: of the first frames only so many. Of other prompts and of seeds the caller makes fewer, when it has
    changed them.

    Raises ConfigError naming the file and the key.
    """
    content = dict(load_yaml(path))
    prompts = content.get("prompts")
    starts_from_real = limited = False
    if isinstance(prompts, dict) and {*prompts} == {"first_frames"}:
        starts_from_real = True
        listed = read_prompts(path.parent / str(prompts["first_frames"]))
        names, limited = listed[:limit], len(listed) > 1
        if real is None or not real.is_dir():
            raise ConfigError(
                f"{path.name} starts from first frames of real clips: --reference must be their folder, "
                f"with {names[0]} in it; got {real}"
            )
        from oseg_video.comparison.first_frames import first_frames  # it has to read videos

        starts = first_frames(real, names, images)
        content["prompts"] = [{"image": str(image.absolute())} for image in starts]
    sweep = sweep_of(content, path)
    labels = [label(sweep, model, method) for model in sweep.models for method in sweep.methods]
    return ComparisonRecipe(
        sweep=sweep,
        metrics=_metrics(content, path),
        baseline=_baseline(content, sweep, path),
        reported=_reported(content["reported"], labels, path) if "reported" in content else None,
        starts_from_real=starts_from_real,
        limited=limited,
    )


def require_baseline(recipe: SweepRecipe, baseline: str | None) -> None:
    """Raises ConfigError for a baseline that is none of several methods."""
    if baseline is not None and (baseline not in recipe.methods or len(recipe.methods) == 1):
        names = ", ".join(recipe.methods)
        raise ConfigError(f"the baseline must be one of several methods, here {names}; got {baseline!r}")


def label(recipe: SweepRecipe, model: str, method: str) -> str:
    """What the results of a model and method are called."""
    return method if len(recipe.models) == 1 else f"{model} {method}"


def _metrics(content: Mapping[Any, Any], path: Path) -> tuple[str, ...] | None:
    names = content.get("metrics")
    if names is None:
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path.name}: metrics must be a list of names, got {names!r}")
    return tuple(names)


def _baseline(content: Mapping[Any, Any], sweep: SweepRecipe, path: Path) -> str | None:
    baseline = content.get("baseline")
    if baseline is not None and not (isinstance(baseline, str) and baseline in sweep.methods):
        raise ConfigError(
            f"{path.name}: baseline must be one of the methods {', '.join(sweep.methods)}, got {baseline!r}"
        )
    return baseline


def _reported(value: Any, labels: list[str], path: Path) -> Reported:
    where = f"{path.name}: reported"
    if (
        not isinstance(value, dict)
        or {*value} != {"source", "values"}
        or not isinstance(value["source"], str)
        or not isinstance(value["values"], dict)
    ):
        raise ConfigError(f"{where} must have a source (text) and values (by method), got {value!r}")
    for method, values in value["values"].items():
        if method not in labels:
            raise ConfigError(f"{where}: unknown method {method!r}; {known_or_nearest(str(method), labels)}")
        if not isinstance(values, dict) or not all(type(one) in (int, float) for one in values.values()):
            raise ConfigError(f"{where}: {method} must be a mapping of metrics to numbers, got {values!r}")
        for name in values:
            _check_name(str(name), f"{where}: {method}")
    return Reported(source=value["source"], values=value["values"])


def _check_name(name: str, where: str) -> None:
    """The name of a value is its metric's, or begins with it."""
    try:
        metric_of(name)
    except EvaluationError:
        known = list(known_metrics())
        raise ConfigError(f"{where}: unknown metric {name!r}; {known_or_nearest(name, known)}") from None

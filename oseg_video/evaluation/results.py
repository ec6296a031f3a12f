"""What an evaluation returns."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from oseg_video.evaluation.metrics.base import MetricResult


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A method's value of a metric minus the baseline's, over the clips that both have."""

    name: str
    """As of `MetricResult`."""
    method: str
    baseline: str
    value: float
    interval: tuple[float, float] | None
    """95 % interval of the paired bootstrap, or None where there are too few pairs for one."""
    pairs: int
    """Clips of each method that both have: the same prompt, image and seed, or else the same file name."""


@dataclass(frozen=True, kw_only=True)
class Reported:
    """What others report, to be shown beside our values. Nothing is computed from it."""

    source: str
    """Where the numbers stand."""
    values: Mapping[str, Mapping[str, float]]
    """Method -> name of the value -> number."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metric values of several methods, and what is needed to trust them."""

    methods: Mapping[str, Mapping[str, Any]]
    """Facts about the clips of every method, as plain JSON types: number, frames, sizes, rates, kinds."""
    results: Mapping[str, tuple[MetricResult, ...]]
    """By method, in the order in which the metrics were asked for."""
    better: Mapping[str, Literal["higher", "lower"] | None]
    """Metric value -> which way is better."""
    differences: tuple[Difference, ...]
    """Empty without a baseline."""
    baselines: Mapping[str, str]
    """Method -> the baseline that it is compared with."""
    skipped: Mapping[str, str]
    """Clips left out of at least one value: name -> why."""
    failed: Mapping[str, str]
    """"method: metric value" -> why there is none."""
    left_out: Mapping[str, str]
    """What was not measured because it is no clip, or the same clip again: name -> why."""
    warnings: tuple[str, ...]
    versions: Mapping[str, str]
    reported: Reported | None = None

    @property
    def complete(self) -> bool:
        """Whether every clip was looked at and every metric has its values."""
        return not self.skipped and not self.failed


def evaluation_versions() -> dict[str, str]:
    """Versions of Python and of the packages that metric values may depend on."""
    versions = {"python": platform.python_version()}
    for package in ("oseg-video", "torch", "numpy", "av", "pillow", "transformers"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions

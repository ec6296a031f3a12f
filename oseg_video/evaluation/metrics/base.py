"""What a metric is, what it returns, and the one registry of metrics, keyed by exact name.

A metric looks at every clip once and keeps one row of numbers per clip. Its values follow from rows alone, so
that methods, bootstrap resamples and paired differences all come from the same rows.

N clips, D numbers a row.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from oseg_video.types import OsegVideoError

if TYPE_CHECKING:
    from torch import Tensor

    from oseg_video.evaluation.clips import ClipFile


class EvaluationError(OsegVideoError):
    """Clips, weights or a metric's name that cannot be used; the message names them."""


@dataclass(frozen=True, kw_only=True)
class MetricResult:
    """A figure about a set of clips, with all that is needed to read it."""

    name: str
    """The figure's exact name, e.g. "fvd:fvd2048_16f" or "alignment:embedded:colour"."""
    protocol: Mapping[str, Any]
    """All that the number depends on besides the clips and `versions`, as plain JSON types."""
    value: float
    interval: tuple[float, float] | None
    """95 % interval (low, high), or None where there are too few clips for one."""
    clips: int
    """Number of clips that the value is about."""
    per_clip: Mapping[str, float] = field(default_factory=dict)
    """Value by clip name, for figures that a single clip has."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else the metric found, as plain JSON types."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the packages that computed it."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One of the numbers that a metric gives."""

    name: str
    """Its exact name; never that of a metric that it is not."""
    better: Literal["higher", "lower"] | None
    """Which way is better; None where neither is (how much a clip moves)."""
    protocol: Mapping[str, Any]
    """As in `MetricResult.protocol`."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """As in `MetricResult.versions`, for packages outside this interpreter; those inside are added."""
    share: bool = False
    """The mean of a yes or no per clip: its interval is Wilson's, that of differences Newcombe's."""
    least: float = -math.inf
    """The lowest value that there can be; intervals of values end there, those of differences do not."""
    most: float = math.inf
    """The highest."""
    clips: int | None = None
    """Number of clips that it is defined for, where it is defined for one only."""
    resamples: int = 1000
    """Bootstrap resamples of its interval; fewer for figures that take long."""


@dataclass(frozen=True)
class Observations:
    """What a metric saw."""

    clips: tuple[ClipFile, ...]
    """The N clips that it could look at, in the order of the rows."""
    rows: Tensor
    """Float [N, D]; the meaning of the columns is the metric's own."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Clips that it could not look at: clip name -> why, one line. They make the command fail at its end."""
    read_by: Mapping[str, str] = field(default_factory=dict)
    """Clip name -> what decoded it, where the metric knows."""
    unfit: Mapping[str, str] = field(default_factory=dict)
    """Methods that have no value because of skipped clips: method -> why, one line."""
    warnings: Sequence[str] = ()
    """What could not be known before, one line each."""


class Metric(Protocol):
    """One or several figures that come from the same look at the clips."""

    @property
    def figures(self) -> Sequence[Figure]:
        """The figures, in the order in which tables show them."""
        ...

    def check(self, clips: Sequence[ClipFile]) -> Sequence[str]:
        """Called before any work. Returns warnings, one line each; raises EvaluationError for what cannot be.

        clips: those of one method; called once for each method.
        """
        ...

    def observe(self, clips: Sequence[ClipFile], *, quiet: bool) -> Observations:
        """Look at the clips of all methods; shows progress on standard error unless `quiet`."""
        ...

    def value(self, figure: str, rows: Tensor, index: Tensor) -> float:
        """The figure over the clips `index`, int64 [n]: rows of `rows` [N, D], repetitions allowed.

        Raises EvaluationError where the clips are too few for it.
        """
        ...

    def per_clip(self, figure: str, rows: Tensor) -> Tensor | None:
        """The figure of every single clip, float [N], or None for a figure of whole sets only."""
        ...

    def details(self, figure: str, rows: Tensor, index: Tensor) -> Mapping[str, Any]:
        """For `MetricResult.details`; arguments as of `value`."""
        ...


@dataclass(frozen=True, kw_only=True)
class MetricOptions:
    """How to run metrics."""

    device: str = "cpu"
    """A torch device, for the networks that run in this process."""
    batch: int = 8
    """Clips that a network sees at once; changes no value beyond rounding."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Metric name -> path of its weights or a hub repository, for metrics that need some."""
    trust_weights: bool = False
    """Load torchscript files (executable code) whose SHA-256 is not the expected one."""
    reference: Path | None = None
    """Folder of real clips, or a .safetensors file of their statistics, for metrics that need a set."""
    save_reference: Path | None = None
    """A .safetensors file that the statistics of the reference are added to."""
    work: Path | None = None
    """A folder that keeps what an interrupted run has found, for metrics that keep it themselves."""
    overwrite: bool = False
    """Replace statistics that `save_reference` has already."""
    quiet: bool = True
    """No progress on standard error while metrics are built."""


Builder = Callable[[Sequence[str], MetricOptions], Metric]
"""Makes one metric that gives the figures of all the names asked for, of those registered with this builder.

Raises EvaluationError for what is missing (weights, a reference, an interpreter) before any work.
"""

# Each registers its metrics when imported; heavy libraries are imported by the builders, not by the modules.
_MODULES: tuple[str, ...] = (
    "metrics.fvd",
    "metrics.inception",
    "metrics.alignment",
    "metrics.flicker",
    "metrics.motion",
    "vbench.metric",
)
_REGISTRY: dict[str, tuple[str, Builder]] = {}


def register_metrics(summaries: Mapping[str, str], build: Builder) -> None:
    """Register metrics that share a look at the clips: exact name -> one line of what it is."""
    for name, summary in summaries.items():
        if name in _REGISTRY:
            raise RuntimeError(f"two metrics are called {name!r}")
        _REGISTRY[name] = (summary, build)


def known_metrics() -> dict[str, str]:
    """Every metric's exact name, and one line of what it is."""
    for module in _MODULES:
        import_module(f"oseg_video.evaluation.{module}")
    return {name: summary for name, (summary, _) in _REGISTRY.items()}


def build_metrics(names: Sequence[str], options: MetricOptions) -> list[Metric]:
    """The metrics asked for by exact name. Raises EvaluationError naming those that do not exist."""
    known = known_metrics()
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else "--list-metrics shows all"
            raise EvaluationError(f"no metric is called {name!r}; {hint}")
    groups: dict[Builder, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(_REGISTRY[name][1], []).append(name)
    return [build(group, options) for build, group in groups.items()]

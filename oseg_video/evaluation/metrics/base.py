"""What a metric is, what it returns, and the one registry of metrics, keyed by exact name.

A metric looks at every clip once and keeps one row of numbers per clip. Its values follow from rows alone, so
that methods, bootstrap resamples and paired differences all come from the same rows.

N clips, D numbers a row.
"""

from __future__ import annotations

import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from oseg_video.evaluation.errors import EvaluationError
from oseg_video.settings.suggest import known_or_nearest

if TYPE_CHECKING:
    from torch import Tensor

    from oseg_video.evaluation.clips import ClipFile


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """One of the values that a metric gives, before there is a number."""

    name: str
    """Its exact name; never that of a metric that it is not."""
    better: Literal["higher", "lower"] | None
    """Which way is better; None where neither is (how much a clip moves)."""
    protocol: Mapping[str, Any]
    """All that the number depends on besides the clips and `versions`, as plain JSON types."""
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
    """Bootstrap resamples of its interval; fewer for values that take long."""


@dataclass(frozen=True, kw_only=True)
class MetricResult:
    """A metric value over a set of clips, with all that is needed to read it."""

    name: str
    """As of `MetricValue`, e.g. "fvd:fvd2048_16f" or "alignment:embedded:colour"."""
    protocol: Mapping[str, Any]
    """As of `MetricValue`."""
    value: float
    interval: tuple[float, float] | None
    """95 % interval (low, high), or None where there are too few clips for one."""
    clips: int
    """Number of clips that the value is about."""
    per_clip: Mapping[str, float] = field(default_factory=dict)
    """Value by clip name, for metrics that a single clip has a value of."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else the metric found, as plain JSON types."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the packages that computed it."""


@dataclass(frozen=True)
class Observations:
    """What a metric saw."""

    clips: tuple[ClipFile, ...]
    """The N clips that it could look at, in the order of the rows."""
    rows: Tensor
    """Float [N, D]; the meaning of the columns is the metric's own."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Clips that it could not look at: clip name -> why, one line. They make the command fail at its end."""
    unfit: Mapping[str, str] = field(default_factory=dict)
    """Methods that have no value because of skipped clips: method -> why, one line."""
    warnings: Sequence[str] = ()
    """What could not be known before, one line each."""


class Metric(ABC):
    """One or several values that come from the same look at the clips."""

    values: Sequence[MetricValue]
    """The values, in the order in which tables show them."""

    def refuses(self, clip: ClipFile) -> str | None:
        """Why a clip cannot be looked at (too short, too small), one line; None if it can.

        Such clips are left out and named, and the others are looked at.
        """
        return None

    def check(self, clips: Sequence[ClipFile]) -> Sequence[str]:
        """Called before any work. Returns warnings, one line each; raises EvaluationError for what cannot be.

        clips: those of one method that are not refused, at least one; called once for each method.
        """
        return ()

    def check_together(self, clips: Sequence[ClipFile]) -> Sequence[str]:
        """As `check`, called once, with the clips of all methods."""
        return ()

    @abstractmethod
    def observe(self, clips: Sequence[ClipFile]) -> Observations:
        """Look at the clips of all methods."""

    @abstractmethod
    def compute(self, name: str, rows: Tensor, index: Tensor) -> float:
        """The value `name` over the clips `index`, int64 [n]: rows of `rows` [N, D], repetitions allowed.

        Raises EvaluationError where the clips are too few for it.
        """

    def per_clip(self, name: str, rows: Tensor) -> Tensor | None:
        """The value of every single clip, float [N], or None for a value of whole sets only."""
        return None

    def group(self, clip: ClipFile) -> Hashable:
        """Equal for clips that are not independent of each other: those of one prompt."""
        return clip.start

    def details(self, name: str, rows: Tensor, index: Tensor) -> Mapping[str, Any]:
        """For `MetricResult.details`; arguments as of `compute`."""
        return {}


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


Builder = Callable[[Sequence[str], MetricOptions], Metric]
"""Makes one metric that gives the values of all the names asked for, of those registered with this builder.

Raises EvaluationError for what is missing (weights, a reference, an interpreter) before any work.
"""


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What a metric says about itself when it is registered; all that other modules know of it."""

    summary: str
    """What it is, one line."""
    build: Builder
    reads: frozenset[str]
    """The options (fields of `MetricOptions`) that it reads besides `work` and `overwrite`."""
    needs_reference: bool
    """Whether there is no value without real clips to compare with."""
    compared: Literal["always", "embedded", "embedded-two", "images"] | None
    """Part of a comparison that names no metrics: of any model, of a shipped model alone, or of images."""


_REGISTRY: dict[str, Declaration] = {}


def register_metrics(
    summaries: Mapping[str, str],
    build: Builder,
    *,
    reads: Sequence[str] = (),
    needs_reference: bool = False,
    compared: Literal["always", "embedded", "embedded-two", "images"] | None = None,
) -> None:
    """Register metrics that share a look at the clips, by exact name -> one line of what each is.

    The other arguments are those of `Declaration`. Called once, when the module of the metric is imported.
    """
    for name, summary in summaries.items():
        if name in _REGISTRY:
            raise RuntimeError(f"two metrics are called {name!r}")
        _REGISTRY[name] = Declaration(
            summary=summary,
            build=build,
            reads=frozenset(reads),
            needs_reference=needs_reference,
            compared=compared,
        )


def known_metrics() -> dict[str, Declaration]:
    """Every metric by its exact name: those of `metrics/`, and those that other modules have registered.

    The command line imports such modules of other packages, see `oseg_video.plugins`.
    """
    _import_all()
    return dict(sorted(_REGISTRY.items()))  # whatever was imported first


def build_metrics(names: Sequence[str], options: MetricOptions) -> list[Metric]:
    """The metrics asked for by exact name.

    Raises EvaluationError naming those that do not exist, or that need real clips and are given none.
    """
    groups: dict[Builder, list[str]] = {}
    for name, declared in _declared(names).items():
        if declared.needs_reference and options.reference is None:
            raise EvaluationError(
                f"{name} compares with real clips: give --reference FOLDER or FILE.safetensors"
            )
        groups.setdefault(declared.build, []).append(name)
    return [build(group, options) for build, group in groups.items()]


def check_options(names: Sequence[str], options: MetricOptions) -> None:
    """Refuse to have no metric, and options that none of the metrics reads. Raises EvaluationError."""
    if not names:
        raise EvaluationError("no metric was asked for")
    declared = _declared(names)
    for name in options.weights:
        if name not in declared:
            raise EvaluationError(f"--weights are for a metric that is asked for; {name!r} is none of them")
        if "weights" not in declared[name].reads:
            raise EvaluationError(f"{name} reads no --weights")
    for option in ("reference", "save_reference"):
        if getattr(options, option) and not any(option in one.reads for one in declared.values()):
            flag, readers = f"--{option.replace('_', '-')}", metrics_that_read(option)
            raise EvaluationError(
                f"{flag} is about real clips, which none of the metrics compares with; "
                f"these do: {', '.join(readers)}"
            )


def reads_real(names: Sequence[str]) -> bool:
    """Whether one of the metrics compares with real clips. Raises EvaluationError for unknown names."""
    return any("reference" in one.reads for one in _declared(names).values())


def metrics_that_read(option: str) -> list[str]:
    """The names of the metrics that read an option."""
    return [name for name, declared in known_metrics().items() if option in declared.reads]


def metric_of(value: str) -> str:
    """The metric that gives a value of this name: the value is called as it is, or begins with its name.

    Raises EvaluationError for a name that no metric's value can have.
    """
    fitting = [name for name in known_metrics() if value == name or value.startswith(f"{name}:")]
    return max(fitting, key=len) if fitting else next(iter(_declared([value])))


def check_fit(metric: Metric, clips: Sequence[ClipFile]) -> Sequence[str]:
    """`Metric.check`, and no clip may be refused: for clips that are not made yet. Raises EvaluationError."""
    for clip in clips:
        if reason := metric.refuses(clip):
            raise EvaluationError(reason)
    return metric.check(clips)


def _declared(names: Sequence[str]) -> dict[str, Declaration]:
    known = known_metrics()
    for name in names:
        if name not in known:
            hint = known_or_nearest(name, known, "--list-metrics shows all")
            raise EvaluationError(f"no metric is called {name!r}; {hint}")
    return {name: known[name] for name in names}


@cache
def _import_all() -> None:
    """Each module registers its metrics; heavy libraries are imported by the builders."""
    from oseg_video.evaluation import metrics

    for module in pkgutil.iter_modules(metrics.__path__, f"{metrics.__name__}."):
        import_module(module.name)

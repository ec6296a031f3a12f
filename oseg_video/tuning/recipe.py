"""The YAML file of a search, read strictly; prompts, seeds, models and settings are those of a sweep.

```yaml
metric: alignment:embedded:all          # a value of `oseg-video evaluate`
baseline: cfg                           # or settings, {guidance: cfg, guidance_scale: 3}
methods:                                # equal numbers of clips for each
  oseg: {blocks: all, oseg_scale: [0.5, 1, 2]}
  stg: {blocks: [1, 2, [1, 2]], stg_scale: {low: 0.1, high: 2, log: true}}
random: 16                              # arms drawn for each method; without it the grid of the values
prompts: {file: LINES.txt}
seeds: [0, 1]
test: {seeds: [2, 3]}                   # other prompts, other seeds, or both
clips: 400                              # in all
```

More keys: `better` (higher or lower, where the metric does not say), `seed` (of the draws, and of the order
of the prompts), `models` (one), `settings` of every clip, `about`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from oseg_video.config import ConfigError
from oseg_video.config.strict_yaml import load_yaml
from oseg_video.guidance.flat import METHOD
from oseg_video.guidance.methods import METHODS
from oseg_video.settings.suggest import known_or_nearest
from oseg_video.sweeps.recipe import SweepRecipe, sweep_of
from oseg_video.tuning.arms import Axis, read_axis
from oseg_video.tuning.halving import BASELINE
from oseg_video.tuning.splits import Split
from oseg_video.types import SettingError

Better = Literal["higher", "lower"]
_SWEEP = ("prompts", "seeds", "models", "settings")
_KEYS = ("about", "metric", "better", BASELINE, "methods", "random", "seed", *_SWEEP, "test", "clips")
_NEEDED = ("metric", "methods", "prompts", "test")
_TEST = ("prompts", "seeds")
# Part of the name of a file.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True, kw_only=True)
class TuneRecipe:
    """What is searched, by what it is judged, and how many clips may be made."""

    metric: str
    """Exact name of a metric value."""
    better: Better | None = None
    """Which way is better, where the metric itself does not say."""
    sweep: SweepRecipe
    """Prompts, seeds, settings and the model of the search. Its only method is the baseline."""
    test: Split
    """Prompts and seeds of the test, of which the search sees none together."""
    methods: Mapping[str, Mapping[str, Axis]]
    """Name for the reader -> flat key -> axis; `guidance` is among the keys."""
    random: int | None = None
    """Arms that are drawn for each method; None for the grid."""
    seed: int = 0
    """Of the draws, and of the order in which prompts are taken."""
    clips: int | None = None
    """At most so many are made in all, those of the test among them."""

    def __post_init__(self) -> None:
        if list(self.sweep.methods) != [BASELINE]:
            raise SettingError(f"the sweep of a search has one method, called {BASELINE}")
        if len(self.sweep.models) != 1:
            raise SettingError(f"a search is about one model, got {', '.join(self.sweep.models)}")
        if not self.methods:
            raise SettingError("a search needs methods, got none")

    def changed(
        self,
        *,
        settings: Mapping[str, Any] = MappingProxyType({}),
        methods: Mapping[str, Any] | None = None,
        limit: int | None = None,
        **axes: Any,
    ) -> TuneRecipe:
        """The recipe with other prompts, seeds or model, and with `settings` that win over all of its own.

        methods: names of those of its methods that are searched. limit: of the prompts, of search and test
        each, only the first so many.
        """
        for name in methods or ():
            if name not in self.methods:
                raise SettingError(f"unknown method {name!r}; {known_or_nearest(name, self.methods)}")
        fixed = {key: (value,) for key, value in settings.items()}
        return dataclasses.replace(
            self,
            sweep=self.sweep.changed(settings=settings, limit=limit, **axes),
            test=Split(self.test.subjects[:limit], self.test.seeds),
            methods={name: {**self.methods[name], **fixed} for name in methods or self.methods},
        )


def read_tune(path: Path) -> TuneRecipe:
    """The search of a YAML file. Raises ConfigError naming the file and the key."""
    path = Path(path)
    content = load_yaml(path)
    for key in content:
        if key not in _KEYS:
            raise ConfigError(f"{path.name}: unknown key {key!r}; {known_or_nearest(str(key), _KEYS)}")
    for key in _NEEDED:
        if not content.get(key):
            raise ConfigError(f"{path.name}: a search needs {key}")
    try:
        sweep = _sweep(content, path)
        test = _sweep({**content, **_test(content["test"])}, path)
        return TuneRecipe(
            metric=_text(content, "metric"),
            better=_better(content.get("better")),
            sweep=sweep,
            test=Split(test.subjects, test.seeds),
            methods=_methods(content["methods"]),
            random=_count(content, "random"),
            seed=_count(content, "seed", least=0) or 0,
            clips=_count(content, "clips"),
        )
    except SettingError as error:
        raise ConfigError(f"{path.name}: {error}") from None


def _sweep(content: Mapping[Any, Any], path: Path) -> SweepRecipe:
    """What a search shares with sweeps, with the baseline as the only method."""
    baseline = content.get(BASELINE, "cfg")
    if isinstance(baseline, str):
        baseline = {METHOD: baseline}
    if not isinstance(baseline, dict) or METHOD not in baseline:
        raise SettingError(f"{BASELINE} must be a method, or settings with guidance, got {baseline!r}")
    shared = {key: content[key] for key in _SWEEP if key in content}
    return sweep_of({**shared, "methods": {BASELINE: baseline}}, path)


def _test(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not {*value} <= {*_TEST}:
        raise SettingError(f"test must be a mapping of prompts, seeds, or both, got {value!r}")
    return value


def _methods(value: Any) -> dict[str, dict[str, Axis]]:
    if not isinstance(value, dict):
        raise SettingError(f"methods must be a mapping of methods to what is to be tried, got {value!r}")
    return {str(name): _axes(str(name), axes or {}) for name, axes in value.items()}


def _axes(name: str, axes: Any) -> dict[str, Axis]:
    if not isinstance(axes, dict):
        raise SettingError(f"methods: {name} must be a mapping of settings to values, got {axes!r}")
    if METHOD not in axes and name not in METHODS:
        raise SettingError(f"unknown method {name!r}; {known_or_nearest(name, METHODS)}")
    if not _NAME.fullmatch(name) or name == BASELINE:
        raise SettingError(
            f"methods: {name!r}: a name has letters, digits and _ . + - only, and is not {BASELINE}"
        )
    try:
        return {str(key): read_axis(str(key), axis) for key, axis in {METHOD: name, **axes}.items()}
    except SettingError as error:
        raise SettingError(f"methods: {name}: {error}") from None


def _text(content: Mapping[Any, Any], key: str) -> str:
    value = content[key]
    if not isinstance(value, str):
        raise SettingError(f"{key} must be text, got {value!r}")
    return value


def _better(value: Any) -> Better | None:
    if value is not None and value not in get_args(Better):
        raise SettingError(f"better must be {' or '.join(get_args(Better))}, got {value!r}")
    return value  # type: ignore[no-any-return]


def _count(content: Mapping[Any, Any], key: str, least: int = 1) -> int | None:
    value = content.get(key)
    if value is not None and (type(value) is not int or value < least):
        raise SettingError(f"{key} must be a whole number of at least {least}, got {value!r}")
    return value

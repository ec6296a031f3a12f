"""The arms of a search: the settings that a method is tried with, as a grid or as random draws from axes."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oseg_video.config.keys import key_named, read_setting
from oseg_video.settings.kinds import BLOCKS, INTEGER
from oseg_video.types import SettingError

ALL, AUTO = "all", "auto"
"""Blocks of an axis: every block of the model by itself; those of a ranking, the first one first."""
_MOST_ARMS = 1000
_TRIES = 100
"""Draws for each arm that is wanted, until those that differ are taken to be all."""
_BLOCKS = "blocks"


@dataclass(frozen=True)
class Range:
    """A continuous axis."""

    low: float
    high: float
    log: bool = False
    """Whether ratios count, and not differences."""
    whole: bool = False
    """Whether the values are integers."""

    def at(self, share: float) -> float | int:
        """The value at a share of the axis in [0, 1), to three digits, which is as fine as a search is."""
        if self.whole:
            return int(self.low) + math.floor(share * (self.high - self.low + 1))
        value = (
            self.low * (self.high / self.low) ** share
            if self.log
            else self.low + share * (self.high - self.low)
        )
        return min(max(float(f"{value:.3g}"), self.low), self.high)


Axis = tuple[Any, ...] | Range
"""Values as plain JSON types, or a range."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One thing to try."""

    name: str
    """The method's name in the recipe, and the settings in which its arms differ."""
    method: str
    """Name of the method in the recipe."""
    settings: Mapping[str, Any]
    """Flat keys, `guidance` among them."""


def read_axis(name: str, value: Any) -> Axis:
    """The axis of a setting from its plain form: a list of values, `{low, high, log}`, or a single value.

    `blocks: all` and `blocks: auto` stay as they are, see `with_blocks`. Raises SettingError.
    """
    key = key_named(name)
    if key.group not in ("method", "guidance", "family", "clip") or name in ("prompts", "image", "seeds"):
        raise SettingError(f"{name} is no setting that can be searched; give it one value under settings")
    if isinstance(value, dict) and {*value} & {"low", "high"}:
        return _range(name, value)
    values = value if isinstance(value, list) else [value]
    if name == _BLOCKS and value in (ALL, AUTO):
        return (value,)
    if not values:
        raise SettingError(f"{name} must have a value, got none")
    plain = [key.setting.plain(read_setting(name, one)) for one in values]
    for place, one in enumerate(plain):
        if one in plain[:place]:
            raise SettingError(f"{name} names {values[place]!r} twice")
    return tuple(plain)


def with_blocks(axis: Axis, count: int, ranking: Sequence[int | str] | None) -> Axis:
    """The axis of blocks, of a model that has `count`, with `all` and `auto` written out.

    ranking: blocks, the most promising first. Raises SettingError where `auto` has none.
    """
    if axis == (ALL,):
        return tuple([block] for block in range(count))
    if axis != (AUTO,):
        return axis
    if not ranking:
        raise SettingError("blocks: auto needs a ranking of the blocks; name them, or all")
    return read_axis(_BLOCKS, list(ranking))


def make_arms(method: str, axes: Mapping[str, Axis], draws: int | None, seed: int) -> list[Arm]:
    """The arms of a method: the grid of its axes, or so many random draws.

    Where the grid has no more arms than are to be drawn, it is the grid. Raises SettingError for a range
    without draws, and for too many arms.
    """
    ranges = [name for name, axis in axes.items() if isinstance(axis, Range)]
    if ranges and draws is None:
        raise SettingError(f"methods: {method}: {ranges[0]} is a range, which needs random: N")
    size = math.inf if ranges else math.prod(len(axis) for axis in axes.values() if isinstance(axis, tuple))
    wanted = size if draws is None else min(size, draws)
    if wanted > _MOST_ARMS:
        raise SettingError(
            f"methods: {method}: a search has at most {_MOST_ARMS} arms of a method, got {wanted}"
        )
    tried = _grid(axes) if wanted == size else _drawn(axes, int(wanted), random.Random(f"{method} {seed}"))
    varied = [name for name, axis in axes.items() if isinstance(axis, Range) or len(axis) > 1]
    return [
        Arm(
            name=" ".join([method, *(f"{name}={_shown(settings[name])}" for name in varied)]),
            method=method,
            settings=settings,
        )
        for settings in tried
    ]


def _range(name: str, value: Mapping[Any, Any]) -> Range:
    low, high, log = value.get("low"), value.get("high"), value.get("log", False)
    if not {*value} <= {"low", "high", "log"} or type(log) is not bool:
        raise SettingError(f"{name} as a range must have low and high, and log: true or false, got {value!r}")
    ends = read_setting(name, low), read_setting(name, high)
    kind = key_named(name).setting.kind
    if kind is BLOCKS or not all(type(end) in (int, float) and math.isfinite(end) for end in ends):
        raise SettingError(f"{name} as a range must have two finite numbers, got {low!r} and {high!r}")
    if not ends[0] < ends[1] or (log and ends[0] <= 0):
        rule = "0 < low < high with log" if log else "low < high"
        raise SettingError(f"{name} as a range must have {rule}, got {low!r} and {high!r}")
    if log and kind is INTEGER:
        raise SettingError(f"{name} takes integers, which have no range with log")
    return Range(*ends, log=log, whole=kind is INTEGER)


def _grid(axes: Mapping[str, Axis]) -> Iterator[dict[str, Any]]:
    values = [axis for axis in axes.values() if isinstance(axis, tuple)]
    return (dict(zip(axes, chosen, strict=True)) for chosen in itertools.product(*values))


def _drawn(axes: Mapping[str, Axis], count: int, chance: random.Random) -> list[dict[str, Any]]:
    """Different draws; fewer than `count` where there are no more."""
    found: list[dict[str, Any]] = []
    for _ in range(_TRIES * count):
        # random() only: of Python's generator it alone stays the same between versions.
        one = {name: _at(axis, chance.random()) for name, axis in axes.items()}
        if one not in found:
            found.append(one)
        if len(found) == count:
            break
    return found


def _at(axis: Axis, share: float) -> Any:
    return axis.at(share) if isinstance(axis, Range) else axis[math.floor(share * len(axis))]


def _shown(value: Any) -> str:
    """A value in the name of an arm; different ones look different."""
    if isinstance(value, list):
        return ",".join(map(_shown, value))
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return value if isinstance(value, str) else json.dumps(value)

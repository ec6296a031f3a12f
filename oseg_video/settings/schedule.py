"""When guidance acts and how strongly: an interval of the sampling steps, or values over the noise level.

Standard library only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, cast

from oseg_video.types import SettingError

Value = TypeVar("Value")
Form = Literal["breakpoints", "lower_edges"]
FORMS: tuple[Form, ...] = ("breakpoints", "lower_edges")

# A sigma of 1 may come out of float32 arithmetic slightly above.
_LEVEL_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Interval:
    """The sampling steps from fraction `start` (included) to `stop` (not included; 1 includes the last step).

    Step i of n is inside where `start <= i / n < stop`, so [0, 0.5] and [0.5, 1] share out the steps.
    Raises SettingError unless `0 <= start < stop <= 1`.
    """

    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        if not (_is_number(self.start) and _is_number(self.stop) and 0 <= self.start < self.stop <= 1):
            raise SettingError(
                f"interval must satisfy 0 <= start < stop <= 1, got ({self.start!r}, {self.stop!r})"
            )

    def contains(self, step: int, steps: int) -> bool:
        """Whether step index `step` is inside. Raises SettingError unless it is from 0 to steps - 1."""
        if not 0 <= step < steps:
            raise SettingError(f"step index must be from 0 to {steps - 1}, got {step}")
        return self.start <= step / steps < self.stop


@dataclass(frozen=True, slots=True)
class Schedule(Generic[Value]):
    """Piecewise constant over the noise level, which falls from 1 (pure noise) to 0 (clean).

    `points` are (noise level, value) with falling levels, in one of two forms. "breakpoints": a value holds
    from its level, included, down to the next one, not included; the first level is 1. "lower_edges"
    (LTX-Video's `guidance_timesteps`): a value holds from its level upwards, up to the level before, not
    included; the first one up to 1, the last one also below its own level. Raises SettingError, the end of a
    sentence, for levels that break these rules. What a value may be is for the setting to say.
    """

    points: tuple[tuple[float, Value], ...]
    form: Form = "breakpoints"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise SettingError(f"scheduled by one of {' or '.join(FORMS)}, got {self.form!r}")
        if not isinstance(self.points, list | tuple) or not all(
            isinstance(point, list | tuple) and len(point) == 2 for point in self.points
        ):
            raise SettingError(f"scheduled by pairs (noise level, value), got {self.points!r}")
        points = tuple((_level(level), _frozen(value)) for level, value in self.points)
        object.__setattr__(self, "points", points)
        levels = self.levels
        if not levels:
            raise SettingError(f"scheduled by one noise level or more, got none in {self.form}")
        if any(after >= before for before, after in itertools.pairwise(levels)):
            raise SettingError(f"scheduled by noise levels that fall, got {list(levels)}")
        if self.form == "breakpoints" and levels[0] != 1:
            raise SettingError(f"scheduled from noise level 1 down, got a first breakpoint at {levels[0]}")

    @property
    def levels(self) -> tuple[float, ...]:
        """The noise levels of the points."""
        return tuple(level for level, _ in self.points)

    @property
    def values(self) -> tuple[Value, ...]:
        """The values, from noise level 1 down."""
        return tuple(value for _, value in self.points)

    @property
    def starts(self) -> tuple[float, ...]:
        """The highest noise level at which each value holds; the first is 1."""
        if self.form == "breakpoints":
            return self.levels
        # The largest float below an edge is the last noise level before it.
        return (1.0, *(math.nextafter(level, 0.0) for level in self.levels[:-1]))

    def at(self, noise_level: float) -> Value:
        """The value at a noise level. Raises SettingError unless it is in [0, 1]."""
        if not 0 <= noise_level <= 1 + _LEVEL_TOLERANCE:
            raise SettingError(f"noise level must be in [0, 1], got {noise_level!r}")
        held = self.points[0][1]
        for start, value in zip(self.starts[1:], self.values[1:], strict=True):
            if start < noise_level:
                break
            held = value
        return held

    def map(self, change: Callable[[Value], Any]) -> Schedule[Any]:
        """The schedule with every value changed."""
        return Schedule(tuple((level, change(value)) for level, value in self.points), self.form)


def schedule_from_plain(plain: Any, read: Callable[[Any], Any]) -> Schedule[Any]:
    """A schedule from `{breakpoints: {1.0: 4, 0.5: 2}}` or `{lower_edges: {...}}`, as YAML and JSON have it.

    Levels in any order; in JSON they are text. Raises SettingError, the end of a sentence.
    """
    if isinstance(plain, Schedule):
        return plain.map(read)
    if not isinstance(plain, dict) or len(plain) != 1 or next(iter(plain)) not in FORMS:
        raise SettingError(f"scheduled by one of {' or '.join(FORMS)}, got {plain!r}")
    ((form, points),) = plain.items()
    if not isinstance(points, dict):
        raise SettingError(
            f"scheduled by noise levels, such as {{{form}: {{1.0: 4, 0.5: 2}}}}, got {points!r}"
        )
    return schedule_of(points.items(), read, cast(Form, form))


def schedule_of(
    points: Iterable[tuple[Any, Any]], read: Callable[[Any], Any], form: Form = "breakpoints"
) -> Schedule[Any]:
    """A schedule of pairs (level, value) in any order. Raises SettingError, the end of a sentence."""
    ordered = sorted(((_level(level), read(value)) for level, value in points), key=lambda point: -point[0])
    levels = [level for level, _ in ordered]
    if any(first == second for first, second in itertools.pairwise(levels)):
        raise SettingError(f"scheduled by noise levels that differ, got {levels}")
    return Schedule(tuple(ordered), form)


def schedule_to_plain(schedule: Schedule[Any], write: Callable[[Any], Any]) -> dict[str, dict[str, Any]]:
    """The schedule as plain JSON types; `schedule_from_plain` gives it back exactly."""
    return {schedule.form: {repr(level): write(value) for level, value in schedule.points}}


def value_at(schedule: Value | Schedule[Value], noise_level: float) -> Value:
    """The value of a schedule at a noise level in [0, 1]; a constant is itself at every level."""
    return schedule.at(noise_level) if isinstance(schedule, Schedule) else schedule


def values_of(schedule: Value | Schedule[Value]) -> tuple[Value, ...]:
    """All values that a schedule takes; a constant has one."""
    return schedule.values if isinstance(schedule, Schedule) else (schedule,)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _level(value: Any) -> float:
    try:
        level = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        level = math.nan
    if not 0 <= level <= 1:
        raise SettingError(f"scheduled by noise levels from 0 to 1, got {value!r}")
    return level

"""Settings that change over the noise level, as they stand in YAML and in a manifest.

Two forms, both mappings from noise levels (1 pure noise, 0 clean) to values:
`{breakpoints: {1.0: 4, 0.5: 2}}`, where a value holds from its level down to the next, and
`{lower_edges: {1.0: 1, 0.9937: 6}}`, where a value holds from its level upwards, and the last one also below
its own (LTX-Video's `guidance_timesteps`). Standard library only; `oseg_video.guidance.schedule` does the
work.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from oseg_video.types import SettingError

FORMS = ("breakpoints", "lower_edges")


@dataclass(frozen=True, slots=True)
class Schedule:
    """A setting's values by noise level, with falling levels, in one of the `FORMS`."""

    form: str
    points: tuple[tuple[float, Any], ...]

    @property
    def levels(self) -> tuple[float, ...]:
        """The noise levels."""
        return tuple(level for level, _ in self.points)

    @property
    def values(self) -> tuple[Any, ...]:
        """The values, in the order of the levels."""
        return tuple(value for _, value in self.points)

    def map(self, change: Callable[[Any], Any]) -> Schedule:
        """The schedule with every value changed."""
        return Schedule(self.form, tuple((level, change(value)) for level, value in self.points))


def make_schedule(form: Any, points: Any, read: Callable[[Any], Any]) -> Schedule:
    """The schedule of pairs (level, value) in any order, with `read` values.

    Raises SettingError, the end of a sentence, for levels or values that make no schedule.
    """
    if form not in FORMS:
        raise SettingError(f"scheduled by one of {' or '.join(FORMS)}, got {form!r}")
    ordered = sorted(((_level(level), read(value)) for level, value in points), key=lambda point: -point[0])
    levels = [level for level, _ in ordered]
    if not levels:
        raise SettingError(f"scheduled by one noise level or more, got none in {form}")
    if any(first == second for first, second in itertools.pairwise(levels)):
        raise SettingError(f"scheduled by noise levels that differ, got {levels}")
    if form == "breakpoints" and levels[0] != 1:
        raise SettingError(f"scheduled from noise level 1 down, got a first breakpoint at {levels[0]}")
    return Schedule(form, tuple(ordered))


def schedule_from_plain(value: Any, read: Callable[[Any], Any]) -> Schedule:
    """A schedule from YAML or JSON, where levels may be text: JSON has no other keys. Raises SettingError."""
    if isinstance(value, Schedule):
        return make_schedule(value.form, value.points, read)
    if len(value) != 1 or next(iter(value)) not in FORMS:
        raise SettingError(f"scheduled by one of {' or '.join(FORMS)}, got {value!r}")
    ((form, points),) = value.items()
    if not isinstance(points, dict):
        raise SettingError(
            f"scheduled by noise levels, such as {{{form}: {{1.0: 4, 0.5: 2}}}}, got {points!r}"
        )
    return make_schedule(form, points.items(), read)


def schedule_to_plain(schedule: Schedule, write: Callable[[Any], Any]) -> dict[str, dict[str, Any]]:
    """The schedule as plain JSON types; `schedule_from_plain` gives it back exactly."""
    return {schedule.form: {repr(level): write(value) for level, value in schedule.points}}


def _level(value: Any) -> float:
    try:
        level = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        level = math.nan
    if not 0 <= level <= 1:
        raise SettingError(f"scheduled by noise levels from 0 to 1, got {value!r}")
    return level

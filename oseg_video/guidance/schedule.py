"""When guidance acts and how strongly: an interval of the sampling steps, or values over the noise level."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from oseg_video.guidance.validation import is_block_selector, is_number
from oseg_video.types import SettingError

Value = TypeVar("Value", float, tuple[int | str, ...])
"""A scale, or the blocks to perturb; no block is no perturbation."""

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
        if not (is_number(self.start) and is_number(self.stop) and 0 <= self.start < self.stop <= 1):
            raise SettingError(
                f"interval must satisfy 0 <= start < stop <= 1, got ({self.start!r}, {self.stop!r})"
            )

    def contains(self, step: int, steps: int) -> bool:
        """Whether step index `step` is inside. Raises SettingError unless it is from 0 to steps - 1."""
        if not 0 <= step < steps:
            raise SettingError(f"step index must be from 0 to {steps - 1}, got {step}")
        return self.start <= step / steps < self.stop


@dataclass(frozen=True, slots=True)
class Breakpoints(Generic[Value]):
    """Piecewise constant over the noise level, which falls from 1 (pure noise) to 0 (clean).

    `points` are (noise level, value) with falling levels, the first at 1. A value holds from its level,
    included, down to the next one, not included: at a noise level the last point at or above it counts.
    Lists, as YAML gives them, become tuples. Raises SettingError for levels or values that break these rules.
    """

    points: tuple[tuple[float, Value], ...]

    def __post_init__(self) -> None:
        if not all(isinstance(point, list | tuple) and len(point) == 2 for point in self.points):
            raise SettingError(f"breakpoints must be pairs (noise level, value), got {self.points!r}")
        points = tuple(
            (level, tuple(value) if isinstance(value, list | tuple) else value)
            for level, value in self.points
        )
        object.__setattr__(self, "points", points)
        levels = [level for level, _ in points]
        if not levels or not all(map(is_number, levels)) or levels[0] != 1 or levels[-1] < 0:
            raise SettingError(
                f"breakpoints must start at noise level 1 and stay in [0, 1], got levels {levels}"
            )
        if any(after >= before for before, after in itertools.pairwise(levels)):
            raise SettingError(f"breakpoints must have strictly falling noise levels, got {levels}")
        values = self.values
        if not (all(map(_is_scale, values)) or all(map(_is_blocks, values))):
            raise SettingError(
                f"breakpoint values must be all finite numbers or all lists of blocks, got {list(values)}"
            )

    @classmethod
    def from_lower_edges(cls, levels: Sequence[float], values: Sequence[Value]) -> Breakpoints[Value]:
        """From LTX-Video's convention (`guidance_timesteps`), where a value holds from its level *upwards*.

        There value i applies where `levels[i] <= noise level < levels[i - 1]`, the last value also below.
        Its pairs copied into `points` would run every value one stage late. Raises SettingError.
        """
        if len(levels) != len(values) or not all(is_number(level) and 0 <= level <= 1 for level in levels):
            raise SettingError(
                f"need one noise level in [0, 1] per value, got levels {levels} for {len(values)} values"
            )
        # The largest float below an edge is the last noise level before it: [a, b) is (below a, below b].
        starts = [1.0, *(math.nextafter(level, 0.0) for level in levels[:-1])]
        return cls(tuple(zip(starts, values, strict=True)))

    @property
    def values(self) -> tuple[Value, ...]:
        """The values, from noise level 1 down."""
        return tuple(value for _, value in self.points)

    def at(self, noise_level: float) -> Value:
        """The value at a noise level. Raises SettingError unless it is in [0, 1]."""
        if not 0 <= noise_level <= 1 + _LEVEL_TOLERANCE:
            raise SettingError(f"noise level must be in [0, 1], got {noise_level!r}")
        _, value = self.points[0]
        for level, candidate in self.points[1:]:
            if level < noise_level:
                break
            value = candidate
        return value


def value_at(schedule: Value | Breakpoints[Value], noise_level: float) -> Value:
    """The value of a schedule at a noise level in [0, 1]; a constant is itself at every level."""
    return schedule.at(noise_level) if isinstance(schedule, Breakpoints) else schedule


def values_of(schedule: Value | Breakpoints[Value]) -> tuple[Value, ...]:
    """All values that a schedule takes; a constant has one."""
    return schedule.values if isinstance(schedule, Breakpoints) else (schedule,)


def _is_scale(value: object) -> bool:
    return is_number(value) and math.isfinite(value)


def _is_blocks(value: object) -> bool:
    return isinstance(value, tuple) and all(map(is_block_selector, value))

"""Intervals in exact fractions, and breakpoints against LTX-Video's own rule."""

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oseg_video.settings.kinds import BLOCKS, SCALE
from oseg_video.settings.schedule import Interval, Schedule, value_at, values_of
from oseg_video.types import OsegVideoError

# LTX-Video 0.9.7, first pass (configs/ltxv-13b-0.9.7-dev.yaml)
LTX_LEVELS = [1.0, 0.996, 0.9933, 0.9850, 0.9767, 0.9008, 0.6180]
LTX_GUIDANCE_SCALES = [1, 1, 6, 8, 6, 1, 1]
LTX_BLOCKS = [[], [11, 25, 35, 39], [22, 35, 39], [28], [28], [28], [28]]


def lower_edges(values):
    return Schedule(tuple(zip(LTX_LEVELS, values, strict=True)), "lower_edges")


def ltx_rule(values, level):
    """The first value whose level is at or below the current one, else the last."""
    for edge, value in zip(LTX_LEVELS, values, strict=True):
        if edge <= level:
            return value
    return values[-1]


@given(st.integers(1, 60), st.integers(0, 40), st.integers(1, 40))
def test_interval_holds_the_steps_of_its_fraction(steps, start, width):
    start, stop = Fraction(start, 64), min(Fraction(start + width, 64), Fraction(1))  # exact in binary
    interval = Interval(float(start), float(stop))
    for step in range(steps):
        assert interval.contains(step, steps) == (start <= Fraction(step, steps) < stop)


@given(st.integers(1, 100), st.lists(st.floats(0.001, 0.999), min_size=1, max_size=5, unique=True))
def test_adjoining_intervals_share_out_the_steps(steps, cuts):
    edges = [0.0, *sorted(cuts), 1.0]
    intervals = [Interval(start, stop) for start, stop in itertools.pairwise(edges)]
    for step in range(steps):
        assert sum(interval.contains(step, steps) for interval in intervals) == 1


def test_interval_examples():
    assert [i for i in range(10) if Interval(0.3, 0.7).contains(i, 10)] == [3, 4, 5, 6]
    assert [i for i in range(5) if Interval(0.5, 1.0).contains(i, 5)] == [3, 4]
    assert all(Interval().contains(i, 7) for i in range(7))


@pytest.mark.parametrize(
    "bounds", [(-0.1, 0.5), (0.5, 1.1), (0.5, 0.5), (0.6, 0.4), (math.nan, 1), (0, "1"), (0, True)]
)
def test_bad_intervals_are_refused(bounds):
    with pytest.raises(OsegVideoError, match=r"^interval must satisfy 0 <= start < stop <= 1, got ") as error:
        Interval(*bounds)
    assert repr(bounds[1]) in str(error.value)


@pytest.mark.parametrize("step", [-1, 5])
def test_steps_that_do_not_exist_are_refused(step):
    with pytest.raises(OsegVideoError, match=f"step index must be from 0 to 4, got {step}"):
        Interval().contains(step, 5)


def test_breakpoints_hold_from_their_level_down():
    schedule = Schedule(((1.0, 1.0), (0.9, 6.0), (0.5, 2.0)))
    levels = {1.0: 1.0, 0.95: 1.0, 0.9: 6.0, 0.7: 6.0, 0.5: 2.0, 0.1: 2.0, 0.0: 2.0}
    assert {level: schedule.at(level) for level in levels} == levels
    assert schedule.at(1 + 2**-23) == 1.0  # a float32 neighbour of 1


@given(
    st.lists(st.floats(0, 0.999), min_size=1, max_size=6, unique=True).map(lambda x: [1.0, *sorted(x)[::-1]]),
    st.floats(0, 1),
)
def test_the_last_breakpoint_at_or_above_the_level_counts(levels, level):
    schedule = Schedule(tuple((edge, index) for index, edge in enumerate(levels)))
    assert schedule.at(level) == max(i for i, edge in enumerate(levels) if edge >= level)


def test_constants_are_schedules():
    assert value_at(2.5, 0.3) == 2.5
    assert value_at((1, 2), 0.3) == (1, 2)
    assert value_at(Schedule(((1, 2.0), (0.5, 3.0))), 0.3) == 3.0


def test_all_values_of_a_schedule():
    assert values_of(2.5) == (2.5,)
    assert values_of((1, "mid")) == ((1, "mid"),)
    schedule = Schedule(((1.0, (3, "dual:2")), (0.5, ()), (0.2, ("up.1:temporal",))))
    assert values_of(schedule) == schedule.values == ((3, "dual:2"), (), ("up.1:temporal",))


@given(st.floats(0, 1) | st.sampled_from(LTX_LEVELS))
def test_ltx_recipe_with_seven_noise_levels(level):
    assert value_at(lower_edges(LTX_GUIDANCE_SCALES), level) == ltx_rule(LTX_GUIDANCE_SCALES, level)
    blocks = value_at(lower_edges(LTX_BLOCKS), level)
    assert blocks == tuple(ltx_rule(LTX_BLOCKS, level))


def test_lists_become_hashable_tuples():
    schedule = Schedule([[1.0, [3, 4]], [0.5, []]])
    assert schedule.points == ((1.0, (3, 4)), (0.5, ()))
    assert hash(schedule) == hash(Schedule(((1.0, (3, 4)), (0.5, ()))))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ((), "one noise level or more"),
        ((1.0, 0.5), r"scheduled by pairs \(noise level, value\), got \(1.0, 0.5\)"),
        (((0.9, 1.0),), "scheduled from noise level 1 down, got a first breakpoint at 0.9"),
        (((1.0, 1.0), (-0.1, 2.0)), "noise levels from 0 to 1, got -0.1"),
        (((1.0, 1.0), (math.nan, 2.0)), "noise levels from 0 to 1, got nan"),
        (((1.0, 1.0), (True, 2.0)), "noise levels from 0 to 1, got True"),
        (((1.0, 1.0), (0.5, 2.0), (0.5, 3.0)), "noise levels that fall"),
        (((1.0, 1.0), (0.2, 2.0), (0.5, 3.0)), "noise levels that fall"),
    ],
)
def test_bad_schedules_are_refused(points, message):
    with pytest.raises(OsegVideoError, match=message):
        Schedule(points)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (SCALE, ((1.0, 1.0), (0.5, (1, 2))), r"a number, got \(1, 2\)"),
        (SCALE, ((1.0, math.inf),), "a finite number, got inf"),
        (BLOCKS, ((1.0, (1, -2)),), "block indices .* or names .*, got -2"),
        (BLOCKS, ((1.0, ("Dual:2",)),), "got 'Dual:2'"),
        (BLOCKS, ((1.0, ("",)),), "got ''"),
        (BLOCKS, ((1.0, (True,)),), "got True"),
        (SCALE, ((1.0, "5"),), "a number, got '5'"),
    ],
)
def test_what_a_value_may_be_is_for_the_kind_of_setting_to_say(kind, value, message):
    with pytest.raises(OsegVideoError, match=message):
        kind.from_plain(Schedule(value))


def test_a_form_that_is_none_is_refused():
    with pytest.raises(OsegVideoError, match="scheduled by one of breakpoints or lower_edges, got 'steps'"):
        Schedule(((1.0, 1.0),), "steps")


@pytest.mark.parametrize("level", [-0.1, 1.01, math.nan])
def test_noise_levels_outside_the_unit_interval_are_refused(level):
    with pytest.raises(OsegVideoError, match=r"noise level must be in \[0, 1\], got "):
        Schedule(((1.0, 2.0),)).at(level)

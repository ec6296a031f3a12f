"""Intervals in exact fractions, and breakpoints against LTX-Video's own rule."""

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oseg_video.guidance.schedule import Breakpoints, Interval, value_at, values_of

from oseg_video.types import OsegVideoError

# LTX-Video 0.9.7, first pass (configs/ltxv-13b-0.9.7-dev.yaml)
LTX_LEVELS = [1.0, 0.996, 0.9933, 0.9850, 0.9767, 0.9008, 0.6180]
LTX_GUIDANCE_SCALES = [1, 1, 6, 8, 6, 1, 1]
LTX_BLOCKS = [[], [11, 25, 35, 39], [22, 35, 39], [28], [28], [28], [28]]


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
    schedule = Breakpoints(((1.0, 1.0), (0.9, 6.0), (0.5, 2.0)))
    levels = {1.0: 1.0, 0.95: 1.0, 0.9: 6.0, 0.7: 6.0, 0.5: 2.0, 0.1: 2.0, 0.0: 2.0}
    assert {level: schedule.at(level) for level in levels} == levels
    assert schedule.at(1 + 2**-23) == 1.0  # a float32 neighbour of 1


@given(
    st.lists(st.floats(0, 0.999), min_size=1, max_size=6, unique=True).map(lambda x: [1.0, *sorted(x)[::-1]]),
    st.floats(0, 1),
)
def test_the_last_breakpoint_at_or_above_the_level_counts(levels, level):
    schedule = Breakpoints(tuple((edge, index) for index, edge in enumerate(levels)))
    assert schedule.at(level) == max(i for i, edge in enumerate(levels) if edge >= level)


def test_constants_are_schedules():
    assert value_at(2.5, 0.3) == 2.5
    assert value_at((1, 2), 0.3) == (1, 2)
    assert value_at(Breakpoints(((1, 2.0), (0.5, 3.0))), 0.3) == 3.0


def test_all_values_of_a_schedule():
    assert values_of(2.5) == (2.5,)
    assert values_of((1, "mid")) == ((1, "mid"),)
    schedule = Breakpoints(((1.0, (3, "dual:2")), (0.5, ()), (0.2, ("up.1:temporal",))))
    assert values_of(schedule) == schedule.values == ((3, "dual:2"), (), ("up.1:temporal",))


@given(st.floats(0, 1) | st.sampled_from(LTX_LEVELS))
def test_ltx_recipe_with_seven_noise_levels(level):
    assert value_at(Breakpoints.from_lower_edges(LTX_LEVELS, LTX_GUIDANCE_SCALES), level) == ltx_rule(
        LTX_GUIDANCE_SCALES, level
    )
    blocks = value_at(Breakpoints.from_lower_edges(LTX_LEVELS, LTX_BLOCKS), level)
    assert blocks == tuple(ltx_rule(LTX_BLOCKS, level))


def test_lists_become_hashable_tuples():
    schedule = Breakpoints([[1.0, [3, 4]], [0.5, []]])
    assert schedule.points == ((1.0, (3, 4)), (0.5, ()))
    assert hash(schedule) == hash(Breakpoints(((1.0, (3, 4)), (0.5, ()))))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ((), "must start at noise level 1"),
        ((1.0, 0.5), r"must be pairs \(noise level, value\), got \(1.0, 0.5\)"),
        (((0.9, 1.0),), "must start at noise level 1"),
        (((1.0, 1.0), (-0.1, 2.0)), r"stay in \[0, 1\]"),
        (((1.0, 1.0), (math.nan, 2.0)), r"stay in \[0, 1\]"),
        (((1.0, 1.0), (0.5, 2.0), (0.5, 3.0)), "strictly falling"),
        (((1.0, 1.0), (0.2, 2.0), (0.5, 3.0)), "strictly falling"),
        (((1.0, 1.0), (0.5, (1, 2))), "all finite numbers or all lists of blocks"),
        (((1.0, math.inf),), "all finite numbers or all lists of blocks"),
        (((1.0, (1, -2)),), "all finite numbers or all lists of blocks"),
        (((1.0, ("Dual:2",)),), "all finite numbers or all lists of blocks"),
        (((1.0, ("",)),), "all finite numbers or all lists of blocks"),
        (((1.0, (True,)),), "all finite numbers or all lists of blocks"),
        (((1.0, "5"),), "all finite numbers or all lists of blocks"),
    ],
)
def test_bad_breakpoints_are_refused(points, message):
    with pytest.raises(OsegVideoError, match=message):
        Breakpoints(points)


def test_lower_edges_need_one_level_per_value():
    with pytest.raises(OsegVideoError, match=r"need one noise level in \[0, 1\] per value"):
        Breakpoints.from_lower_edges([1.0, 0.5], [1.0])
    with pytest.raises(OsegVideoError, match=r"need one noise level in \[0, 1\] per value"):
        Breakpoints.from_lower_edges([1.5, 0.5], [1.0, 2.0])


@pytest.mark.parametrize("level", [-0.1, 1.01, math.nan])
def test_noise_levels_outside_the_unit_interval_are_refused(level):
    with pytest.raises(OsegVideoError, match=r"noise level must be in \[0, 1\], got "):
        Breakpoints(((1.0, 2.0),)).at(level)

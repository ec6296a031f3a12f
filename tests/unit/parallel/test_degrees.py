"""Degrees: reading, choosing and refusing them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oseg_video.parallel.auto import Work, check_degrees, choose_degrees
from oseg_video.parallel.degrees import Degrees, started_as
from oseg_video.parallel.shards import Shard, part_sizes
from oseg_video.types import SettingError

CFG = {1: 2.0, 2: 1.0}
OSEG = {1: 2.3, 2: 1.3, 3: 1.0}


def work(clips: int = 1, costs: dict[int, float] = CFG, heads: int = 24, tokens: int = 1000) -> Work:
    return Work(clips, costs, heads, tokens)


@pytest.mark.parametrize(
    ("ranks", "of", "expected"),
    [
        (1, work(), Degrees()),
        (4, work(clips=4), Degrees(data=4)),
        (4, work(clips=3), Degrees(data=2, branch=2)),
        (2, work(), Degrees(branch=2)),
        (8, work(), Degrees(branch=2, ulysses=4)),
        (2, work(costs=OSEG), Degrees(ulysses=2)),
        (16, work(costs=OSEG, heads=12), Degrees(ulysses=4, ring=4)),
        (3, work(costs=OSEG, heads=32), Degrees(ring=3)),
        (2, work(costs=OSEG, heads=0, tokens=0), Degrees(branch=2)),
        (6, work(clips=2, costs=OSEG, heads=0, tokens=0), Degrees(data=2, branch=3)),
    ],
)
def test_auto(ranks: int, of: Work, expected: Degrees) -> None:
    degrees, why = choose_degrees(ranks, of)
    assert degrees == expected
    assert all(f"{axis}={degree}" in why for axis, degree in degrees.items() if degree > 1)


def test_auto_says_how_many_ranks_a_unet_can_use() -> None:
    with pytest.raises(SettingError, match="3 clips of 2 branches occupy at most 6 ranks"):
        choose_degrees(7, work(clips=3, heads=0, tokens=0))


@given(st.integers(1, 32), st.integers(1, 8), st.sampled_from([CFG, OSEG]), st.integers(1, 48))
def test_auto_uses_every_rank_and_passes_its_own_check(
    ranks: int, clips: int, costs: dict[int, float], heads: int
) -> None:
    of = work(clips, costs, heads)
    degrees, _ = choose_degrees(ranks, of)
    assert degrees.ranks == ranks
    check_degrees(degrees, of)


@pytest.mark.parametrize(
    ("degrees", "of", "message"),
    [
        (Degrees(branch=3), work(), "the guidance has 2 branches; at most branch=2"),
        (Degrees(data=2), work(), "the job has 1 clips; at most data=1"),
        (Degrees(ulysses=8), work(heads=6), "6 attention heads; at most ulysses=6"),
        (Degrees(ring=20), work(tokens=12), "a clip has 12 video tokens"),
        (Degrees(ulysses=2), work(heads=0, tokens=0), "use the axes branch and data"),
    ],
)
def test_degrees_that_cannot_share_the_work_are_refused(degrees: Degrees, of: Work, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        check_degrees(degrees, of)


def test_degrees_are_read_from_text() -> None:
    degrees = Degrees.parse("ulysses=2, branch=3")
    assert degrees == Degrees(ulysses=2, branch=3)
    assert (degrees.ranks, str(degrees)) == (6, "branch=3,ulysses=2")


@pytest.mark.parametrize("text", ["", "ulysses", "ulysses=", "ulysses=-1", "ring=two", "heads=2", "ring=2=2"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="data, branch, ring, ulysses"):
        Degrees.parse(text)


def test_zero_ranks_and_an_axis_named_twice_are_refused() -> None:
    with pytest.raises(SettingError, match="ring must be a whole number of ranks"):
        Degrees.parse("ring=0")
    with pytest.raises(SettingError, match="names ring twice"):
        Degrees.parse("ring=2,ring=2")


@given(st.integers(0, 1000), st.integers(1, 40))
def test_parts_cover_the_whole_and_differ_by_one_at_most(total: int, parts: int) -> None:
    sizes = part_sizes(total, parts)
    assert sum(sizes) == total and len(sizes) == parts
    assert max(sizes) - min(sizes) <= 1
    shards = [Shard.of(total, rank, parts) for rank in range(parts)]
    assert [shard.start for shard in shards[1:]] == [shard.stop for shard in shards[:-1]]
    assert [len(shard) for shard in shards] == sizes


def test_an_index_outside_a_part_falls_on_its_nearest_end() -> None:
    shard = Shard(3, 6, 10)
    assert [shard.local(index) for index in (0, 3, 4, 6, 9)] == [0, 0, 1, 3, 3]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "1"}, (0, 1, 0)),  # what a job manager leaves behind
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": ""}, (0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (3, 4, 1)),
    ],
)
def test_ranks_are_those_that_all_three_variables_tell_of(monkeypatch, given, expected):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert started_as() == expected

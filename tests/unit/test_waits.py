"""Values are read once: as long as the tensor is the same one, unwritten."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from oseg_video import waits
from oseg_video.waits import place_in, read_once, values_of


class Reader:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, x: Tensor, name: str = "sum") -> float:
        def read() -> float:
            self.count += 1
            return float(x.sum())

        return read_once(name, [x], read)


@pytest.fixture
def read() -> Reader:
    return Reader()


def test_views_of_the_same_entries_are_read_once(read: Reader) -> None:
    whole = torch.arange(6.0)
    assert [read(whole[2:4]) for _ in range(3)] == [5.0] * 3
    assert read.count == 1


@pytest.mark.parametrize(
    "other", (lambda x: x[1:4], lambda x: x[2:5], lambda x: x[2:4:2], lambda x: x[2:4].clone())
)
def test_other_entries_are_read(read: Reader, other) -> None:
    whole = torch.arange(6.0)
    read(whole[2:4])
    assert read(other(whole)) == float(other(whole).sum())
    assert read.count == 2


def test_what_is_written_is_read_again(read: Reader) -> None:
    whole = torch.arange(6.0)
    part = whole[2:4]
    assert read(part) == 5
    whole.add_(1)
    assert read(part) == 7


def test_another_name_is_another_value(read: Reader) -> None:
    x = torch.ones(2)
    assert read_once("first", [x], lambda: 1) == 1
    assert read_once("second", [x], lambda: 2) == 2


def test_tensors_that_count_no_writes_are_read_every_time(read: Reader) -> None:
    with torch.inference_mode():
        x = torch.ones(2)
        assert read(x) == 2
        x.add_(1)
        assert read(x) == 4


def test_the_memory_of_a_tensor_that_is_gone_may_hold_another(read: Reader) -> None:
    for value in range(50):
        assert read(torch.full((3,), float(value))) == 3 * value
    gc.collect()
    last = torch.ones(2)
    read(last)
    assert len(waits._known) < 20


@pytest.mark.parametrize("step", (1, 3))
def test_the_place_of_an_entry_is_that_of_its_memory(step: int) -> None:
    whole = torch.tensor([9.0, 5, 5, 1, 0, 0, 0, 0, 0, 2])[1::step]
    for place, entry in enumerate(whole):
        assert place_in(whole, entry) == place
        assert place_in(whole, entry.expand(4)) == place
        assert place_in(whole, entry[None]) == place
        assert place_in(whole, entry.clone()) is None
    assert place_in(whole, whole) is None
    assert place_in(whole[1:], whole[0]) is None
    assert place_in(whole, 5.0) is None


def test_values() -> None:
    assert values_of(torch.tensor([1, 2])) == [1, 2]

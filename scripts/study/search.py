"""The search: the same number of clips for every method, by successive halving as `oseg-video tune` does."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from oseg_video.evaluation.results import Difference
from oseg_video.sweeps.recipe import Subject
from oseg_video.tuning.arms import Arm, make_arms, read_axis, with_blocks
from oseg_video.tuning.halving import Standing, search
from oseg_video.tuning.splits import Split
from study.bench import CLIPS_PER_PROMPT, Bench, Setting
from study.statistics import Statistics, score


@dataclass(frozen=True)
class Found:
    """What a search chose for a method."""

    guidance: Mapping[str, Any]
    arms: int
    clips: int
    """That the search may make."""
    rounds: Sequence[Standing]
    """The last one of every arm."""


def arms_of(label: str, axes: Mapping[str, Any], most: int, blocks: int) -> list[Arm]:
    """The grid of a method's axes, or a fraction of it where it has more than `most` arms.

    The fraction has the arms whose places on the axes add up to a multiple of the last axis's length. Each
    pair of values of two axes is in it about equally often (an orthogonal array of strength two). blocks: of
    the model.
    """
    read = {
        name: (value,) if name == "guidance" else with_blocks(read_axis(name, value), blocks, None)
        for name, value in axes.items()
    }
    arms = make_arms(label, read, None, 0)
    if len(arms) <= most:
        return arms
    places = itertools.product(*(range(len(axis)) for axis in read.values()))
    last = [len(axis) for axis in read.values() if len(axis) > 1][-1]
    return [arm for arm, place in zip(arms, places, strict=True) if sum(place) % last == 0]


def search_all(
    bench: Bench,
    methods: Mapping[str, Sequence[Arm]],
    baseline: Mapping[str, Any],
    setting: Setting,
    budget: int,
    statistics: Statistics,
) -> dict[str, Found]:
    """The best arm of every method. baseline: flat keys of what the arms are compared with.

    setting: steps and seed. budget: clips of each method, the baseline's among them.
    """
    every = {arm.name: arm.settings for arms in methods.values() for arm in arms}
    statistics = replace(statistics, captions=bench.captions(setting.seed, range(budget)))

    def scores(name: str, clips: int) -> Tensor:
        guidance = every.get(name, baseline)
        return score(bench.rows(replace(setting, guidance=guidance), clips, name))

    def measure(clips: Mapping[str, int]) -> Any:
        seen = {name: scores(name, count) for name, count in clips.items()}

        def differences(against: Mapping[str, str]) -> dict[str, Difference]:
            found = {}
            for name, other in against.items():
                own = seen[name]
                change = own - (seen[other] if other in seen else scores(other, len(own)))[: len(own)]
                value, *interval = replace(statistics, clips=len(own)).mean(change)
                found[name] = Difference(
                    name="score",
                    method=name,
                    baseline=other,
                    value=value,
                    interval=(interval[0], interval[1]),
                    pairs=len(own),
                )
            return found

        return differences

    split = _Split(tuple(Subject(prompt=str(index)) for index in range(budget)), (0,))
    names = {method: [arm.name for arm in arms] for method, arms in methods.items()}
    best, standings = search(names, budget, split, measure, sign=1)
    return {
        method: Found(
            every[one.arm], len(names[method]), budget, [s for s in standings if s.arm in names[method]]
        )
        for method, one in best.items()
    }


class _Split(Split):
    """Clips by their place, whole prompts only, and enough of them for an interval."""

    def largest(self, clips: int) -> int:
        count = clips // CLIPS_PER_PROMPT * CLIPS_PER_PROMPT
        return min(count, self.clips) if count >= 2 * CLIPS_PER_PROMPT else 0

"""Successive halving (Karnin et al., ICML 2013; Jamieson and Talwalkar, AISTATS 2016), paired and with stops.

Every method is a race of its own with an equal share of the clips. In every round of a race the arms that are
left, and the baseline, are measured on the same prompts and seeds, more of them than in the round before and
those among them; then at most half of the arms stay. An arm is also stopped where the 95 % interval of its
paired difference to the best arm, or to the baseline, lies on the worse side of 0 as a whole. Clips that this
saves go to the arms that stay.

What is decided here chooses an arm, and claims nothing: the value of an arm that was chosen for its value is
biased. Nothing here makes clips or has a memory beyond its arguments: the same measurements, the same arms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from oseg_video.evaluation.results import Difference
from oseg_video.tuning.splits import Split

BASELINE = "baseline"
"""What the baseline is called beside the arms."""
GOES_ON, BEST, BEHIND = "goes on", "best of its method", "behind the better half"

Differences = Callable[[Mapping[str, str]], Mapping[str, Difference]]
"""Of each arm, the name of another or the baseline -> its paired difference to that one; arms without a value
are left out."""
Measure = Callable[[Mapping[str, int]], Differences]
"""Measures arms, each on so many first clips of the split, and the baseline on all of these."""


class Round(NamedTuple):
    """A round of a race."""

    arms: int
    clips: int
    """Of each arm, those of earlier rounds among them."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How an arm stood after a round."""

    arm: str
    round: int
    """From 1."""
    gain: Difference | None
    """To the baseline, over the clips of this round; None where there is no value."""
    fate: str


def next_round(alive: int, clips: int, left: int, split: Split) -> Round | None:
    """The next round of a race, or None where what is left allows none.

    alive: arms, of which the round takes fewer if only then each gets a new clip. clips: of each arm so far.
    left: clips that may be made; the rounds to come get equal shares, and the baseline is made as often as an
    arm.
    """
    while alive > 1 or (alive and not clips):
        share = left // max(1, math.ceil(math.log2(alive)))
        more = split.largest(clips + share // (alive + 1))
        if more > clips:
            return Round(alive, more)
        if alive == 1:
            break
        alive = math.ceil(alive / 2)
    return None


def planned_rounds(arms: int, budget: int, split: Split) -> list[Round]:
    """The rounds of a race in which no arm is stopped early."""
    found: list[Round] = []
    alive, clips, left = arms, 0, budget
    while one := next_round(alive, clips, left, split):
        found.append(one)
        left -= cost(one, clips)
        alive, clips = math.ceil(one.arms / 2), one.clips
    return found


def cost(one: Round, clips: int) -> int:
    """New clips of a round, the baseline's among them. clips: of each arm before it."""
    return (one.arms + 1) * (one.clips - clips)


def least_budget(arms: int) -> int:
    """The fewest clips with which every arm of a race gets one in the first round."""
    return (arms + 1) * max(1, math.ceil(math.log2(arms)))


def gained(difference: Difference, sign: int) -> float:
    """The difference, higher is better."""
    return sign * difference.value


def surely(difference: Difference | None, sign: int) -> bool:
    """Whether the whole interval is on the side of 0 that `sign` says: 1 above, -1 below."""
    if difference is None or difference.interval is None:
        return False
    return all(sign * end > 0 for end in difference.interval)


def search(
    arms: Mapping[str, Sequence[str]], budget: int, split: Split, measure: Measure, sign: int
) -> tuple[dict[str, Standing], list[Standing]]:
    """The last standing of each method's best arm, and all standings.

    arms: of every method, in the order that decides between equals. budget: clips of each method, at least
    `least_budget`. sign: 1 if higher values are better, -1 if lower ones are. A method of which no arm has a
    value has no best arm.
    """
    races = {method: _Race(names, budget, split, sign) for method, names in arms.items()}
    while running := [race for race in races.values() if race.next]:
        differences = measure({arm: race.next.clips for race in running if race.next for arm in race.alive})
        gains = differences({arm: BASELINE for race in running for arm in race.alive})
        for race in running:
            race.rank(gains)
        rivals = {arm: race.alive[0] for race in running for arm in race.alive[1:]}
        to_best = differences(rivals) if rivals else {}
        for race in running:
            race.settle(to_best)
    best = {method: race.standings[race.alive[0]] for method, race in races.items() if race.alive}
    return best, [one for race in races.values() for one in race.standings.values()]


class _Race:
    """The arms of one method."""

    def __init__(self, arms: Sequence[str], budget: int, split: Split, sign: int) -> None:
        self.alive = list(arms)
        """The arms of the next round; in the end the best one alone, or none."""
        self.standings: dict[str, Standing] = {}
        """The last one of every arm."""
        self.next = next_round(len(arms), 0, budget, split)
        self._left = budget
        self._split = split
        self._sign = sign
        self._clips = 0
        self._round = 0

    def rank(self, gains: Mapping[str, Difference]) -> None:
        """After a round: the arms with a value remain, the best one first, equals in the recipe's order."""
        assert self.next is not None
        self._left -= cost(self.next, self._clips)
        self._clips = self.next.clips
        self._round += 1
        for arm in self.alive:
            self._note(arm, gains.get(arm), "no value")
        valued = [arm for arm in self.alive if arm in gains]
        self.alive = sorted(valued, key=lambda arm: -gained(gains[arm], self._sign))

    def settle(self, to_best: Mapping[str, Difference]) -> None:
        """Stop arms, and plan the next round."""
        assert self.next is not None
        kept = []
        for place, arm in enumerate(self.alive):
            gain = self.standings[arm].gain
            if place and surely(to_best.get(arm), -self._sign):
                self._note(arm, gain, f"worse than {self.alive[0]}")
            elif place and surely(gain, -self._sign):
                self._note(arm, gain, f"worse than the {BASELINE}")
            else:
                self._note(arm, gain, BEHIND)
                kept.append(arm)
        kept = kept[: math.ceil(self.next.arms / 2)]
        self.next = next_round(len(kept), self._clips, self._left, self._split)
        self.alive = kept[: self.next.arms if self.next else 1]
        for arm in self.alive:
            self._note(arm, self.standings[arm].gain, GOES_ON if self.next else BEST)

    def _note(self, arm: str, gain: Difference | None, fate: str) -> None:
        self.standings[arm] = Standing(arm=arm, round=self._round, gain=gain, fate=fate)

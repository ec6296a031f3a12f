"""Prompts and seeds in an order of which any beginning is a fair sample, and what two splits share."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from oseg_video.sweeps.recipe import Subject
from oseg_video.types import SettingError


@dataclass(frozen=True)
class Split:
    """Prompts x seeds of a search, or of its test."""

    subjects: tuple[Subject, ...]
    seeds: tuple[int, ...]

    @property
    def clips(self) -> int:
        """Number of clips of an arm."""
        return len(self.subjects) * len(self.seeds)

    def largest(self, clips: int) -> int:
        """The largest number of clips up to `clips` that `first` can give: all prompts get the same seeds.

        Prompts come before seeds, because clips of one prompt say less than those of several.
        """
        count = min(clips, self.clips)
        return count if count <= len(self.subjects) else count // len(self.subjects) * len(self.subjects)

    def first(self, clips: int) -> Split:
        """The first so many clips, a number that `largest` gives; each contains those of fewer clips."""
        return Split(self.subjects[:clips], self.seeds[: max(1, clips // len(self.subjects))])


def shuffled(subjects: Sequence[Subject], seed: int) -> tuple[Subject, ...]:
    """The prompts in a random order: lists of prompts are sorted, and their beginning is about one thing.

    The order is the same in every version of Python, which promises that of `random()` alone.
    """
    chance = random.Random(f"prompts {seed}")
    return tuple(subject for _, _, subject in sorted((chance.random(), i, s) for i, s in enumerate(subjects)))


def check_apart(search: Split, test: Split) -> None:
    """Refuse, with a SettingError, a test on clips that the search sees, or on too few for an interval."""
    for split, what in ((search, "prompts"), (test, "test: prompts")):
        if len(set(split.subjects)) < len(split.subjects):
            raise SettingError(f"{what} must differ from each other")
    if seen := [subject for subject in test.subjects if subject in search.subjects]:
        if both := [seed for seed in test.seeds if seed in search.seeds]:
            shown = seen[0].prompt if seen[0].prompt is not None else seen[0].image
            raise SettingError(
                f"the test must be about other prompts or other seeds than the search; both have {shown!r} "
                f"with seed {both[0]}"
            )
    if test.clips < 2:
        raise SettingError("the test needs at least 2 prompts or 2 seeds for an interval, got 1 of each")

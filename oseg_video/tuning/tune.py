"""From a recipe to the settings that a test supports; what is there already is not made again.

```
FOLDER/
  found.yaml          for `generate --config`: the winner, or the baseline where that did not beat it
  best-METHOD.yaml    the best arm of each method
  arms.md .csv .json  every arm by the last round that it was in
  arms.svg            every arm, round by round
  test.md .json       the best arms and the baseline on the test split
  index.html          the test's clips side by side
  clips/              the sweep of all rounds and of the test: clips, manifests, index
  .metrics/           what the metric saw of each clip
```

There is no other state: a run that goes on finds its clips and what the metric saw of them, and decides anew,
which gives the same decisions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oseg_video.comparison.compare import made_clips
from oseg_video.evaluation.clips import FoundClips
from oseg_video.evaluation.evaluate import evaluate
from oseg_video.evaluation.metrics.base import MetricOptions
from oseg_video.evaluation.results import Difference, Evaluation
from oseg_video.files import expanded
from oseg_video.sweeps.estimate import Estimate
from oseg_video.sweeps.launch import estimate_variations, make_variations
from oseg_video.sweeps.records import Record
from oseg_video.sweeps.run import Summary
from oseg_video.sweeps.table import Variation
from oseg_video.tuning.halving import BASELINE, Differences, Standing, gained, search, surely
from oseg_video.tuning.plan import Plan, TuneError, make_plan
from oseg_video.tuning.recipe import TuneRecipe
from oseg_video.tuning.report import FOUND, Findings, check_places, write_report

CLIPS, _SEEN = "clips", ".metrics"


@dataclass(frozen=True)
class Tuned:
    """What came of a search."""

    findings: Findings
    words: tuple[str, ...]
    """What it found, line by line."""
    complete: bool
    """Whether every clip was made and looked at."""
    recipe: Path
    """The file for `generate --config`."""

    @property
    def winner(self) -> str:
        """The arm that the search chose, whether or not it beat the baseline."""
        return self.findings.claim.method


def tune(
    recipe: TuneRecipe,
    out: Path,
    *,
    ranking: Sequence[int | str] | None = None,
    options: MetricOptions | None = None,
    cluster: bool = False,
    address: str | None = None,
    workers: int | None = None,
    gpus: int = 1,
    retry_failed: bool = False,
    on_record: Callable[[Record], None] | None = None,
) -> Tuned:
    """Search for settings that are better than the baseline, and test those that the search chooses.

    ranking: blocks, the most promising first, for axes that say `blocks: auto`. options: of the metric. The
    rest is that of `sweep`. All that can be refused before the first clip is. Raises OsegVideoError.
    """
    options = options or MetricOptions()
    out = expanded(out)
    plan = make_plan(recipe, options, ranking)
    check_places(plan, out)

    def make(variations: Sequence[Variation]) -> Summary:
        return make_variations(
            variations,
            str(out / CLIPS),
            cluster=cluster,
            address=address,
            workers=workers,
            gpus=gpus,
            retry_failed=retry_failed,
            on_record=on_record,
        )

    bench = _Bench(plan, out, options, make)
    best, standings = search(plan.methods, plan.share, plan.split, bench.measure, plan.sign)
    if not best:
        raise TuneError(f"no arm has a value: {bench.reason}")
    winner = max(best.values(), key=lambda one: _gain(one, plan.sign)).arm
    chosen = {method: one.arm for method, one in best.items()}
    test = bench.test(list(chosen.values()))
    claim = next((one for one in test.differences if one.method == winner), None)
    if claim is None:
        raise TuneError(f"{winner}, which the search chose, has no value on the test: {bench.reason}")
    findings = Findings(
        rounds=bench.rounds,
        standings=standings,
        best=chosen,
        test=test,
        tested=bench.found,
        claim=claim,
        won=surely(claim, plan.sign),
        clips=len(bench.made),
    )
    words = write_report(plan, out, findings)
    return Tuned(findings, words, complete=not bench.reason, recipe=out / FOUND)


def dry_run(
    plan: Plan,
    out: Path,
    *,
    cluster: bool = False,
    seconds_per_pass: float | None = None,
    retry_failed: bool = False,
) -> tuple[Estimate, Estimate]:
    """What a search and its test would do, as far as it is known: the first arms stand for those that stay.

    The arguments are those of the dry run of a sweep. Raises OsegVideoError.
    """
    clips = {
        name: next(one.clips for one in reversed(rounds) if place < one.arms)
        for method, rounds in plan.rounds.items()
        for place, name in enumerate(plan.methods[method])
    }
    first = {names[0]: plan.recipe.test.clips for names in plan.methods.values()}
    searched, tested = (
        estimate_variations(
            variations,
            str(expanded(out) / CLIPS),
            cluster=cluster,
            seconds_per_pass=seconds_per_pass,
            retry_failed=retry_failed,
        )
        for variations in (plan.variations(clips), plan.variations(first, plan.recipe.test))
    )
    return searched, tested


def _gain(one: Standing, sign: int) -> float:
    assert one.gain is not None  # an arm without a value is never the best
    return gained(one.gain, sign)


class _Bench:
    """Makes clips and measures them."""

    def __init__(
        self, plan: Plan, out: Path, options: MetricOptions, make: Callable[[Sequence[Variation]], Summary]
    ) -> None:
        self._plan = plan
        self._out = out
        self._options = options
        self._make = make
        self.made: set[str] = set()
        """Keys of the clips that are there."""
        self.rounds: list[Evaluation] = []
        """Of each round so far, every arm against the baseline."""
        self.reason = ""
        """Why something is missing, the last time that something was."""
        self.found = FoundClips((), {})
        """The clips looked at last."""

    def measure(self, clips: Mapping[str, int]) -> Differences:
        """For `search`."""
        self._sweep(self._plan.variations(clips))

        def differences(against: Mapping[str, str]) -> dict[str, Difference]:
            evaluation = self._evaluate(against)
            if BASELINE in against.values():
                self.rounds.append(evaluation)
            return {one.method: one for one in evaluation.differences}

        return differences

    def test(self, arms: Sequence[str]) -> Evaluation:
        """The chosen arms and the baseline on the test split."""
        split = self._plan.recipe.test
        self._sweep(self._plan.variations(dict.fromkeys(arms, split.clips), split))
        return self._evaluate(dict.fromkeys(arms, BASELINE))

    def _sweep(self, variations: Sequence[Variation]) -> None:
        summary = self._make(variations)
        self.made |= {one.item for one in summary.records if one.state == "done"}
        if summary.failed:
            self.reason = summary.failed[0].reason or ""
        if not any(one.state == "done" and one.method == BASELINE for one in summary.records):
            raise TuneError(f"no clip of the baseline could be made: {self.reason}")
        self.found = made_clips(summary, self._out / CLIPS, lambda one: one.method)

    def _evaluate(self, against: Mapping[str, str]) -> Evaluation:
        """The one value, of all arms that have clips."""
        there = self.found.methods
        baselines = {arm: other for arm, other in against.items() if arm in there and other in there}
        evaluation = evaluate(
            self.found,
            [self._plan.metric],
            options=self._options,
            baseline=baselines,
            work=self._out / _SEEN,
        )
        for missing in (evaluation.skipped, evaluation.failed):
            if missing:
                self.reason = next(iter(missing.values()))
        return _only(evaluation, self._plan)


def _only(evaluation: Evaluation, plan: Plan) -> Evaluation:
    """What an evaluation says about the value that counts."""
    name = plan.value.name
    return dataclasses.replace(
        evaluation,
        results={
            method: tuple(one for one in results if one.name == name)
            for method, results in evaluation.results.items()
        },
        better={name: plan.value.better},
        differences=tuple(one for one in evaluation.differences if one.name == name),
    )

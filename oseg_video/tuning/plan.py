"""A search before it runs: its arms, rounds and clips, and all that can be refused before the first one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from oseg_video import console
from oseg_video.comparison.compare import require_shown
from oseg_video.comparison.planned import check_metrics, planned_clips
from oseg_video.evaluation.metrics.base import MetricOptions, MetricValue, build_metrics, metric_of
from oseg_video.jobs.counted import count_job
from oseg_video.sweeps.table import Variation, plan_variations
from oseg_video.tuning.arms import Arm, make_arms, with_blocks
from oseg_video.tuning.halving import BASELINE, Round, least_budget, planned_rounds
from oseg_video.tuning.recipe import TuneRecipe
from oseg_video.tuning.splits import Split, check_apart, shuffled
from oseg_video.types import OsegVideoError


class TuneError(OsegVideoError):
    """A search that cannot be made; the message says why."""


@dataclass(frozen=True)
class Plan:
    """A search that can be made."""

    recipe: TuneRecipe
    metric: str
    """Exact name of the metric."""
    value: MetricValue
    """The one of its values that counts; `better` says which way."""
    arms: Mapping[str, Arm]
    """By name, method by method."""
    split: Split
    """Of the search, in the order in which its clips are taken."""
    share: int
    """Clips that the search of each method may make, the baseline's among them."""

    @property
    def sign(self) -> int:
        """1 if higher values are better, else -1."""
        return 1 if self.value.better == "higher" else -1

    @property
    def methods(self) -> dict[str, list[str]]:
        """The names of every method's arms."""
        found: dict[str, list[str]] = {}
        for name, arm in self.arms.items():
            found.setdefault(arm.method, []).append(name)
        return found

    @property
    def rounds(self) -> dict[str, list[Round]]:
        """Of every method, the rounds if no arm is stopped early."""
        return {
            method: planned_rounds(len(names), self.share, self.split)
            for method, names in self.methods.items()
        }

    def variations(self, clips: Mapping[str, int], split: Split | None = None) -> list[Variation]:
        """The sweep of arms and baseline: of each so many of the first clips of a split."""
        split = split or self.split
        most = {BASELINE: max(clips.values()), **clips}
        found = []
        for count in dict.fromkeys(most.values()):
            names = [name for name in most if most[name] == count]
            part = split.first(count)
            methods = {
                name: self.arms[name].settings if name in self.arms else self.recipe.sweep.methods[name]
                for name in names
            }
            found += plan_variations(
                replace(self.recipe.sweep, methods=methods, subjects=part.subjects, seeds=part.seeds)
            )
        return found


def make_plan(recipe: TuneRecipe, options: MetricOptions, ranking: Sequence[int | str] | None = None) -> Plan:
    """The plan of a search. Makes nothing; reads of the model its configuration only.

    ranking: blocks, the most promising first, for axes that say `blocks: auto`. Warnings go to the console.
    Raises OsegVideoError for all that can be refused before the first clip.
    """
    search = Split(shuffled(recipe.sweep.subjects, recipe.seed), recipe.sweep.seeds)
    check_apart(search, recipe.test)
    metric, value = _value(recipe, options)
    arms = _different(recipe, _arms(recipe, ranking))
    plan = Plan(recipe, metric, value, arms, search, _share(recipe, arms, search))
    first = plan.variations(
        {name: rounds[0].clips for method, rounds in plan.rounds.items() for name in plan.methods[method]}
    )
    require_shown(first)
    some = [names[0] for names in plan.methods.values()]  # which arms will be tested is not known yet
    for variations in (first, plan.variations(dict.fromkeys(some, recipe.test.clips), recipe.test)):
        for line in check_metrics([metric], planned_clips(variations), options):
            console.logger.warning(f"warning: {line}")
    return plan


def describe(plan: Plan) -> Iterator[str]:
    """The plan for the terminal, line by line."""
    methods, tested = plan.methods, len(plan.methods) + 1
    yield f"{plan.value.name}, {plan.value.better} is better; at most {plan.recipe.clips} clips in all"
    for method, rounds in plan.rounds.items():
        yield f"{method}: {len(methods[method])} arms, at most {plan.share} clips, the baseline's among them"
        for number, one in enumerate(rounds, start=1):
            yield f"  round {number}: {one.arms} arms and the baseline, {one.clips} clips each"
    test = plan.recipe.test.clips
    yield f"test: the best arm of every method and the baseline, {test} clips each, {test * tested} in all"


def _value(recipe: TuneRecipe, options: MetricOptions) -> tuple[str, MetricValue]:
    metric = metric_of(recipe.metric)
    values = {value.name: value for one in build_metrics([metric], options) for value in one.values}
    if recipe.metric not in values:
        raise TuneError(f"metric must be one value, which {recipe.metric} is not: {', '.join(values)}")
    value = values[recipe.metric]
    if value.better is None and recipe.better is None:
        raise TuneError(f"{value.name} does not say which way is better: better must be higher or lower")
    if None not in (value.better, recipe.better) and value.better != recipe.better:
        raise TuneError(f"of {value.name} {value.better} is better, got better: {recipe.better}")
    return metric, replace(value, better=value.better or recipe.better)


def _arms(recipe: TuneRecipe, ranking: Sequence[int | str] | None) -> list[Arm]:
    counted = None
    arms = []
    for method, axes in recipe.methods.items():
        if "blocks" in axes:
            if counted is None:
                counted = count_job(plan_variations(recipe.sweep)[0].job)
            count = len(counted.adapter.blocks(counted.denoiser))
            axes = {**axes, "blocks": with_blocks(axes["blocks"], count, ranking)}
        arms += make_arms(method, axes, recipe.random, recipe.seed)
    return arms


def _different(recipe: TuneRecipe, arms: Sequence[Arm]) -> dict[str, Arm]:
    """The arms by name, without those that make the clips of another one or of the baseline."""
    settings = {BASELINE: recipe.sweep.methods[BASELINE], **{arm.name: arm.settings for arm in arms}}
    one = replace(recipe.sweep, methods=settings, subjects=recipe.sweep.subjects[:1])
    kept: dict[str, Variation] = {}
    for variation in plan_variations(one):
        twin = next((name for name, other in kept.items() if other.job == variation.job), None)
        if twin is None:
            kept[variation.method] = variation
        else:
            console.logger.info(f"{variation.method} is left out: it makes the clips of {twin}")
    found = {arm.name: arm for arm in arms if arm.name in kept}
    if len(found) < 2:
        raise TuneError(f"a search needs at least 2 different arms, got {len(found)}")
    return found


def _share(recipe: TuneRecipe, arms: Mapping[str, Arm], split: Split) -> int:
    """Clips of each method's search. Raises TuneError where they are too few."""
    if recipe.clips is None:
        raise TuneError("nothing says how many clips may be made: give --clips, or clips in the recipe")
    methods = [arm.method for arm in arms.values()]
    most = max(methods.count(method) for method in methods)
    count = len(set(methods))
    test = (count + 1) * recipe.test.clips
    share = (recipe.clips - test) // count
    least = least_budget(most)
    if share < least:
        raise TuneError(
            f"clips must be at least {count * least + test} for one clip of every arm in the first round and "
            f"the test's {test}, got {recipe.clips}"
        )
    return share

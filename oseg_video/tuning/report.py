"""What a search leaves behind: recipes, tables, a plot, and a page of the test's clips."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oseg_video.comparison.page import write_page
from oseg_video.config.recipes import dump_settings
from oseg_video.console import visible
from oseg_video.evaluation.clips import FoundClips
from oseg_video.evaluation.results import Difference, Evaluation
from oseg_video.evaluation.tables import as_csv, as_json, as_markdown
from oseg_video.files import MARK, check_place, write_text
from oseg_video.tuning.halving import BASELINE, Standing, gained
from oseg_video.tuning.plan import Plan
from oseg_video.tuning.plot import arms_plot

FOUND, PLOT, PAGE = "found.yaml", "arms.svg", "index.html"
_TABLES = ("arms.md", "arms.csv", "arms.json", "test.md", "test.json")


def check_places(plan: Plan, out: Path) -> None:
    """Refuse, with a FileError, places where something of somebody else is."""
    for name in (FOUND, PLOT, PAGE, *_TABLES, *map(best_name, plan.methods)):
        check_place(out / name)


def best_name(method: str) -> str:
    """The file with a method's best arm."""
    return f"best-{method}.yaml"


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a search and its test found."""

    rounds: Sequence[Evaluation]
    """Every round, all its arms against the baseline."""
    standings: Sequence[Standing]
    """The last one of every arm."""
    best: Mapping[str, str]
    """Of every method, its best arm."""
    test: Evaluation
    """The best arms against the baseline on the test split."""
    tested: FoundClips
    """The clips of the test."""
    claim: Difference
    """The arm that the search chose minus the baseline on the test split."""
    won: bool
    """Whether the interval of the claim lies on the better side of 0 as a whole."""
    clips: int
    """That search and test took, made now or before."""


def write_report(plan: Plan, out: Path, found: Findings) -> tuple[str, ...]:
    """Write all of it, and return what was found in words, line by line. Raises FileError."""
    claim = found.claim
    how = _how(plan, found)
    words = (verdict(claim, found.won), *how, *_others(found))
    table = _merged(plan, found.rounds, found.standings)
    write_text(out / "arms.json", as_json(table))
    write_text(out / "arms.csv", as_csv(table))
    fates = (f"- {_fate(one)}" for one in _ordered(found.standings, plan.sign))
    write_text(out / "arms.md", "\n".join([*words, "", as_markdown(table), *map(visible, fates), ""]))
    write_text(out / PLOT, arms_plot(plan, found.rounds, list(table.results), claim))
    test = as_json(found.test)
    write_text(out / "test.json", test)
    write_text(out / "test.md", "\n".join([*words, "", as_markdown(found.test)]))
    write_page(out / PAGE, found.tested.clips, [BASELINE, *found.best.values()], results=json.loads(test))
    differences = {one.method: one for one in found.test.differences}
    for method, arm in found.best.items():
        lines = [f"The best of {len(plan.methods[method])} arms of {method}: {arm}"]
        if arm in differences:
            lines.append(f"On the test split minus the baseline: {shown(differences[arm])}")
        write_text(out / best_name(method), _recipe(plan, arm, [*lines, *how]))
    chosen = claim.method if found.won else BASELINE
    write_text(out / FOUND, _recipe(plan, chosen, [*words, f"These are the settings of: {chosen}"]))
    return words


def verdict(claim: Difference, won: bool) -> str:
    """The claim in words, which say no more than the test does."""
    if won:
        return f"{claim.method} beat the baseline on the test split by {shown(claim)}"
    return f"the search's choice, {claim.method}, did not beat the baseline: on the test split {shown(claim)}"


def shown(difference: Difference) -> str:
    """A difference with its interval."""
    interval = difference.interval
    ends = f" [{interval[0]:+.3g}, {interval[1]:+.3g}]" if interval else ", without an interval"
    return f"{difference.value:+.3g}{ends}"


def _how(plan: Plan, found: Findings) -> tuple[str, ...]:
    value, pairs = plan.value, found.claim.pairs
    return (
        f"{value.name}, {value.better} is better; paired 95 % interval over {pairs} clips each, which the "
        "search did not see",
        f"{len(plan.arms)} arms of {', '.join(plan.methods)}; search and test took {found.clips} clips",
    )


def _others(found: Findings) -> tuple[str, ...]:
    """The best arms of other methods, of which nothing was claimed before the test."""
    others = [one for one in found.test.differences if one.method != found.claim.method]
    if not others:
        return ()
    shown_others = "; ".join(f"{one.method} {shown(one)}" for one in others)
    return (f"best arms of other methods, to be confirmed on new clips: {shown_others}",)


def _recipe(plan: Plan, arm: str, lines: Sequence[str]) -> str:
    """A file for `generate --config`: what the clips of an arm were made with, and how that was found."""
    sweep = plan.recipe.sweep
    (model,) = sweep.models.values()
    own = plan.arms[arm].settings if arm in plan.arms else sweep.methods[BASELINE]
    header = "".join(f"# {visible(line)}\n" for line in [f"{MARK} tune", *lines])
    return header + dump_settings({**sweep.settings, **model, **own})


def _ordered(standings: Sequence[Standing], sign: int) -> list[Standing]:
    """Those that came furthest first, and of these the best."""

    def place(one: Standing) -> tuple[int, float]:
        return -one.round, -gained(one.gain, sign) if one.gain else float("inf")

    return sorted(standings, key=place)


def _fate(one: Standing) -> str:
    gain = f", {shown(one.gain)} to the baseline" if one.gain else ""
    return f"{one.arm}: {one.fate} after round {one.round}{gain}"


def _merged(plan: Plan, rounds: Sequence[Evaluation], standings: Sequence[Standing]) -> Evaluation:
    """Every arm by the last round that it was in, and the baseline by the last of all."""
    last = {name: one for one in rounds for name in one.methods}
    order = [BASELINE, *(one.arm for one in _ordered(standings, plan.sign) if one.arm in last)]
    by_arm = {one.arm: one for one in standings}

    def facts(name: str) -> dict[str, Any]:
        known = dict(last[name].methods[name])
        if name in by_arm:
            known |= {"round": by_arm[name].round, "fate": by_arm[name].fate}
            known["settings"] = dict(plan.arms[name].settings)
        return known

    return dataclasses.replace(
        rounds[-1],
        methods={name: facts(name) for name in order},
        results={name: last[name].results[name] for name in order},
        differences=tuple(one for name in order for one in last[name].differences if one.method == name),
        baselines=dict.fromkeys(order[1:], BASELINE),
        skipped={name: why for one in rounds for name, why in one.skipped.items()},
        failed={name: why for one in rounds for name, why in one.failed.items()},
        warnings=tuple(dict.fromkeys(line for one in rounds for line in one.warnings)),
    )

"""Which branches are computed, against the definition in closed form; how the settings are written."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oseg_video import Reuse
from oseg_video.guidance.perturbations import BlurAttended, SkipBlock
from oseg_video.guidance.plan import Branch, Perturbation, Step, StepPlan
from oseg_video.guidance.reuse import REFRESH, Calendar
from oseg_video.types import SettingError

BRANCHES = {
    "cond": Branch("cond"),
    "uncond": Branch("uncond"),
    "weak": Branch("cond", Perturbation((1,), SkipBlock())),
    "weak_uncond": Branch("uncond", Perturbation((1,), SkipBlock())),
}
KIND = {"uncond": "uncond", "weak": "perturbed", "weak_uncond": "uncond"}

EVERY = st.one_of(st.integers(1, 5), st.sampled_from((0.25, 0.5, 0.75)))
STEPS = st.lists(st.tuples(st.sets(st.sampled_from(sorted(KIND))), st.booleans()), min_size=1, max_size=14)


def computed_in(asking: list[int], steps: int, every: float) -> set[int]:
    """Of the steps of one model and schedule that ask for a branch, those in which it is computed."""
    by_rule = asking[:: int(every)] if every >= 1 else [step for step in asking if step / steps < every]
    return {*asking[:1], *by_rule, *({steps - 1} & {*asking})}


@given(STEPS, EVERY, EVERY)
def test_branches_are_computed_as_defined(steps: Any, uncond: float, perturbed: float) -> None:
    """Every step asks for some branches, and may come after a change of model."""
    every = {"uncond": uncond, "perturbed": perturbed}
    calendar = Calendar(Reuse(refresh=every))
    spans = [sum(change for _, change in steps[: index + 1]) for index in range(len(steps))]
    for index, (asked, _) in enumerate(steps):
        names = ["cond", *sorted(asked)]
        plan = StepPlan({name: BRANCHES[name] for name in names}, "")
        due = calendar.due(Step(index, len(steps), 0.5, 4.0), plan, spans[index])
        expected, fresh = {"cond"}, {"cond"} if index in (0, spans.index(spans[index])) else set()
        for name in asked:
            asking = [i for i, (one, _) in enumerate(steps) if name in one and spans[i] == spans[index]]
            if index in computed_in(asking, len(steps), every[KIND[name]]):
                expected.add(name)
            if asking[0] == index:
                fresh.add(name)
        assert {*due.branches} == expected
        assert {*due.fresh} == fresh
        assert due.whole == (bool(fresh) or index == len(steps) - 1)
        calendar.done(plan, due.branches)


def test_what_a_branch_looks_at_is_computed_with_it() -> None:
    looking = Branch("uncond", Perturbation((1,), BlurAttended(1.0), source="uncond"))
    plan = StepPlan({"uncond": Branch("uncond"), "cond": Branch("cond"), "looking": looking}, "")
    alone = StepPlan({name: one for name, one in plan.branches.items() if name != "looking"}, "")
    calendar = Calendar(Reuse(refresh={"uncond": 3}))
    found = []
    for index, asked in enumerate((alone, plan, plan, plan, plan)):
        due = calendar.due(Step(index, 9, 0.5, 4.0), asked)
        found.append(list(due.branches))
        calendar.done(asked, due.branches)
    every = ["uncond", "cond", "looking"]
    assert found == [["uncond", "cond"], every, ["cond"], ["cond"], every]


def test_another_perturbation_is_another_branch() -> None:
    calendar = Calendar(Reuse(refresh={"perturbed": 5}))
    found = []
    for index, block in enumerate((1, 1, 2, 2, 1, 1, 1)):
        branches = {"cond": BRANCHES["cond"], "weak": Branch("cond", Perturbation((block,), SkipBlock()))}
        due = calendar.due(Step(index, 7, 0.5, 4.0), StepPlan(branches, ""))
        calendar.done(StepPlan(branches, ""), due.branches)
        found.append("weak" in due.branches)
    assert found == [True, False, True, False, True, False, True]


def test_a_skipped_step_leaves_branches_due() -> None:
    calendar, plan = Calendar(Reuse(refresh={"uncond": 2}, cache=0.1)), StepPlan(BRANCHES, "")
    found = []
    for index in range(7):
        due = calendar.due(Step(index, 7, 0.5, 4.0), plan)
        skipped = index in (2, 3)
        assert not (due.whole and skipped)
        calendar.done(plan, {} if skipped else due.branches)
        found.append("uncond" in due.branches)
    assert found == [True, False, True, True, True, False, True]


def test_without_a_plain_conditional_branch_all_are_computed() -> None:
    calendar, plan = Calendar(Reuse(refresh={"uncond": 3})), StepPlan({"uncond": BRANCHES["uncond"]}, "")
    for index in range(4):
        due = calendar.due(Step(index, 4, 0.5, 4.0), plan)
        calendar.done(plan, due.branches)
        assert due.branches == plan.branches and due.whole


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("uncond=2", {"uncond": 2}),
        ("perturbed=3,uncond=2", {"uncond": 2, "perturbed": 3}),
        ("uncond=0.5, perturbed=1", {"uncond": 0.5, "perturbed": 1}),
        ("perturbed=1.0", {"perturbed": 1}),
    ],
)
def test_text_yaml_and_python_say_the_same(text: str, plain: dict[str, float]) -> None:
    read = REFRESH.from_text(text)
    assert read == REFRESH.from_plain(plain) == Reuse(refresh=plain).refresh
    assert REFRESH.to_plain(read) == plain
    assert hash(Reuse(refresh=plain)) == hash(Reuse(refresh=read))


@pytest.mark.parametrize("value", (0, -1, 1.5, True, "2", None, float("nan"), float("inf"), 0.0))
def test_numbers_that_mean_nothing_are_refused(value: Any) -> None:
    with pytest.raises(SettingError, match="refresh must be numbers of steps from 1, or fractions"):
        Reuse(refresh={"uncond": value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cond=2", "which is one of uncond, perturbed, got 'cond'"),
        ("uncond", "such as uncond=2,perturbed=3, got 'uncond'"),
        ("uncond=2,uncond=3", "each named once"),
        ("uncond=0", "steps from 1"),
    ],
)
def test_bad_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        REFRESH.from_text(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache": -0.1}, "cache must be from 0 to 1, got -0.1"),
        ({"refresh": 3}, "refresh must be steps by branch"),
        ({"prefix": 1}, "prefix must be True or False, got 1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Reuse(**settings)

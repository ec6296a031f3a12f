"""Branches and words of plans that no formula's value depends on; each was a change that no test noticed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oseg_video.guidance import combine
from oseg_video.guidance.methods import OSEG, S2, TAG, TAGCFG, OSEGReleased, Unguided
from oseg_video.guidance.perturbations import SkipBlock
from oseg_video.guidance.plan import Branch, Step
from oseg_video.settings import SettingError


def step(scale: float) -> Step:
    return Step(2, 10, 0.5, scale)


@pytest.mark.parametrize(
    ("guidance", "formula"),
    [
        (Unguided(), "C"),
        (TAGCFG(guidance_scale=3.0), "C + 2 (C - U) + 1 A(C - U; tangent to x)"),
        (TAGCFG(guidance_scale=3.0, relative=True), "C + 2 (C - U) + 1 A(C - U; tangent to x, relative)"),
    ],
)
def test_a_plan_says_its_formula(guidance, formula) -> None:
    assert guidance.plan(step(3.0)).formula == formula


def test_what_is_done_to_the_conditional_prediction_alone_needs_that_branch_only() -> None:
    assert dict(TAG().plan(step(1.0)).branches) == {"cond": Branch("cond")}


def test_blocks_that_are_drawn_stand_in_their_order_also_where_some_have_names() -> None:
    plan = S2(guidance_scale=5.0, blocks=("mid", 3, 5), dropped=1.0).plan(step(5.0))
    assert plan.branches["perturbed"].perturbation.blocks == (3, 5, "mid")


def test_what_is_no_text_guidance_is_refused_with_what_is() -> None:
    with pytest.raises(SettingError, match=r"a text guidance, one of (\w+\(\), )+\w+\(\), got 3$"):
        OSEG(text=3, blocks=(1,))  # type: ignore[arg-type]


def test_the_released_code_takes_a_tenth_at_first() -> None:
    plan = OSEGReleased(guidance_scale=3.0, blocks=(1,)).plan(Step(0, 10, 1.0, 3.0))
    assert (dict(plan.branches), plan.formula) == ({"cond": Branch("cond")}, "0.1 C")
    assert torch.equal(plan.rule(torch.tensor([2.0])), torch.tensor([2.0]) * 0.1)


@pytest.mark.parametrize("skip", [False, True])
def test_the_released_code_then_perturbs_one_branch_or_both(skip: bool) -> None:
    method = OSEGReleased(guidance_scale=3.0, scale=0.5, blocks=(1,), skip_conditional=skip)
    plan = method.plan(step(3.0))
    changes = {
        name: (branch.condition, branch.perturbation and branch.perturbation.change)
        for name, branch in plan.branches.items()
    }
    expected = {"cond": ("cond", None), "uncond_perturbed": ("uncond", method.change)}
    assert changes == expected | ({"cond_perturbed": ("cond", SkipBlock())} if skip else {})
    assert plan.formula == f"C + 2 (C - 0.98 a U~) + 0.5 (C - 0.98 a {'C~' if skip else 'C'})"
    given = {name: torch.randn(2, 3, 4) for name in changes}
    assert torch.equal(plan.rule(**given), combine.oseg_released(**given, guidance_scale=3.0, scale=0.5))
    alone = replace(method, guidance_scale=1.0).plan(step(1.0))
    assert [*alone.branches] == [name for name in changes if name != "uncond_perturbed"]
    assert torch.equal(
        alone.rule(**{name: given[name] for name in alone.branches}),
        combine.oseg_released(**given, guidance_scale=1.0, scale=0.5),
    )

"""Branches and words of plans that no formula's value depends on; each was a change that no test noticed."""

from __future__ import annotations

import pytest

from oseg_video.guidance.methods import OSEG, S2, TAG, TAGCFG, Unguided
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

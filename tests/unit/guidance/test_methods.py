"""Guidance methods as data: the branches of a step, the rule's formula, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from oseg_video.guidance import methods
from oseg_video.guidance.methods import (
    APG,
    CFG,
    METHODS,
    NAG,
    OSEG,
    PAG,
    S2,
    SEG,
    STG,
    Guidance,
    OSEGReleased,
)
from oseg_video.guidance.perturbations import BlurQueries, ReplaceAttention, SkipBlock
from oseg_video.guidance.plan import Branch, Step
from oseg_video.settings.schedule import Schedule
from oseg_video.types import OsegVideoError


def step(index: int = 1, noise_level: float = 0.5, pipeline_scale: float = 4.0) -> Step:
    return Step(index=index, count=10, noise_level=noise_level, pipeline_scale=pipeline_scale)


def predictions(names: Any, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(2, 3, 4, generator=generator) for name in names}


def branches_of(guidance: Guidance, at: Step) -> dict[str, tuple[str, bool]]:
    plan = guidance.plan(at)
    return {name: (b.condition, b.perturbation is not None) for name, b in plan.branches.items()}


def test_every_method_is_known_by_its_name() -> None:
    assert {name: method.name for name, method in METHODS.items()} == {n: n for n in METHODS}
    files = {path.stem.replace("_", "-") for path in Path(methods.__file__).parent.glob("[a-z]*.py")}
    assert set(METHODS) == files - {"base"}
    assert {"none", "cfg", "apg", "stg", "pag", "seg", "oseg", "oseg-released"} <= set(METHODS)


def test_cfg_leaves_the_pipeline_its_own_rule_only_where_that_is_the_same() -> None:
    assert CFG(guidance_scale=4.0).plan(step()).rule is None
    assert CFG().plan(step()).rule is None
    assert CFG(guidance_scale=5.0).plan(step()).rule is not None
    assert CFG(guidance_scale=4.0, rescale=0.5).plan(step()).rule is not None


def test_cfg_outside_its_interval_is_the_conditional_prediction() -> None:
    plan = CFG(guidance_scale=4.0, interval=(0.5, 1.0)).plan(step(index=4))
    assert plan.branches == {"cond": Branch("cond")}
    given = predictions(["cond"])
    assert plan.rule is not None and torch.equal(plan.rule(**given), given["cond"])
    assert CFG(guidance_scale=4.0, interval=(0.5, 1.0)).plan(step(index=5)).rule is None


@pytest.mark.parametrize("method", (STG, PAG, SEG))
def test_stg_pag_and_seg_push_away_from_the_perturbed_conditional_branch(method: type) -> None:
    guidance = method(guidance_scale=3.0, blocks=(5,), scale=0.5)
    assert branches_of(guidance, step()) == {
        "uncond": ("uncond", False),
        "cond": ("cond", False),
        "perturbed": ("cond", True),
    }
    p = predictions(["uncond", "cond", "perturbed"])
    expected = p["uncond"] + 3 * (p["cond"] - p["uncond"]) + 0.5 * (p["cond"] - p["perturbed"])
    assert_close(guidance.plan(step()).rule(**p), expected)


@pytest.mark.parametrize("method", (STG, PAG, SEG, S2, OSEG))
def test_a_perturbed_uncond_takes_the_place_of_a_third_branch(method: type) -> None:
    guidance = method(guidance_scale=3.0, blocks=(5,), interval=(0.0, 0.5), perturb="uncond")
    assert branches_of(guidance, step()) == {"cond": ("cond", False), "uncond_perturbed": ("uncond", True)}
    p = predictions(["cond", "uncond_perturbed"])
    expected = p["uncond_perturbed"] + 3 * (p["cond"] - p["uncond_perturbed"])
    assert_close(guidance.plan(step()).rule(**p), expected)
    assert guidance.plan(step()).formula == "C + 2 (C - U~)"
    # lambda weighs a push that there is not; outside of the interval, and at scale 1, nothing is perturbed.
    assert method(guidance_scale=3.0, blocks=(5,), scale=0.0, perturb="uncond").blocks_used == (5,)
    assert branches_of(guidance, step(index=7)) == {"cond": ("cond", False), "uncond": ("uncond", False)}
    follows = method(blocks=(5,), perturb="uncond", interval=(0.0, 0.5))
    assert branches_of(follows, step(pipeline_scale=1.0)) == {"cond": ("cond", False)}


def test_a_perturbed_uncond_is_treated_as_the_plain_one() -> None:
    guidance = STG(guidance_scale=3.0, blocks=(5,), perturb="uncond", text=APG(eta=0.0, momentum=0.0))
    p = predictions(["cond", "uncond_perturbed"])
    c, d = p["cond"].double(), (p["cond"] - p["uncond_perturbed"]).double()
    along = (c * d).sum((1, 2), keepdim=True) / (c * c).sum((1, 2), keepdim=True) * c
    assert_close(guidance.plan(step()).rule(**p).double(), c + 2 * (d - along), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", (STG, PAG, SEG, OSEG))
def test_every_method_may_perturb_both_as_on_osegs_slides(method: type) -> None:
    guidance = method(guidance_scale=3.0, scale=0.5, blocks=(5,), perturb="both")
    assert branches_of(guidance, step()) == {
        "cond": ("cond", False),
        "uncond_perturbed": ("uncond", True),
        "cond_perturbed": ("cond", True),
    }
    p = predictions(["cond", "uncond_perturbed", "cond_perturbed"])
    expected = p["cond"] + 2 * (p["cond"] - p["uncond_perturbed"]) + 0.5 * (p["cond"] - p["cond_perturbed"])
    assert_close(guidance.plan(step()).rule(**p), expected)
    if method is OSEG:
        assert guidance == OSEG(guidance_scale=3.0, scale=0.5, blocks=(5,))


def test_oseg_without_text_guidance_or_without_its_own_term_leaves_that_branch_out() -> None:
    only_own = OSEG(guidance_scale=1.0, scale=0.5, blocks=(5,))
    assert set(branches_of(only_own, step())) == {"cond", "cond_perturbed"}
    only_text = OSEG(guidance_scale=3.0, scale=0.0, blocks=(5,))
    assert set(branches_of(only_text, step())) == {"cond", "uncond_perturbed"}
    p = predictions(["cond", "uncond_perturbed"])
    expected = p["cond"] + 2 * (p["cond"] - p["uncond_perturbed"])
    assert_close(only_text.plan(step()).rule(**p), expected)


def test_nag_runs_the_conditional_branch_alone_which_reads_the_negative_text() -> None:
    branch = NAG().plan(step(pipeline_scale=2.0)).branches["cond"]
    assert set(NAG().plan(step()).branches) == {"cond"} and branch.reads_negative
    assert branch.conditions == {"cond", "uncond"} and Branch("cond").conditions == {"cond"}
    p = predictions(["cond", "uncond"])
    assert torch.equal(NAG().plan(step()).rule(cond=p["cond"]), p["cond"])
    with_text = NAG(guidance_scale=3.0)
    assert branches_of(with_text, step()) == {"uncond": ("uncond", False), "cond": ("cond", True)}
    assert_close(with_text.plan(step()).rule(**p), p["uncond"] + 3 * (p["cond"] - p["uncond"]))
    assert with_text.plan(step()).formula == "C~ + 2 (C~ - U)"


def test_nag_asks_the_pipeline_for_a_negative_text_where_it_acts() -> None:
    assert NAG().largest_guidance_scale > 1 and NAG(guidance_scale=1.0).largest_guidance_scale > 1
    assert NAG(guidance_scale=5.0).largest_guidance_scale == 5.0
    for off in (NAG(scale=1.0), NAG(alpha=0.0), NAG(scale=Schedule(((1.0, 1.0), (0.5, 1.0))))):
        assert off.largest_guidance_scale == 1.0 and off.blocks_used == ()
        assert branches_of(off, step()) == {"cond": ("cond", False)}
    assert NAG(scale=Schedule(((1.0, 1.0), (0.5, 3.0)))).blocks_used == ("all",)


def test_the_released_rule_is_that_of_the_released_code() -> None:
    guidance = OSEGReleased(guidance_scale=3.0, scale=0.62, mix=0.67, blocks=(5,))
    first = guidance.plan(step(index=0))
    given = predictions(["cond"])
    assert_close(first.rule(**given), 0.1 * given["cond"])
    assert branches_of(guidance, step()) == {"cond": ("cond", False), "uncond_perturbed": ("uncond", True)}
    p = predictions(["cond", "uncond_perturbed"])
    scale = (p["cond"] * p["uncond_perturbed"]).sum((1, 2)) / p["uncond_perturbed"].square().sum((1, 2))
    weak = 0.98 * scale[:, None, None] * p["uncond_perturbed"]
    expected = p["cond"] + 2 * (p["cond"] - weak) + 0.62 * (p["cond"] - 0.98 * p["cond"])
    assert_close(guidance.plan(step()).rule(**p), expected)


def test_rescale_pulls_the_standard_deviation_to_that_of_cond() -> None:
    guidance = STG(guidance_scale=6.0, blocks=(1,), rescale=1.0)
    p = predictions(["uncond", "cond", "perturbed"])
    guided = guidance.plan(step()).rule(**p)
    assert_close(guided.std((1, 2)), p["cond"].std((1, 2)))


def test_scales_may_follow_the_noise_level() -> None:
    schedule = Schedule(((1.0, 1.0), (0.6, 0.0)))
    guidance = STG(guidance_scale=4.0, scale=schedule, blocks=(1,))
    assert "perturbed" in guidance.plan(step(noise_level=0.9)).branches
    assert guidance.plan(step(noise_level=0.5)).rule is None  # the pipeline's own CFG is all that is left


def change_of(guidance: Guidance) -> Any:
    (perturbation,) = {b.perturbation for b in guidance.plan(step()).branches.values() if b.perturbation}
    return perturbation.change


def test_what_each_method_does_inside_its_blocks() -> None:
    assert change_of(STG(blocks=(1,))) == SkipBlock()
    assert change_of(STG(blocks=(1,), mode="residual")) == SkipBlock()
    assert change_of(STG(blocks=(1,), mode="attention_skip")) == ReplaceAttention("input")
    assert change_of(STG(blocks=(1,), mode="attention_values")) == ReplaceAttention("values")
    assert change_of(PAG(blocks=(1,))) == ReplaceAttention("values")
    assert change_of(SEG(blocks=(1,), blur_sigma=(0.0, 2.0))) == BlurQueries((0.0, 2.0), "symmetric")


LEVELS = (0.9, 0.5, 0.1)
FALLING = Schedule(((1.0, 1.5), (0.6, 0.0), (0.2, 0.5)))


@pytest.mark.parametrize("method", (STG, PAG, SEG, OSEG))
def test_every_scale_and_rescale_may_follow_the_noise_level(method: type) -> None:
    scheduled = method(
        blocks=(1,),
        guidance_scale=Schedule(((1.0, 1.0), (0.6, 6.0), (0.2, 2.0))),
        rescale=Schedule(((1.0, 0.0), (0.6, 0.3), (0.2, 1.0))),
        scale=FALLING,
    )
    for level, w, factor, weight in zip(
        LEVELS, (1.0, 6.0, 2.0), (0.0, 0.3, 1.0), (1.5, 0.0, 0.5), strict=True
    ):
        constant = method(blocks=(1,), guidance_scale=w, rescale=factor, scale=weight)
        at = step(noise_level=level)
        assert scheduled.plan(at).branches == constant.plan(at).branches
        p = predictions(scheduled.plan(at).branches)
        assert torch.equal(scheduled.plan(at).rule(**p), constant.plan(at).rule(**p))


@pytest.mark.parametrize("method", (STG, PAG, SEG, OSEG))
def test_blocks_may_follow_the_noise_level(method: type) -> None:
    blocks = Schedule(((1.0, (5, "mid", 3)), (0.6, ()), (0.2, ("up.1:temporal", "dual:2"))))
    guidance = method(blocks=blocks, guidance_scale=4.0)
    used = {
        level: {
            b.perturbation.blocks
            for b in guidance.plan(step(noise_level=level)).branches.values()
            if b.perturbation
        }
        for level in LEVELS
    }
    assert used == {0.9: {(3, 5, "mid")}, 0.5: set(), 0.1: {("dual:2", "up.1:temporal")}}
    assert guidance.plan(step(noise_level=0.5)).rule is None  # the pipeline's own CFG is all that is left
    assert guidance.blocks_used == (3, 5, "dual:2", "mid", "up.1:temporal")
    assert hash(guidance) == hash(method(blocks=blocks, guidance_scale=4.0))


def test_blocks_used_are_those_of_a_method_that_perturbs() -> None:
    assert CFG().blocks_used == ()
    assert STG(blocks="mid").blocks_used == ("mid",)
    assert STG(blocks=[10, "mid", 3, "dual:2"]).blocks_used == (3, 10, "dual:2", "mid")
    assert STG(blocks=(1,), scale=0.0).blocks_used == ()
    assert STG(blocks=(1,), scale=Schedule(((1.0, 0.0), (0.5, 0.0)))).blocks_used == ()
    assert STG(blocks=(1,), scale=FALLING).blocks_used == (1,)
    assert OSEG(blocks=(1,), scale=0.0).blocks_used == (1,)
    assert OSEG(blocks=(1,), scale=0.0, perturb="cond").blocks_used == ()


def test_the_largest_guidance_scale_says_whether_uncond_is_needed() -> None:
    assert CFG().largest_guidance_scale is None
    assert CFG(guidance_scale=3.0).largest_guidance_scale == 3.0
    assert CFG(guidance_scale=Schedule(((1.0, 1.0), (0.5, 8.0), (0.1, 0.0)))).largest_guidance_scale == 8.0


def test_an_interval_applies_to_schedules_too() -> None:
    guidance = STG(blocks=(1,), scale=FALLING, interval=(0.5, 1.0))
    assert "perturbed" not in guidance.plan(step(index=4, noise_level=0.9)).branches
    assert "perturbed" in guidance.plan(step(index=5, noise_level=0.9)).branches


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    (
        (NAG, {"scale": 0.5}, "scale must be at least 1, got 0.5"),
        (NAG, {"tau": 0.9}, "tau must be at least 1, got 0.9"),
        (NAG, {"alpha": 1.5}, "alpha must be from 0 to 1, got 1.5"),
        (CFG, {"guidance_scale": -1.0}, "guidance_scale must be at least 0, got -1.0"),
        (CFG, {"guidance_scale": math.nan}, "guidance_scale must be a number, got nan"),
        (CFG, {"guidance_scale": True}, "guidance_scale must be a number, got True"),
        (CFG, {"rescale": 1.5}, "rescale must be from 0 to 1, got 1.5"),
        (CFG, {"interval": (0.7, 0.2)}, "interval must be two numbers with 0 <= start < stop <= 1"),
        (CFG, {"interval": (0.0, 1.2)}, "interval must be two numbers"),
        (STG, {"blocks": ()}, "blocks must name at least one block for STG"),
        (STG, {"blocks": (-1,)}, "blocks must be block indices .* or names .*, got -1"),
        (STG, {"blocks": (True,)}, "blocks must be block indices .*, got True"),
        (STG, {"blocks": "Up 1"}, "blocks must be block indices .*, got 'Up 1'"),
        (STG, {"blocks": ("",)}, "blocks must be block indices .*, got ''"),
        (STG, {"blocks": ("mid", "mid")}, "blocks must be blocks that are each named once"),
        (STG, {"blocks": Schedule(((1.0, ()), (0.5, ())))}, "blocks must name at least one block for STG"),
        (STG, {"blocks": Schedule(((1.0, (2, 2)),))}, "blocks must be blocks that are each named once"),
        (STG, {"blocks": Schedule(((1.0, 0.5),))}, "blocks must be block indices"),
        (
            STG,
            {"blocks": (1,), "mode": "skip"},
            "mode must be one of residual, attention_skip, attention_values",
        ),
        (
            STG,
            {"blocks": (1,), "scale": Schedule(((1.0, (1,)),))},
            "scale must be a number",
        ),
        (
            PAG,
            {"blocks": (1,), "scale": Schedule(((1.0, 1.0), (0.5, -1.0)))},
            "scale must be at least 0, got -1.0",
        ),
        (PAG, {"blocks": ()}, "blocks must name at least one block for PAG"),
        (
            CFG,
            {"rescale": Schedule(((1.0, 0.0), (0.5, 1.5)))},
            "rescale must be from 0 to 1, got 1.5",
        ),
        (STG, {"blocks": (1,), "perturb": "U"}, "perturb must be one of cond, uncond, both, got 'U'"),
        (
            PAG,
            {"blocks": (1,), "perturb": "uncond", "guidance_scale": 1.0},
            "perturb uncond needs text guidance, a guidance_scale other than 1",
        ),
        (STG, {"blocks": (2, 2)}, "blocks must be blocks that are each named once"),
        (SEG, {"blocks": (1,), "blur_sigma": -1.0}, "blur_sigma must be at least 0, got -1.0"),
        (SEG, {"blocks": (1,), "blur_sigma": math.nan}, "blur_sigma must be a number, got nan"),
        (SEG, {"blocks": (1,), "boundary": "zero"}, "boundary must be one of"),
        (OSEG, {"blocks": ()}, "blocks must name at least one block for OSEG"),
        (OSEG, {"blocks": (1,), "scale": math.inf}, "scale must be a finite number"),
        (OSEG, {"blocks": (1,), "mix": 1.1}, "mix must be from 0 to 1, got 1.1"),
        (OSEG, {"blocks": (1,), "keep_parallel": -0.1}, "keep_parallel must be from 0 to 1, got -0.1"),
        (OSEG, {"blocks": (1,), "reference": "text"}, "reference must be token, frame, clip or principal:R"),
        (OSEGReleased, {"blocks": (1,), "mix": -0.1}, "mix must be from 0 to 1, got -0.1"),
        (OSEGReleased, {}, "blocks must name at least one block for OSEGReleased"),
    ),
)
def test_bad_settings_are_refused_by_one_line(method: type, settings: dict, message: str) -> None:
    with pytest.raises(OsegVideoError, match=message) as caught:
        method(**settings)
    assert "\n" not in str(caught.value)

"""Every method on every pipeline class: what the scheduler is given is the method's formula, in float64.

Together with the tests of the branches themselves (test_adapters, test_hunyuan, test_unets, test_wan,
test_cogvideox) this is what stands behind the table of models and methods in the README.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from oseg_video import (
    APG,
    CFG,
    FDG,
    MAMBOG,
    MG,
    NAG,
    OSEG,
    PAG,
    S2,
    SAG,
    SEG,
    SMCCFG,
    STG,
    TAG,
    TAGCFG,
    CFGZeroStar,
    guided,
)
from oseg_video.adapters import adapter_for
from oseg_video.guidance.bands import low_band
from oseg_video.guidance.methods import METHODS, Guidance
from oseg_video.guidance.plan import Step, StepPlan
from tests.integration.families import CASES, SCALE, Case

PUSH = 1.5
BLOCKS = (2,)


class Predictions(dict[str, Tensor]):
    """What a rule took, and the step that it was for."""

    step: Step


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per sample, [B, 1, ...]."""
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))


def text_term(p: Predictions) -> Tensor:
    return p["cond"] + (SCALE - 1) * (p["cond"] - p["uncond"])


def zero_star_term(p: Predictions) -> Tensor:
    kept = inner(p["cond"], p["uncond"]) / inner(p["uncond"], p["uncond"]) * p["uncond"]
    return p["cond"] + (SCALE - 1) * (p["cond"] - kept)


def projected_term(p: Predictions) -> Tensor:
    difference = p["cond"] - p["uncond"]
    along = inner(difference, p["cond"]) / inner(p["cond"], p["cond"]) * p["cond"]
    return p["cond"] + (SCALE - 1) * (difference - 0.75 * along)


def damped_term(p: Predictions) -> Tensor:
    difference = p["cond"] - p["uncond"]
    ratio = (inner(difference, difference) / inner(p["uncond"], p["uncond"])).sqrt()
    return p["uncond"] + (1 + (SCALE - 1) * torch.exp(-ratio)) * difference


def banded_term(p: Predictions) -> Tensor:
    """Bands of frames; a sequence of tokens as the frames that it stands for."""
    difference, grid = p["cond"] - p["uncond"], p.step.grid
    weighed = difference.clone()
    if grid is None:
        weighed = low_band(difference) + 2.0 * (difference - low_band(difference))
    else:
        stop = difference.shape[1] - p.step.behind
        own = slice(stop - grid.tokens, stop)
        clip = difference[:, own].mT.unflatten(2, grid.shape)
        weighed[:, own] = (2 * clip - low_band(clip)).flatten(2).mT
    return p["cond"] + (SCALE - 1) * weighed


def tangent_of(x: Tensor, p: Predictions) -> Tensor:
    assert p.step.sample is not None
    sample = p.step.sample.double()
    return x - inner(x, sample) / inner(sample, sample) * sample


def amplified_term(p: Predictions) -> Tensor:
    return text_term(p) + 0.5 * tangent_of(text_term(p), p)


def aligned_term(p: Predictions) -> Tensor:
    tangent = tangent_of(p["cond"] - p["uncond"], p)
    return text_term(p) + inner(p["cond"], tangent) / inner(tangent, tangent) * tangent


def momentum_term(p: Predictions) -> Tensor:
    now = text_term(p)
    before = p.step.memory.setdefault("expected", now)
    p.step.memory["expected"] = 0.4 * now + 0.6 * before
    return now + 2.0 * (now - before)


def switched_term(p: Predictions) -> Tensor:
    error = p["cond"] - p["uncond"]
    before = p.step.memory.get("expected", error)
    p.step.memory["expected"] = error - 0.2 * torch.sign(error - before + 5 * before)
    return p["uncond"] + SCALE * p.step.memory["expected"]


def pushed(term: Callable[[Predictions], Tensor]) -> Callable[[Predictions], Tensor]:
    return lambda p: term(p) + PUSH * (p["cond"] - p["perturbed"])


def pushed_from_uncond(p: Predictions) -> Tensor:
    return text_term(p) + PUSH * (p["uncond"] - p["perturbed"])


def slides(p: Predictions) -> Tensor:
    text = (SCALE - 1) * (p["cond"] - p["uncond_perturbed"])
    return p["cond"] + text + PUSH * (p["cond"] - p["cond_perturbed"])


def from_perturbed_uncond(p: Predictions) -> Tensor:
    return p["uncond_perturbed"] + SCALE * (p["cond"] - p["uncond_perturbed"])


_TEXT: dict[str, Any] = {"guidance_scale": SCALE}
_PROJECTED = {"eta": 0.25, "momentum": 0.0}
EXPECTED: dict[str, tuple[Guidance, Callable[[Predictions], Tensor]]] = {
    # A scale other than the pipeline's, so that ours is computed and not the pipeline's own.
    "cfg": (CFG(**_TEXT), text_term),
    "cfg-zero": (CFGZeroStar(**_TEXT, zero_steps=0), zero_star_term),
    "apg": (APG(**_TEXT, **_PROJECTED), projected_term),
    "mambo-g": (MAMBOG(**_TEXT, damping=1.0), damped_term),
    "fdg": (FDG(**_TEXT, detail=2.0), banded_term),
    "tag": (TAG(**_TEXT, tangent=1.5), amplified_term),
    "tag-cfg": (TAGCFG(**_TEXT), aligned_term),
    "mg": (MG(**_TEXT, history=2.0, history_decay=0.6), momentum_term),
    "smc-cfg": (SMCCFG(**_TEXT), switched_term),
    "stg": (STG(**_TEXT, blocks=BLOCKS, scale=PUSH), pushed(text_term)),
    "stg, attention skip": (
        STG(**_TEXT, blocks=BLOCKS, scale=PUSH, mode="attention_skip"),
        pushed(text_term),
    ),
    "stg, attention values": (
        STG(**_TEXT, blocks=BLOCKS, scale=PUSH, mode="attention_values"),
        pushed(text_term),
    ),
    "stg, uncond": (STG(**_TEXT, blocks=BLOCKS, perturb="uncond"), from_perturbed_uncond),
    "stg, both": (STG(**_TEXT, blocks=BLOCKS, scale=PUSH, perturb="both"), slides),
    # All that it may draw, so that it differs from STG's block in both steps.
    "s2": (
        S2(**_TEXT, blocks=(1, 2), scale=PUSH, dropped=1, interval=(0.0, 1.0)),
        pushed(text_term),
    ),
    # In another block: in this one it is STG with attention values.
    "pag": (PAG(**_TEXT, blocks=(1,), scale=PUSH), pushed(text_term)),
    "seg": (SEG(**_TEXT, blocks=BLOCKS, scale=PUSH), pushed(text_term)),
    "oseg": (OSEG(**_TEXT, blocks=BLOCKS, scale=PUSH), slides),
    "oseg, plain uncond, cfg-zero": (
        OSEG(
            **_TEXT,
            blocks=BLOCKS,
            scale=PUSH,
            perturb="cond",
            text=CFGZeroStar(zero_steps=0),
        ),
        pushed(zero_star_term),
    ),
}
# For UNets only.
SELF_ATTENTION = {
    "sag": (SAG(**_TEXT, blocks=BLOCKS, scale=PUSH), pushed_from_uncond),
}
# For families with a text.
TEXT_ATTENTION = {
    "nag": (NAG(), lambda p: p["cond"]),
    "nag, text": (NAG(**_TEXT), text_term),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded(Guidance):
    """Another guidance, with every prediction that its rule took, and its result."""

    inner: Guidance
    taken: list[tuple[Predictions, Tensor]] = dataclasses.field(default_factory=list)
    name = "recorded"

    @property
    def largest_guidance_scale(self) -> float | None:
        return self.inner.largest_guidance_scale

    @property
    def blocks_used(self) -> tuple[int | str, ...]:
        return self.inner.blocks_used

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def plan(self, step: Step) -> StepPlan:
        plan = self.inner.plan(step)
        assert plan.rule is not None

        def rule(**predictions: Tensor) -> Tensor:
            result = plan.rule(**predictions)
            exact = Predictions({name: value.double() for name, value in predictions.items()})
            exact.step = step
            self.taken.append((exact, result))
            return result

        return dataclasses.replace(plan, rule=rule)


def test_every_method_is_here() -> None:
    assert {*METHODS} - {"none", "oseg-released"} <= {
        guidance.name for guidance, _ in (EXPECTED | SELF_ATTENTION | TEXT_ATTENTION).values()
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_without_text_guidance_a_perturbed_branch_is_pushed_away_from(case: Case) -> None:
    """`C + lambda (C - P)`, two passes, as distilled models are run."""
    pipe = case.build()
    pipe.set_progress_bar_config(disable=True)
    for method in (STG, S2, PAG, SEG, OSEG):
        interval = {"interval": (0.0, 1.0), "dropped": 1.0} if method is S2 else {}
        recorded = Recorded(inner=method(guidance_scale=1.0, blocks=BLOCKS, scale=PUSH, **interval))
        with guided(pipe, recorded) as report:
            case.run(pipe, guidance_scale=1.0, num_inference_steps=2)
        assert len(recorded.taken) == 2 * len(adapter_for(pipe).streams), method
        for p, result in recorded.taken:
            assert set(p) in ({"cond", "perturbed"}, {"cond", "cond_perturbed"})
            cond, weak = p.values()
            assert_close(result.double(), cond + PUSH * (cond - weak), rtol=1e-4, atol=1e-4)
        assert all(sum(len(one.branches) for one in step.passes) == 2 for step in report.steps)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_scheduler_gets_the_formula(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = case.build()
    pipe.set_progress_bar_config(disable=True)
    given: list[tuple[Tensor, Tensor]] = []
    scheduler = type(pipe.scheduler)  # LTX-2 has one for each of its two streams, made in its call
    step = scheduler.step
    results = {}
    streams = len(adapter_for(pipe).streams)

    def record(self: Any, model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        *_, latents = (x for x in args if isinstance(x, Tensor) and x.shape == model_output.shape)
        given.append((model_output.clone(), latents.clone()))
        return step(self, model_output, *args, **kwargs)

    monkeypatch.setattr(scheduler, "step", record)
    maps = adapter_for(pipe).attention_maps(pipe.unet) if hasattr(pipe, "unet") else []
    methods = EXPECTED | (SELF_ATTENTION if maps else {})
    methods |= TEXT_ATTENTION if adapter_for(pipe).text_attention else {}
    for name, (guidance, expected) in methods.items():
        recorded = Recorded(inner=guidance)
        given.clear()
        with guided(pipe, recorded):
            results[name] = case.run(pipe, guidance_scale=SCALE - 1, num_inference_steps=2)
        assert len(recorded.taken) == len(given) == 2 * streams, name
        for number, ((p, result), (handed, latents)) in enumerate(zip(recorded.taken, given, strict=True)):
            assert_close(
                result.double(), expected(p), rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
            # The latents of the step, up to a factor.
            assert p.step.sample is not None and p.step.sample.shape == result.shape
            if adapter_for(pipe).sampling.combines_denoised:
                result = (p.step.sample - result) / p.step.noise_level
            hand_on = case.handed_on if number % streams == 0 else Case.handed_on
            own = slice(case.own if number % streams == 0 else None)
            assert_close(handed[:, own], hand_on(pipe, result)[:, own], rtol=1e-5, atol=1e-5)
            seen = hand_on(pipe, p.step.sample).double()
            assert_close(
                inner(seen, latents) ** 2, inner(seen, seen) * inner(latents, latents), rtol=1e-3, atol=0
            )
    names = list(results)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert not torch.allclose(results[one], results[other]), f"{one} and {other} are the same"

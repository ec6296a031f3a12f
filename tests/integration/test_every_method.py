"""Every method on every pipeline class: what the scheduler is given is the method's formula, in float64.

Together with the tests of the branches themselves (test_adapters, test_hunyuan, test_unets, test_wan,
test_cogvideox) this is what stands behind the table of models and methods in the README.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from oseg_video import APG, CFG, OSEG, PAG, SAG, SEG, STG, CFGZeroStar, guided
from oseg_video.adapters import adapter_for
from oseg_video.guidance.methods import METHODS, Guidance
from oseg_video.guidance.plan import Step, StepPlan
from tests.integration.families import CASES, SCALE, Case

PUSH = 1.5
BLOCKS = (2,)

Predictions = Mapping[str, Tensor]


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


def pushed(term: Callable[[Predictions], Tensor]) -> Callable[[Predictions], Tensor]:
    return lambda p: term(p) + PUSH * (p["cond"] - p["perturbed"])


def pushed_from_uncond(p: Predictions) -> Tensor:
    return text_term(p) + PUSH * (p["uncond"] - p["perturbed"])


def slides(p: Predictions) -> Tensor:
    text = (SCALE - 1) * (p["cond"] - p["uncond_perturbed"])
    return p["cond"] + text + PUSH * (p["cond"] - p["cond_perturbed"])


_TEXT: dict[str, Any] = {"guidance_scale": SCALE}
_PROJECTED = {"eta": 0.25, "momentum": 0.0}
EXPECTED: dict[str, tuple[Guidance, Callable[[Predictions], Tensor]]] = {
    # A scale other than the pipeline's, so that ours is computed and not the pipeline's own.
    "cfg": (CFG(**_TEXT), text_term),
    "cfg-zero": (CFGZeroStar(**_TEXT, zero_steps=0), zero_star_term),
    "apg": (APG(**_TEXT, **_PROJECTED), projected_term),
    "stg": (STG(**_TEXT, blocks=BLOCKS, scale=PUSH), pushed(text_term)),
    "stg, attention skip": (
        STG(**_TEXT, blocks=BLOCKS, scale=PUSH, mode="attention_skip"),
        pushed(text_term),
    ),
    "stg, attention values": (
        STG(**_TEXT, blocks=BLOCKS, scale=PUSH, mode="attention_values"),
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
            perturb_unconditional=False,
            text=CFGZeroStar(zero_steps=0),
        ),
        pushed(zero_star_term),
    ),
}
# For UNets only.
SELF_ATTENTION = {
    "sag": (SAG(**_TEXT, blocks=BLOCKS, scale=PUSH), pushed_from_uncond),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded(Guidance):
    """Another guidance, with every prediction that its rule took, and its result."""

    inner: Guidance
    taken: list[tuple[dict[str, Tensor], Tensor]] = dataclasses.field(default_factory=list)
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
            self.taken.append((predictions, result))
            return result

        return dataclasses.replace(plan, rule=rule)


def test_every_method_is_here() -> None:
    assert {*METHODS} - {"none", "oseg-released"} <= {
        guidance.name for guidance, _ in (EXPECTED | SELF_ATTENTION).values()
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_scheduler_gets_the_formula(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = case.build()
    pipe.set_progress_bar_config(disable=True)
    given: list[Tensor] = []
    step = pipe.scheduler.step
    results = {}

    def record(model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append(model_output.clone())
        return step(model_output, *args, **kwargs)

    monkeypatch.setattr(pipe.scheduler, "step", record)
    maps = adapter_for(pipe).attention_maps(pipe.unet) if hasattr(pipe, "unet") else []
    methods = EXPECTED | SELF_ATTENTION if maps else EXPECTED
    for name, (guidance, expected) in methods.items():
        recorded = Recorded(inner=guidance)
        given.clear()
        with guided(pipe, recorded):
            results[name] = case.run(pipe, guidance_scale=SCALE - 1, num_inference_steps=2)
        assert len(recorded.taken) == len(given) == 2, name
        for (predictions, result), handed in zip(recorded.taken, given, strict=True):
            exact = expected({key: value.double() for key, value in predictions.items()})
            assert_close(result.double(), exact, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
            assert_close(handed, case.handed_on(pipe, result), rtol=1e-5, atol=1e-5)
    names = list(results)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert not torch.allclose(results[one], results[other]), f"{one} and {other} are the same"

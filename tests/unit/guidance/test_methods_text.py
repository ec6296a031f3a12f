"""How the text difference is treated: every treatment in every method, against numpy loops over samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from oseg_video.guidance.methods import APG, CFG, OSEG, PAG, SEG, STG, CFGZeroStar, Guidance, TextGuidance
from oseg_video.guidance.plan import Step
from oseg_video.types import SettingError

SEEDS = st.integers(0, 2**31 - 1)
WEIGHTS = st.floats(1.1, 12)
PERTURBED = (STG, PAG, SEG, OSEG)
APG_OPTIONS = {"eta": 0.3, "momentum": -0.6, "norm_threshold": 2.0}


def step(index: int = 2, count: int = 10, pipeline_scale: Any = 4.0, memory: dict | None = None) -> Step:
    return Step(index, count, 0.5, pipeline_scale, {} if memory is None else memory)


def random_predictions(
    guidance: Guidance, at: Step, seed: int = 0, dtype: torch.dtype = torch.float64
) -> dict[str, torch.Tensor]:
    """One prediction for every branch of the plan."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(2, 3, 4, generator=generator, dtype=torch.float64).to(dtype)
        for name in guidance.plan(at).branches
    }


def perturbed(method: type, weight: float, **settings: Any) -> Guidance:
    return method(**{"scale": weight, "blocks": (1,), **settings})


def text_part(name: str, **options: Any) -> TextGuidance:
    """The text guidance of that name."""
    return {"cfg": CFG, "apg": APG, "cfg-zero": CFGZeroStar}[name](**options)


class Oracle:
    """`C + (w - 1) T + weight (C - P)` with numpy, one sample at a time, with an average of its own."""

    def __init__(self, text: str, eta: float = 0.0, momentum: float = -0.5, norm_threshold: float = 0.0):
        self.text, self.eta, self.momentum, self.norm_threshold = text, eta, momentum, norm_threshold
        self.averages: dict[int, np.ndarray] = {}

    def __call__(self, p: dict[str, torch.Tensor], w: float, weight: float = 0.0) -> torch.Tensor:
        cond = p["cond"].numpy()
        uncond = next((x.numpy() for name, x in p.items() if name.startswith("uncond")), None)
        weak = p.get("perturbed", p.get("cond_perturbed"))
        result = np.empty(cond.shape)
        for b, c in enumerate(cond):
            result[b] = c
            if uncond is not None:
                result[b] += (w - 1) * self.difference(b, c, uncond[b])
            if weak is not None:
                result[b] += weight * (c - weak.numpy()[b])
        return torch.from_numpy(result)

    def difference(self, b: int, c: np.ndarray, u: np.ndarray) -> np.ndarray:
        if self.text == "cfg":
            return c - u
        if self.text == "cfg-zero":
            return c - np.vdot(c, u) / np.vdot(u, u) * u
        d = c - u + self.momentum * self.averages.get(b, 0.0)
        self.averages[b] = d
        if self.norm_threshold:
            d = d / max(1.0, math.sqrt(np.vdot(d, d)) / self.norm_threshold)
        unit = c / math.sqrt(np.vdot(c, c))
        return d - (1 - self.eta) * np.vdot(d, unit) * unit


def test_the_new_methods_follow_their_papers() -> None:
    for guidance, oracle in (
        (CFGZeroStar(guidance_scale=5.0), Oracle("cfg-zero")),
        (APG(guidance_scale=5.0), Oracle("apg")),
        (APG(guidance_scale=5.0, **APG_OPTIONS), Oracle("apg", **APG_OPTIONS)),
    ):
        p = random_predictions(guidance, step())
        assert set(p) == {"cond", "uncond"}
        assert_close(guidance.plan(step()).rule(**p), oracle(p, 5.0))


def test_a_treatment_is_never_the_pipelines_own_rule() -> None:
    for guidance in (CFGZeroStar(), APG(), STG(blocks=(1,), scale=0.0, text=APG())):
        p = random_predictions(guidance, step())
        expected = Oracle("cfg-zero" if isinstance(guidance, CFGZeroStar) else "apg")(p, 4.0)
        assert_close(guidance.plan(step()).rule(**p), expected)


def test_cfg_zero_is_the_papers_expression() -> None:
    guidance = CFGZeroStar(guidance_scale=5.0)
    p = random_predictions(guidance, step())
    c, u = p["cond"], p["uncond"]
    a = torch.stack([torch.dot(x.flatten(), y.flatten()) / y.norm() ** 2 for x, y in zip(c, u, strict=True)])
    weak = a.view(2, 1, 1) * u
    assert_close(guidance.plan(step()).rule(**p), weak + 5.0 * (c - weak))


@given(SEEDS, WEIGHTS, st.sampled_from(PERTURBED), st.sampled_from(["cfg", "apg", "cfg-zero"]))
def test_every_perturbed_method_takes_every_treatment(seed, w, method, text) -> None:
    options = APG_OPTIONS if text == "apg" else {}
    guidance = perturbed(method, 0.7, guidance_scale=w, text=text_part(text, **options))
    p = random_predictions(guidance, step(), seed)
    assert_close(guidance.plan(step()).rule(**p), Oracle(text, **options)(p, w, 0.7))


@given(SEEDS, WEIGHTS)
def test_apg_without_its_three_parts_is_cfg(seed, w) -> None:
    guidance = APG(guidance_scale=w, eta=1.0, momentum=0.0, norm_threshold=0.0)
    p = random_predictions(guidance, step(), seed)
    assert_close(guidance.plan(step()).rule(**p), p["uncond"] + w * (p["cond"] - p["uncond"]))


@given(SEEDS, WEIGHTS)
def test_cfg_zero_is_cfg_where_its_scale_is_one(seed, w) -> None:
    """a = 1 exactly where C - U is orthogonal to U."""
    guidance = CFGZeroStar(guidance_scale=w)
    p = random_predictions(guidance, step(), seed)
    u, rest = p["uncond"].flatten(1), p["cond"].flatten(1)
    rest = rest - (rest * u).sum(1, keepdim=True) / (u * u).sum(1, keepdim=True) * u
    p["cond"] = (u + rest).view_as(p["cond"])
    assert_close(guidance.plan(step()).rule(**p), p["uncond"] + w * (p["cond"] - p["uncond"]))


@given(SEEDS, WEIGHTS)
def test_treatments_leave_only_their_component(seed, w) -> None:
    projected = APG(guidance_scale=w, eta=0.0, momentum=0.0)
    p = random_predictions(projected, step(), seed)
    update = projected.plan(step()).rule(**p) - p["cond"]
    assert_close((update * p["cond"]).sum((1, 2)), torch.zeros(2).double(), rtol=0, atol=1e-9)
    update = CFGZeroStar(guidance_scale=w).plan(step()).rule(**p) - p["cond"]
    assert_close((update * p["uncond"]).sum((1, 2)), torch.zeros(2).double(), rtol=0, atol=1e-9)


@given(SEEDS, st.sampled_from([APG, STG, OSEG]))
def test_momentum_runs_through_the_steps_of_one_sampling_run(seed, method) -> None:
    if method is APG:
        guidance: Guidance = APG(guidance_scale=3.0, **APG_OPTIONS)
    else:
        guidance = perturbed(method, 0.5, text=APG(**APG_OPTIONS), guidance_scale=3.0)
    oracle, memory = Oracle("apg", **APG_OPTIONS), {}
    for index in range(4):
        at = step(index, memory=memory)
        p = random_predictions(guidance, at, seed + index)
        assert_close(guidance.plan(at).rule(**p), oracle(p, 3.0, 0.5))
    fresh, first = step(memory={}), random_predictions(guidance, step(), seed)
    expected = Oracle("apg", **APG_OPTIONS)(first, 3.0, 0.5)
    assert_close(guidance.plan(fresh).rule(**first), expected)


def test_only_momentum_keeps_something() -> None:
    for guidance in (
        APG(guidance_scale=3.0, momentum=0.0),
        CFGZeroStar(guidance_scale=3.0),
        CFG(rescale=0.5),
    ):
        memory: dict[str, torch.Tensor] = {}
        at = step(memory=memory)
        guidance.plan(at).rule(**random_predictions(guidance, at))
        assert memory == {}


def test_zero_steps_predict_zero_and_then_stop() -> None:
    for guidance in (
        CFGZeroStar(guidance_scale=3.0, zero_steps=2, rescale=0.5),
        *(
            perturbed(method, 0.5, guidance_scale=3.0, text=CFGZeroStar(zero_steps=2), rescale=0.5)
            for method in PERTURBED
        ),
    ):
        for index in (0, 1):
            p = random_predictions(guidance, step(index), dtype=torch.bfloat16)
            assert set(p) == {"cond"}
            zero = guidance.plan(step(index)).rule(**p)
            assert zero.dtype == torch.float32 and torch.equal(zero, torch.zeros(2, 3, 4))
        assert set(random_predictions(guidance, step(2))) > {"cond"}
    assert CFGZeroStar().zero_steps == 1
    assert "uncond" in CFGZeroStar(guidance_scale=3.0, zero_steps=0).plan(step(0)).branches
    assert "uncond" in STG(guidance_scale=3.0, blocks=(1,), text=APG()).plan(step(0)).branches


def test_zero_steps_that_leave_no_step_are_refused() -> None:
    guidance = CFGZeroStar(guidance_scale=3.0, zero_steps=4)
    guidance.plan(step(3, count=5))
    with pytest.raises(SettingError, match="zero_steps must be below the number of sampling steps, 4, got 4"):
        guidance.plan(step(0, count=4))


def test_outside_the_interval_text_only_methods_are_off_and_perturbed_ones_keep_the_text() -> None:
    late = {"guidance_scale": 3.0, "interval": (0.5, 1.0)}
    for guidance in (CFGZeroStar(**late), APG(**late)):
        p = random_predictions(guidance, step(0))
        assert set(p) == {"cond"} and torch.equal(guidance.plan(step(0)).rule(**p), p["cond"])
    guidance = perturbed(SEG, 0.5, text=CFGZeroStar(zero_steps=1), **late)
    assert guidance.plan(step(0)).rule(cond=torch.ones(1, 2)).eq(0).all()
    p = random_predictions(guidance, step(2))
    assert set(p) == {"cond", "uncond"}
    assert_close(guidance.plan(step(2)).rule(**p), Oracle("cfg-zero")(p, 3.0))


@given(SEEDS, WEIGHTS, st.floats(0, 3))
def test_with_plain_text_the_rules_are_those_of_before_bit_for_bit(seed, w, weight) -> None:
    """The expressions that the methods had before they took treatments, in their order of operations."""
    for dtype in (torch.float32, torch.bfloat16):
        for method in (STG, PAG, SEG):
            guidance = perturbed(method, weight or 0.1, guidance_scale=w, text=CFG())
            given = random_predictions(guidance, step(), seed, dtype)
            u, c, p = (given[name].float() for name in ("uncond", "cond", "perturbed"))
            expected = u + w * (c - u) + (weight or 0.1) * (c - p)
            assert torch.equal(guidance.plan(step()).rule(**given), expected)
        guidance = perturbed(OSEG, weight, guidance_scale=w)
        given = random_predictions(guidance, step(), seed, dtype)
        c, u = given["cond"].float(), given["uncond_perturbed"].float()
        expected = c + (w - 1) * (c - u)
        if weight:
            expected = expected + weight * (c - given["cond_perturbed"].float())
        assert torch.equal(guidance.plan(step()).rule(**given), expected)
        given = random_predictions(CFG(guidance_scale=w), step(), seed, dtype)
        c, u = given["cond"].float(), given["uncond"].float()
        assert torch.equal(
            CFG(guidance_scale=w).plan(step(pipeline_scale=99.0)).rule(**given), u + w * (c - u)
        )


@pytest.mark.parametrize("method", PERTURBED)
@pytest.mark.parametrize("text", ["cfg", "apg", "cfg-zero"])
def test_without_text_guidance_only_the_push_is_left(method, text) -> None:
    """A guidance-distilled model: no unconditional branch, no scale given."""
    options = {"zero_steps": 0} if text == "cfg-zero" else {}
    guidance = perturbed(method, 0.7, text=text_part(text, **options))
    for off in (1.0, 0.0, torch.full((2, 3, 1), 1.0)):
        p = random_predictions(guidance, step(pipeline_scale=off))
        assert not any(name.startswith("uncond") for name in p)
        assert_close(guidance.plan(step(pipeline_scale=off)).rule(**p), Oracle(text)(p, 1.0, 0.7))


@pytest.mark.parametrize("guidance", [CFG(), APG(), CFGZeroStar(zero_steps=0), STG(blocks=(1,), scale=0.0)])
def test_without_text_guidance_and_push_the_pipeline_is_left_alone(guidance) -> None:
    for off in (1.0, 0.0, torch.tensor([1.0, 0.5])):
        plan = guidance.plan(step(pipeline_scale=off))
        assert plan.rule is None and set(plan.branches) == {"cond"}


def frame_scales(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """SVD's: one scale a frame, from 1 to 3, for predictions [B, F, C, H, W]."""
    return torch.linspace(1, 3, 4, dtype=dtype).view(1, 4, 1, 1, 1).expand(2, -1, -1, -1, -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_scale_per_frame_is_taken_from_the_pipeline(dtype) -> None:
    at = step(pipeline_scale=frame_scales(dtype))
    assert CFG().plan(at).rule is None
    assert CFG(guidance_scale=3.0).plan(at).rule is not None
    even = step(pipeline_scale=torch.full((2, 4, 1, 1, 1), 3.0, dtype=dtype))
    assert CFG(guidance_scale=3.0).plan(even).rule is None
    generator = torch.Generator().manual_seed(0)
    for guidance, weight, oracle in (
        (STG(blocks=(1,), scale=0.5), 0.5, Oracle("cfg")),
        (STG(blocks=(1,), scale=0.5, text=CFGZeroStar()), 0.5, Oracle("cfg-zero")),
        (OSEG(blocks=(1,), scale=0.5, text=APG(**APG_OPTIONS)), 0.5, Oracle("apg", **APG_OPTIONS)),
    ):
        plan = guidance.plan(at)
        assert any(branch.condition == "uncond" for branch in plan.branches.values())
        p = {n: torch.randn(2, 4, 3, 2, 2, generator=generator, dtype=torch.float64) for n in plan.branches}
        result = plan.rule(**p)
        for frame in range(4):
            scale = frame_scales(dtype)[0, frame].item()
            whole = Oracle(oracle.text, oracle.eta, oracle.momentum, oracle.norm_threshold)(p, scale, weight)
            assert_close(result[:, frame], whole[:, frame])


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    (
        (APG, {"eta": 1.2}, "eta must be from 0 to 1, got 1.2"),
        (APG, {"momentum": 1.0}, "momentum must be between -1 and 1, got 1.0"),
        (APG, {"momentum": math.nan}, "momentum must be a number, got nan"),
        (APG, {"norm_threshold": -1.0}, "norm_threshold must be at least 0, got -1.0"),
        (APG, {"norm_threshold": math.inf}, "norm_threshold must be a finite number"),
        (CFGZeroStar, {"zero_steps": -1}, "zero_steps must be at least 0, got -1"),
        (CFGZeroStar, {"zero_steps": 1.0}, "zero_steps must be an integer, got 1.0"),
        (CFGZeroStar, {"zero_steps": True}, "zero_steps must be an integer, got True"),
        (STG, {"text": "apg"}, "text must be a text guidance, one of .*APG.*, got 'apg'"),
        (STG, {"text": SEG(blocks=(1,))}, "text must be a text guidance, one of"),
        (STG, {"text": APG(guidance_scale=3.0)}, "text must be without guidance_scale, which belongs to the"),
        (STG, {"text": CFG(rescale=0.5)}, "text must be without rescale"),
        (STG, {"text": CFG(interval=(0.0, 0.5))}, "text must be without interval"),
    ),
)
def test_bad_options_are_refused_by_one_line(method, settings, message) -> None:
    with pytest.raises(SettingError, match=message) as refused:
        method(**({"blocks": (1,)} if method in PERTURBED else {}), **settings)
    assert "\n" not in str(refused.value)

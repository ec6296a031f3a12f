"""The newer methods without more passes, and S2-Guidance, against numpy loops over samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from oseg_video.guidance.methods import (
    FDG,
    MAMBOG,
    MG,
    OSEG,
    PAG,
    S2,
    SEG,
    SMCCFG,
    STG,
    TAG,
    TAGCFG,
    Guidance,
    TextGuidance,
)
from oseg_video.guidance.plan import Step
from oseg_video.types import SettingError, TokenGrid
from tests.unit.guidance.test_bands import pyramid_low

SEEDS = st.integers(0, 2**31 - 1)
WEIGHTS = st.floats(1.1, 12)
SHAPE = (2, 3, 4, 6)  # two samples of one frame
Arrays = dict[str, np.ndarray]


def tensor(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(index: int = 2, scale: Any = 4.0, memory: dict | None = None, seed: int = 0, **more: Any) -> Step:
    kept = {} if memory is None else memory
    return Step(index, 10, 0.5, scale, kept, **{"sample": tensor(seed + 99), **more})


def predictions(guidance: Guidance, at: Step, seed: int = 0) -> dict[str, torch.Tensor]:
    return {name: tensor(seed + 7 * i) for i, name in enumerate(guidance.plan(at).branches)}


def each(rule: Callable[..., np.ndarray], *tensors: torch.Tensor) -> torch.Tensor:
    """A rule of one sample, for all samples of a batch."""
    return torch.from_numpy(np.stack([rule(*one) for one in zip(*(x.numpy() for x in tensors), strict=True)]))


def orthogonal(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return y - np.vdot(y, x) / np.vdot(x, x) * x


def norm(x: np.ndarray) -> float:
    return math.sqrt(np.vdot(x, x))


def mambo_g(w: float, damping: float) -> Callable[..., np.ndarray]:
    def rule(c: np.ndarray, u: np.ndarray) -> np.ndarray:
        return u + (1 + (w - 1) * math.exp(-damping * norm(c - u) / norm(u))) * (c - u)

    return rule


def fdg(w_low: float, w_high: float) -> Callable[..., np.ndarray]:
    """Algorithm 1: CFG in each band, and the sum of the bands."""

    def rule(c: np.ndarray, u: np.ndarray) -> np.ndarray:
        low_c, low_u = pyramid_low(c), pyramid_low(u)
        high_c, high_u = c - low_c, u - low_u
        return low_u + w_low * (low_c - low_u) + high_u + w_high * (high_c - high_u)

    return rule


def tag(w: float, tangent: float) -> Callable[..., np.ndarray]:
    def rule(c: np.ndarray, u: np.ndarray, x: np.ndarray) -> np.ndarray:
        g = u + w * (c - u)
        return (g - orthogonal(g, x)) + tangent * orthogonal(g, x)

    return rule


def tag_cfg(w: float, alignment: float, relative: bool) -> Callable[..., np.ndarray]:
    def rule(c: np.ndarray, u: np.ndarray, x: np.ndarray) -> np.ndarray:
        g = orthogonal(c - u, x)
        aligned = np.vdot(c, g) / np.vdot(g, g) * g
        if relative:
            aligned = norm(c - u) / norm(aligned) * aligned
        return u + w * (c - u) + alignment * aligned

    return rule


@given(SEEDS, WEIGHTS, st.floats(0, 20))
def test_mambo_g_is_cfg_at_a_scale_that_falls_with_the_difference(seed, w, damping) -> None:
    guidance = MAMBOG(guidance_scale=w, damping=damping)
    p = predictions(guidance, step(), seed)
    assert set(p) == {"cond", "uncond"}
    assert_close(guidance.plan(step()).rule(**p), each(mambo_g(w, damping), p["cond"], p["uncond"]))


def test_mambo_g_without_a_difference_or_without_an_uncond_is_cond() -> None:
    rule = MAMBOG(guidance_scale=5.0).plan(step()).rule
    zero, cond = torch.zeros(SHAPE), tensor(0).float()
    assert torch.equal(rule(cond=zero, uncond=zero), zero)
    assert torch.equal(rule(cond=cond, uncond=zero), cond)


@given(SEEDS, WEIGHTS, st.floats(1, 12))
def test_fdg_is_cfg_with_a_scale_for_each_band(seed, w_low, w_high) -> None:
    guidance = FDG(guidance_scale=w_low, detail=(w_high - 1) / (w_low - 1))
    p = predictions(guidance, step(), seed)
    assert_close(guidance.plan(step()).rule(**p), each(fdg(w_low, w_high), p["cond"], p["uncond"]))


def test_fdg_of_a_sequence_takes_its_frames_from_the_grid() -> None:
    guidance, grid = FDG(guidance_scale=3.0, detail=4.0), TokenGrid(2, 4, 6)
    frames = {"cond": tensor(0, (2, 3, 2, 4, 6)), "uncond": tensor(1, (2, 3, 2, 4, 6))}
    packed = {name: x.flatten(2).mT for name, x in frames.items()}
    expected = guidance.plan(step()).rule(**frames).flatten(2).mT
    assert_close(guidance.plan(step(grid=grid)).rule(**packed), expected)


@given(SEEDS, WEIGHTS, st.floats(0, 2))
def test_tag_amplifies_what_of_the_guided_prediction_is_tangential(seed, w, tangent) -> None:
    guidance, at = TAG(guidance_scale=w, tangent=tangent), step(seed=seed)
    p = predictions(guidance, at, seed)
    assert_close(guidance.plan(at).rule(**p), each(tag(w, tangent), p["cond"], p["uncond"], at.sample))


@given(SEEDS, WEIGHTS, st.floats(0, 3), st.booleans())
def test_tag_cfg_adds_the_part_of_cond_along_the_tangential_difference(seed, w, alignment, relative) -> None:
    guidance, at = TAGCFG(guidance_scale=w, alignment=alignment, relative=relative), step(seed=seed)
    p = predictions(guidance, at, seed)
    rule = tag_cfg(w, alignment, relative)
    assert_close(guidance.plan(at).rule(**p), each(rule, p["cond"], p["uncond"], at.sample))


@pytest.mark.parametrize("guidance", [TAG(tangent=1.3), TAGCFG(), TAGCFG(relative=True), FDG()])
def test_what_is_tangential_or_linear_is_the_same_in_every_prediction_type(guidance) -> None:
    """Another type is `a x + b prediction`; some schedulers scale the sample that the network sees."""
    at = step(scale=3.0)
    p = predictions(guidance, at)
    a, b = -0.7, 1.9
    other = {name: a * at.sample + b * x for name, x in p.items()}
    scaled = guidance.plan(step(scale=3.0, sample=0.2 * at.sample)).rule
    assert_close(scaled(**other), a * at.sample + b * guidance.plan(at).rule(**p))


def test_a_solvers_step_with_tag_is_the_papers() -> None:
    """Equation 7 amplifies `x_next - x`; here of an Euler step of flow matching, and of DDIM with noise."""
    x, noise, velocity = tensor(0), tensor(1), tensor(2)
    rule = TAG(tangent=1.2).plan(step(scale=1.0, sample=x)).rule

    def amplified(x: np.ndarray, after: np.ndarray) -> np.ndarray:
        return x + (after - x - orthogonal(after - x, x)) + 1.2 * orthogonal(after - x, x)

    assert_close(x - 0.1 * rule(cond=velocity), each(amplified, x, x - 0.1 * velocity))
    now, then = 0.4, 0.5  # alpha bar

    def ddim(eps: torch.Tensor) -> torch.Tensor:
        clean = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
        return math.sqrt(then) * clean + math.sqrt(1 - then) * eps

    assert_close(ddim(rule(cond=noise)), each(amplified, x, ddim(noise)))


@given(SEEDS, WEIGHTS, st.floats(0, 3), st.floats(0, 1))
def test_momentum_pushes_away_from_the_average_of_earlier_steps(seed, w, alpha, beta) -> None:
    guidance = MG(guidance_scale=w, history=alpha, history_decay=beta)
    memory: dict[str, torch.Tensor] = {}
    average = None
    for index in range(4):
        at = step(index, memory=memory)
        p = predictions(guidance, at, seed + 31 * index)
        v = p["uncond"].numpy() + w * (p["cond"].numpy() - p["uncond"].numpy())
        average = v if average is None else average
        assert_close(guidance.plan(at).rule(**p), torch.from_numpy(v + alpha * (v - average)))
        average = (1 - beta) * v + beta * average


@given(SEEDS, WEIGHTS, st.floats(0, 2), st.floats(0, 8))
def test_smc_cfg_corrects_each_element_by_the_sign_of_its_surface(seed, w, gain, slope) -> None:
    guidance = SMCCFG(guidance_scale=w, switching=gain, sliding=slope)
    memory: dict[str, torch.Tensor] = {}
    before = None
    for index in range(4):
        at = step(index, memory=memory)
        p = predictions(guidance, at, seed + 31 * index)
        error = p["cond"].numpy() - p["uncond"].numpy()
        before = error if before is None else before
        before = error - gain * np.sign((error - before) + slope * before)
        assert_close(guidance.plan(at).rule(**p), torch.from_numpy(p["uncond"].numpy() + w * before))


NEUTRAL = (
    MAMBOG(damping=0),
    FDG(detail=1),
    TAG(tangent=1),
    TAGCFG(alignment=0),
    MG(history=0),
    SMCCFG(switching=0),
)
NEWER = (MAMBOG(), FDG(), TAG(), TAGCFG(), MG(), SMCCFG())


@pytest.mark.parametrize("guidance", NEUTRAL, ids=lambda one: one.name)
def test_with_neutral_settings_each_is_cfg(guidance) -> None:
    memory: dict[str, torch.Tensor] = {}
    for index in range(3):
        at = step(index, scale=5.5, memory=memory)
        p = predictions(guidance, at, index)
        assert_close(guidance.plan(at).rule(**p), p["uncond"] + 5.5 * (p["cond"] - p["uncond"]))


@pytest.mark.parametrize("method", [STG, PAG, SEG, OSEG])
@pytest.mark.parametrize("text", NEWER, ids=lambda one: one.name)
def test_each_is_the_text_part_of_every_perturbed_method(method, text: TextGuidance) -> None:
    guidance = method(text=text, scale=0.7, blocks=(1,), guidance_scale=3.0)
    memories: list[dict[str, torch.Tensor]] = [{}, {}]
    for index in range(3):
        at, alone = (step(index, scale=3.0, memory=memory) for memory in memories)
        p = predictions(guidance, at, index)
        uncond = p.get("uncond", p.get("uncond_perturbed"))
        weak = p.get("perturbed", p.get("cond_perturbed"))
        expected = text.plan(alone).rule(cond=p["cond"], uncond=uncond) + 0.7 * (p["cond"] - weak)
        assert_close(guidance.plan(at).rule(**p), expected)


@pytest.mark.parametrize("guidance", NEWER, ids=lambda one: one.name)
def test_the_first_step_of_a_run_knows_no_other_run(guidance) -> None:
    """All that lasts is in the memory of the run."""
    first, again = step(0), step(0)
    p = predictions(guidance, first)
    assert torch.equal(guidance.plan(first).rule(**p), guidance.plan(again).rule(**p))


@pytest.mark.parametrize("text", [TAG(tangent=1.3), MG()], ids=lambda one: one.name)
def test_what_acts_on_the_whole_prediction_acts_without_text_guidance_too(text) -> None:
    for method in (None, STG, OSEG):
        guidance = text if method is None else method(text=text, blocks=(1,), scale=0.5)
        memory: dict[str, torch.Tensor] = {}
        before = None
        for index in range(2):
            at = step(index, scale=1.0, memory=memory)
            p = predictions(guidance, at, index)
            assert not any(name.startswith("uncond") for name in p)
            cond, weak = p["cond"], p.get("perturbed", p.get("cond_perturbed"))
            if text.name == "tag":
                whole = each(lambda c, x: c + 0.3 * orthogonal(c, x), cond, at.sample)
            else:
                whole = cond + 0.5 * (cond - (cond if before is None else before))
            before = cond
            pushed = whole if weak is None else whole + 0.5 * (cond - weak)
            assert_close(guidance.plan(at).rule(**p), pushed)
    named = text.plan(step(scale=1.0)).formula
    assert named.startswith(("TAG(C; ", "MG(C; "))


@pytest.mark.parametrize("guidance", [MAMBOG(), FDG(), TAGCFG(), SMCCFG()], ids=lambda one: one.name)
def test_what_treats_the_text_difference_leaves_a_pipeline_without_text_alone(guidance) -> None:
    plan = guidance.plan(step(scale=1.0))
    assert plan.rule is None and set(plan.branches) == {"cond"}


@pytest.mark.parametrize("text", NEWER, ids=lambda one: one.name)
def test_each_says_what_it_does_with_its_numbers(text) -> None:
    shown = text.plan(step(scale=3.0)).formula
    for name, value in (
        ("damping", "-8 r"),
        ("detail", "times 3"),
        ("tangent", "times 1.05"),
        ("alignment", "+ 1 A"),
        ("history", "alpha 0.5, beta 0.6"),
        ("switching", "K 0.2, lambda 5"),
    ):
        assert (value in shown) == hasattr(text, name), shown
    assert "U~" in OSEG(text=text, blocks=(1,)).plan(step(scale=3.0)).formula


def test_s2_pushes_away_from_a_prediction_without_blocks_that_are_drawn_for_each_step() -> None:
    blocks = tuple(range(1, 30))
    guidance = S2(guidance_scale=5.0, blocks=blocks, dropped=0.1)
    assert (guidance.scale, guidance.interval) == (0.25, (0.1, 0.9))
    assert guidance.blocks_used == blocks
    drawn = []
    for index in range(1, 9):
        plan = guidance.plan(step(index))
        perturbation = plan.branches["perturbed"].perturbation
        assert plan.branches["perturbed"].condition == "cond"
        assert perturbation.change == STG(blocks=(1,)).change
        assert len(set(perturbation.blocks)) == 3 and set(perturbation.blocks) <= set(blocks)
        assert perturbation.blocks == tuple(sorted(perturbation.blocks))
        assert guidance.plan(step(index)).branches == plan.branches  # the same for whoever asks
        drawn.append(perturbation.blocks)
        p = predictions(guidance, step(index), index)
        expected = p["uncond"] + 5 * (p["cond"] - p["uncond"]) + 0.25 * (p["cond"] - p["perturbed"])
        assert_close(plan.rule(**p), expected)
    assert len(set(drawn)) == 8
    other = S2(guidance_scale=5.0, blocks=blocks, draw=1)
    assert [other.plan(step(i)).branches["perturbed"].perturbation.blocks for i in range(1, 9)] != drawn
    for outside in (0, 9):
        assert "perturbed" not in guidance.plan(step(outside)).branches


def test_s2_draws_every_block_alike_and_the_same_on_every_machine() -> None:
    guidance = S2(blocks=(1, 2, "dual:3"), interval=(0, 1))
    drawn = [
        guidance.plan(Step(index, 3000, 0.5, 4.0)).branches["perturbed"].perturbation.blocks[0]
        for index in range(3000)
    ]
    assert all(900 < drawn.count(block) < 1100 for block in (1, 2, "dual:3"))
    assert drawn[:8] == ["dual:3", 1, 2, 2, "dual:3", 2, 2, 2]


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    (
        (MAMBOG, {"damping": -1.0}, "damping must be at least 0, got -1.0"),
        (FDG, {"detail": math.inf}, "detail must be a finite number"),
        (TAG, {"tangent": -0.1}, "tangent must be at least 0, got -0.1"),
        (TAGCFG, {"relative": 1}, "relative must be true or false, got 1"),
        (MG, {"history_decay": 1.2}, "history_decay must be from 0 to 1, got 1.2"),
        (SMCCFG, {"switching": "0.2"}, "switching must be a number"),
        (S2, {}, "blocks must name at least one block for S2"),
        (S2, {"blocks": (1, 2), "dropped": 1.5}, "dropped must be from 0 to 1, got 1.5"),
    ),
)
def test_bad_settings_are_refused_by_one_line(method, settings, message) -> None:
    with pytest.raises(SettingError, match=message) as refused:
        method(**settings)
    assert "\n" not in str(refused.value)

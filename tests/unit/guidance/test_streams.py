"""Several streams under one method: each with scales of its own, on denoised latents or as they are."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from oseg_video.guidance.methods import APG, CFG, METHODS, OSEG, STG, CFGZeroStar, Unguided
from oseg_video.guidance.methods.base import ScaledGuidance
from oseg_video.guidance.plan import Branch, Step
from oseg_video.guidance.streams import Denoised, JoinedStreams, plan_streams
from oseg_video.settings.schedule import Schedule
from oseg_video.types import SettingError

VIDEO, AUDIO = (6, 4), (5, 3)
SIGMAS = (0.7, 0.4)
JOINED = JoinedStreams((VIDEO, AUDIO))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def steps(video_scale: float = 3.0, audio_scale: float = 7.0, level: float = 0.7) -> dict[Any, Step]:
    return {
        "video": Step(3, 10, level, video_scale, {}, noise(2, *VIDEO, seed=90)),
        "audio": Step(3, 10, level, audio_scale, {}, noise(2, *AUDIO, seed=91)),
    }


def predictions(*names: str) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (noise(2, *VIDEO, seed=i), noise(2, *AUDIO, seed=50 + i)) for i, name in enumerate(names)}


def guided(plan: Any, parts: dict[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
    return JOINED.split(plan.rule(**{name: JOINED.join(parts[name]) for name in plan.branches}))


def test_joined_streams_come_apart_again() -> None:
    parts = noise(2, *VIDEO), noise(2, *AUDIO)
    joined = JOINED.join(parts)
    assert joined.shape == (2, 6 * 4 + 5 * 3)
    assert all(map(torch.equal, JOINED.split(joined), parts))
    assert all(map(torch.equal, JOINED.split(joined[1:]), (part[1:] for part in parts)))
    alone = JoinedStreams((VIDEO,))
    assert alone.join(parts[:1]) is parts[0] and alone.split(parts[0])[0] is parts[0]


def test_the_formula_on_denoised_latents() -> None:
    """`x0 + (s-1)(x0 - u) + stg (x0 - p) + (m-1)(x0 - i)`, then rescaled, back to a velocity."""
    method = STG(
        guidance_scale=3.0,
        scale=1.0,
        modality_scale=2.5,
        rescale=0.7,
        audio_guidance_scale=7.0,
        audio_scale=0.5,
        audio_modality_scale=1.0,
        audio_rescale=0.2,
        blocks=(1,),
    )
    given = steps()
    plan = plan_streams(method, given, JOINED, Denoised(SIGMAS))
    assert set(plan.branches) == {"uncond", "cond", "perturbed", "isolated"}
    assert plan.branches["isolated"].condition == "cond"
    parts = predictions(*plan.branches)
    scales = {"video": (3.0, 1.0, 2.5, 0.7), "audio": (7.0, 0.5, 1.0, 0.2)}
    for place, (stream, made) in enumerate(zip(given, guided(plan, parts), strict=True)):
        sigma, x = SIGMAS[place], given[stream].sample
        cond, uncond, perturbed, isolated = (
            x - sigma * parts[name][place] for name in ("cond", "uncond", "perturbed", "isolated")
        )
        text, push, modality, phi = scales[stream]
        clean = cond + (text - 1) * (cond - uncond) + push * (cond - perturbed)
        clean = clean + (modality - 1) * (cond - isolated)
        for row in range(2):
            ratio = cond[row].std() / clean[row].std()
            clean[row] *= phi * ratio + 1 - phi
        assert_close(made, (x - clean) / sigma)


def test_linear_rules_are_the_same_on_velocities() -> None:
    method = OSEG(guidance_scale=3.0, audio_guidance_scale=5.0, blocks=(1,), modality_scale=2.0)
    given = steps()
    on_velocities = plan_streams(method, given, JOINED)
    parts = predictions(*on_velocities.branches)
    on_denoised = plan_streams(method, given, JOINED, Denoised(SIGMAS))
    for one, other in zip(guided(on_velocities, parts), guided(on_denoised, parts), strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("denoised", (None, Denoised(SIGMAS)))
def test_a_stream_that_the_pipeline_guides_beside_one_that_it_does_not(denoised: Any) -> None:
    """The video's scale is the pipeline's own, the audio's is not."""
    given = steps(video_scale=3.0, audio_scale=7.0)
    plan = plan_streams(CFG(audio_guidance_scale=2.0), given, JOINED, denoised)
    parts = predictions("cond", "uncond")
    video, audio = guided(plan, parts)
    for made, scale, place in ((video, 3.0, 0), (audio, 2.0, 1)):
        cond, uncond = parts["cond"][place], parts["uncond"][place]
        assert_close(made, uncond + scale * (cond - uncond))
    assert plan.formula == "video: C + 2 (C - U); audio: C + 1 (C - U)"


def test_what_the_pipeline_does_by_itself_needs_no_rule() -> None:
    for method, scales in ((CFG(), (3.0, 7.0)), (CFG(guidance_scale=3.0, audio_guidance_scale=7.0), (3, 7))):
        plan = plan_streams(method, steps(*scales), JOINED, Denoised(SIGMAS))
        assert plan.rule is None and set(plan.branches) == {"uncond", "cond"}
    assert set(plan_streams(CFG(), steps(1.0, 7.0)).branches) == {"uncond", "cond"}
    assert plan_streams(CFG(), steps(1.0, 1.0)).branches == {"cond": Branch("cond")}


def test_scale_1_is_one_branch_whatever_the_pipelines_are() -> None:
    for method in (Unguided(), CFG(guidance_scale=1.0)):
        plan = plan_streams(method, steps(), JOINED, Denoised(SIGMAS))
        assert plan.branches == {"cond": Branch("cond")}
        parts = predictions("cond")
        assert all(map(torch.allclose, guided(plan, parts), parts["cond"]))


def test_the_zero_of_cfg_zero_is_a_velocity() -> None:
    method = CFGZeroStar(guidance_scale=3.0, audio_guidance_scale=5.0, zero_steps=5)
    plan = plan_streams(method, steps(), JOINED, Denoised(SIGMAS))
    assert plan.formula == "0"
    for made in guided(plan, predictions("cond")):
        assert not made.any()


def test_memories_are_apart() -> None:
    given = steps()
    plan = plan_streams(APG(guidance_scale=3.0, momentum=-0.5), given, JOINED, Denoised(SIGMAS))
    guided(plan, predictions("cond", "uncond"))
    kept = [next(iter(step.memory.values())) for step in given.values()]
    assert [tuple(one.shape[1:]) for one in kept] == [VIDEO, AUDIO]


def test_audio_settings_take_the_place_of_the_videos() -> None:
    scaled = [method for method in METHODS.values() if issubclass(method, ScaledGuidance)]
    assert len(scaled) > 10
    for kind in scaled:
        blocks = {"blocks": (1,)} if any(f.name == "blocks" for f in dataclasses.fields(kind)) else {}
        method = kind(guidance_scale=3.0, audio_guidance_scale=5.0, rescale=0.5, **blocks)
        audio = method.of_stream("audio")
        assert (audio.guidance_scale, audio.rescale, audio.audio_guidance_scale) == (5.0, 0.5, None)
        assert method.of_stream("video") is method
        assert kind(guidance_scale=3.0, **blocks).of_stream("audio").guidance_scale == 3.0


def test_modality_guidance_acts_in_the_interval_and_by_noise_level() -> None:
    falling = CFG(modality_scale=Schedule(((1.0, 3.0), (0.5, 1.0))))
    assert falling.blocks_used == ("all",) and CFG().blocks_used == ()
    assert CFG(audio_modality_scale=2.0).blocks_used == ("all",)
    assert "isolated" in plan_streams(falling, steps(level=0.7)).branches
    assert "isolated" not in plan_streams(falling, steps(level=0.4)).branches
    late = STG(blocks=(2,), modality_scale=3.0, interval=(0.5, 1.0))
    assert late.blocks_used == (2, "all")
    assert set(plan_streams(late, steps()).branches) == {"uncond", "cond"}


def test_values_out_of_range_are_refused_by_name() -> None:
    with pytest.raises(SettingError, match="audio_rescale must be from 0 to 1, got 2"):
        CFG(audio_rescale=2.0)
    with pytest.raises(SettingError, match="streams must be one of both, video, audio, got 'sound'"):
        STG(blocks=(1,), streams="sound")
    with pytest.raises(SettingError, match="blocks must name at least one block"):
        STG(scale=0.0, audio_scale=1.0)

"""CogVideoX: text before video in the joint attention, a dynamic scale, schedulers without sigmas."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from oseg_video import CFG, OSEG, GuidanceError, guided
from oseg_video.adapters import adapter_for
from oseg_video.adapters.base import ClipSize
from tests.integration import slow
from tests.integration.checks import ACROSS_BATCHES, assert_off_key
from tests.integration.families import COGVIDEOX, SCALE, STEPS, Case, gradient, over
from tests.integration.variants import (
    COGVIDEOX_5B,
    COGVIDEOX_15,
    COGVIDEOX_15_IMAGE,
    COGVIDEOX_CONTROL,
    COGVIDEOX_IMAGE,
    COGVIDEOX_VARIANTS,
    COGVIDEOX_VIDEO,
)
from tests.tiny import BLOCKS, TEXT_LENGTH
from tests.tiny.cogvideox import COGVIDEOX_SIZE, cogvideox_scheduler

BLOCK = 2
DYNAMIC = {"use_dynamic_cfg": True}
EVERY = (COGVIDEOX, COGVIDEOX_IMAGE, *COGVIDEOX_VARIANTS)
OSEG_METHOD = OSEG(guidance_scale=SCALE, blocks=(BLOCK,))


def dynamic_scales(pipe: Any, case: Case, **arguments: Any) -> list[float]:
    """The scales that the stock pipeline's own steps used, read after each."""
    scales: list[float] = []

    def note(pipe: Any, step: int, timestep: Any, values: dict) -> dict:
        scales.append(pipe.guidance_scale)
        return values

    case.run(pipe, callback_on_step_end=note, **DYNAMIC, **arguments)
    return scales


# -- what the stock pipelines do, as the adapter has it


@over(*EVERY)
def test_the_stock_pipeline_calls_once_with_uncond_before_cond(case: Case, pipe: Any) -> None:
    with slow.recorded(pipe, [pipe.transformer]) as steps:
        case.run(pipe, negative_prompt="blue")
    with torch.no_grad():
        cond, uncond = pipe.encode_prompt("a red circle", "blue", max_sequence_length=TEXT_LENGTH)
    assert len(steps) == STEPS
    for step in steps:
        ((_, kwargs),) = step.calls
        assert torch.equal(kwargs["encoder_hidden_states"], torch.cat([uncond, cond]))
    with slow.recorded(pipe, [pipe.transformer]) as steps:
        case.run(pipe, guidance_scale=1.0)
    assert [len(kwargs["hidden_states"]) for step in steps for _, kwargs in step.calls] == [1] * STEPS


# -- batches


@over(COGVIDEOX_IMAGE, COGVIDEOX_15_IMAGE)
def test_images_are_a_batch(case: Case, pipe: Any) -> None:
    """The offset of 1.5 has one entry for the whole batch."""
    prompts = ["a red circle", "a much longer prompt, x"]
    images = [gradient(COGVIDEOX_SIZE), gradient(COGVIDEOX_SIZE).rotate(90)]
    with guided(pipe, OSEG_METHOD):
        together = case.run(pipe, prompts, seed=5, image=images)
        alone = [
            case.run(pipe, one, seed=5 + i, image=image)
            for i, (one, image) in enumerate(zip(prompts, images, strict=True))
        ]
    assert_close(together, torch.cat(alone), **ACROSS_BATCHES)


@over(COGVIDEOX)
def test_the_pipeline_makes_one_video_per_prompt_whatever_it_is_asked(case: Case, pipe: Any) -> None:
    with guided(pipe, OSEG_METHOD):
        one = case.run(pipe)
        # Not through `case.run`, which would bring a generator for each video.
        arguments = case.condition("a red circle") | case.size | {"num_inference_steps": STEPS}
        two = pipe(
            **arguments,
            num_videos_per_prompt=2,
            guidance_scale=SCALE,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).frames
    assert torch.equal(two, one)


# -- where sampling stands


@pytest.mark.parametrize("steps", (3, 10))
@pytest.mark.parametrize("kind", ("ddim", "dpm"))
@over(COGVIDEOX, COGVIDEOX_IMAGE)
def test_step_and_noise_level_of_either_scheduler(case: Case, pipe: Any, kind: str, steps: int) -> None:
    """The level is the noise's share in what the scheduler's own `add_noise` makes of data and noise."""
    pipe.scheduler = cogvideox_scheduler(kind)
    with guided(pipe, OSEG_METHOD) as report:
        case.run(pipe, num_inference_steps=steps)
    assert [step.index for step in report.steps] == list(range(steps))
    zero, one = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    pipe.scheduler.set_timesteps(steps)
    expected = []
    for timestep in pipe.scheduler.timesteps:
        data, noise = (
            pipe.scheduler.add_noise(x, y, timestep.reshape(1)) for x, y in ((one, zero), (zero, one))
        )
        expected.append((noise / (data + noise)).item())
    levels = [step.noise_level for step in report.steps]
    assert levels == pytest.approx(expected, abs=1e-6)
    # Terminal signal is zero: sigma is infinite at the first step.
    assert levels[0] == 1 and levels == sorted(levels, reverse=True) and levels[-1] < 0.7


@over(COGVIDEOX_VIDEO)
def test_sampling_from_a_video_starts_at_the_level_of_its_noise(case: Case, pipe: Any) -> None:
    with guided(pipe, OSEG(guidance_scale=SCALE, blocks=(1,), interval=(0.3, 0.6))) as report:
        case.run(pipe)
    kept = [float(pipe.scheduler.alphas_cumprod[t]) for t in (599, 399, 199)]
    sigmas = [math.sqrt((1 - a) / a) for a in kept]
    assert [step.index for step in report.steps] == [0, 1, 2]
    assert [step.noise_level for step in report.steps] == pytest.approx([s / (1 + s) for s in sigmas])
    # Of the 3 steps that run, the second is inside.
    assert [any(one.fired for one in step.passes) for step in report.steps] == [False, True, False]


# -- the scale that changes by the step


@over(COGVIDEOX, COGVIDEOX_IMAGE, COGVIDEOX_VIDEO, COGVIDEOX_CONTROL)
def test_the_dynamic_scale_of_the_pipeline_is_the_one_that_guides(case: Case, pipe: Any) -> None:
    """A rule that ends in plain CFG, with the pipeline's scale, gives the stock pipeline's clip."""
    stock = case.run(pipe, **DYNAMIC)
    scales = dynamic_scales(pipe, case)
    assert len(set(scales)) == STEPS and not set(scales) & {SCALE}
    with guided(pipe, CFG()):
        assert torch.equal(case.run(pipe, **DYNAMIC), stock)
    with guided(pipe, CFG(rescale=1e-9)):  # a rescale of its own makes the rule ours
        assert_close(case.run(pipe, **DYNAMIC), stock, **ACROSS_BATCHES)
    guidance = OSEG(blocks=(BLOCK,), blur_sigma=slow.BLUR)
    with guided(pipe, guidance), slow.recorded(pipe, [pipe.transformer]) as steps:
        case.run(pipe, **DYNAMIC)
    for step, scale in zip(steps, scales, strict=True):
        cond, weak_uncond, weak_cond = replayed(pipe, step)
        expected = cond + (scale - 1) * (cond - weak_uncond) + (cond - weak_cond)
        assert_close(step.prediction.double(), expected, rtol=1e-4, atol=1e-4)


@over(COGVIDEOX)
def test_a_scale_of_the_guidance_overrides_the_dynamic_one(case: Case, pipe: Any) -> None:
    """Also where it equals the scale that the pipeline was called with."""
    stock = case.run(pipe)
    assert not torch.equal(case.run(pipe, **DYNAMIC), stock)
    with guided(pipe, CFG(guidance_scale=SCALE)):
        assert torch.equal(case.run(pipe, **DYNAMIC), stock)
        assert torch.equal(case.run(pipe, guidance_scale=2.0, **DYNAMIC), stock)


@over(COGVIDEOX)
def test_a_dynamic_scale_without_text_guidance_brings_no_unconditional_branch(case: Case, pipe: Any) -> None:
    """`pipe.guidance_scale` is above 1 from the second step on, and still there is no `uncond`."""
    stock = case.run(pipe, guidance_scale=1.0)
    assert max(dynamic_scales(pipe, case, guidance_scale=1.0)) > 1
    with guided(pipe, CFG()) as report:
        assert torch.equal(case.run(pipe, guidance_scale=1.0, **DYNAMIC), stock)
    assert [step.passes[0].branches for step in report.steps] == [("cond",)] * STEPS
    with pytest.raises(GuidanceError, match="needs the unconditional branch"), guided(pipe, OSEG_METHOD):
        case.run(pipe, guidance_scale=1.0, **DYNAMIC)


def replayed(pipe: Any, step: slow.SampledStep) -> tuple[Tensor, Tensor, Tensor]:
    """Plain cond, perturbed uncond and cond of a recorded step, from the slow reference."""
    ((_, plain), *others) = step.calls
    rows = [kwargs for _, kwargs in others]
    text = plain["encoder_hidden_states"]
    (uncond,) = [one for one in rows if not torch.equal(one["encoder_hidden_states"], text)]
    change = slow.off_key_blurred(COGVIDEOX.grid, slow.BLUR)
    weak = slow_denoiser(pipe.transformer, change)
    cond = predicted(slow_denoiser(pipe.transformer, None), plain)
    return cond, predicted(weak, uncond), predicted(weak, plain)


# -- against a slow float64 reference


class SlowBlock(nn.Module):
    """A CogVideoX block written out in float64, perturbed by other means than hooks."""

    def __init__(self, block: Any, change: slow.Change | None) -> None:
        super().__init__()
        self.block, self.change = block, change

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.change == "skip":
            return hidden_states, encoder_hidden_states
        block, length = self.block, encoder_hidden_states.shape[1]
        x = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        normed, gate = self.modulated(x, length, temb, block.norm1)
        x = x + gate * self.attention(normed, length, kwargs["image_rotary_emb"])
        normed, gate = self.modulated(x, length, temb, block.norm2)
        wide = slow.gelu_tanh(slow.linear(normed, block.ff.net[0].proj))
        x = x + gate * slow.linear(wide, block.ff.net[2])
        return x[:, length:], x[:, :length]

    def modulated(self, x: Tensor, length: int, temb: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
        """Text and video normalised alike, then shifted, scaled and gated each in its own way."""
        video, text = slow.linear(temb * temb.sigmoid(), norm.linear).chunk(2, dim=1)
        is_text = (torch.arange(x.shape[1]) < length)[None, :, None]
        shift, scale, gate = (
            torch.where(is_text, a[:, None], b[:, None])
            for a, b in zip(text.chunk(3, dim=1), video.chunk(3, dim=1), strict=True)
        )
        return slow.layer_norm(x, norm.norm) * (1 + scale) + shift, gate

    def attention(self, x: Tensor, length: int, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        attn = self.block.attn1
        query, key, value = (
            slow.linear(x, layer).unflatten(2, (attn.heads, -1))
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = slow.layer_norm(query, attn.norm_q), slow.layer_norm(key, attn.norm_k)
        video = query[:, length:]
        if callable(self.change):
            video = self.change(video, key[:, length:])
        video_key = key[:, length:]
        if rotary is not None:
            angles = torch.atan2(rotary[1], rotary[0])[:, ::2].double()
            video, video_key = slow.rotated(video, angles), slow.rotated(video_key, angles)
        query = torch.cat([query[:, :length], video], dim=1)
        key = torch.cat([key[:, :length], video_key], dim=1)
        mixed = slow.attention(query, key, value)
        stand_in = {"values": value.flatten(2), "input": x}.get(
            self.change if isinstance(self.change, str) else ""
        )
        if stand_in is not None:
            mixed = torch.cat([mixed[:, :length], stand_in[:, length:]], dim=1)
        return slow.linear(mixed, attn.to_out[0])


def slow_denoiser(denoiser: nn.Module, change: slow.Change | None) -> nn.Module:
    """A float64 copy that runs on slow blocks, block BLOCK of them perturbed."""
    model = copy.deepcopy(denoiser).double()
    model.transformer_blocks = nn.ModuleList(
        SlowBlock(block, change if i == BLOCK else None) for i, block in enumerate(model.transformer_blocks)
    )
    return model


@pytest.mark.parametrize("method", slow.REFERENCE_METHODS)
@over(
    *(COGVIDEOX, COGVIDEOX_IMAGE, COGVIDEOX_5B, COGVIDEOX_15, COGVIDEOX_15_IMAGE),
    COGVIDEOX_CONTROL,
)
def test_the_guided_prediction_is_that_of_a_slow_float64_reference(
    case: Case, pipe: Any, method: str
) -> None:
    guidance, change = slow.reference_methods(case.grid, BLOCK, SCALE)[method]
    cond_text, uncond_text = pipe.encode_prompt("a red circle", max_sequence_length=TEXT_LENGTH)
    with guided(pipe, guidance), slow.recorded(pipe, [pipe.transformer]) as steps:
        case.run(pipe, num_inference_steps=2)
    assert len(steps) == 2
    plain = partial(predicted, slow_denoiser(pipe.transformer, None))
    weak = partial(predicted, slow_denoiser(pipe.transformer, change)) if change else None
    for step in steps:
        _, arguments = step.calls[0]
        one = {name: x[:1] if name in ("hidden_states", "timestep") else x for name, x in arguments.items()}
        cond, uncond = (one | {"encoder_hidden_states": text} for text in (cond_text, uncond_text))
        expected = slow.guided_prediction(method, SCALE, plain, weak, cond=cond, uncond=uncond)
        assert_close(step.prediction.double(), expected, rtol=1e-4, atol=1e-4)


def predicted(denoiser: nn.Module, arguments: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return denoiser(**slow.doubled(arguments))[0]


@over(COGVIDEOX, COGVIDEOX_5B, COGVIDEOX_15, COGVIDEOX_CONTROL)
def test_only_the_video_queries_change_and_they_are_orthogonal_to_their_keys(case: Case, pipe: Any) -> None:
    """Without blur the query that attention sees, rotated, is the part of the plain one off its own key."""
    guidance = OSEG(guidance_scale=1.0, blocks=(BLOCK,), blur_sigma=0.0)
    with slow.recorded_attention(case.grid.tokens) as calls, guided(pipe, guidance):
        case.run(pipe, guidance_scale=1.0, num_inference_steps=2)
    assert len(calls) == 2 * (BLOCKS + BLOCKS - BLOCK)
    assert {call[0].shape[2] for call in calls} == {TEXT_LENGTH + case.grid.tokens}
    assert_off_key(calls[BLOCK], calls[BLOCKS], slice(TEXT_LENGTH, None), tolerance=1e-4)


@over(COGVIDEOX, COGVIDEOX_IMAGE, COGVIDEOX_15, COGVIDEOX_15_IMAGE)
def test_example_arguments_are_those_of_the_pipelines_calls(case: Case, pipe: Any) -> None:
    with slow.recorded(pipe, [pipe.transformer]) as steps:
        case.run(pipe)
    clip = ClipSize(case.size["num_frames"], case.size["height"], case.size["width"])
    example = adapter_for(pipe).example_arguments(pipe.transformer, clip, rows=2)
    ((_, given),) = steps[0].calls

    def shapes(arguments: dict[str, Any]) -> dict[str, Any]:
        named = {
            name: value for name, value in arguments.items() if name != "return_dict" and value is not None
        }
        return {k: [x.shape for x in v] if isinstance(v, tuple) else v.shape for k, v in named.items()}

    assert shapes(example) == shapes(given)
    with torch.no_grad():
        assert pipe.transformer(**example).sample.shape[:3] == (2, given["hidden_states"].shape[1], 4)

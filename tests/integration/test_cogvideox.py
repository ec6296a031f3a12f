"""CogVideoX: text before video in the joint attention, a dynamic scale, schedulers without sigmas."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline, CogVideoXVideoToVideoPipeline
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close

from oseg_video import CFG, OSEG, PAG, SEG, STG, GuidanceError, SilentGuidanceError, guided
from oseg_video.adapters import adapter_for
from oseg_video.adapters.base import ClipSize
from tests.integration import slow
from tests.integration.families import CASES, COGVIDEOX, SCALE, STEPS, Case
from tests.integration.test_guided import ACROSS_BATCHES, state_of
from tests.tiny import BLOCKS, TEXT_LENGTH
from tests.tiny.cogvideox import (
    COGVIDEOX_15_SIZE,
    COGVIDEOX_SIZE,
    cogvideox_scheduler,
    tiny_cogvideox,
    tiny_cogvideox_5b,
    tiny_cogvideox_15,
)

BLOCK = 2
BLUR = 0.8
DYNAMIC = {"use_dynamic_cfg": True}


def image(turn: int = 0) -> Image.Image:
    size = COGVIDEOX_SIZE["width"], COGVIDEOX_SIZE["height"]
    return Image.linear_gradient("L").convert("RGB").resize(size).rotate(turn)


def tiny_video_to_video(**overrides: Any) -> CogVideoXVideoToVideoPipeline:
    return CogVideoXVideoToVideoPipeline(**tiny_cogvideox(**overrides).components)


(IMAGE,) = [case for case in CASES if case.name == "cogvideox-image"]
ROTARY = replace(COGVIDEOX, name="cogvideox-5b", build=tiny_cogvideox_5b)
# Two latent frames to a token: 5 latent frames are padded to 6.
PAIRS = replace(COGVIDEOX, name="cogvideox-1.5", build=tiny_cogvideox_15, size=COGVIDEOX_15_SIZE)
IMAGE_PAIRS = replace(
    PAIRS,
    name="cogvideox-1.5-image",
    build=partial(tiny_cogvideox_15, CogVideoXImageToVideoPipeline),
    extra=lambda: {"image": image()},
)
# Of 5 steps the last 3 run.
VIDEO = replace(
    COGVIDEOX,
    name="cogvideox-video",
    build=tiny_video_to_video,
    size={"height": COGVIDEOX_SIZE["height"], "width": COGVIDEOX_SIZE["width"]},
    extra=lambda: {"video": [image(10 * i) for i in range(9)], "strength": 0.6, "num_inference_steps": 5},
)
VARIANTS = (ROTARY, PAIRS, IMAGE_PAIRS, VIDEO)
EVERY = (COGVIDEOX, IMAGE, *VARIANTS)

METHODS = (
    STG(guidance_scale=SCALE, blocks=(BLOCK,)),
    STG(guidance_scale=SCALE, blocks=(BLOCK,), mode="attention_skip"),
    PAG(guidance_scale=SCALE, blocks=(1, 3)),
    SEG(guidance_scale=SCALE, blocks=(BLOCK, 3), blur_sigma=1.0),
    OSEG(guidance_scale=SCALE, blocks=(BLOCK,)),
    OSEG(guidance_scale=SCALE, blocks=(1, 3), keep_parallel=0.5, mix=0.7, rescale=0.7, reference="frame"),
)
OSEG_METHOD = METHODS[4]


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def pipe(case: Case) -> Any:
    return quiet(case.build())


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def over(*cases: Case) -> Any:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name, indirect=True)


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


# -- exactness, over the variants that the common tests do not run


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@over(*VARIANTS)
def test_plain_cfg_is_bit_equal_to_the_stock_pipeline(case: Case, pipe: Any, dtype: torch.dtype) -> None:
    pipe.to(dtype)
    stock = case.run(pipe)
    with guided(pipe, CFG()):
        assert torch.equal(case.run(pipe), stock)
    with guided(pipe, CFG(guidance_scale=SCALE)):
        assert torch.equal(case.run(pipe), stock)
        assert torch.equal(case.run(pipe, guidance_scale=2.0), stock)


@pytest.mark.parametrize("guidance", METHODS, ids=lambda guidance: guidance.name)
@over(*VARIANTS)
def test_prefix_reuse_changes_nothing(case: Case, pipe: Any, guidance: Any) -> None:
    with guided(pipe, guidance, reuse_prefix=False):
        whole = case.run(pipe)
    with guided(pipe, guidance) as report:
        assert_close(case.run(pipe), whole, **ACROSS_BATCHES)
    assert [max(one.start_block for one in s.passes) for s in report.steps] == [guidance.blocks[0]] * STEPS
    assert not torch.equal(whole, case.run(pipe))


@pytest.mark.parametrize("error", (None, RuntimeError, KeyboardInterrupt))
@over(*VARIANTS)
def test_the_pipeline_is_as_it_was_afterwards(case: Case, pipe: Any, error: type | None) -> None:
    stock = case.run(pipe)
    before = state_of(pipe)

    def interrupt(_: Any, step: int, __: Any, values: dict) -> dict:
        if error is not None and step == 1:
            raise error("in the middle")
        return values

    def run() -> None:
        with guided(pipe, OSEG_METHOD):
            case.run(pipe, callback_on_step_end=interrupt)

    if error is None:
        run()
    else:
        with pytest.raises(error):
            run()
    assert state_of(pipe) == before
    assert torch.equal(case.run(pipe), stock)


@over(COGVIDEOX, PAIRS)
def test_a_clip_does_not_depend_on_its_batch(case: Case, pipe: Any) -> None:
    prompts = ["a red circle", "a much longer prompt, x"]
    for guidance in (METHODS[3], OSEG_METHOD):
        with guided(pipe, guidance):
            together = case.run(pipe, prompts, seed=5)
            alone = torch.cat([case.run(pipe, one, seed=5 + i) for i, one in enumerate(prompts)])
        assert_close(together, alone, **ACROSS_BATCHES)


@over(IMAGE, IMAGE_PAIRS)
def test_images_are_a_batch(case: Case, pipe: Any) -> None:
    """The offset of 1.5 has one entry for the whole batch."""
    prompts, pictures = ["a red circle", "a much longer prompt, x"], [image(), image(90)]
    with guided(pipe, OSEG_METHOD):
        together = case.run(pipe, prompts, seed=5, image=pictures)
        alone = [
            case.run(pipe, one, seed=5 + i, image=picture)
            for i, (one, picture) in enumerate(zip(prompts, pictures, strict=True))
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


@over(COGVIDEOX)
def test_model_offload_and_compiled_blocks_keep_the_guidance(case: Case, pipe: Any) -> None:
    with guided(pipe, OSEG_METHOD):
        expected = case.run(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    with guided(pipe, OSEG_METHOD) as report:
        assert torch.equal(case.run(pipe), expected)
        assert torch.equal(case.run(pipe), expected)
    assert len(report.steps) == 2 * STEPS
    pipe.remove_all_hooks()
    adapter_for(pipe).compile_blocks(pipe.transformer, backend="eager")
    stock = case.run(pipe)
    with guided(pipe, OSEG_METHOD):
        assert_close(case.run(pipe), expected, **ACROSS_BATCHES)
    assert torch.equal(case.run(pipe), stock)


# -- where sampling stands


@pytest.mark.parametrize("steps", (3, 10))
@pytest.mark.parametrize("kind", ("ddim", "dpm"))
@over(COGVIDEOX, IMAGE)
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


@over(VIDEO)
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


@over(COGVIDEOX, IMAGE, VIDEO)
def test_the_dynamic_scale_of_the_pipeline_is_the_one_that_guides(case: Case, pipe: Any) -> None:
    """A rule that ends in plain CFG, with the pipeline's scale, gives the stock pipeline's clip."""
    stock = case.run(pipe, **DYNAMIC)
    scales = dynamic_scales(pipe, case)
    assert len(set(scales)) == STEPS and not set(scales) & {SCALE}
    with guided(pipe, CFG()):
        assert torch.equal(case.run(pipe, **DYNAMIC), stock)
    with guided(pipe, CFG(rescale=1e-9)):  # a rescale of its own makes the rule ours
        assert_close(case.run(pipe, **DYNAMIC), stock, **ACROSS_BATCHES)
    guidance = OSEG(blocks=(BLOCK,), blur_sigma=BLUR)
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
    change = slow.off_key_blurred(COGVIDEOX.grid, BLUR)
    with torch.no_grad():
        (cond,) = slow_denoiser(pipe.transformer, None)(**slow.doubled(plain), return_dict=False)
        weak = slow_denoiser(pipe.transformer, change)
        (weak_uncond,) = weak(**slow.doubled(uncond), return_dict=False)
        (weak_cond,) = weak(**slow.doubled(plain), return_dict=False)
    return cond, weak_uncond, weak_cond


# -- refusing


@over(COGVIDEOX)
def test_fused_projections_are_refused_where_they_hide_the_query(case: Case, pipe: Any) -> None:
    pipe.fuse_qkv_projections()
    stock = case.run(pipe)
    for guidance in (OSEG_METHOD, METHODS[2]):
        with pytest.raises(SilentGuidanceError, match="fused projections"), guided(pipe, guidance):
            case.run(pipe)
    with guided(pipe, METHODS[0]):  # skipping a block does not ask for its query
        assert not torch.equal(case.run(pipe), stock)


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


def reference_methods(grid: Any) -> dict[str, tuple[Any, slow.Change | None]]:
    shared = {"guidance_scale": SCALE, "blocks": (BLOCK,)}
    weighted = {"oseg_scale": 1.5, "blur_sigma": (0.0, math.inf), "mix": 0.75} | shared
    return {
        "cfg": (CFG(), None),
        "stg": (STG(stg_scale=1.5, **shared), "skip"),
        "stg-values": (STG(stg_scale=1.5, mode="attention_values", **shared), "values"),
        "stg-input": (STG(stg_scale=1.5, mode="attention_skip", **shared), "input"),
        "pag": (PAG(pag_scale=1.5, **shared), "values"),
        "seg": (SEG(seg_scale=1.5, **shared), slow.mean_everywhere),
        "oseg": (OSEG(**weighted), slow.off_key_mean_per_frame(grid, 0.75)),
        "oseg-blur": (OSEG(oseg_scale=1.5, blur_sigma=BLUR, **shared), slow.off_key_blurred(grid, BLUR)),
        "oseg-plain-uncond": (
            OSEG(perturb_unconditional=False, **weighted),
            slow.off_key_mean_per_frame(grid, 0.75),
        ),
    }


@pytest.mark.parametrize("method", reference_methods(COGVIDEOX.grid))
@over(COGVIDEOX, IMAGE, ROTARY, PAIRS, IMAGE_PAIRS)
def test_the_guided_prediction_is_that_of_a_slow_float64_reference(
    case: Case, pipe: Any, method: str
) -> None:
    guidance, change = reference_methods(case.grid)[method]
    cond_text, uncond_text = pipe.encode_prompt("a red circle", max_sequence_length=TEXT_LENGTH)
    with guided(pipe, guidance), slow.recorded(pipe, [pipe.transformer]) as steps:
        case.run(pipe, num_inference_steps=2)
    assert len(steps) == 2
    for step in steps:
        _, arguments = step.calls[0]
        one = {name: x[:1] if name in ("hidden_states", "timestep") else x for name, x in arguments.items()}
        cond, uncond = (slow.doubled(one | {"encoder_hidden_states": x}) for x in (cond_text, uncond_text))
        with torch.no_grad():
            plain = slow_denoiser(pipe.transformer, None)
            c, u = (plain(**one)[0] for one in (cond, uncond))
            expected = u + SCALE * (c - u)
            if change is not None:
                weak = slow_denoiser(pipe.transformer, change)
                weak_c, weak_u = (weak(**one)[0] for one in (cond, uncond))
                if method in ("oseg", "oseg-blur"):
                    expected = c + (SCALE - 1) * (c - weak_u)
                expected = expected + 1.5 * (c - weak_c)
        prediction = step.prediction.double()
        assert_close(prediction, expected, rtol=1e-4, atol=1e-4)


@over(COGVIDEOX, ROTARY, PAIRS)
def test_only_the_video_queries_change_and_they_are_orthogonal_to_their_keys(case: Case, pipe: Any) -> None:
    """Without blur the query that attention sees, rotated, is the part of the plain one off its own key."""
    guidance = OSEG(guidance_scale=1.0, blocks=(BLOCK,), blur_sigma=0.0)
    with slow.recorded_attention(case.grid.tokens) as calls, guided(pipe, guidance):
        case.run(pipe, guidance_scale=1.0, num_inference_steps=2)
    assert len(calls) == 2 * (BLOCKS + BLOCKS - BLOCK)
    assert {call[0].shape[2] for call in calls} == {TEXT_LENGTH + case.grid.tokens}
    plain, perturbed = calls[BLOCK], calls[BLOCKS]
    assert torch.equal(plain[1], perturbed[1]) and torch.equal(plain[2], perturbed[2])
    assert torch.equal(plain[0][:, :, :TEXT_LENGTH], perturbed[0][:, :, :TEXT_LENGTH])
    query, key, changed = (x[:, :, TEXT_LENGTH:] for x in (plain[0], plain[1], perturbed[0]))
    off_key = query - (query * key).sum(-1, keepdim=True) / (key * key).sum(-1, keepdim=True) * key
    assert_close(changed, off_key, rtol=1e-4, atol=1e-5)
    alignment = (changed * key).sum(-1).abs().max()
    assert alignment < 1e-4 < (query * key).sum(-1).abs().max()


@over(COGVIDEOX, IMAGE, PAIRS, IMAGE_PAIRS)
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

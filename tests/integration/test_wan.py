"""Wan: two experts, a time per token, one call per condition, and a slow reference of its blocks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import (
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVideoToVideoPipeline,
)
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close

from oseg_video import (
    APG,
    CFG,
    OSEG,
    PAG,
    SEG,
    STG,
    CFGZeroStar,
    GuidanceError,
    SilentGuidanceError,
    guided,
)
from oseg_video.adapters import UnknownBlockError, adapter_for
from oseg_video.adapters.base import ClipSize
from oseg_video.guidance.schedule import Breakpoints
from tests.integration import slow
from tests.integration.families import CASES, SCALE, STEPS, WAN, Case
from tests.integration.test_guided import ACROSS_BATCHES, state_of
from tests.tiny import BLOCKS, TEXT_LENGTH
from tests.tiny.wan import (
    WAN_5B_SIZE,
    WAN_SIZE,
    tiny_wan,
    tiny_wan_5b,
    tiny_wan_two_experts,
    wan_prompt_embeds,
    wan_scheduler,
)

BLOCK = 2
BLUR = 0.8
SECOND_SCALE = 2.5


def image(size: dict[str, int], flip: bool = False) -> Image.Image:
    picture = Image.linear_gradient("L").convert("RGB").resize((size["width"], size["height"]))
    return picture.transpose(Image.Transpose.ROTATE_180) if flip else picture


def from_image(name: str, build: Callable[..., Any], size: dict[str, int], **extra: Any) -> Case:
    return replace(
        WAN,
        name=name,
        build=partial(build, WanImageToVideoPipeline),
        size=size,
        extra=lambda: {"image": image(size)} | extra,
        condition=partial(wan_prompt_embeds, length=TEXT_LENGTH),
    )


def tiny_video_to_video(**overrides: Any) -> WanVideoToVideoPipeline:
    pipe = tiny_wan(**overrides)
    parts = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
    return WanVideoToVideoPipeline(**{name: getattr(pipe, name) for name in parts})


def _frames() -> list[Image.Image]:
    return [image(WAN_SIZE).rotate(10 * i) for i in range(9)]


(IMAGE,) = [case for case in CASES if case.name == "wan-image"]
FIRST_LAST = replace(
    IMAGE,
    name="wan-first-last",
    build=partial(tiny_wan, WanImageToVideoPipeline, pos_embed_seq_len=10),
    extra=lambda: {"image": image(WAN_SIZE), "last_image": image(WAN_SIZE, flip=True)},
)
EXPERTS = replace(
    WAN,
    name="wan-experts",
    build=tiny_wan_two_experts,
    extra=lambda: {"guidance_scale_2": SECOND_SCALE},
)
IMAGE_EXPERTS = from_image("wan-experts-image", tiny_wan_two_experts, WAN_SIZE, guidance_scale_2=SECOND_SCALE)
SMALL = replace(WAN, name="wan-5b", build=tiny_wan_5b, size=WAN_5B_SIZE)
IMAGE_SMALL = from_image("wan-5b-image", tiny_wan_5b, WAN_5B_SIZE)
# Of 5 steps the last 3 run.
VIDEO = replace(
    WAN,
    name="wan-video",
    build=tiny_video_to_video,
    size={"height": WAN_SIZE["height"], "width": WAN_SIZE["width"]},
    extra=lambda: {"video": _frames(), "strength": 0.6, "num_inference_steps": 5},
    condition=partial(wan_prompt_embeds, length=TEXT_LENGTH),
)
VARIANTS = (FIRST_LAST, EXPERTS, IMAGE_EXPERTS, SMALL, IMAGE_SMALL, VIDEO)
EVERY = (WAN, IMAGE, *VARIANTS)

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


def denoisers_of(pipe: Any) -> list[nn.Module]:
    return adapter_for(pipe).denoisers(pipe)


# -- what the stock pipelines do, as the adapter has it


@over(*EVERY)
def test_the_stock_pipeline_calls_once_per_condition_and_cond_comes_first(case: Case, pipe: Any) -> None:
    embeds = wan_prompt_embeds("a red circle", 512 if case in (IMAGE, FIRST_LAST) else TEXT_LENGTH)
    arguments = embeds if "prompt_embeds" in case.condition("") else embeds | {"prompt": None}
    with slow.recorded(pipe, denoisers_of(pipe)) as steps:
        case.run(pipe, **arguments)
    assert len(steps) == STEPS
    for step in steps:
        texts = [kwargs["encoder_hidden_states"] for _, kwargs in step.calls]
        assert len(texts) == 2
        assert torch.equal(texts[0], embeds["prompt_embeds"])
        assert torch.equal(texts[1], embeds["negative_prompt_embeds"])
    with slow.recorded(pipe, denoisers_of(pipe)) as steps:
        case.run(pipe, guidance_scale=1.0, **arguments)
    assert [len(step.calls) for step in steps] == [1] * STEPS


@pytest.mark.parametrize("steps", (3, 4))
@over(EXPERTS, IMAGE_EXPERTS)
def test_both_experts_take_part(case: Case, pipe: Any, steps: int) -> None:
    with slow.recorded(pipe, denoisers_of(pipe)) as taken:
        case.run(pipe, num_inference_steps=steps)
    experts = [[denoiser is pipe.transformer_2 for denoiser, _ in step.calls] for step in taken]
    high = steps - 2 if case is EXPERTS else 2
    assert experts == [[False, False]] * high + [[True, True]] * (steps - high)


# -- exactness, over the variants that the common tests do not run


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@over(*VARIANTS)
def test_plain_cfg_is_bit_equal_to_the_stock_pipeline(case: Case, pipe: Any, dtype: torch.dtype) -> None:
    pipe.to(dtype)
    stock = case.run(pipe)
    with guided(pipe, CFG()):
        assert torch.equal(case.run(pipe), stock)


@over(*VARIANTS)
def test_the_guidance_scale_of_the_guidance_counts(case: Case, pipe: Any) -> None:
    second = {"guidance_scale_2": 6.0} if "guidance_scale_2" in case.extra() else {}
    stock = case.run(pipe, guidance_scale=6.0, **second)
    with guided(pipe, CFG(guidance_scale=6.0)):
        assert torch.equal(case.run(pipe, guidance_scale=2.0), stock)


@pytest.mark.parametrize("guidance", METHODS, ids=lambda guidance: guidance.name)
@over(*VARIANTS)
def test_prefix_reuse_changes_nothing(case: Case, pipe: Any, guidance: Any) -> None:
    with guided(pipe, guidance, reuse_prefix=False):
        whole = case.run(pipe)
    with guided(pipe, guidance) as report:
        assert_close(case.run(pipe), whole, **ACROSS_BATCHES)
    assert [max(one.start_block for one in step.passes) for step in report.steps] == [
        guidance.blocks[0]
    ] * STEPS
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


@over(WAN, EXPERTS, SMALL)
def test_a_clip_does_not_depend_on_its_batch(case: Case, pipe: Any) -> None:
    prompts = ["a red circle", "a much longer prompt, x"]
    for guidance in (METHODS[3], OSEG_METHOD):
        with guided(pipe, guidance):
            together = case.run(pipe, prompts, seed=5)
            alone = torch.cat([case.run(pipe, one, seed=5 + i) for i, one in enumerate(prompts)])
            videos = case.run(pipe, prompts[0], seed=5, num_videos_per_prompt=2)
        assert_close(together, alone, **ACROSS_BATCHES)
        assert_close(videos[:1], alone[:1], **ACROSS_BATCHES)


@over(IMAGE, FIRST_LAST, IMAGE_SMALL)
def test_prompts_for_one_image_are_a_batch(case: Case, pipe: Any) -> None:
    """The image encoder's rows are one per prompt, or two where a last image is given."""
    prompts = ["a red circle", "a much longer prompt, x"]
    with guided(pipe, OSEG_METHOD):
        together = case.run(pipe, prompts, seed=5)
        alone = torch.cat([case.run(pipe, one, seed=5 + i) for i, one in enumerate(prompts)])
    assert_close(together, alone, **ACROSS_BATCHES)


# -- where sampling stands


@pytest.mark.parametrize("steps", (3, 4, 10))
@pytest.mark.parametrize("kind", ("unipc", "euler"))
@over(WAN, IMAGE_SMALL, EXPERTS)
def test_step_and_noise_level_of_either_scheduler(case: Case, pipe: Any, kind: str, steps: int) -> None:
    """The level is the noise's share in what the scheduler's own `add_noise` makes of data and noise."""
    pipe.scheduler = wan_scheduler(5.0, kind)
    with guided(pipe, OSEG_METHOD) as report:
        case.run(pipe, num_inference_steps=steps)
    assert [step.index for step in report.steps] == list(range(steps))
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    pipe.scheduler.set_timesteps(steps)
    expected = []
    for timestep in pipe.scheduler.timesteps:
        at = timestep.reshape(1)
        if kind == "euler":
            data, noise = (pipe.scheduler.scale_noise(x, at, y) for x, y in ((one, zero), (zero, one)))
        else:
            data, noise = (pipe.scheduler.add_noise(x, y, at) for x, y in ((one, zero), (zero, one)))
        expected.append((noise / (data + noise)).item())
    assert [step.noise_level for step in report.steps] == pytest.approx(expected, abs=1e-6)
    assert expected[0] == pytest.approx(1, abs=1e-3) and expected == sorted(expected, reverse=True)


@over(VIDEO)
def test_sampling_from_a_video_starts_at_the_level_of_its_noise(case: Case, pipe: Any) -> None:
    with guided(pipe, OSEG(guidance_scale=SCALE, blocks=(1,), interval=(0.3, 0.6))) as report:
        case.run(pipe)
    shifted = [5 * s for s in (0.6, 0.4, 0.2)]
    levels = [3 * s / (5 + 2 * s) for s in shifted]
    assert [step.index for step in report.steps] == [0, 1, 2]
    assert [step.noise_level for step in report.steps] == pytest.approx(levels, abs=2e-3)
    # Of the 3 steps that run, the second is inside.
    assert [any(one.fired for one in step.passes) for step in report.steps] == [False, True, False]


# -- two experts


@over(EXPERTS)
def test_each_expert_is_guided_with_the_scale_that_the_pipeline_gives_it(case: Case, pipe: Any) -> None:
    """A method that takes the pipeline's scale is the one with both scales written out."""
    boundary = pipe.config.boundary_ratio
    written = Breakpoints(((1.0, SCALE), (boundary, SECOND_SCALE)))
    for scale in (None, written):
        guidance = OSEG(guidance_scale=scale, blocks=(BLOCK,))
        with guided(pipe, guidance):
            clip = case.run(pipe)
        if scale is None:
            expected = clip
    assert torch.equal(clip, expected)
    with guided(pipe, OSEG(guidance_scale=SCALE, blocks=(BLOCK,))):
        assert not torch.equal(case.run(pipe), expected)
    with guided(pipe, OSEG(blocks=(BLOCK,))):
        # Without a second scale the first one holds for both.
        one_scale = case.run(pipe, guidance_scale_2=None)
    with guided(pipe, OSEG(guidance_scale=SCALE, blocks=(BLOCK,))):
        assert torch.equal(case.run(pipe), one_scale)


@over(EXPERTS)
def test_each_expert_can_have_blocks_of_its_own(case: Case, pipe: Any) -> None:
    blocks = Breakpoints(((1.0, (1,)), (pipe.config.boundary_ratio, (3, 4))))
    guidance = SEG(guidance_scale=SCALE, blocks=blocks)
    with guided(pipe, guidance) as report, slow.recorded(pipe, denoisers_of(pipe)) as steps:
        case.run(pipe)
    fired = [sorted({name for one in step.passes for name in one.fired}) for step in report.steps]
    assert fired == [
        ["blocks.1.attn1"],
        ["blocks.3.attn1", "blocks.4.attn1"],
        ["blocks.3.attn1", "blocks.4.attn1"],
    ]
    experts = [{denoiser is pipe.transformer_2 for denoiser, _ in step.calls} for step in steps]
    assert experts == [{False}, {True}, {True}]


def test_the_second_expert_may_be_the_only_one() -> None:
    pipe = quiet(tiny_wan_two_experts())
    both = EXPERTS.run(pipe)
    alone = quiet(
        WanPipeline(
            **{name: getattr(pipe, name) for name in ("tokenizer", "text_encoder", "vae", "transformer_2")},
            scheduler=wan_scheduler(3.0),
            transformer=None,
            boundary_ratio=1.0,
        )
    )
    stock = EXPERTS.run(alone)
    assert not torch.equal(stock, both)
    with guided(alone, CFG()):
        assert torch.equal(EXPERTS.run(alone), stock)
    with guided(alone, OSEG(blocks=(BLOCK,))) as report:
        own = EXPERTS.run(alone)
    with guided(alone, OSEG(guidance_scale=SECOND_SCALE, blocks=(BLOCK,))):
        assert torch.equal(EXPERTS.run(alone), own)
    assert [step.passes[0].branches for step in report.steps] == [("cond",)] * STEPS


@over(EXPERTS)
def test_an_error_inside_the_second_expert_leaves_nothing_behind(
    case: Case, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = case.run(pipe)
    before = state_of(pipe)

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(pipe.transformer_2.blocks[BLOCK].attn1, "processor", fail)
        with pytest.raises(ZeroDivisionError), guided(pipe, OSEG_METHOD):
            case.run(pipe)
    assert state_of(pipe) == before
    assert torch.equal(case.run(pipe), stock)


@over(EXPERTS)
def test_the_second_expert_is_checked_like_the_first(case: Case, pipe: Any) -> None:
    pipe.transformer_2.compile(backend="eager")
    with pytest.raises(GuidanceError, match="compile the repeated blocks"), guided(pipe, OSEG_METHOD):
        pass
    pipe.transformer_2._compiled_call_impl = None
    del pipe.transformer_2.blocks[BLOCK:]
    with pytest.raises(UnknownBlockError, match=r"no block 2.*has 2 blocks"), guided(pipe, OSEG_METHOD):
        pass
    assert type(pipe.transformer) is type(pipe.transformer_2) is WanTransformer3DModel


@over(EXPERTS)
def test_model_offload_and_compiled_blocks_keep_the_guidance(case: Case, pipe: Any) -> None:
    with guided(pipe, OSEG_METHOD):
        expected = case.run(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    with guided(pipe, OSEG_METHOD) as report:
        assert torch.equal(case.run(pipe), expected)
        assert torch.equal(case.run(pipe), expected)
    assert len(report.steps) == 2 * STEPS
    pipe.remove_all_hooks()
    for denoiser in denoisers_of(pipe):
        adapter_for(pipe).compile_blocks(denoiser, backend="eager")
    stock = case.run(pipe)
    with guided(pipe, OSEG_METHOD):
        assert_close(case.run(pipe), expected, **ACROSS_BATCHES)
    assert torch.equal(case.run(pipe), stock)


# -- a time per token


@over(SMALL, IMAGE_SMALL)
def test_every_pass_gets_the_times_of_its_tokens(case: Case, pipe: Any) -> None:
    with guided(pipe, OSEG_METHOD), slow.recorded(pipe, denoisers_of(pipe)) as steps:
        case.run(pipe, ["a red circle", "a blue square"])
    frame = case.grid.height * case.grid.width
    for step, timestep in zip(steps, pipe.scheduler.timesteps, strict=True):
        assert len(step.calls) == 3
        for _, kwargs in step.calls:
            times = kwargs["timestep"]
            assert times.shape == (2, case.grid.tokens)
            assert (times[:, frame:] == timestep).all()
            assert (times[:, :frame] == (0 if case is IMAGE_SMALL else timestep)).all()


def test_the_given_first_frame_stays_what_it_is() -> None:
    pipe = quiet(IMAGE_SMALL.build())
    stock = IMAGE_SMALL.run(pipe)
    with guided(pipe, OSEG_METHOD):
        clip = IMAGE_SMALL.run(pipe)
    assert torch.equal(clip[:, :, 0], stock[:, :, 0])
    assert not torch.isclose(clip[:, :, 1:], stock[:, :, 1:]).all()


# -- refusing


@over(WAN)
def test_fused_projections_are_refused_where_they_hide_the_query(case: Case, pipe: Any) -> None:
    pipe.transformer.fuse_qkv_projections()
    stock = case.run(pipe)
    for guidance in (OSEG_METHOD, METHODS[2]):
        with pytest.raises(SilentGuidanceError, match="fused projections"), guided(pipe, guidance):
            case.run(pipe)
    with guided(pipe, METHODS[0]):  # skipping a block does not ask for its query
        assert not torch.equal(case.run(pipe), stock)


@over(EXPERTS)
def test_a_missing_unconditional_branch_is_refused(case: Case, pipe: Any) -> None:
    """The second expert's scale turns nothing on."""
    with pytest.raises(GuidanceError, match="needs the unconditional branch"), guided(pipe, OSEG_METHOD):
        case.run(pipe, guidance_scale=1.0)


# -- against a slow float64 reference


class SlowBlock(nn.Module):
    """A Wan block written out in float64, perturbed by other means than hooks."""

    def __init__(self, block: Any, grid: Any, change: slow.Change | None) -> None:
        super().__init__()
        self.block, self.grid, self.change = block, grid, change

    def forward(self, x: Tensor, context: Tensor, times: Tensor, _: Any) -> Tensor:
        if self.change == "skip":
            return x
        block = self.block
        if times.ndim == 3:  # [B, 6, C]: one time for all tokens
            times = times[:, None]
        parts = (times + block.scale_shift_table.double()).unbind(dim=2)
        shift, scale, gate, late_shift, late_scale, late_gate = parts
        attended = self.self_attention(slow.layer_norm(x, block.norm1) * (1 + scale) + shift)
        x = x + attended * gate
        x = x + self.cross_attention(slow.layer_norm(x, block.norm2), context)
        wide = slow.gelu_tanh(
            slow.linear(
                slow.layer_norm(x, block.norm3) * (1 + late_scale) + late_shift, block.ffn.net[0].proj
            )
        )
        return x + slow.linear(wide, block.ffn.net[2]) * late_gate

    def self_attention(self, x: Tensor) -> Tensor:
        attn = self.block.attn1
        query = self.heads(rms_norm(slow.linear(x, attn.to_q), attn.norm_q), attn)
        key = self.heads(rms_norm(slow.linear(x, attn.to_k), attn.norm_k), attn)
        value = self.heads(slow.linear(x, attn.to_v), attn)
        if callable(self.change):
            query = self.change(query, key)
        angles = wan_angles(self.grid, query.shape[-1])
        mixed = slow.attention(slow.rotated(query, angles), slow.rotated(key, angles), value)
        if self.change == "values":
            mixed = value.flatten(2)
        if self.change == "input":
            mixed = x
        return slow.linear(mixed, attn.to_out[0])

    def cross_attention(self, x: Tensor, context: Tensor) -> Tensor:
        attn = self.block.attn2
        query = self.heads(rms_norm(slow.linear(x, attn.to_q), attn.norm_q), attn)
        pictures = context.shape[1] - 512 if attn.add_k_proj is not None else 0
        text = context[:, pictures:]
        mixed = slow.attention(
            query,
            self.heads(rms_norm(slow.linear(text, attn.to_k), attn.norm_k), attn),
            self.heads(slow.linear(text, attn.to_v), attn),
        )
        if pictures:
            seen = context[:, :pictures]
            mixed = mixed + slow.attention(
                query,
                self.heads(rms_norm(slow.linear(seen, attn.add_k_proj), attn.norm_added_k), attn),
                self.heads(slow.linear(seen, attn.add_v_proj), attn),
            )
        return slow.linear(mixed, attn.to_out[0])

    @staticmethod
    def heads(x: Tensor, attn: Any) -> Tensor:
        return x.unflatten(2, (attn.heads, -1))


def rms_norm(x: Tensor, norm: Any) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight.double()


def wan_angles(grid: Any, head_dim: int) -> Tensor:
    """Angles [S, head_dim / 2]: pairs of channels for the frame, then the row, then the column."""
    side = head_dim // 6
    pairs = (head_dim // 2 - 2 * side, side, side)
    rows = []
    for place in torch.cartesian_prod(*(torch.arange(n) for n in grid.shape)).tolist():
        rows.append(
            [p / 10000 ** (i / count) for p, count in zip(place, pairs, strict=True) for i in range(count)]
        )
    return torch.tensor(rows, dtype=torch.float64)


def slow_denoiser(denoiser: nn.Module, grid: Any, change: slow.Change | None) -> nn.Module:
    """A float64 copy that runs on slow blocks, block BLOCK of them perturbed."""
    model = copy.deepcopy(denoiser).double()
    model.blocks = nn.ModuleList(
        SlowBlock(block, grid, change if i == BLOCK else None) for i, block in enumerate(model.blocks)
    )
    return model


def reference_methods(grid: Any) -> dict[str, tuple[Any, slow.Change | None]]:
    shared = {"guidance_scale": None, "blocks": (BLOCK,)}
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


@pytest.mark.parametrize("method", reference_methods(WAN.grid))
@over(WAN, IMAGE, FIRST_LAST, EXPERTS, SMALL, IMAGE_SMALL)
def test_the_guided_prediction_is_that_of_a_slow_float64_reference(
    case: Case, pipe: Any, method: str
) -> None:
    guidance, change = reference_methods(case.grid)[method]
    with guided(pipe, guidance), slow.recorded(pipe, denoisers_of(pipe)) as steps:
        case.run(pipe, num_inference_steps=2)
    for step in steps:
        denoiser, cond = step.calls[0]
        negatives = [
            kwargs
            for _, kwargs in step.calls
            if not torch.equal(kwargs["encoder_hidden_states"], cond["encoder_hidden_states"])
        ]
        uncond = negatives[0]
        scale = SECOND_SCALE if denoiser is getattr(pipe, "transformer_2", None) else SCALE
        with torch.no_grad():
            plain = slow_denoiser(denoiser, case.grid, None)
            c, u = (plain(**slow.doubled(one))[0] for one in (cond, uncond))
            expected = u + scale * (c - u)
            if change is not None:
                weak = slow_denoiser(denoiser, case.grid, change)
                weak_c, weak_u = (weak(**slow.doubled(one))[0] for one in (cond, uncond))
                if method in ("oseg", "oseg-blur"):
                    expected = c + (scale - 1) * (c - weak_u)
                expected = expected + 1.5 * (c - weak_c)
        assert_close(step.prediction.double(), expected, rtol=1e-4, atol=1e-4)


@over(WAN, EXPERTS)
def test_treatments_of_the_text_reach_across_the_two_calls_and_the_experts(case: Case, pipe: Any) -> None:
    """CFG-Zero* begins with a zero prediction; APG's running average goes on from one expert to the next."""
    for guidance in (CFGZeroStar(), APG(eta=0.25, momentum=-0.5)):
        with guided(pipe, guidance), slow.recorded(pipe, denoisers_of(pipe)) as steps:
            case.run(pipe)
        average = torch.zeros(()).double()
        for index, step in enumerate(steps):
            if guidance.name == "cfg-zero" and index == 0:
                assert not step.prediction.any() and len(step.calls) == 1
                continue
            ((denoiser, cond), (_, uncond)) = step.calls
            scale = SECOND_SCALE if denoiser is pipe.transformer_2 else SCALE
            with torch.no_grad():
                plain = slow_denoiser(denoiser, case.grid, None)
                c, u = (plain(**slow.doubled(one))[0] for one in (cond, uncond))
            if guidance.name == "cfg-zero":
                difference = c - (c * u).sum() / (u * u).sum() * u
            else:
                average = c - u - 0.5 * average
                difference = average - 0.75 * (average * c).sum() / (c * c).sum() * c
            expected = c + (scale - 1) * difference
            assert_close(step.prediction.double(), expected, rtol=1e-4, atol=1e-4)


@over(WAN, IMAGE, SMALL)
def test_only_the_video_queries_change_and_they_are_orthogonal_to_their_keys(case: Case, pipe: Any) -> None:
    """Without blur the query that attention sees, rotated, is the part of the plain one off its own key."""
    guidance = OSEG(guidance_scale=1.0, blocks=(BLOCK,), blur_sigma=0.0)
    with slow.recorded_attention(case.grid.tokens) as calls, guided(pipe, guidance):
        case.run(pipe, guidance_scale=1.0, num_inference_steps=2)
    # The text encoder has no attention this long, and the perturbed pass starts at BLOCK.
    calls = [call for call in calls if call[0].shape[2] == case.grid.tokens]
    assert len(calls) == 2 * (BLOCKS + BLOCKS - BLOCK)
    plain, perturbed = calls[BLOCK], calls[BLOCKS]
    assert torch.equal(plain[1], perturbed[1]) and torch.equal(plain[2], perturbed[2])
    query, key = plain[0], plain[1]
    off_key = query - (query * key).sum(-1, keepdim=True) / (key * key).sum(-1, keepdim=True) * key
    assert_close(perturbed[0], off_key, rtol=1e-4, atol=1e-5)
    alignment = (perturbed[0] * key).sum(-1).abs().max()
    assert alignment < 1e-4 < (query * key).sum(-1).abs().max()


@over(WAN, EXPERTS)
def test_plain_cfg_makes_the_pipelines_calls_as_they_are(case: Case, pipe: Any) -> None:
    """LoRA scaling in diffusers looks for `attention_kwargs` among the keyword arguments only."""
    seen: list[tuple[int, list[str]]] = []
    for denoiser in denoisers_of(pipe):
        denoiser.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((len(args), list(kwargs))), with_kwargs=True
        )
    case.run(pipe, attention_kwargs={})
    stock = seen.copy()
    assert all("attention_kwargs" in names for _, names in stock)
    with guided(pipe, CFG()):
        case.run(pipe, attention_kwargs={})
    assert seen[len(stock) :] == stock


@over(WAN, IMAGE, IMAGE_EXPERTS)
def test_example_arguments_are_those_of_the_pipelines_calls(case: Case, pipe: Any) -> None:
    with slow.recorded(pipe, denoisers_of(pipe)) as steps:
        case.run(pipe)
    clip = ClipSize(case.size["num_frames"], case.size["height"], case.size["width"])
    for denoiser in denoisers_of(pipe):
        example = adapter_for(pipe).example_arguments(denoiser, clip, rows=1)
        calls = [kwargs for step in steps for one, kwargs in step.calls if one is denoiser]
        given = {name for name, value in calls[0].items() if isinstance(value, Tensor)}
        assert given == set(example)
        text = {"encoder_hidden_states", "encoder_hidden_states_image"}  # here of another length
        for name in given - text:
            assert example[name].shape == calls[0][name].shape, name
        for name in given & text:
            assert example[name].shape[::2] == calls[0][name].shape[::2], name
        with torch.no_grad():
            assert denoiser(**example).sample.shape == (1, 4, *case.grid.shape[:1], 6, 8)

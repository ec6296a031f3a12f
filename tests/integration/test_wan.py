"""Wan: two experts, a time per token, one call per condition, and a slow reference of its blocks."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2TransformerBlock
from torch import Tensor, nn
from torch.testing import assert_close

from oseg_video import (
    APG,
    CFG,
    MG,
    OSEG,
    SEG,
    STG,
    CFGZeroStar,
    GuidanceError,
    Reuse,
    guided,
)
from oseg_video.adapters import UnknownBlockError, UnsupportedPipelineError, adapter_for
from oseg_video.adapters.base import ClipSize
from oseg_video.adapters.wan import WanAdapter
from oseg_video.engine.branches import BranchRunner
from oseg_video.guidance.methods import Unguided
from oseg_video.parallel.shards import Shard
from oseg_video.settings.schedule import Schedule
from oseg_video.types import TokenGrid
from tests.integration import slow
from tests.integration.checks import ACROSS_BATCHES, assert_off_key, state_of
from tests.integration.families import SCALE, STEPS, WAN, Case, over, quiet
from tests.integration.variants import (
    FORCING_VARIANTS,
    LUCY_EDIT,
    SECOND_SCALE,
    SKYREELS_V2,
    SKYREELS_V2_CAUSAL,
    SKYREELS_V2_FORCING,
    SKYREELS_V2_FORCING_IMAGE,
    SKYREELS_V2_FORCING_VIDEO,
    SKYREELS_V2_IMAGE,
    SKYREELS_V2_LONG,
    WAN_5B,
    WAN_5B_IMAGE,
    WAN_EXPERTS,
    WAN_FIRST_LAST,
    WAN_IMAGE,
    WAN_IMAGE_EXPERTS,
    WAN_VACE,
    WAN_VACE_CONTROL,
    WAN_VARIANTS,
    WAN_VIDEO,
)
from tests.tiny import BLOCKS, TEXT_LENGTH
from tests.tiny.wan import tiny_wan_two_experts, wan_prompt_embeds, wan_scheduler

BLOCK = 2
EVERY = (WAN, WAN_IMAGE, *WAN_VARIANTS)
OSEG_METHOD = OSEG(guidance_scale=SCALE, blocks=(BLOCK,))


def denoisers_of(pipe: Any) -> list[nn.Module]:
    return adapter_for(pipe).denoisers(pipe)


# -- what the stock pipelines do, as the adapter has it


@over(*EVERY)
def test_the_stock_pipeline_calls_once_per_condition_and_cond_comes_first(case: Case, pipe: Any) -> None:
    padded = case in (WAN_IMAGE, WAN_FIRST_LAST, SKYREELS_V2_IMAGE)
    embeds = wan_prompt_embeds("a red circle", 512 if padded else TEXT_LENGTH)
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
@over(WAN_EXPERTS, WAN_IMAGE_EXPERTS)
def test_both_experts_take_part(case: Case, pipe: Any, steps: int) -> None:
    with slow.recorded(pipe, denoisers_of(pipe)) as taken:
        case.run(pipe, num_inference_steps=steps)
    experts = [[denoiser is pipe.transformer_2 for denoiser, _ in step.calls] for step in taken]
    high = steps - 2 if case is WAN_EXPERTS else 2
    assert experts == [[False, False]] * high + [[True, True]] * (steps - high)


@pytest.mark.parametrize("second", (1.0, 0.5))
@over(WAN_EXPERTS)
def test_the_second_experts_scale_may_be_one_that_guides_no_other_pipeline(
    case: Case, pipe: Any, second: float
) -> None:
    """It runs its unconditional branch all the same, because the first expert's scale decides."""
    scales = {"guidance_scale_2": second, "num_inference_steps": 4}
    stock, alone = case.run(pipe, **scales), case.run(pipe, guidance_scale=1.0, num_inference_steps=4)
    with guided(pipe, CFG()):
        assert torch.equal(case.run(pipe, **scales), stock)
    with guided(pipe, CFG(), reuse=Reuse(cache=1e-6)):  # which nothing is below
        assert_close(case.run(pipe, **scales), stock)
    with guided(pipe, Unguided()):
        assert_close(case.run(pipe, **scales), alone)
    with guided(pipe, STG(blocks=(BLOCK,), scale=1e-9)):
        assert_close(case.run(pipe, **scales), stock, rtol=1e-4, atol=1e-4)
    with guided(pipe, CFG(interval=(0, 0.5))) as report:
        case.run(pipe, **scales)
    assert [len(step.passes) for step in report.steps] == [2, 2, 1, 1]


# -- batches


@over(WAN_IMAGE, WAN_FIRST_LAST, WAN_5B_IMAGE)
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
@over(WAN, WAN_5B_IMAGE, WAN_EXPERTS)
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


@over(WAN_VIDEO)
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


@over(WAN_EXPERTS)
def test_each_expert_is_guided_with_the_scale_that_the_pipeline_gives_it(case: Case, pipe: Any) -> None:
    """A method that takes the pipeline's scale is the one with both scales written out."""
    boundary = pipe.config.boundary_ratio
    written = Schedule(((1.0, SCALE), (boundary, SECOND_SCALE)))
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


@over(WAN_EXPERTS)
def test_each_expert_can_have_blocks_of_its_own(case: Case, pipe: Any) -> None:
    blocks = Schedule(((1.0, (1,)), (pipe.config.boundary_ratio, (3, 4))))
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
    both = WAN_EXPERTS.run(pipe)
    alone = quiet(
        WanPipeline(
            **{name: getattr(pipe, name) for name in ("tokenizer", "text_encoder", "vae", "transformer_2")},
            scheduler=wan_scheduler(3.0),
            transformer=None,
            boundary_ratio=1.0,
        )
    )
    stock = WAN_EXPERTS.run(alone)
    assert not torch.equal(stock, both)
    with guided(alone, CFG()):
        assert torch.equal(WAN_EXPERTS.run(alone), stock)
    with guided(alone, OSEG(blocks=(BLOCK,))) as report:
        own = WAN_EXPERTS.run(alone)
    with guided(alone, OSEG(guidance_scale=SECOND_SCALE, blocks=(BLOCK,))):
        assert torch.equal(WAN_EXPERTS.run(alone), own)
    assert [step.passes[0].branches for step in report.steps] == [("cond",)] * STEPS


@over(WAN_EXPERTS)
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


@over(WAN_EXPERTS)
def test_the_second_expert_is_checked_like_the_first(case: Case, pipe: Any) -> None:
    pipe.transformer_2.compile(backend="eager")
    with pytest.raises(GuidanceError, match="compile the repeated blocks"), guided(pipe, OSEG_METHOD):
        pass
    pipe.transformer_2._compiled_call_impl = None
    del pipe.transformer_2.blocks[BLOCK:]
    with pytest.raises(UnknownBlockError, match=r"no block 2.*has 2 blocks"), guided(pipe, OSEG_METHOD):
        pass
    assert type(pipe.transformer) is type(pipe.transformer_2) is WanTransformer3DModel


# -- a time per token


@over(WAN_5B, WAN_5B_IMAGE)
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
            assert (times[:, :frame] == (0 if case is WAN_5B_IMAGE else timestep)).all()


def test_the_given_first_frame_stays_what_it_is() -> None:
    pipe = quiet(WAN_5B_IMAGE.build())
    stock = WAN_5B_IMAGE.run(pipe)
    with guided(pipe, OSEG_METHOD):
        clip = WAN_5B_IMAGE.run(pipe)
    assert torch.equal(clip[:, :, 0], stock[:, :, 0])
    assert not torch.isclose(clip[:, :, 1:], stock[:, :, 1:]).all()


# -- diffusion forcing: a time per frame, window after window


@over(SKYREELS_V2_FORCING, SKYREELS_V2_FORCING_IMAGE, SKYREELS_V2_LONG, SKYREELS_V2_FORCING_VIDEO)
def test_frames_that_go_together_have_the_level_of_their_scheduler(case: Case, pipe: Any) -> None:
    """Given frames do not count. The pipelines round timesteps down."""
    with guided(pipe, OSEG_METHOD) as report:
        case.run(pipe)
    windows = {SKYREELS_V2_LONG.name: 3, SKYREELS_V2_FORCING_VIDEO.name: 2}.get(case.name, 1)
    assert [step.index for step in report.steps] == list(range(STEPS)) * windows
    pipe.scheduler.set_timesteps(STEPS)
    expected = pipe.scheduler.sigmas[:-1].tolist() * windows
    assert [step.noise_level for step in report.steps] == pytest.approx(expected, abs=1e-3)


@over(SKYREELS_V2_CAUSAL)
def test_frames_that_are_ahead_have_a_mean_level(case: Case, pipe: Any) -> None:
    """Of two blocks of frames: one a step ahead of the other, then alone, the first one being clean."""
    with guided(pipe, OSEG_METHOD) as report:
        case.run(pipe)
    assert [step.index for step in report.steps] == list(range(STEPS + 1))
    pipe.scheduler.set_timesteps(STEPS)
    high, mid, low = pipe.scheduler.sigmas[:-1].tolist()
    expected = [(high + 0.999) / 2, (mid + high) / 2, (low + mid) / 2, low]
    assert [step.noise_level for step in report.steps] == pytest.approx(expected, abs=1e-3)


@over(SKYREELS_V2_LONG)
def test_every_window_is_a_run_of_its_own(case: Case, pipe: Any) -> None:
    """Momentum begins anew, and so does the calendar of what is computed."""
    with guided(pipe, MG()), slow.recorded(pipe, denoisers_of(pipe)) as steps:
        case.run(pipe)
    for step in steps[::STEPS]:
        (_, cond), (_, uncond) = step.calls
        plain = partial(predicted, slow_denoiser(pipe.transformer, case.grid, None))
        expected = slow.guided_prediction("cfg", SCALE, plain, None, cond=cond, uncond=uncond)
        moved = step.prediction.shape[2]
        assert_close(step.prediction.double(), expected[:, :, -moved:], rtol=1e-4, atol=1e-4)
    with guided(pipe, CFG(), reuse=Reuse(refresh={"uncond": 3})) as report:
        case.run(pipe)
    assert [step.estimated for step in report.steps] == [(), ("uncond",), ()] * 3


def test_ranks_take_the_times_of_their_tokens_but_share_no_causal_attention() -> None:
    tokens, shard = WAN.grid.tokens, Shard.of(WAN.grid.tokens, 1, 2)
    inputs = {"temb": torch.randn(1, 6, tokens, 4), "rotary_emb": (), "attention_mask": None}
    take = WanAdapter.token_inputs.take
    assert torch.equal(take(inputs, shard)["temb"], inputs["temb"][:, :, tokens // 2 :])
    with pytest.raises(UnsupportedPipelineError, match=r"causal_block_size.*branch"):
        take({**inputs, "attention_mask": torch.ones(1, 1, tokens, tokens, dtype=torch.bool)}, shard)


# -- blocks beside the others


@over(WAN_VACE_CONTROL)
def test_blocks_beside_the_others_run_once_for_a_condition(case: Case, pipe: Any) -> None:
    calls: list[None] = []
    pipe.transformer.vace_blocks[-1].register_forward_hook(lambda *_: calls.append(None))
    for blocks in ((0,), (BLOCK,), ("all",)):
        calls.clear()
        method = SEG(guidance_scale=SCALE, blocks=blocks)
        with guided(pipe, method):
            clip = case.run(pipe)
        assert len(calls) == 2 * STEPS
        with guided(pipe, method, reuse=Reuse(prefix=False)):
            assert_close(case.run(pipe), clip, **ACROSS_BATCHES)
        assert len(calls) == 5 * STEPS


@over(WAN_VACE)
def test_ranks_cannot_share_tokens_that_blocks_beside_the_others_look_at(case: Case, pipe: Any) -> None:
    class TwoRanks:
        size = 2

    with pytest.raises(GuidanceError, match=r"vace_blocks\.0 looks at all tokens.*over branch and data"):
        BranchRunner(adapter_for(pipe), pipe.transformer, sequence=TwoRanks())


# -- refusing


@over(WAN_EXPERTS)
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

    def forward(
        self, x: Tensor, context: Tensor, times: Tensor, _: Any, mask: Tensor | None = None
    ) -> Tensor:
        if self.change == "skip":
            return x
        block = self.block
        if times.ndim == 3:  # [B, 6, C]: one time for all tokens
            times = times[:, None]
        elif isinstance(block, SkyReelsV2TransformerBlock):  # [B, 6, S, C]
            times = times.transpose(1, 2)
        parts = (times + block.scale_shift_table.double()).unbind(dim=2)
        shift, scale, gate, late_shift, late_scale, late_gate = parts
        attended = self.self_attention(slow.layer_norm(x, block.norm1) * (1 + scale) + shift, mask)
        x = x + attended * gate
        x = x + self.cross_attention(slow.layer_norm(x, block.norm2), context)
        wide = slow.gelu_tanh(
            slow.linear(
                slow.layer_norm(x, block.norm3) * (1 + late_scale) + late_shift, block.ffn.net[0].proj
            )
        )
        return x + slow.linear(wide, block.ffn.net[2]) * late_gate

    def self_attention(self, x: Tensor, mask: Tensor | None) -> Tensor:
        attn = self.block.attn1
        query = self.heads(rms_norm(slow.linear(x, attn.to_q), attn.norm_q), attn)
        key = self.heads(rms_norm(slow.linear(x, attn.to_k), attn.norm_k), attn)
        value = self.heads(slow.linear(x, attn.to_v), attn)
        before = x.shape[1] - self.grid.tokens  # those of reference images
        if callable(self.change):
            query = torch.cat([query[:, :before], self.change(query[:, before:], key[:, before:])], dim=1)
        _, height, width = self.grid.shape
        whole = TokenGrid(x.shape[1] // (height * width), height, width)
        angles = wan_angles(whole, query.shape[-1])
        mixed = slow.attention(slow.rotated(query, angles), slow.rotated(key, angles), value, mask)
        if self.change == "values":
            mixed = value.flatten(2)
        if self.change == "input":
            mixed = x
        return slow.linear(mixed, attn.to_out[0])

    def cross_attention(self, x: Tensor, context: Tensor) -> Tensor:
        attn = self.block.attn2
        query = self.heads(rms_norm(slow.linear(x, attn.to_q), attn.norm_q), attn)
        images = context.shape[1] - 512 if attn.add_k_proj is not None else 0
        text = context[:, images:]
        mixed = slow.attention(
            query,
            self.heads(rms_norm(slow.linear(text, attn.to_k), attn.norm_k), attn),
            self.heads(slow.linear(text, attn.to_v), attn),
        )
        if images:
            seen = context[:, :images]
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


@pytest.mark.parametrize("method", slow.REFERENCE_METHODS)
@over(
    *(WAN, WAN_IMAGE, WAN_FIRST_LAST, WAN_EXPERTS, WAN_5B, WAN_5B_IMAGE),
    *(WAN_VACE, WAN_VACE_CONTROL, LUCY_EDIT, SKYREELS_V2, SKYREELS_V2_IMAGE, *FORCING_VARIANTS),
)
def test_the_guided_prediction_is_that_of_a_slow_float64_reference(
    case: Case, pipe: Any, method: str
) -> None:
    guidance, change = slow.reference_methods(case.grid, BLOCK, None)[method]
    with guided(pipe, guidance), slow.recorded(pipe, denoisers_of(pipe)) as steps:
        case.run(pipe, num_inference_steps=2)
    for i, step in enumerate(steps):
        denoiser, cond = step.calls[0]
        uncond, *_ = [
            kwargs
            for _, kwargs in step.calls
            if not torch.equal(kwargs["encoder_hidden_states"], cond["encoder_hidden_states"])
        ]
        scale = SECOND_SCALE if denoiser is getattr(pipe, "transformer_2", None) else SCALE
        plain = partial(predicted, slow_denoiser(denoiser, case.grid, None))
        weak = partial(predicted, slow_denoiser(denoiser, case.grid, change)) if change else None
        expected = slow.guided_prediction(method, scale, plain, weak, cond=cond, uncond=uncond)
        if case in FORCING_VARIANTS:  # some frames are ahead, or given
            moved = step.prediction.shape[2]
            expected = (
                expected[:, :, :moved] if (case, i) == (SKYREELS_V2_CAUSAL, 0) else expected[:, :, -moved:]
            )
        assert_close(step.prediction.double(), expected, rtol=1e-4, atol=1e-4)


def predicted(denoiser: nn.Module, arguments: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return denoiser(**slow.doubled(arguments))[0]


@over(WAN, WAN_EXPERTS)
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
            c, u = (predicted(slow_denoiser(denoiser, case.grid, None), one) for one in (cond, uncond))
            if guidance.name == "cfg-zero":
                difference = c - (c * u).sum() / (u * u).sum() * u
            else:
                average = c - u - 0.5 * average
                difference = average - 0.75 * (average * c).sum() / (c * c).sum() * c
            expected = c + (scale - 1) * difference
            assert_close(step.prediction.double(), expected, rtol=1e-4, atol=1e-4)


@over(WAN, WAN_IMAGE, WAN_5B, WAN_VACE, WAN_VACE_CONTROL, LUCY_EDIT, SKYREELS_V2)
def test_only_the_video_queries_change_and_they_are_orthogonal_to_their_keys(case: Case, pipe: Any) -> None:
    """Without blur the query that attention sees, rotated, is the part of the plain one off its own key."""
    guidance = OSEG(guidance_scale=1.0, blocks=(BLOCK,), blur_sigma=0.0)
    with slow.recorded_attention(case.grid.tokens) as calls, guided(pipe, guidance):
        case.run(pipe, guidance_scale=1.0, num_inference_steps=2)
    # The text encoder has no attention this long, the VAE one with one head.
    calls = [call for call in calls if call[0].shape[1:3] == (2, case.start + case.grid.tokens)]
    first = len(adapter_for(pipe).blocks.beside(pipe.transformer))
    assert len(calls) == 2 * (first + BLOCKS + BLOCKS - BLOCK)
    assert_off_key(calls[first + BLOCK], calls[first + BLOCKS], slice(case.start, None), tolerance=1e-4)


@over(WAN, WAN_EXPERTS)
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


@over(WAN, WAN_IMAGE, WAN_IMAGE_EXPERTS, WAN_VACE)
def test_example_arguments_are_those_of_the_pipelines_calls(case: Case, pipe: Any) -> None:
    with slow.recorded(pipe, denoisers_of(pipe)) as steps:
        case.run(pipe)
    clip = ClipSize(case.size["num_frames"], case.size["height"], case.size["width"])
    for denoiser in denoisers_of(pipe):
        example = adapter_for(pipe).example_arguments(denoiser, clip, rows=1)
        calls = [kwargs for step in steps for one, kwargs in step.calls if one is denoiser]
        given = {name for name, value in calls[0].items() if isinstance(value, Tensor)}
        given -= {"control_hidden_states_scale"}  # by default 1
        assert given == set(example)
        text = {"encoder_hidden_states", "encoder_hidden_states_image"}  # here of another length
        for name in given - text:
            assert example[name].shape == calls[0][name].shape, name
        for name in given & text:
            assert example[name].shape[::2] == calls[0][name].shape[::2], name
        with torch.no_grad():
            assert denoiser(**example).sample.shape == (1, 4, *case.grid.shape[:1], 6, 8)

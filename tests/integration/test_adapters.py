"""Adapters on real denoisers: the right queries change, and the guided prediction is the formula's."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from oseg_video import CFG, OSEG, SEG, STG, guided
from oseg_video.adapters import adapter_for, adapter_for_class, all_adapters, base
from oseg_video.adapters.base import ClipSize
from oseg_video.adapters.denoiser import VideoTokens
from oseg_video.adapters.ltx import LTXAdapter
from oseg_video.engine.branches import BranchRunner
from oseg_video.guidance.plan import Branch
from tests.integration import slow
from tests.integration.checks import assert_off_key
from tests.integration.families import CASES, LTX, MOCHI, SCALE, Case, over
from tests.integration.variants import LTX_LONG
from tests.tiny import BLOCKS

BLOCK = 2


@pytest.fixture(params=(MOCHI, LTX), ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


# -- the registry


def test_every_pipeline_class_has_one_adapter_and_exists_in_diffusers() -> None:
    import diffusers

    for adapter in all_adapters():
        for name in adapter.pipelines:
            assert adapter_for_class(name) is adapter and hasattr(diffusers, name)


def test_a_pipeline_class_cannot_be_registered_twice() -> None:
    class Second(type(adapter_for_class("LTXPipeline"))):
        pass

    with pytest.raises(ValueError, match="LTXPipeline is already served by LTXAdapter"):
        base.register_adapter(Second)


# -- the token grid


@pytest.mark.parametrize("case", [case for case in CASES if case.grid], ids=lambda case: case.name)
def test_video_tokens_come_from_the_call(case: Case, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = adapter_for(pipe)
    seen = []
    original = type(adapter).video_tokens

    def record(self: Any, *arguments: Any) -> Any:
        seen.append(original(self, *arguments))
        return seen[-1]

    monkeypatch.setattr(type(adapter), "video_tokens", record)
    with guided(pipe, SEG(guidance_scale=SCALE, blocks=(BLOCK,))):
        case.run(pipe)
    assert {(tokens.grid, tokens.start) for tokens in seen} == {(case.grid, case.start)}


@over(LTX_LONG)
def test_windows_of_a_long_clip_have_references_behind_their_own_tokens(
    case: Case, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = LTXAdapter.video_tokens
    monkeypatch.setattr(LTXAdapter, "video_tokens", lambda *given: seen.append(original(*given)) or seen[-1])
    with guided(pipe, SEG(guidance_scale=SCALE, blocks=(BLOCK,))) as report:
        case.run(pipe, "a red circle | a blue square")
    frame = case.grid.height * case.grid.width
    assert seen == [VideoTokens(case.grid, behind=frames * frame) for frames in (1, 1, 1, 3, 3, 3)]
    assert [step.index for step in report.steps] == [0, 1, 2] * 2
    assert [step.noise_level for step in report.steps] == pytest.approx(case.extra()["sigmas"][:-1] * 2)


# -- text without padding


@pytest.mark.parametrize("valid", ("..ttt.......", ".........ttt", "t.t..t......", "............"))
def test_text_is_not_cut_where_valid_tokens_do_not_come_first(valid: str) -> None:
    """Mochi's attention takes the valid tokens of a row, wherever they stand."""
    torch.manual_seed(0)
    pipe = MOCHI.build()
    text_BT = torch.tensor([[token == "t" for token in valid], [True] * 2 + [False] * (len(valid) - 2)])
    call = adapter_for(pipe).example_arguments(pipe.transformer, ClipSize(13, 48, 32), len(text_BT))
    call["encoder_hidden_states"] = call["encoder_hidden_states"][:, : len(valid)]
    call["encoder_attention_mask"] = text_BT
    runner = BranchRunner(adapter_for(pipe), pipe.transformer, (BLOCK,))
    with torch.no_grad(), runner.active():
        ours = runner.run(pipe.transformer, call, {"cond": Branch("cond")}, ("cond",))[0]["cond"]
        assert_close(ours, pipe.transformer(**call)[0], rtol=0, atol=1e-5)


# -- what attention sees


def test_only_the_video_queries_change_and_they_are_orthogonal_to_their_keys(case: Case, pipe: Any) -> None:
    """Without blur the query that attention sees, rotated, is the part of the plain one off its own key."""
    pipe.transformer.double()
    guidance = OSEG(guidance_scale=1.0, blocks=(BLOCK,), blur_sigma=0.0)
    embeds = {"prompt_embeds": torch.randn(1, 24, 32, generator=torch.Generator().manual_seed(0)).double()}
    mask = torch.arange(24)[None] < 9
    with slow.recorded_attention(case.grid.tokens) as calls, guided(pipe, guidance):
        case.run(
            pipe,
            prompt=None,
            guidance_scale=1.0,
            num_inference_steps=2,
            prompt_attention_mask=mask,
            **embeds,
        )
    plain, perturbed = calls[BLOCK], calls[BLOCKS]  # the perturbed pass starts at BLOCK
    assert len(calls) == 2 * (BLOCKS + BLOCKS - BLOCK)
    # Rotary embedding is computed in float32 by the model itself.
    assert_off_key(plain, perturbed, slice(case.grid.tokens), tolerance=1e-5)
    assert (plain[0].shape[2] > case.grid.tokens) == (case is MOCHI)


# -- against a slow reference


class SlowAttention:
    """Self-attention of Mochi and of LTX written out with einsum, its video queries changed by a function."""

    def __init__(self, case: Case, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.case = case
        self.change = change

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        heads = attn.heads
        query, key = attn.to_q(hidden_states), attn.to_k(hidden_states)
        value = attn.to_v(hidden_states).unflatten(2, (heads, -1))
        if self.case is not MOCHI:
            query, key = (x.unflatten(2, (heads, -1)) for x in (attn.norm_q(query), attn.norm_k(key)))
            angles = [part.unflatten(2, (heads, -1))[..., ::2] for part in image_rotary_emb]
        else:
            query = attn.norm_q(query.unflatten(2, (heads, -1)))
            key = attn.norm_k(key.unflatten(2, (heads, -1)))
            angles = image_rotary_emb
        clip = self.case.grid.tokens  # it comes first
        query = torch.cat([self.change(query[:, :clip], key[:, :clip]), query[:, clip:]], dim=1)
        query, key = rotated(query, *angles), rotated(key, *angles)
        if self.case is not MOCHI:
            out = softmax_attention(query, key, value).flatten(2)
            return attn.to_out[0](out)
        text = encoder_hidden_states
        extra = [
            attn.norm_added_q(attn.add_q_proj(text).unflatten(2, (heads, -1))),
            attn.norm_added_k(attn.add_k_proj(text).unflatten(2, (heads, -1))),
            attn.add_v_proj(text).unflatten(2, (heads, -1)),
        ]
        joint = [torch.cat([a, b], dim=1) for a, b in zip((query, key, value), extra, strict=True)]
        valid = torch.cat([torch.ones(hidden_states.shape[:2], dtype=torch.bool), attention_mask], dim=1)
        out = softmax_attention(*joint, valid).flatten(2)
        # diffusers packs valid tokens first, so the outputs of padded text are zero
        out = torch.where(valid[..., None], out, 0.0)
        video, context = out.split([hidden_states.shape[1], text.shape[1]], dim=1)
        context = attn.to_add_out(context) if hasattr(attn, "to_add_out") else context
        return attn.to_out[0](video), context


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs of neighbouring channels turned by the given angles."""
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.complex(cos, sin).to(
        torch.complex128
    )
    return torch.view_as_real(turned).flatten(-2)


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None = None) -> Tensor:
    logits = torch.einsum("bind,bjnd->bnij", query, key) / math.sqrt(query.shape[-1])
    if valid is not None:
        logits = logits.masked_fill(~valid[:, None, None, :], -math.inf)
    return torch.einsum("bnij,bjnd->bind", logits.softmax(-1), value)


def reference_transformer(case: Case, transformer: nn.Module, change: Any) -> nn.Module:
    """A float64 copy whose block BLOCK is perturbed by other means than hooks."""
    model = copy.deepcopy(transformer).double()
    if change == "skip":
        del model.transformer_blocks[BLOCK]
    else:
        model.transformer_blocks[BLOCK].attn1.processor = SlowAttention(case, change)
    return model


@pytest.mark.parametrize("case", (MOCHI, LTX, LTX_LONG), ids=lambda case: case.name)
@pytest.mark.parametrize(
    "method", ("cfg", "stg", "seg", "oseg", "oseg-cond", "stg-uncond", "seg-uncond", "oseg-uncond")
)
def test_the_guided_prediction_is_that_of_a_slow_float64_reference(
    case: Case, pipe: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale, weight = 3.0, 1.5
    oseg = {"blur_sigma": (0.0, math.inf), "mix": 0.75}
    guidance, change = {
        "cfg": (CFG(guidance_scale=scale), None),
        "stg": (STG(guidance_scale=scale, scale=weight, blocks=(BLOCK,)), "skip"),
        "seg": (SEG(guidance_scale=scale, scale=weight, blocks=(BLOCK,)), slow.mean_everywhere),
        "oseg": (
            OSEG(guidance_scale=scale, scale=weight, blocks=(BLOCK,), **oseg),
            slow.off_key_mean_per_frame(case.grid, 0.75),
        ),
        "oseg-cond": (
            OSEG(guidance_scale=scale, scale=weight, blocks=(BLOCK,), perturb="cond", **oseg),
            slow.off_key_mean_per_frame(case.grid, 0.75),
        ),
        "stg-uncond": (STG(guidance_scale=scale, perturb="uncond", blocks=(BLOCK,)), "skip"),
        "seg-uncond": (SEG(guidance_scale=scale, perturb="uncond", blocks=(BLOCK,)), slow.mean_everywhere),
        "oseg-uncond": (
            OSEG(guidance_scale=scale, perturb="uncond", blocks=(BLOCK,), **oseg),
            slow.off_key_mean_per_frame(case.grid, 0.75),
        ),
    }[method]

    inputs: list[dict] = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _, __, kwargs: inputs.append(kwargs), with_kwargs=True
    )
    case.run(pipe, num_inference_steps=2)
    handle.remove()
    outputs: list[Tensor] = []
    real_step = pipe.scheduler.step
    monkeypatch.setattr(
        pipe.scheduler, "step", lambda output, *a, **k: outputs.append(output) or real_step(output, *a, **k)
    )
    with guided(pipe, guidance):
        case.run(pipe, num_inference_steps=2)

    first = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs[0].items()
    }
    with torch.no_grad():
        uncond, cond = copy.deepcopy(pipe.transformer).double()(**first)[0].chunk(2)
        if change is not None:
            weak_uncond, weak_cond = reference_transformer(case, pipe.transformer, change)(**first)[0].chunk(
                2
            )
    if method == "cfg":
        expected = uncond + scale * (cond - uncond)
    elif method == "oseg":
        expected = cond + (scale - 1) * (cond - weak_uncond) + weight * (cond - weak_cond)
    elif method.endswith("-uncond"):
        expected = weak_uncond + scale * (cond - weak_uncond)
    else:
        expected = uncond + scale * (cond - uncond) + weight * (cond - weak_cond)
    assert_close(outputs[0].double(), expected, rtol=1e-4, atol=1e-4)

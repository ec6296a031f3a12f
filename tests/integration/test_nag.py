"""NAG: every cross-attention against attention by hand in float64, what runs, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from oseg_video import NAG, GuidanceError, Reuse, Schedule, SilentGuidanceError, guided
from oseg_video.adapters import adapter_for
from oseg_video.types import SettingError
from tests.integration import slow
from tests.integration.checks import ACROSS_BATCHES, state_of
from tests.integration.families import (
    CASES,
    COGVIDEOX,
    HUNYUAN,
    HUNYUAN15,
    LTX,
    LTX2,
    MOCHI,
    SCALE,
    SD15,
    SDXL,
    SVD,
    WAN,
    Case,
    over,
)
from tests.integration.variants import WAN_5B, WAN_EXPERTS, WAN_FIRST_LAST, WAN_IMAGE, WAN_VACE

LTX_CASES = tuple(case for case in CASES if case.name.startswith("ltx") and not case.name.startswith("ltx2"))
PAPER = NAG(scale=5.0, alpha=0.4)
LONG = "a red circle that moves up, then down, and at last out of sight"


# -- attention by hand


class TwoTexts:
    """Cross-attention in float64: away from a text, whose tokens it is told; or the text that it saw."""

    def __init__(self, guidance: NAG, negative: TwoTexts | None = None) -> None:
        self.guidance = guidance
        self.negative = negative
        self.text: Tensor | None = None
        self.mask: Tensor | None = None
        self.ratio = torch.empty(0)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> Tensor:
        text, image = encoder_hidden_states, None
        if getattr(attn, "add_k_proj", None) is not None:
            image, text = text[:, :-512], text[:, -512:]
        self.text, self.mask = text, attention_mask
        query = self.heads(attn, self.normed(slow.linear(hidden_states, attn.to_q), attn.norm_q))
        mixed = self.attended(attn, query, text, attention_mask)
        if self.negative is not None:
            assert self.negative.text is not None
            other = self.attended(attn, query, self.negative.text, self.negative.mask)
            free = self.guidance.scale * mixed - (self.guidance.scale - 1) * other
            ratio = free.abs().sum(-1, keepdim=True) / mixed.abs().sum(-1, keepdim=True)
            self.ratio = ratio.flatten()
            limited = torch.where(ratio > self.guidance.tau, free / ratio * self.guidance.tau, free)
            mixed = self.guidance.alpha * limited + (1 - self.guidance.alpha) * mixed
        if image is not None:
            key = self.normed(slow.linear(image, attn.add_k_proj), attn.norm_added_k)
            value = slow.linear(image, attn.add_v_proj)
            mixed = mixed + slow.attention(query, self.heads(attn, key), self.heads(attn, value))
        return slow.linear(mixed, attn.to_out[0])

    def attended(self, attn: Any, query: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        key = self.heads(attn, self.normed(slow.linear(text, attn.to_k), attn.norm_k))
        value = self.heads(attn, slow.linear(text, attn.to_v))
        if mask is None:
            return slow.attention(query, key, value)
        rows = []
        for row in range(len(text)):  # what is masked is left out
            kept = mask[row, 0] > -1
            rows.append(slow.attention(*(x[row : row + 1] for x in (query, key[:, kept], value[:, kept]))))
        return torch.cat(rows)

    @staticmethod
    def heads(attn: Any, x: Tensor) -> Tensor:
        return x.unflatten(2, (attn.heads, -1))

    @staticmethod
    def normed(x: Tensor, norm: Any) -> Tensor:
        if norm is None:
            return x
        scaled = x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        return scaled if norm.weight is None else scaled * norm.weight.double()


def calls_of_the_first_step(case: Case, pipe: Any, **options: Any) -> dict[str, dict[str, Any]]:
    """Arguments of the denoiser by condition, as a stock pipeline passes them."""
    calls: list[dict[str, Any]] = []
    denoiser = adapter_for(pipe).denoisers(pipe)[0]
    signature = inspect.signature(type(denoiser).forward)

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        bound = signature.bind(module, *args, **kwargs).arguments
        bound.pop("self")
        calls.append(bound)

    handle = denoiser.register_forward_pre_hook(note, with_kwargs=True)
    case.run(pipe, num_inference_steps=2, **options)
    handle.remove()
    call = adapter_for(pipe).denoiser_call
    rows = {
        name: slow.doubled(call.take_rows(calls[0], slice(half, half + 1)))
        for half, name in enumerate(("uncond", "cond"))
    }
    if adapter_for(pipe).family == "wan":
        rows = {"cond": slow.doubled(calls[0]), "uncond": slow.doubled(calls[1])}
    return rows


def by_hand(pipe: Any, calls: dict[str, dict[str, Any]], guidance: NAG) -> tuple[NAG, Tensor, Tensor]:
    """C~ and U in float64, and the guidance with a tau that some tokens are above and others are not."""
    denoiser = adapter_for(pipe).denoisers(pipe)[0]
    model = copy.deepcopy(denoiser).double()
    blocks = adapter_for(pipe).blocks
    paths = [*blocks.beside(model), *(block.path for block in blocks(model))]
    attentions = [model.get_submodule(path).attn2 for path in paths]

    def run(condition: str, processors: list[TwoTexts]) -> Tensor:
        for attention, one in zip(attentions, processors, strict=True):
            attention.processor = one
        with torch.no_grad():
            return model(**_nested(calls[condition]))[0]

    negative = [TwoTexts(guidance) for _ in attentions]
    uncond = run("uncond", negative)
    free = [TwoTexts(dataclasses.replace(guidance, tau=1e6), one) for one in negative]
    run("cond", free)
    ratios = torch.cat([one.ratio for one in free])
    guidance = dataclasses.replace(guidance, tau=max(1.0, float(ratios.median())))
    assert (ratios > guidance.tau).any() and (ratios < guidance.tau).any()
    return guidance, run("cond", [TwoTexts(guidance, one) for one in negative]), uncond


def _nested(arguments: dict[str, Any]) -> dict[str, Any]:
    """SDXL's pooled texts stand one level deeper."""
    return {k: slow.doubled(v) if isinstance(v, dict) else v for k, v in arguments.items()}


def first_prediction(case: Case, pipe: Any, guidance: NAG, monkeypatch: Any, **options: Any) -> Tensor:
    given: list[Tensor] = []
    step = pipe.scheduler.step
    monkeypatch.setattr(
        pipe.scheduler, "step", lambda output, *a, **k: given.append(output.clone()) or step(output, *a, **k)
    )
    with guided(pipe, guidance):
        case.run(pipe, num_inference_steps=2, **options)
    return given[0].double()


@over(*LTX_CASES, WAN, WAN_IMAGE, WAN_FIRST_LAST, WAN_EXPERTS, WAN_5B, WAN_VACE, SDXL, SD15)
def test_the_guided_prediction_is_that_of_a_slow_float64_reference(
    case: Case, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of different lengths; with and without text guidance besides."""
    options: dict[str, Any] = (
        {} if "image" in case.name or "first" in case.name else {"negative_prompt": "bad"}
    )
    calls = calls_of_the_first_step(case, pipe, **options)
    limited, cond, uncond = by_hand(pipe, calls, PAPER)
    handed_on = partial(case.handed_on, pipe)
    for scale, expected in ((1.0, cond), (3.0, uncond + 3 * (cond - uncond))):
        guidance = dataclasses.replace(limited, guidance_scale=scale)
        with monkeypatch.context() as patch:
            given = first_prediction(case, pipe, guidance, patch, **options)
        assert_close(given, handed_on(expected), rtol=1e-4, atol=1e-4)


@over(WAN)
def test_texts_may_be_trimmed_to_lengths_of_their_own(
    case: Case, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    width = pipe.transformer.config.text_dim
    embeds = {
        name: torch.randn(1, tokens, width, generator=generator)
        for name, tokens in (("prompt_embeds", 9), ("negative_prompt_embeds", 4))
    }
    options = {"prompt": None, **embeds}
    limited, cond, _ = by_hand(pipe, calls_of_the_first_step(case, pipe, **options), PAPER)
    assert_close(first_prediction(case, pipe, limited, monkeypatch, **options), cond, rtol=1e-4, atol=1e-4)


# -- what runs


@over(LTX, WAN, SDXL, SD15)
def test_it_is_one_pass_a_step_and_two_with_text_guidance(case: Case, pipe: Any) -> None:
    case.run(pipe)
    before = state_of(pipe)
    with guided(pipe, NAG()) as report:
        latents = case.run(pipe)
    (passes,) = {step.passes for step in report.steps}
    assert [one.branches for one in passes] == [("cond",)] and passes[0].rows == 1
    assert len(passes[0].fired) == case.blocks and all(name.endswith(".attn2") for name in passes[0].fired)
    assert report.block_passes == len(report.steps)
    with guided(pipe, NAG(guidance_scale=3.0)) as report:
        case.run(pipe)
    assert report.block_passes == 2 * len(report.steps)
    # Another negative text is another clip, which it is not without NAG.
    with guided(pipe, NAG()):
        assert not torch.allclose(case.run(pipe, negative_prompt="a blue square"), latents, atol=1e-2)
    assert state_of(pipe) == before


@over(LTX, WAN, SDXL)
def test_neutral_values_are_the_stock_pipeline_bit_for_bit(case: Case, pipe: Any) -> None:
    stock, alone = case.run(pipe), case.run(pipe, guidance_scale=1.0)
    for off in (NAG(scale=1.0, guidance_scale=SCALE), NAG(alpha=0.0, guidance_scale=SCALE)):
        with guided(pipe, off):
            assert torch.equal(case.run(pipe), stock)
    with guided(pipe, NAG(scale=1.0)):
        assert torch.equal(case.run(pipe, guidance_scale=1.0), alone)


@over(LTX, WAN, SDXL)
def test_a_clip_does_not_depend_on_its_batch(case: Case, pipe: Any) -> None:
    prompts, negative = ["a red circle", LONG], ["bad", "worse, and longer"]
    with guided(pipe, PAPER):
        together = case.run(pipe, prompts, seed=5, negative_prompt=negative)
        alone = [
            case.run(pipe, prompt, seed=5 + i, negative_prompt=negative[i])
            for i, prompt in enumerate(prompts)
        ]
    assert_close(together, torch.cat(alone), **ACROSS_BATCHES)


@over(LTX, WAN, SDXL)
def test_scale_and_interval_may_change_over_the_steps(case: Case, pipe: Any) -> None:
    with guided(pipe, NAG(interval=(0.5, 1.0))) as report:
        case.run(pipe, num_inference_steps=4)
    falling = Schedule(((1.0, 5.0), (report.steps[1].noise_level, 1.0)))
    with guided(pipe, NAG(scale=falling)) as off:
        case.run(pipe, num_inference_steps=4)
    assert [bool(step.passes[0].fired) for step in off.steps] == [True, False, False, False]
    assert [bool(step.passes[0].fired) for step in report.steps] == [False, False, True, True]
    assert report.block_passes == 4


@over(LTX, WAN, SDXL)
def test_half_precision_stays_close_to_full_precision(case: Case, pipe: Any) -> None:
    with guided(pipe, PAPER):
        full = case.run(pipe)
        half = case.run(pipe.to(torch.bfloat16))
    pipe.to(torch.float32)
    assert (half.float() - full).norm() < 0.1 * full.norm()


@over(LTX, WAN, SDXL)
def test_an_error_inside_an_attention_leaves_nothing_behind(case: Case, pipe: Any) -> None:
    stock, before = case.run(pipe), state_of(pipe)
    adapter = adapter_for(pipe)
    denoiser = adapter.denoisers(pipe)[0]
    attention = denoiser.get_submodule(adapter.blocks(denoiser)[2].path).attn2

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    with guided(pipe, NAG()):
        handle = attention.to_out[0].register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            case.run(pipe)
        handle.remove()
        case.run(pipe)
    assert state_of(pipe) == before and torch.equal(case.run(pipe), stock)


# -- what is refused


@over(MOCHI, COGVIDEOX, HUNYUAN, HUNYUAN15, SVD, LTX2)
def test_a_family_without_cross_attention_to_text_is_refused(case: Case, pipe: Any) -> None:
    why = {"svd": "takes no text", "ltx2": "has two streams, each with a text of its own"}.get(
        case.name, "attends to video and text at once"
    )
    with pytest.raises(GuidanceError, match=f"nag .* which ltx, .*wan have; {case.name} {why}"):
        with guided(pipe, NAG()):
            pass


@over(LTX, WAN, SDXL)
def test_a_call_without_a_negative_text_is_refused(case: Case, pipe: Any) -> None:
    with guided(pipe, NAG()), pytest.raises(GuidanceError) as caught:
        case.run(pipe, guidance_scale=1.0)
    assert str(caught.value) == (
        "NAG needs the text of the unconditional branch, which it does not run, but the pipeline was called "
        "without it; give it a guidance_scale above 1"
    )


@pytest.mark.parametrize("reuse", (Reuse(cache=0.1), Reuse(refresh={"uncond": 2})), ids=("cache", "refresh"))
@over(WAN)
def test_estimates_have_nothing_to_follow(case: Case, pipe: Any, reuse: Reuse) -> None:
    with pytest.raises(SettingError, match="refresh and cache follow the plain conditional prediction"):
        with guided(pipe, NAG(), reuse=reuse):
            pass


@over(WAN)
def test_fused_projections_are_refused(case: Case, pipe: Any) -> None:
    pipe.transformer.fuse_qkv_projections()
    try:
        with guided(pipe, NAG()), pytest.raises(SilentGuidanceError, match="cannot look at a second text"):
            case.run(pipe)
    finally:
        pipe.transformer.unfuse_qkv_projections()


@over(SDXL)
def test_sliced_attention_is_refused(case: Case, pipe: Any) -> None:
    processors = dict(pipe.unet.attn_processors)
    pipe.enable_attention_slicing(1)
    try:
        with guided(pipe, NAG()), pytest.raises(SilentGuidanceError, match="without slices"):
            case.run(pipe)
    finally:
        pipe.unet.set_attn_processor(processors)

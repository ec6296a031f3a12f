"""NAG: every attention to text against references in float64, what runs, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from diffusers.models.embeddings import ImageProjection
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
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
    quiet,
)
from tests.integration.variants import SKYREELS, WAN_5B, WAN_EXPERTS, WAN_FIRST_LAST, WAN_IMAGE, WAN_VACE

LTX_CASES = tuple(case for case in CASES if case.name.startswith("ltx") and not case.name.startswith("ltx2"))
JOINT = (*(case for case in CASES if case.name.startswith(("mochi", "cogvideox", "hunyuan"))), SKYREELS)
PAPER = NAG(scale=5.0, alpha=0.4)
LONG = "a red circle that moves up, then down, and at last out of sight"


def pushed_away(mixed: Tensor, other: Tensor, guidance: NAG) -> tuple[Tensor, Tensor]:
    """The paper's formula, and the ratio of the norms of each token."""
    free = guidance.scale * mixed - (guidance.scale - 1) * other
    ratio = free.abs().sum(-1, keepdim=True) / mixed.abs().sum(-1, keepdim=True)
    limited = torch.where(ratio > guidance.tau, free / ratio * guidance.tau, free)
    return guidance.alpha * limited + (1 - guidance.alpha) * mixed, ratio.flatten()


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
            mixed, self.ratio = pushed_away(mixed, other, self.guidance)
        if image is not None:
            key = self.normed(slow.linear(image, attn.add_k_proj), attn.norm_added_k)
            value = slow.linear(image, attn.add_v_proj)
            mixed = mixed + slow.attention(query, self.heads(attn, key), self.heads(attn, value))
        if getattr(attn, "to_gate_logits", None) is not None:  # of LTX-2's heads
            gates = 2 / (1 + (-slow.linear(hidden_states, attn.to_gate_logits)).exp())
            mixed = (self.heads(attn, mixed) * gates[..., None]).flatten(2)
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
    if adapter_for(pipe).sampling.call_per_condition:
        rows = {"cond": slow.doubled(calls[0]), "uncond": slow.doubled(calls[1])}
    return rows


def by_hand(pipe: Any, calls: dict[str, dict[str, Any]], guidance: NAG) -> tuple[NAG, Tensor, Tensor]:
    """C~ and U in float64, and the guidance with a tau that some tokens are above and others are not."""
    denoiser = adapter_for(pipe).denoisers(pipe)[0]
    model = copy.deepcopy(denoiser).double()
    blocks = adapter_for(pipe).blocks
    paths = [*blocks.beside(model), *(block.path for block in blocks(model))]
    names = [one.attribute for one in adapter_for(pipe).text_attention]
    attentions = [getattr(model.get_submodule(path), name) for path in paths for name in names]

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
    scheduler = type(pipe.scheduler)  # of which LTX-2 makes a copy for the sound
    step = scheduler.step

    def note(self: Any, output: Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append(output.clone())
        return step(self, output, *args, **kwargs)

    monkeypatch.setattr(scheduler, "step", note)
    with guided(pipe, guidance):
        case.run(pipe, num_inference_steps=2, **options)
    return given[0].double()


@over(*LTX_CASES, LTX2, WAN, WAN_IMAGE, WAN_FIRST_LAST, WAN_EXPERTS, WAN_5B, WAN_VACE, SDXL, SD15)
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
        close = 1e-3 if case is LTX2 else 1e-4  # which goes to denoised latents and back in float32
        assert_close(given, handed_on(expected), rtol=close, atol=close)


# -- joint attention, block by block


class TwoStreams:
    """A model in float64 whose blocks run once for each text, with the same video; each text goes on alone.

    What the attention gives the video beside the negative text is noted, and what it gives it beside its own
    text is pushed away from that. Time and pooled text are those of the model's own call.
    """

    def __init__(self, pipe: Any) -> None:
        denoiser = adapter_for(pipe).denoisers(pipe)[0]
        self.model = copy.deepcopy(denoiser).double()
        self.blocks = [self.model.get_submodule(one.path) for one in adapter_for(pipe).blocks(denoiser)]
        self.negative: dict[str, Any] = {}
        self.ratios: list[Tensor] = []

    def plain(self, call: dict[str, Any]) -> Tensor:
        with torch.no_grad():
            return self.model(**call)[0]

    def __call__(self, call: dict[str, Any], negative: dict[str, Any], guidance: NAG) -> Tensor:
        self.ratios.clear()

        def note(block: nn.Module, args: Any, kwargs: Any) -> None:
            bound = inspect.signature(type(block).forward).bind(block, *args, **kwargs).arguments
            self.negative = {name: bound[name] for name in self.texts(bound)}

        handle = self.blocks[0].register_forward_pre_hook(note, with_kwargs=True)
        self.plain(negative)
        handle.remove()
        for block in self.blocks:
            block.forward = partial(self.block, type(block).forward, block, guidance)
        prediction = self.plain(call)
        for block in self.blocks:
            del block.forward
        return prediction

    @staticmethod
    def texts(bound: dict[str, Any]) -> list[str]:
        return [name for name in bound if name == "encoder_hidden_states" or name.endswith("attention_mask")]

    def block(self, forward: Any, block: Any, guidance: NAG, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(forward).bind(block, *args, **kwargs)
        own = dict(bound.arguments)
        other: list[Tensor] = []
        bound.arguments.update(self.negative)
        with self.attended(block, len(own["hidden_states"][0]), lambda mixed: other.append(mixed) or mixed):
            self.negative["encoder_hidden_states"] = forward(*bound.args, **bound.kwargs)[1]
        bound.arguments.update(own)

        def push(mixed: Tensor) -> Tensor:
            mixed, ratio = pushed_away(mixed, other[0], guidance)
            self.ratios.append(ratio)
            return mixed

        with self.attended(block, len(own["hidden_states"][0]), push):
            return forward(*bound.args, **bound.kwargs)

    @contextmanager
    def attended(self, block: Any, video: int, change: Any) -> Iterator[None]:
        """What the attention gives the video, before its output projection."""
        attention = block.attn1 if hasattr(block, "attn1") else block.attn
        to_out = getattr(attention, "to_out", None)
        if to_out is None:
            handle = attention.register_forward_hook(lambda _, __, out: (change(out[0]), *out[1:]))
        else:  # of CogVideoX for the text as well, which comes first

            def before(_: Any, args: Any) -> Any:
                text = args[0].shape[1] - video
                return (torch.cat([args[0][:, :text], change(args[0][:, text:])], dim=1), *args[1:])

            handle = to_out[0].register_forward_pre_hook(before)
        yield
        handle.remove()


@over(*JOINT)
def test_joint_attention_is_that_of_a_slow_float64_reference(
    case: Case, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"negative_prompt": LONG}
    calls = calls_of_the_first_step(case, pipe, **options)
    slow_model = TwoStreams(pipe)
    slow_model(calls["cond"], calls["uncond"], dataclasses.replace(PAPER, tau=1e6))
    ratios = torch.cat(slow_model.ratios)
    limited = dataclasses.replace(PAPER, tau=max(1.0, float(ratios.median())))
    assert (ratios > limited.tau).any() and (ratios < limited.tau).any()
    cond = slow_model(calls["cond"], calls["uncond"], limited)
    uncond = slow_model.plain(calls["uncond"])
    assert not torch.allclose(cond, slow_model.plain(calls["cond"]), rtol=1e-2, atol=1e-2)
    for scale, expected in ((1.0, cond), (3.0, uncond + 3 * (cond - uncond))):
        guidance = dataclasses.replace(limited, guidance_scale=scale)
        with monkeypatch.context() as patch:
            given = first_prediction(case, pipe, guidance, patch, **options)
        assert_close(given, case.handed_on(pipe, expected), rtol=1e-4, atol=1e-4)


@over(MOCHI, COGVIDEOX, HUNYUAN, HUNYUAN15)
def test_in_joint_attention_the_negative_text_takes_a_row_of_its_own(case: Case, pipe: Any) -> None:
    case.run(pipe)
    before = state_of(pipe)
    with guided(pipe, NAG()) as report:
        latents = case.run(pipe)
    (passes,) = {step.passes for step in report.steps}
    assert [one.branches for one in passes] == [("cond",)] and passes[0].rows == passes[0].rows_each == 2
    assert len(passes[0].fired) == case.blocks and report.block_passes == 2 * len(report.steps)
    with guided(pipe, NAG(guidance_scale=3.0)) as report:
        case.run(pipe)
    assert report.block_passes == 3 * len(report.steps)
    with guided(pipe, NAG()):
        assert not torch.allclose(case.run(pipe, negative_prompt="a blue square"), latents, atol=1e-2)
    assert state_of(pipe) == before


@over(HUNYUAN15)
def test_texts_of_two_lengths_take_no_mask_of_all_pairs(
    case: Case, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which the model's own processor builds, and which takes 26 GB for a clip of 720p."""
    masks: set[Any] = set()
    real = nn.functional.scaled_dot_product_attention

    def record(*args: Any, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        masks.add(None if attn_mask is None else tuple(attn_mask.shape[:3]))
        return real(*args, attn_mask=attn_mask, **kwargs)

    attention = pipe.transformer.transformer_blocks[0].attn
    with guided(pipe, NAG()), monkeypatch.context() as patch:
        record_it = partial(patch.setattr, nn.functional, "scaled_dot_product_attention")
        handles = [
            attention.register_forward_pre_hook(lambda *_: record_it(record)),
            attention.register_forward_hook(lambda *_: record_it(real)),
        ]
        case.run(pipe, negative_prompt=LONG)
    for handle in handles:
        handle.remove()
    assert masks == {(2, 1, 1)}


@over(HUNYUAN)
def test_negative_texts_of_another_length_or_one_for_all_clips(case: Case, pipe: Any) -> None:
    """Texts that are given as embeddings, and one negative text in a batch."""
    names = "prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask"
    options = dict(num_videos_per_prompt=1, device="cpu", max_sequence_length=16)
    positive = dict(zip(names, pipe.encode_prompt("a red circle", **options), strict=True))
    negative = dict(zip(names, pipe.encode_prompt("bad", **options), strict=True))
    valid = int(negative["prompt_attention_mask"].sum())
    cut = {name: value if "pooled" in name else value[:, :valid] for name, value in negative.items()}
    made = []
    for one in (negative, cut):
        given = {**positive, **{f"negative_{name}": value for name, value in one.items()}}
        with guided(pipe, PAPER):
            made.append(case.run(pipe, prompt=None, negative_prompt=None, **given))
    assert_close(made[1], made[0], **ACROSS_BATCHES)
    with guided(pipe, PAPER):
        one, several = (case.run(pipe, ["a", LONG], negative_prompt=x) for x in ("bad", ["bad", "bad"]))
    assert_close(one, several, **ACROSS_BATCHES)


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


@over(LTX, LTX2, WAN, SDXL, MOCHI, COGVIDEOX, HUNYUAN, HUNYUAN15)
def test_neutral_values_are_the_stock_pipeline_bit_for_bit(case: Case, pipe: Any) -> None:
    stock, alone = case.run(pipe), case.run(pipe, guidance_scale=1.0)
    for off in (NAG(scale=1.0, guidance_scale=SCALE), NAG(alpha=0.0, guidance_scale=SCALE)):
        with guided(pipe, off):
            assert torch.equal(case.run(pipe), stock)
    with guided(pipe, NAG(scale=1.0)):
        assert torch.equal(case.run(pipe, guidance_scale=1.0), alone)


@over(LTX, WAN, SDXL, MOCHI, COGVIDEOX, HUNYUAN, HUNYUAN15)
def test_a_clip_does_not_depend_on_its_batch(case: Case, pipe: Any) -> None:
    prompts, negative = ["a red circle", LONG], ["bad", "worse, and longer"]
    with guided(pipe, PAPER):
        together = case.run(pipe, prompts, seed=5, negative_prompt=negative)
        alone = [
            case.run(pipe, prompt, seed=5 + i, negative_prompt=negative[i])
            for i, prompt in enumerate(prompts)
        ]
    assert_close(together, torch.cat(alone), **ACROSS_BATCHES)


@over(LTX, WAN, SDXL, MOCHI)
def test_scale_and_interval_may_change_over_the_steps(case: Case, pipe: Any) -> None:
    with guided(pipe, NAG(interval=(0.5, 1.0))) as report:
        case.run(pipe, num_inference_steps=4)
    falling = Schedule(((1.0, 5.0), (report.steps[1].noise_level, 1.0)))
    with guided(pipe, NAG(scale=falling)) as off:
        case.run(pipe, num_inference_steps=4)
    assert [bool(step.passes[0].fired) for step in off.steps] == [True, False, False, False]
    assert [bool(step.passes[0].fired) for step in report.steps] == [False, False, True, True]
    assert report.block_passes == 4 + 2 * (case is MOCHI)


@over(LTX, WAN, SDXL, MOCHI)
def test_half_precision_stays_close_to_full_precision(case: Case, pipe: Any) -> None:
    with guided(pipe, PAPER):
        full = case.run(pipe)
        half = case.run(pipe.to(torch.bfloat16))
    pipe.to(torch.float32)
    assert (half.float() - full).norm() < 0.1 * full.norm()


@pytest.mark.parametrize("error", (ZeroDivisionError, KeyboardInterrupt))
@over(LTX, WAN, SDXL, MOCHI)
def test_an_error_inside_an_attention_leaves_nothing_behind(
    case: Case, pipe: Any, error: type[BaseException]
) -> None:
    stock, before = case.run(pipe), state_of(pipe)
    adapter = adapter_for(pipe)
    denoiser = adapter.denoisers(pipe)[0]
    block = denoiser.get_submodule(adapter.blocks(denoiser)[2].path)
    attention = block.attn1 if case is MOCHI else block.attn2

    def fail(*_: Any) -> None:
        raise error

    handle = attention.to_out[0].register_forward_pre_hook(fail)
    with pytest.raises(error), guided(pipe, NAG()):
        case.run(pipe)
    handle.remove()
    assert not _get_current_function_mode_stack()
    with guided(pipe, NAG()):
        handle = attention.to_out[0].register_forward_pre_hook(fail)
        with pytest.raises(error):
            case.run(pipe)
        handle.remove()
        case.run(pipe)
    assert not _get_current_function_mode_stack()
    assert state_of(pipe) == before and torch.equal(case.run(pipe), stock)


def test_an_ip_adapter_shows_its_images_beside_both_texts() -> None:
    """At a weight of 0 the images change nothing, at 1 they do."""
    pipe = quiet(SD15.build())
    width = pipe.unet.config.cross_attention_dim
    call = {"prompt": "a cat", "negative_prompt": "bad", "num_inference_steps": 2, "height": 96, "width": 96}

    def run(**arguments: Any) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        images = pipe(**call, guidance_scale=5.0, output_type="latent", generator=generator, **arguments)
        return torch.as_tensor(images.images)

    with guided(pipe, NAG()):
        without = run()
    torch.manual_seed(0)
    pipe.unet._load_ip_adapter_weights([ip_adapter_weights(pipe.unet)])
    shown = {"ip_adapter_image_embeds": [torch.randn(2, 1, width)]}
    with guided(pipe, NAG()) as report:
        seen = run(**shown)
        pipe.set_ip_adapter_scale(0.0)
        unseen = run(**shown)
    assert_close(unseen, without, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(seen, without, atol=1e-2) and report.block_passes == 4


def ip_adapter_weights(unet: Any) -> dict[str, dict[str, Tensor]]:
    """Random ones, in the layout that diffusers loads."""
    width, inside = unet.config.cross_attention_dim, {}
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for place, name in enumerate(names):
        out, _ = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape
        for part in ("k", "v"):
            inside[f"{2 * place + 1}.to_{part}_ip.weight"] = torch.randn(out, width)
    projection = ImageProjection(image_embed_dim=width, cross_attention_dim=width, num_image_text_embeds=4)
    names_there = {"image_embeds": "proj", "norm": "norm"}
    image = {
        f"{names_there[name.partition('.')[0]]}.{name.partition('.')[2]}": value
        for name, value in projection.state_dict().items()
    }
    return {"image_proj": image, "ip_adapter": inside}


# -- what is refused


@over(SVD)
def test_a_family_without_text_is_refused(case: Case, pipe: Any) -> None:
    with pytest.raises(GuidanceError, match="how the video attends to a text, and svd takes none"):
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

"""HunyuanVideo and HunyuanVideo 1.5: embedded and true guidance, two stacks, text without padding or mask."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import ClassifierFreeGuidance, PerturbedAttentionGuidance
from flops import step_cost
from torch import Tensor, nn
from torch.testing import assert_close

from oseg_video import CFG, OSEG, PAG, SEG, STG, GuidanceError, Reuse, TokenGrid, guided
from oseg_video.adapters import UnknownBlockError, UnsupportedPipelineError, adapter_for
from oseg_video.adapters.base import ClipSize
from oseg_video.engine.branches import BranchRunner
from oseg_video.guidance.methods import Unguided
from oseg_video.guidance.perturbations import SkipBlock
from oseg_video.guidance.plan import Branch, Perturbation
from tests.integration import slow
from tests.integration.checks import ACROSS_BATCHES, assert_off_key
from tests.integration.families import CASES, HUNYUAN, HUNYUAN15, SCALE, STEPS, Case, plain_scale, quiet
from tests.integration.slow_hunyuan import Change, SlowHunyuan
from tests.integration.variants import SKYREELS
from tests.tiny.hunyuan import tiny_hunyuan_image

_BY_NAME = {case.name: case for case in CASES}
IMAGE = _BY_NAME["hunyuan-image"]
TOKEN_REPLACE = dataclasses.replace(
    IMAGE, name="hunyuan-token-replace", build=partial(tiny_hunyuan_image, "token_replace")
)
IMAGE15 = _BY_NAME["hunyuan15-image"]
ALL = (HUNYUAN, IMAGE, TOKEN_REPLACE, HUNYUAN15, IMAGE15)
# As the released weights are meant to be used: the guidance scale is an input, there is no second call.
DISTILLED = dataclasses.replace(HUNYUAN, name="hunyuan-distilled", scale=plain_scale)
BLOCKS = 5
PROMPTS = ["a red circle", "a circle", 'a sign "hi"']

# One float32 pass, its text padded or not.
ONE_PASS = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(params=ALL, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def built(case: Case, **overrides: Any) -> Any:
    return quiet(case.build(**overrides))


def blocks_of(transformer: Any) -> list[nn.Module]:
    return [*transformer.transformer_blocks, *getattr(transformer, "single_transformer_blocks", ())]


def denoiser_calls(pipe: Any, run: Callable[[], Any]) -> list[dict[str, Any]]:
    """The arguments of the transformer's calls in a run, without `return_dict`."""
    seen: list[dict[str, Any]] = []

    def note(_: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        seen.append({name: value for name, value in kwargs.items() if name != "return_dict"})

    handle = pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
    run()
    handle.remove()
    return seen


def first_steps(case: Case, pipe: Any, guidance: Any, monkeypatch: pytest.MonkeyPatch, **run: Any) -> Tensor:
    """What the scheduler is given at the first step of a guided run."""
    outputs: list[Tensor] = []
    real_step = pipe.scheduler.step

    def step(output: Tensor, *args: Any, **kwargs: Any) -> Any:
        outputs.append(output.clone())
        return real_step(output, *args, **kwargs)

    with monkeypatch.context() as patch, guided(pipe, guidance):
        patch.setattr(pipe.scheduler, "step", step)
        case.run(pipe, num_inference_steps=2, **run)
    return outputs[0]


class Attended(NamedTuple):
    """One call of scaled dot-product attention: [B, N, S, D] three times, and its mask."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None


@contextmanager
def attention_of_blocks(transformer: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Attended]]:
    """The attention calls of the blocks, not those of the text refiner."""
    calls: list[Attended] = []
    inside: list[bool] = []
    real = nn.functional.scaled_dot_product_attention

    def record(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **kwargs: Any) -> Tensor:
        if inside:
            calls.append(Attended(query, key, value, attn_mask))
        return real(query, key, value, attn_mask=attn_mask, **kwargs)

    handles = []
    for block in blocks_of(transformer):
        handles.append(block.attn.register_forward_pre_hook(lambda *_: inside.append(True)))
        handles.append(block.attn.register_forward_hook(lambda *_: inside.clear()))
    with monkeypatch.context() as patch:
        patch.setattr(nn.functional, "scaled_dot_product_attention", record)
        yield calls
    for handle in handles:
        handle.remove()


# -- embedded and true guidance


def test_a_distilled_model_is_guided_within_its_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """`C + lambda (C - C~)`, the embedded scale being an input of both passes."""
    pipe = built(DISTILLED)
    guidance = OSEG(scale=1.5, blocks=("dual:1", "single:1"), blur_sigma=math.inf)
    changes: dict[int, Change] = dict.fromkeys((1, 3), off_key_mean)
    guided_predictions = []
    for embedded in (6.0, 1.0):
        (call, *_) = denoiser_calls(pipe, partial(DISTILLED.run, pipe, guidance_scale=embedded))
        assert call["guidance"].tolist() == [1000 * embedded]
        cond, weak = SlowHunyuan(pipe.transformer)(call), SlowHunyuan(pipe.transformer, changes)(call)
        given = first_steps(DISTILLED, pipe, guidance, monkeypatch, guidance_scale=embedded)
        assert_close(given.double(), cond + 1.5 * (cond - weak), **ACROSS_BATCHES)
        guided_predictions.append(given)
    assert not torch.allclose(*guided_predictions, atol=1e-2)
    with guided(pipe, guidance) as report:
        DISTILLED.run(pipe)
    assert [[p.branches for p in step.passes] for step in report.steps] == [
        [("cond",), ("cond_perturbed",)]
    ] * STEPS


@pytest.mark.parametrize("case", (DISTILLED, IMAGE, TOKEN_REPLACE), ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_cfg_without_a_second_call_is_the_stock_pipeline(case: Case, pipe: Any, dtype: torch.dtype) -> None:
    pipe.to(dtype)
    stock = case.run(pipe, guidance_scale=1.0)
    with guided(pipe, CFG()) as report:
        assert torch.equal(case.run(pipe, guidance_scale=1.0), stock)
    assert [[p.branches for p in step.passes] for step in report.steps] == [[("cond",)]] * STEPS


@pytest.mark.parametrize("case", (HUNYUAN, IMAGE), ids=lambda case: case.name)
def test_text_guidance_of_a_distilled_call_is_refused(case: Case, pipe: Any) -> None:
    for guidance in (CFG(guidance_scale=4.0), OSEG(guidance_scale=4.0, blocks=(1,))):
        for call in ({"true_cfg_scale": 1.0}, {"negative_prompt": None}):
            with pytest.raises(GuidanceError, match="give it a true_cfg_scale above 1 and a negative_prompt"):
                with guided(pipe, guidance):
                    case.run(pipe, **call)


def test_true_cfg_runs_the_full_rule_over_two_calls() -> None:
    pipe = built(HUNYUAN)
    with guided(pipe, OSEG(guidance_scale=SCALE, blocks=(1,))) as report:
        HUNYUAN.run(pipe)
    with guided(pipe, SEG(guidance_scale=SCALE, blocks=(1,))) as plain:
        HUNYUAN.run(pipe)
    kinds = [[p.branches for p in step.passes] for one in (report, plain) for step in one.steps]
    assert (
        kinds
        == [[("cond",), ("cond_perturbed",), ("uncond_perturbed",)]] * STEPS
        + [[("cond",), ("perturbed",), ("uncond",)]] * STEPS
    )


@pytest.mark.parametrize("case", (HUNYUAN, HUNYUAN15), ids=lambda case: case.name)
def test_a_guidance_without_a_text_scale_takes_the_pipelines(case: Case, pipe: Any) -> None:
    with guided(pipe, OSEG(blocks=(1,), guidance_scale=2.5)):
        named = case.run(pipe)
    with guided(pipe, OSEG(blocks=(1,))):
        assert torch.equal(case.run(pipe, guidance_scale=2.5), named)
        assert not torch.equal(case.run(pipe, guidance_scale=3.5), named)


def test_a_negative_prompt_may_be_given_as_embeddings() -> None:
    pipe = built(HUNYUAN)
    embeds, pooled, mask = pipe.encode_prompt("bad", max_sequence_length=24)
    negative = {
        "negative_prompt": None,
        "negative_prompt_embeds": embeds,
        "negative_pooled_prompt_embeds": pooled,
        "negative_prompt_attention_mask": mask,
    }
    guidance = OSEG(blocks=(1,))
    with guided(pipe, guidance):
        assert torch.equal(HUNYUAN.run(pipe, **negative), HUNYUAN.run(pipe))


# -- the blocks by name


def test_blocks_have_the_names_of_their_stacks() -> None:
    pipe = built(HUNYUAN)
    adapter = adapter_for(pipe)
    every = adapter.blocks(pipe.transformer)
    assert [block.path for block in every] == [
        *(f"transformer_blocks.{i}" for i in range(2)),
        *(f"single_transformer_blocks.{i}" for i in range(3)),
    ]
    assert [b.index for b in adapter.resolve_blocks(pipe.transformer, ("single:2", "dual:1"))] == [1, 4]
    assert [b.index for b in adapter.resolve_blocks(pipe.transformer, ("single",))] == [2, 3, 4]
    with pytest.raises(UnknownBlockError, match=r"no block dual:2.*dual:0 to 1, single:0 to 2"):
        with guided(pipe, STG(blocks=("dual:2",))):
            pytest.fail("the body must not run")


# -- text without padding and without a mask


def run_plain(pipe: Any, call: dict[str, Any]) -> Tensor:
    """The prediction of an unperturbed pass as guidance runs it."""
    runner = BranchRunner(adapter_for(pipe), pipe.transformer, (1,))
    with torch.no_grad(), runner.active():
        return runner.run(pipe.transformer, call, {"cond": Branch("cond")}, ("cond",))[0]["cond"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_without_padding_and_mask_the_prediction_stays(
    case: Case, pipe: Any, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert case.grid is not None
    for call in denoiser_calls(pipe, partial(case.run, pipe, prompt, num_inference_steps=1)):
        masks = [value for name, value in call.items() if "attention_mask" in name]
        valid = int(sum(mask.sum() for mask in masks))
        if call.get("image_embeds") is not None and call["image_embeds"].any():
            valid += call["image_embeds"].shape[1]
        with attention_of_blocks(pipe.transformer, monkeypatch) as stock_calls, torch.no_grad():
            stock = pipe.transformer(**call)[0]
        with attention_of_blocks(pipe.transformer, monkeypatch) as calls:
            assert_close(run_plain(pipe, call), stock, **ONE_PASS)
        assert all(one.mask is not None for one in stock_calls)
        assert len(calls) == len(stock_calls) == BLOCKS
        assert {one.mask for one in calls} == {None}
        assert {one.key.shape[2] for one in calls} == {case.grid.tokens + valid}
        assert case.grid.tokens + valid < stock_calls[0].key.shape[2]


@pytest.mark.parametrize("case", (HUNYUAN, HUNYUAN15), ids=lambda case: case.name)
def test_a_batch_keeps_the_longest_text_and_the_mask(
    case: Case, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, *_ = denoiser_calls(pipe, partial(case.run, pipe, PROMPTS, guidance_scale=1.0))
    with torch.no_grad():
        stock = pipe.transformer(**call)[0]
    with attention_of_blocks(pipe.transformer, monkeypatch) as calls:
        assert_close(run_plain(pipe, call), stock, **ONE_PASS)
    longest = sum(int(v.sum(1).max()) for name, v in call.items() if "attention_mask" in name)
    assert {one.key.shape[2] for one in calls} == {case.grid.tokens + longest}
    assert all(one.mask is not None for one in calls)


def test_a_mask_with_holes_stays_where_the_network_counts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = built(HUNYUAN)
    call, *_ = denoiser_calls(pipe, partial(HUNYUAN.run, pipe))
    call["encoder_attention_mask"] = torch.tensor([[0.0, 1, 1, 0] + [1] * 8 + [0] * 12])
    with torch.no_grad():
        stock = pipe.transformer(**call)[0]
    with attention_of_blocks(pipe.transformer, monkeypatch) as calls:
        assert_close(run_plain(pipe, call), stock, **ONE_PASS)
    assert {one.key.shape[2] for one in calls} == {HUNYUAN.grid.tokens + 12}
    assert all(one.mask is not None for one in calls)


def test_any_mask_is_trimmed_where_the_network_sorts_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = built(HUNYUAN15)
    call, *_ = denoiser_calls(pipe, partial(HUNYUAN15.run, pipe, PROMPTS[2]))
    for name in ("encoder_attention_mask", "encoder_attention_mask_2"):
        call[name] = call[name].flip(1)
    with torch.no_grad():
        stock = pipe.transformer(**call)[0]
    with attention_of_blocks(pipe.transformer, monkeypatch) as calls:
        assert_close(run_plain(pipe, call), stock, **ONE_PASS)
    assert {one.mask for one in calls} == {None}


# -- what attention sees


@pytest.mark.parametrize("case", (*ALL, SKYREELS), ids=lambda case: case.name)
@pytest.mark.parametrize("block", (1, 3))
def test_only_the_video_queries_change_and_they_are_orthogonal_to_their_keys(
    case: Case, pipe: Any, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without blur the query that attention sees, rotated, is the part of the plain one off its own key."""
    assert case.grid is not None
    pipe.transformer.double()
    guidance = OSEG(guidance_scale=1.0, blocks=(block,), blur_sigma=0.0)
    with attention_of_blocks(pipe.transformer, monkeypatch) as calls, guided(pipe, guidance) as report:
        case.run(pipe, guidance_scale=1.0, num_inference_steps=1)
    plain, perturbed = calls[block], calls[BLOCKS]  # the perturbed pass starts at the block
    assert len(calls) == BLOCKS + BLOCKS - block
    (site,) = report.steps[0].passes[1].fired
    stack = "transformer_blocks.1" if block == 1 else "single_transformer_blocks.1"
    assert site == f"{stack if 'hunyuan15' not in case.name else f'transformer_blocks.{block}'}.attn"
    # Rotary embedding is computed in float32 by the model itself.
    assert_off_key(plain[:3], perturbed[:3], slice(case.grid.tokens), tolerance=1e-5)
    assert plain.query.shape[2] > case.grid.tokens


# -- against a slow reference


def off_key_mean(query: Tensor, key: Tensor) -> Tensor:
    return slow.mean_everywhere(slow.off_key(query, key), key)


def blurred_in_each_frame(grid: TokenGrid) -> Callable[[Tensor, Tensor], Tensor]:
    """A Gaussian of one token along rows and columns, the image going on as its own mirror image."""

    def along(x: Tensor, dim: int) -> Tensor:
        mirrored, length = torch.cat([x, x.flip(dim)], dim), x.shape[dim]
        weights = {offset: math.exp(-(offset**2) / 2) for offset in range(-12, 13)}
        blurred = [
            sum(w * mirrored.select(dim, (i + offset) % (2 * length)) for offset, w in weights.items())
            for i in range(length)
        ]
        return torch.stack(blurred, dim) / sum(weights.values())

    def change(query: Tensor, key: Tensor) -> Tensor:
        image = query.unflatten(1, grid.shape)
        return along(along(image, 2), 3).flatten(1, 3)

    return change


@pytest.mark.parametrize("case", (*ALL, SKYREELS), ids=lambda case: case.name)
@pytest.mark.parametrize(
    "method",
    (
        *("cfg", "stg", "stg-attention-skip", "pag", "seg", "seg-blur", "oseg", "oseg-cond"),
        *("stg-uncond", "pag-uncond", "seg-uncond", "oseg-uncond"),
    ),
)
def test_the_guided_prediction_is_that_of_a_slow_float64_reference(
    case: Case, pipe: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert case.grid is not None
    common = {"guidance_scale": 3.0, "blocks": (1, 3)}
    oseg = {"scale": 1.5, "blur_sigma": (0.0, math.inf), "mix": 0.75}
    guidance, change = {
        "cfg": (CFG(guidance_scale=3.0), None),
        "stg": (STG(scale=1.5, **common), "skip"),
        "stg-attention-skip": (STG(scale=1.5, mode="attention_skip", **common), "input"),
        "pag": (PAG(scale=1.5, **common), "values"),
        "seg": (SEG(scale=1.5, **common), slow.mean_everywhere),
        "seg-blur": (
            SEG(scale=1.5, blur_sigma=(0.0, 1.0), **common),
            blurred_in_each_frame(case.grid),
        ),
        "oseg": (OSEG(**oseg, **common), slow.off_key_mean_per_frame(case.grid, 0.75)),
        "oseg-cond": (
            OSEG(perturb="cond", **oseg, **common),
            slow.off_key_mean_per_frame(case.grid, 0.75),
        ),
        "stg-uncond": (STG(perturb="uncond", **common), "skip"),
        "pag-uncond": (PAG(perturb="uncond", **common), "values"),
        "seg-uncond": (SEG(perturb="uncond", **common), slow.mean_everywhere),
        "oseg-uncond": (
            OSEG(perturb="uncond", **oseg, **common),
            slow.off_key_mean_per_frame(case.grid, 0.75),
        ),
    }[method]
    calls = denoiser_calls(pipe, partial(case.run, pipe, num_inference_steps=2))
    cond, uncond = (SlowHunyuan(pipe.transformer)(call) for call in calls[:2])
    changes: dict[int, Change] = {} if change is None else dict.fromkeys((1, 3), change)
    weak, weak_uncond = (SlowHunyuan(pipe.transformer, changes)(call) for call in calls[:2])
    if method == "cfg":
        expected = uncond + 3.0 * (cond - uncond)
    elif method == "oseg":
        expected = cond + 2.0 * (cond - weak_uncond) + 1.5 * (cond - weak)
    elif method.endswith("-uncond"):
        expected = weak_uncond + 3.0 * (cond - weak_uncond)
    else:
        expected = uncond + 3.0 * (cond - uncond) + 1.5 * (cond - weak)
    given = first_steps(case, pipe, guidance, monkeypatch)
    # With a given first frame the pipeline goes on without it.
    assert_close(given.double(), expected[:, :, -given.shape[2] :], **ACROSS_BATCHES)


# -- prefix reuse, batches, precision


@pytest.mark.parametrize("block", ("dual:0", "dual:1", "single:0", "single:2"))
@pytest.mark.parametrize("case", (HUNYUAN, IMAGE, TOKEN_REPLACE), ids=lambda case: case.name)
def test_prefix_reuse_changes_nothing_in_either_stack(case: Case, pipe: Any, block: str) -> None:
    guidance = OSEG(guidance_scale=SCALE, blocks=(block,))
    with guided(pipe, guidance, reuse=Reuse(prefix=False)):
        whole = case.run(pipe)
    with guided(pipe, guidance) as report:
        assert_close(case.run(pipe), whole, **ACROSS_BATCHES)
    first = {"dual:0": 0, "dual:1": 1, "single:0": 2, "single:2": 4}[block]
    starts = [{name: p.start_block for p in step.passes for name in p.branches} for step in report.steps]
    assert starts == [{"cond": 0, "cond_perturbed": first, "uncond_perturbed": 0}] * STEPS


GUIDED = (OSEG(guidance_scale=SCALE, blocks=(1, 3)), SEG(guidance_scale=SCALE, blocks=(3,), blur_sigma=1.0))


@pytest.mark.parametrize("guidance", GUIDED, ids=lambda guidance: guidance.name)
@pytest.mark.parametrize("case", (HUNYUAN, HUNYUAN15, IMAGE15), ids=lambda case: case.name)
def test_a_clip_does_not_depend_on_its_batch(case: Case, pipe: Any, guidance: Any) -> None:
    negative = {"negative_prompt": ["bad", "worse"]}
    with guided(pipe, guidance):
        together = case.run(pipe, PROMPTS[:2], seed=5, **negative)
        for i, prompt in enumerate(PROMPTS[:2]):
            alone = case.run(pipe, prompt, seed=5 + i, negative_prompt=negative["negative_prompt"][i])
            assert_close(together[i : i + 1], alone, **ACROSS_BATCHES)


@pytest.mark.parametrize("case", (IMAGE, TOKEN_REPLACE), ids=lambda case: case.name)
def test_a_clip_from_an_image_does_not_depend_on_its_batch(case: Case, pipe: Any) -> None:
    # The stock pipeline takes one image per prompt, and a batch only without a negative prompt.
    image = case.extra()["image"]
    with guided(pipe, OSEG(guidance_scale=1.0, blocks=(1, 3))):
        together = case.run(pipe, PROMPTS[:2], seed=5, guidance_scale=1.0, image=[image, image])
        for i, prompt in enumerate(PROMPTS[:2]):
            alone = case.run(pipe, prompt, seed=5 + i, guidance_scale=1.0)
            assert_close(together[i : i + 1], alone, **ACROSS_BATCHES)


# The stock text-to-video pipeline of 1.5 cannot make several videos per prompt: its empty image has one row.
@pytest.mark.parametrize("case", (HUNYUAN, IMAGE15), ids=lambda case: case.name)
def test_several_videos_per_prompt(case: Case, pipe: Any) -> None:
    negative = {"negative_prompt": ["bad"]}
    if case is HUNYUAN:
        stock = case.run(pipe, seed=5, num_videos_per_prompt=2, **negative)
        with guided(pipe, CFG()):
            assert torch.equal(case.run(pipe, seed=5, num_videos_per_prompt=2, **negative), stock)
    with guided(pipe, GUIDED[0]):
        videos = case.run(pipe, seed=5, num_videos_per_prompt=2, **negative)
        for i in range(2):
            assert_close(videos[i : i + 1], case.run(pipe, seed=5 + i, **negative), **ACROSS_BATCHES)


def test_half_precision_stays_close_to_full_precision(case: Case, pipe: Any) -> None:
    # Given as an argument: in another precision the same generator draws other noise.
    start = {"latents": denoiser_calls(pipe, partial(case.run, pipe))[0]["hidden_states"][:, :4]}
    with guided(pipe, GUIDED[0]):
        exact = case.run(pipe, **start)
        pipe.to(torch.bfloat16)
        rounded = case.run(pipe, **start)
    assert (rounded.float() - exact).norm() < 0.1 * exact.norm()


# -- HunyuanVideo 1.5: the guider and the attention processors


def test_the_guider_decides_about_the_second_call() -> None:
    pipe = built(HUNYUAN15)
    with (
        guided(pipe, GUIDED[0]),
        pytest.raises(GuidanceError, match="give its guider a guidance_scale above"),
    ):
        HUNYUAN15.run(pipe, guidance_scale=1.0)
    with guided(pipe, OSEG(blocks=(1,))) as report:
        HUNYUAN15.run(pipe, guidance_scale=1.0)
    assert [p.branches for p in report.steps[0].passes] == [("cond",), ("cond_perturbed",)]


@pytest.mark.parametrize(
    "settings",
    ({"use_original_formulation": True}, {"start": 0.4}, {"guidance_rescale": 0.5}, {"enabled": False}),
    ids=lambda settings: next(iter(settings)),
)
def test_cfg_is_what_the_guider_does(settings: dict[str, Any]) -> None:
    pipe = built(HUNYUAN15)

    def run() -> Tensor:
        return Case.run(HUNYUAN15, pipe)  # leaves the guider as it is

    # A guider remembers the last step of a run, and goes by it when the next begins.
    pipe.guider = ClassifierFreeGuidance(guidance_scale=3.0, **settings)
    stock = run()
    pipe.guider = ClassifierFreeGuidance(guidance_scale=3.0, **settings)
    with guided(pipe, CFG()):
        assert torch.equal(run(), stock)


def test_a_guider_at_a_scale_below_one_runs_both_conditions() -> None:
    pipe = built(HUNYUAN15)
    alone = HUNYUAN15.run(pipe, guidance_scale=1.0)
    pipe.guider = ClassifierFreeGuidance(guidance_scale=0.5)
    with guided(pipe, Unguided()):
        assert_close(Case.run(HUNYUAN15, pipe), alone)
    pipe.guider = ClassifierFreeGuidance(guidance_scale=0.5)
    stock = Case.run(HUNYUAN15, pipe)
    pipe.guider = ClassifierFreeGuidance(guidance_scale=0.5)
    with guided(pipe, STG(blocks=(1,), scale=1e-9)):
        assert_close(Case.run(HUNYUAN15, pipe), stock, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(stock, alone, atol=1e-3)


def test_the_original_formulation_counts_from_one() -> None:
    pipe, runs = built(HUNYUAN15), []
    for scale, settings in ((3.0, {"use_original_formulation": True}), (4.0, {})):
        pipe.guider = ClassifierFreeGuidance(guidance_scale=scale, **settings)
        with guided(pipe, OSEG(blocks=(1,), scale=0.7)):
            runs.append(Case.run(HUNYUAN15, pipe))
    assert torch.equal(*runs)


def test_other_guiders_and_their_rescale_are_refused() -> None:
    pipe = built(HUNYUAN15)
    pipe.guider = ClassifierFreeGuidance(guidance_scale=3.0, guidance_rescale=0.5)
    with pytest.raises(GuidanceError, match=r"guidance_rescale=0\.5"), guided(pipe, GUIDED[0]):
        Case.run(HUNYUAN15, pipe)
    pipe.guider = PerturbedAttentionGuidance(guidance_scale=3.0, perturbed_guidance_layers=[1])
    with pytest.raises(UnsupportedPipelineError, match=r"with a PerturbedAttentionGuidance guider"):
        with guided(pipe, CFG()):
            pytest.fail("the body must not run")


@pytest.mark.parametrize("error", (None, RuntimeError))
def test_the_attention_processors_are_as_they_were_afterwards(error: type[Exception] | None) -> None:
    pipe = built(HUNYUAN15)
    processors = [block.attn.processor for block in pipe.transformer.transformer_blocks]
    before = [(type(one), vars(one).copy()) for one in processors]
    during = []

    def run() -> None:
        with guided(pipe, GUIDED[0]):
            block = pipe.transformer.transformer_blocks[0]
            block.register_forward_pre_hook(lambda *_: during.extend(type(one) for one in processors))
            HUNYUAN15.run(pipe)
            if error:
                raise error("in the middle")

    if error:
        with pytest.raises(error):
            run()
    else:
        run()
    assert [block.attn.processor for block in pipe.transformer.transformer_blocks] == processors
    assert [(type(one), vars(one)) for one in processors] == before
    assert during and not set(during) & {kind for kind, _ in before}


def test_a_foreign_attention_processor_still_gets_its_mask() -> None:
    pipe = built(HUNYUAN15)
    with guided(pipe, GUIDED[0]):
        expected = HUNYUAN15.run(pipe)
    stock_class = type(pipe.transformer.transformer_blocks[0].attn.processor)
    masks = []

    class Foreign(stock_class):
        def __call__(
            self,
            attn: Any,
            hidden_states: Tensor,
            encoder_hidden_states: Tensor | None = None,
            attention_mask: Tensor | None = None,
            image_rotary_emb: Any = None,
        ) -> Any:
            masks.append(attention_mask)
            return super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )

    for block in pipe.transformer.transformer_blocks:
        block.attn.processor = Foreign()
    with guided(pipe, GUIDED[0]):
        assert_close(HUNYUAN15.run(pipe), expected, **ACROSS_BATCHES)
    assert masks and all(mask is not None and mask.all() for mask in masks)


# -- counted cost


@pytest.mark.parametrize("case", (HUNYUAN, HUNYUAN15), ids=lambda case: case.name)
def test_example_arguments_are_those_of_the_pipeline(case: Case, pipe: Any) -> None:
    adapter, clip = adapter_for(pipe), ClipSize(9, 64, 48)
    call, *_ = denoiser_calls(pipe, partial(case.run, pipe))
    example = adapter.example_arguments(pipe.transformer, clip, 1)
    assert example.keys() == {name for name, value in call.items() if isinstance(value, Tensor)}
    for name, value in example.items():
        text = value.ndim > 1 and name != "hidden_states" and name != "pooled_projections"
        assert [*value.shape[:1], *value.shape[1 + text :]] == [
            *call[name].shape[:1],
            *call[name].shape[1 + text :],
        ]
    pipe.transformer.to("meta")
    branches = {"cond": Branch("cond"), "perturbed": Branch("cond", Perturbation((4,), SkipBlock()))}
    costs = [
        step_cost(adapter, pipe.transformer, clip, branches, reuse=Reuse(prefix=prefix)).total
        for prefix in (True, False)
    ]
    assert 0 < costs[0] < costs[1]

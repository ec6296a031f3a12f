"""LTX-2: diffusers' own STG and modality guidance as oracle, two streams, one axis of sound."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import diffusers.models.transformers.transformer_ltx2 as stock
import pytest
import torch
from diffusers import LTX2LatentUpsamplePipeline
from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel
from torch import Tensor
from torch.testing import assert_close

from oseg_video import APG, CFG, NAG, OSEG, PAG, SEG, STG, GuidanceError, Reuse, guided
from oseg_video.adapters import adapter_for
from oseg_video.adapters.base import ClipSize
from oseg_video.guidance.methods import Unguided
from oseg_video.settings.schedule import Schedule
from oseg_video.types import SettingError
from tests.integration.checks import ACROSS_BATCHES
from tests.integration.families import CASES, LTX, LTX2, STEPS, SoundCase, over
from tests.tiny import BLOCKS, TEXT_LENGTH
from tests.tiny.ltx2 import AUDIO_TOKENS, LTX2_SIZE, tiny_ltx2

BLOCK = 3
_BY_NAME = {case.name: case for case in CASES}
IMAGE, CONDITION = _BY_NAME["ltx2-image"], _BY_NAME["ltx2-condition"]
# LTX-2.0 as diffusers has it, with the switch by which its attention can be perturbed at all.
LEGACY = SoundCase("ltx2.0", partial(tiny_ltx2, legacy=True, perturbed_attn=True), LTX2_SIZE, grid=LTX2.grid)
EVERY = (LTX2, LEGACY, IMAGE, CONDITION)

OFFICIAL = {
    "guidance_scale": 3.0,
    "stg_scale": 1.0,
    "modality_scale": 3.0,
    "guidance_rescale": 0.7,
    "audio_guidance_scale": 7.0,
    "audio_stg_scale": 1.5,
    "audio_modality_scale": 2.0,
    "audio_guidance_rescale": 0.3,
}
"""Arguments of the stock pipeline's call; all differ from one stream to the other."""
OURS = {
    "guidance_scale": 3.0,
    "scale": 1.0,
    "modality_scale": 3.0,
    "rescale": 0.7,
    "audio_guidance_scale": 7.0,
    "audio_scale": 1.5,
    "audio_modality_scale": 2.0,
    "audio_rescale": 0.3,
}
OFF = {
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
    "guidance_rescale": 0.0,
    "audio_guidance_rescale": 0.0,
}


def run(case: SoundCase, pipe: Any, *, guidance_scale: float = 3.0, **arguments: Any) -> Tensor:
    """The case's run, with its defaults for guidance left out but those that are given."""
    bare = dataclasses.replace(case, scale=lambda scale: {"guidance_scale": scale})
    return bare.run(pipe, guidance_scale=guidance_scale, **arguments)


def official(case: SoundCase, pipe: Any, **changed: Any) -> Tensor:
    """diffusers' own guidance."""
    return run(case, pipe, spatio_temporal_guidance_blocks=[BLOCK], **{**OFFICIAL, **changed})


@over(LTX2)
def test_what_is_off_for_the_text_or_for_one_stream_leaves_the_rest(case: SoundCase, pipe: Any) -> None:
    with guided(pipe, CFG(guidance_scale=1.0, modality_scale=3.0)):
        isolated = run(case, pipe)
    for off in ({"scale": 1.0}, {"alpha": 0.0}):
        with guided(pipe, NAG(modality_scale=3.0, **off)):
            assert torch.equal(run(case, pipe), isolated)
    settings: dict[str, Any] = {"blocks": (BLOCK,), "perturb": "uncond"}
    with guided(pipe, STG(**settings)):
        expected = run(case, pipe, guidance_scale=5.0, audio_guidance_scale=1.0)
    with guided(pipe, STG(**settings, guidance_scale=5.0, audio_guidance_scale=1.0)):
        assert torch.equal(run(case, pipe, guidance_scale=5.0, audio_guidance_scale=1.0), expected)
    STG(**settings, guidance_scale=1.0, audio_guidance_scale=5.0)
    with pytest.raises(SettingError, match="perturb uncond needs text guidance"):
        STG(**settings, guidance_scale=1.0)


@over(LTX2)
def test_the_scale_that_needs_the_unconditional_branch_is_named(case: SoundCase, pipe: Any) -> None:
    for settings, said in (
        ({"guidance_scale": 1.0, "audio_guidance_scale": 7.0}, "audio_guidance_scale=7.0"),
        ({"guidance_scale": 4.0, "audio_guidance_scale": 7.0}, "guidance_scale=4.0"),
    ):
        with guided(pipe, CFG(**settings)), pytest.raises(GuidanceError, match=f"CFG with {said} needs the"):
            run(case, pipe, guidance_scale=1.0, audio_guidance_scale=1.0)


# -- diffusers' own guidance as oracle


@over(*EVERY)
def test_spatio_temporal_and_modality_guidance_are_those_of_diffusers(case: SoundCase, pipe: Any) -> None:
    expected = official(case, pipe)
    method = STG(**OURS, mode="attention_values", blocks=(BLOCK,))
    with guided(pipe, method) as report:
        assert_close(run(case, pipe), expected, **ACROSS_BATCHES)
    assert report.block_passes == pytest.approx(STEPS * (3 + (BLOCKS - BLOCK) / BLOCKS))
    for changed in ({"scale": 1.1}, {"modality_scale": 2.9}, {"rescale": 0.6}, {"audio_rescale": 0.4}):
        with guided(pipe, STG(**{**OURS, **changed}, mode="attention_values", blocks=(BLOCK,))):
            assert (run(case, pipe) - expected).abs().max() > 1e-3, changed


@pytest.mark.parametrize(
    ("changed", "method"),
    (
        ({"modality_scale": 1.0, "audio_modality_scale": 1.0}, "stg"),
        ({"stg_scale": 0.0, "audio_stg_scale": 0.0}, "cfg"),
        ({"stg_scale": 0.0}, "stg"),
        ({"modality_scale": 1.0}, "stg"),
        ({"guidance_scale": 1.0, "audio_guidance_scale": 1.0}, "stg"),
        ({"guidance_scale": 1.0}, "stg"),
        ({"guidance_rescale": 0.0}, "stg"),
    ),
    ids=str,
)
@over(LTX2)
def test_each_part_of_it_alone(case: SoundCase, pipe: Any, changed: dict[str, float], method: str) -> None:
    expected = official(case, pipe, **changed)
    names = {"stg_scale": "scale", "audio_stg_scale": "audio_scale", "guidance_rescale": "rescale"}
    ours = OURS | {names.get(name, name): value for name, value in changed.items()}
    if method == "cfg":
        guidance: Any = CFG(**{k: v for k, v in ours.items() if k not in ("scale", "audio_scale")})
    else:
        guidance = STG(**ours, mode="attention_values", blocks=(BLOCK,))
    scales = {name: ours[name] for name in ("guidance_scale", "audio_guidance_scale")}
    with guided(pipe, guidance):
        assert_close(run(case, pipe, **scales), expected, **ACROSS_BATCHES)


@over(LTX2)
def test_left_out_scales_of_the_text_are_the_pipelines(case: SoundCase, pipe: Any) -> None:
    expected = official(case, pipe)
    rest = {k: v for k, v in OURS.items() if k not in ("guidance_scale", "audio_guidance_scale")}
    with guided(pipe, STG(**rest, mode="attention_values", blocks=(BLOCK,))):
        given = {name: OFFICIAL[name] for name in ("guidance_scale", "audio_guidance_scale")}
        assert_close(run(case, pipe, **given), expected, **ACROSS_BATCHES)


@over(LTX2)
def test_audio_settings_left_out_are_the_videos(case: SoundCase, pipe: Any) -> None:
    expected = official(case, pipe, **{f"audio_{k}": v for k, v in OFFICIAL.items() if k[:5] != "audio"})
    video = {k: v for k, v in OURS.items() if k[:5] != "audio"}
    with guided(pipe, STG(**video, mode="attention_values", blocks=(BLOCK,))):
        assert_close(run(case, pipe), expected, **ACROSS_BATCHES)


@over(LTX2, CONDITION)
def test_prefix_reuse_changes_nothing_beside_a_pass_that_cannot(case: SoundCase, pipe: Any) -> None:
    method = OSEG(**OURS, blocks=(BLOCK,))
    with guided(pipe, method, reuse=Reuse(prefix=False)) as whole:
        expected = run(case, pipe)
    with guided(pipe, method) as report:
        assert_close(run(case, pipe), expected, **ACROSS_BATCHES)
    assert whole.block_passes == 4 * STEPS > report.block_passes
    starts = {one.branches: one.start_block for one in report.steps[0].passes}
    assert starts[("cond_perturbed",)] == BLOCK and starts[("isolated",)] == 0


# -- an honest off switch


@over(LTX2, IMAGE, CONDITION)
def test_guidance_scale_1_runs_one_pass_where_diffusers_runs_three(case: SoundCase, pipe: Any) -> None:
    calls: list[Any] = []
    counter = pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(None))
    run(case, pipe, guidance_scale=1.0, audio_guidance_scale=1.0, spatio_temporal_guidance_blocks=[BLOCK])
    assert len(calls) == 3 * STEPS
    counter.remove()
    plain = run(case, pipe, guidance_scale=1.0, audio_guidance_scale=1.0, **OFF)
    for method in (Unguided(), CFG(guidance_scale=1.0)):
        with guided(pipe, method) as report:
            assert torch.equal(run(case, pipe, guidance_scale=1.0, audio_guidance_scale=1.0), plain)
        assert report.block_passes == STEPS
    with guided(pipe, Unguided()) as report:  # the pipeline's scales are 3 and 7
        assert_close(run(case, pipe), plain, **ACROSS_BATCHES)
    assert report.block_passes == STEPS


@over(LTX2)
def test_guidance_of_the_pipelines_own_is_refused_where_it_is_asked_for(case: SoundCase, pipe: Any) -> None:
    for name, value in (("stg_scale", 1.0), ("audio_modality_scale", 3.0), ("guidance_rescale", 0.7)):
        with pytest.raises(GuidanceError, match=f"called with {name}={value}, by which"), guided(pipe, CFG()):
            run(case, pipe, **{name: value})
    with guided(pipe, CFG()):
        run(case, pipe, audio_stg_scale=None, **{k: v for k, v in OFF.items() if k != "audio_stg_scale"})


# -- what is perturbed


@contextmanager
def rotated() -> Iterator[list[Tensor]]:
    """Every query and key [B, S, C] of self-attention and between streams, just before it is rotated."""
    seen: list[Tensor] = []
    real = stock.apply_split_rotary_emb

    def note(x: Tensor, freqs: Any) -> Tensor:
        seen.append(x.clone())
        return real(x, freqs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stock, "apply_split_rotary_emb", note)
        yield seen


def slow_mean(query: Tensor) -> Tensor:
    """SEG with an infinite sigma: every query is the mean over the stream's tokens, in float64."""
    return query.double().mean(dim=1, keepdim=True).expand_as(query)


def slow_blur(query: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing along the one axis of the sound, edges mirrored half a sample out, in float64."""
    tokens = query.shape[1]
    period = 2 * tokens
    blurred = torch.zeros_like(query, dtype=torch.float64)
    for to in range(tokens):
        weights = torch.zeros(tokens, dtype=torch.float64)
        for offset in range(-60, 61):
            place = (to + offset) % period
            weights[min(place, period - 1 - place)] += torch.exp(torch.tensor(-(offset**2) / (2 * sigma**2)))
        weights /= weights.sum()
        blurred[:, to] = torch.einsum("s,bsc->bc", weights, query.double())
    return blurred


def off_key(query: Tensor, key: Tensor, heads: int = 2) -> Tensor:
    """What of each token's query is orthogonal to its own key, for each head, in float64."""
    query, key = (x.double().unflatten(2, (heads, -1)) for x in (query, key))
    along = (query * key).sum(-1, keepdim=True) / (key * key).sum(-1, keepdim=True)
    return (query - along * key).flatten(2)


def in_block(case: SoundCase, pipe: Any, method: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Queries and keys of block BLOCK in the first step: (plain conditional, perturbed) by name."""
    with rotated() as seen, guided(pipe, method) as report:
        run(case, pipe, guidance_scale=1.0, audio_guidance_scale=1.0, num_inference_steps=1)
    assert len(report.steps[0].passes) == 2
    calls = 8  # two for each of four attentions of a block
    seen = seen[4:]  # of the two connectors of the text
    assert len(seen) == calls * (BLOCKS + BLOCKS - BLOCK)
    plain, perturbed = seen[calls * BLOCK :], seen[calls * BLOCKS :]
    names = ("query", "key", "audio_query", "audio_key")
    return {name: (plain[place], perturbed[place]) for place, name in enumerate(names)}


@over(CONDITION)
def test_the_queries_of_keyframes_are_no_part_of_the_grid(case: SoundCase, pipe: Any) -> None:
    plain, perturbed = in_block(case, pipe, SEG(blocks=(BLOCK,)))["query"]
    clip, tokens = case.grid.tokens, plain.shape[1]
    assert tokens > clip and torch.equal(perturbed[:, clip:], plain[:, clip:])
    assert_close(perturbed[:, :clip].double(), slow_mean(plain[:, :clip]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("streams", ("both", "video", "audio"))
@over(LTX2)
def test_seg_smooths_the_queries_of_the_streams_that_it_names(
    case: SoundCase, pipe: Any, streams: str
) -> None:
    found = in_block(case, pipe, SEG(blocks=(BLOCK,), streams=streams))
    for name in ("key", "audio_key"):
        assert torch.equal(*found[name])
    for stream, name in (("video", "query"), ("audio", "audio_query")):
        plain, perturbed = found[name]
        if streams in (stream, "both"):
            assert_close(perturbed.double(), slow_mean(plain), rtol=1e-4, atol=1e-5)
            assert (perturbed - plain).abs().max() > 0.1
        else:
            assert torch.equal(plain, perturbed)


@over(LTX2)
def test_sound_is_smoothed_along_time(case: SoundCase, pipe: Any) -> None:
    plain, perturbed = in_block(case, pipe, SEG(blocks=(BLOCK,), blur_sigma=1.5))["audio_query"]
    assert plain.shape[1] == AUDIO_TOKENS
    assert_close(perturbed.double(), slow_blur(plain, 1.5), rtol=1e-4, atol=1e-5)


@over(LTX2)
def test_oseg_smooths_what_is_orthogonal_to_the_own_key_of_each_stream(case: SoundCase, pipe: Any) -> None:
    method = OSEG(blocks=(BLOCK,), blur_sigma=1.5)
    found = in_block(case, pipe, method)
    query, perturbed = found["audio_query"]
    expected = slow_blur(off_key(query, found["audio_key"][0]), 1.5)
    assert_close(perturbed.double(), expected, rtol=1e-4, atol=1e-5)
    found = in_block(case, pipe, OSEG(blocks=(BLOCK,), blur_sigma=float("inf")))
    query, perturbed = found["query"]
    expected = slow_mean(off_key(query, found["key"][0]))
    assert_close(perturbed.double(), expected, rtol=1e-4, atol=1e-5)


@over(LTX2)
def test_a_skipped_block_passes_on_the_streams_that_are_named(case: SoundCase, pipe: Any) -> None:
    block = pipe.transformer.transformer_blocks[BLOCK]
    behind = pipe.transformer.transformer_blocks[BLOCK + 1]
    made: list[Any] = []
    taken: list[Any] = []
    block.register_forward_hook(lambda *args: made.append(args[-1]))
    behind.register_forward_pre_hook(
        lambda _, args, kwargs: taken.append((kwargs["hidden_states"], kwargs["audio_hidden_states"])),
        with_kwargs=True,
    )
    given: list[Any] = []
    block.register_forward_pre_hook(
        lambda _, args, kwargs: given.append((kwargs["hidden_states"], kwargs["audio_hidden_states"])),
        with_kwargs=True,
    )
    for streams, ran in (("both", 1), ("video", 2), ("audio", 2)):
        made.clear(), taken.clear(), given.clear()
        with guided(pipe, STG(blocks=(BLOCK,), streams=streams)):
            run(case, pipe, guidance_scale=1.0, audio_guidance_scale=1.0, num_inference_steps=1)
        assert len(made) == ran
        for place, stream in enumerate(("video", "audio")):
            skipped = streams in (stream, "both")
            assert torch.equal(taken[1][place], given[0][place] if skipped else made[-1][place])


@pytest.mark.parametrize("name", ("attn1", "audio_attn1"))
@over(LTX2, LEGACY)
def test_pag_of_one_stream_is_diffusers_perturbation_of_it(case: SoundCase, pipe: Any, name: str) -> None:
    """The stock attention, told by its own switch, in one of the two places where diffusers has it."""
    scales = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0}
    predictions: list[Any] = []
    pipe.transformer.register_forward_hook(lambda *args: predictions.append(args[-1]))
    streams = "audio" if name.startswith("audio") else "video"
    with guided(pipe, PAG(blocks=(BLOCK,), streams=streams)):
        run(case, pipe, num_inference_steps=1, **scales)
    attention = getattr(pipe.transformer.transformer_blocks[BLOCK], name)
    real = attention.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "forward", lambda *a, **k: real(*a, **{**k, "all_perturbed": True}))
        run(case, pipe, num_inference_steps=1, **scales, **OFF)
    plain, perturbed, expected = predictions
    for place in (0, 1):
        assert_close(perturbed[place], expected[place], **ACROSS_BATCHES)
        assert (perturbed[place] - plain[place]).abs().max() > 1e-3


@over(LTX2)
def test_scales_and_modality_follow_the_noise_level(case: SoundCase, pipe: Any) -> None:
    falling = Schedule(((1.0, 3.0), (0.9, 1.0)))
    with guided(pipe, CFG(modality_scale=falling)) as report:
        run(case, pipe)
    isolated = [any("isolated" in one.branches for one in step.passes) for step in report.steps]
    assert isolated == [step.noise_level > 0.9 for step in report.steps]
    assert set(isolated) == {True, False}


@over(LTX2)
def test_treated_text_differences_act_on_denoised_latents(case: SoundCase, pipe: Any) -> None:
    """APG projects along the conditional prediction, so it tells denoised latents from velocities."""
    seen: list[tuple[Tensor, Tensor, float]] = []
    step = type(pipe.scheduler).step

    def note(self: Any, output: Tensor, timestep: Tensor, sample: Tensor, **options: Any) -> Any:
        seen.append((output.double(), sample.double(), float(timestep) / 1000))
        return step(self, output, timestep, sample, **options)

    stored: list[Any] = []
    pipe.transformer.register_forward_hook(lambda *args: stored.append(args[-1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(pipe.scheduler), "step", note)
        with guided(pipe, APG(guidance_scale=3.0, eta=0.0, momentum=0.0, norm_threshold=0.0)):
            run(case, pipe, num_inference_steps=2)
    for (handed, sample, sigma), stream in zip(seen[:2], (0, 1), strict=True):
        uncond, cond = (sample - sigma * one.double() for one in stored[0][stream].chunk(2))
        update = cond - uncond
        update -= (update * cond).sum() / (cond * cond).sum() * cond
        assert_close(sample - sigma * handed, cond + 2 * update, rtol=1e-3, atol=1e-4)


# -- the rest


@over(LTX2)
def test_two_stages_with_the_latent_upsampler(case: SoundCase, pipe: Any) -> None:
    """The first stage guided, its latents upsampled, a second stage of a few steps at scale 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        upsampler = LTX2LatentUpsamplerModel(in_channels=8, mid_channels=32, num_blocks_per_stage=1)
    upsample = LTX2LatentUpsamplePipeline(vae=pipe.vae, latent_upsampler=upsampler.eval())
    upsample.set_progress_bar_config(disable=True)
    sigmas = [0.909375, 0.725, 0.421875]  # those of Lightricks' second stage

    def both(guided_by: Any, off: dict[str, float]) -> tuple[Tensor, list[Any]]:
        shared = {"max_sequence_length": TEXT_LENGTH, "output_type": "latent", **off}
        reports = []
        with guided_by(STG(**OURS, mode="attention_values", blocks=(BLOCK,))) as report:
            reports.append(report)
            generator = torch.Generator().manual_seed(0)
            first = pipe("a red circle", **case.size, num_inference_steps=2, generator=generator, **shared)
        larger = upsample(latents=first.frames, output_type="latent", return_dict=False, **case.size)[0]
        assert larger.shape == (1, 8, 5, 8, 16)
        with guided_by(Unguided()) as report:
            reports.append(report)
            second = pipe(
                "a red circle",
                latents=larger,
                audio_latents=first.audio,
                noise_scale=sigmas[0],
                sigmas=sigmas,
                num_inference_steps=3,
                guidance_scale=1.0,
                audio_guidance_scale=1.0,
                generator=torch.Generator().manual_seed(0),
                **{**case.size, "height": 64, "width": 128},
                **shared,
            )
        return case.latents(second), reports

    ours, (one, other) = both(partial(guided, pipe), {})
    assert one.block_passes == pytest.approx(2 * 3.4) and other.block_passes == 3
    assert [step.passes[0].rows for step in other.steps] == [1, 1, 1]

    def stage(method: Any) -> Any:
        # The stock second stage on the guided first one.
        return guided(pipe, method) if isinstance(method, STG) else nullcontext()

    stock, _ = both(stage, OFF)
    assert torch.equal(ours, stock) and ours.isfinite().all()


@over(LTX)
def test_models_without_sound_refuse_its_settings(case: Any, pipe: Any) -> None:
    for method, name in (
        (CFG(audio_guidance_scale=3.0), "audio_guidance_scale"),
        (CFG(modality_scale=3.0), "modality_scale"),
        (STG(blocks=(1,), streams="audio"), "streams"),
        (STG(blocks=(1,), audio_scale=2.0), "stg_audio_scale"),
    ):
        with (
            pytest.raises(SettingError, match=f"^{name} has no effect with ltx, which makes no sound"),
            guided(pipe, method),
        ):
            raise AssertionError


@over(LTX2, LEGACY)
def test_example_arguments_are_those_of_the_pipelines_calls(case: SoundCase, pipe: Any) -> None:
    calls: list[Any] = []
    pipe.transformer.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    run(case, pipe, guidance_scale=1.0, audio_guidance_scale=1.0, num_inference_steps=1)
    clip = ClipSize(case.size["num_frames"], case.size["height"] * 4, case.size["width"] * 4)
    example = adapter_for(pipe).example_arguments(pipe.transformer, clip, rows=1)
    for name, value in example.items():
        given = calls[0][name]
        if not isinstance(value, Tensor):
            assert name in ("num_frames",) or value == given, name
        elif "encoder" in name:  # here of another length
            assert value.shape[::2] == given.shape[::2], name
        elif name != "hidden_states":  # the real VAE compresses time by 8, this one by 2
            assert value.shape == given.shape, name
    with torch.no_grad():
        assert pipe.transformer(**example).audio_sample.shape == (1, AUDIO_TOKENS, 8)

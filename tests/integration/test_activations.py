"""Live bytes of a step, counted without values on few blocks: those of a real step through all of them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch

from oseg_video import CFG, OSEG, STG
from oseg_video.adapters import ClipSize, adapter_for, adapter_for_class
from oseg_video.adapters.blocks import BlockAddress
from oseg_video.engine.branches import BranchRunner
from oseg_video.guidance.methods import Guidance
from oseg_video.guidance.plan import Branch, Step
from oseg_video.jobs import activations
from oseg_video.jobs.activations import LiveBytes, activation_bytes, in_dtype
from oseg_video.jobs.loading.meta import full_size_denoiser
from oseg_video.jobs.on_meta import FusedAttention, runnable_on_meta
from oseg_video.parallel.degrees import Degrees
from tests.integration.families import (
    COGVIDEOX,
    HUNYUAN,
    HUNYUAN15,
    LTX,
    LTX2,
    MOCHI,
    SD15,
    SDXL,
    SVD,
    WAN,
    Case,
)
from tests.tiny import LTX_SIZE, tiny_ltx
from tests.tiny.wan import WAN_SIZE, tiny_wan_5b

WAN_5B = Case("wan-5b", tiny_wan_5b, {**WAN_SIZE, "height": 64})
LTX_WITH_TIMESTEP = Case("ltx-timestep", partial(tiny_ltx, timestep_vae=True), LTX_SIZE, grid=LTX.grid)
DECODED = (
    *(MOCHI, LTX, LTX_WITH_TIMESTEP, LTX2, WAN, WAN_5B, COGVIDEOX, SVD, SDXL, SD15, HUNYUAN, HUNYUAN15),
)

METHODS = (
    CFG(guidance_scale=3.0),
    STG(guidance_scale=3.0, blocks=(2,)),
    OSEG(guidance_scale=3.0, blocks=(1, 2)),
)


def branches_of(guidance: Guidance) -> dict[str, Branch]:
    return dict(guidance.plan(Step(0, 2, 0.5, 3.0)).branches)


def clip_of(case: Case) -> ClipSize:
    size = {"num_frames": 1} | case.size
    return ClipSize(size["num_frames"], size["height"], size["width"])


def sized_clip_of(case: Case, pipe: Any) -> ClipSize:
    """The clip as a job has it, with what the model's files say of its VAE."""
    adapter, clip = adapter_for(pipe), clip_of(case)
    if case.grid is not None and adapter.family in ("ltx", "ltx2"):  # the tiny VAEs compress less
        side = adapter.spatial_compression
        frames = (case.grid.frames - 1) * adapter.frame_multiple + 1
        return ClipSize(frames, case.grid.height * side, case.grid.width * side)
    pixels = adapter.pixels_per_latent(lambda name: dict(pipe.vae.config))
    return ClipSize(clip.frames, clip.height, clip.width, pixels)


def counted(case: Case, denoiser: Any, guidance: Guidance, **options: Any) -> int:
    adapter = adapter_for(case.build())
    meta = copy.deepcopy(denoiser).to("meta")
    return activation_bytes(adapter, meta, clip_of(case), [branches_of(guidance)], uncond=True, **options)


@pytest.mark.parametrize("case", (MOCHI, LTX, WAN, COGVIDEOX, SVD, SDXL, HUNYUAN), ids=lambda case: case.name)
def test_the_count_is_that_of_a_real_step(case: Case) -> None:
    pipe = case.build()
    adapter = adapter_for(pipe)
    denoiser = getattr(pipe, adapter.denoiser_attributes[0])
    calls = adapter.sampling.calls(uncond=True)
    for guidance in METHODS:
        runner = BranchRunner(adapter, denoiser, guidance.blocks_used)
        peak = 0
        for rows in calls:
            own = {name: one for name, one in branches_of(guidance).items() if one.condition in rows}
            arguments = adapter.example_arguments(denoiser, clip_of(case), len(rows))
            for _ in range(2):  # smoothing matrices are kept from the first
                with runner.active(), torch.no_grad(), FusedAttention(), LiveBytes() as live:
                    runner.run(denoiser, arguments, own, rows)
            peak = max(peak, live.peak)
        assert counted(case, denoiser, guidance) == pytest.approx(peak, rel=0.05), guidance.name


@pytest.mark.parametrize("case", (MOCHI, LTX), ids=lambda case: case.name)
def test_blocks_that_are_left_out_of_the_count_change_nothing(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = getattr(case.build(), adapter_for(case.build()).denoiser_attributes[0])
    few = [counted(case, denoiser, guidance) for guidance in METHODS]
    left_out: list[BlockAddress] = []

    @contextmanager
    def none(adapter: Any, denoiser: Any, blocks: Sequence[BlockAddress]) -> Iterator[None]:
        left_out.extend(blocks)
        yield

    monkeypatch.setattr(activations, "_handing_on", none)
    monkeypatch.setattr(activations, "_at_firsts", lambda adapter, denoiser, branches: branches)
    assert [counted(case, denoiser, guidance) for guidance in METHODS] == pytest.approx(few, rel=0.01)
    assert left_out != []


@pytest.mark.parametrize("case", DECODED, ids=lambda case: case.name)
def test_the_count_of_decoding_is_that_of_the_pipelines_largest_call(case: Case) -> None:
    pipe = case.build()
    adapter = adapter_for(pipe)
    decode, signature = pipe.vae.decode, inspect.signature(pipe.vae.decode)
    calls = []

    def recorded(*args: Any, **kwargs: Any) -> Any:
        with FusedAttention(), LiveBytes() as live:
            output = decode(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        calls.append((live.peak, {name: value for name, value in given.items() if value is not None}))
        return output

    pipe.vae.decode = recorded
    own = {"decode_chunk_size": 2} if case is SVD else {}
    case.run(pipe, num_inference_steps=2, output_type="pt", **own)
    peak, given = max(calls, key=lambda call: call[0])

    clip = sized_clip_of(case, pipe)
    vae = copy.deepcopy(pipe.vae).to("meta")
    del vae.decode
    example = adapter.decoding_example(vae, clip, own)
    assert given.keys() - example.keys() <= {"return_dict", "generator"}
    assert {name: getattr(value, "shape", value) for name, value in example.items()} == {
        name: getattr(value, "shape", value) for name, value in given.items() if name in example
    }
    with runnable_on_meta(), FusedAttention(), LiveBytes() as live:
        vae.decode(**example)
    assert live.peak == pytest.approx(peak, rel=0.02)


@pytest.mark.parametrize("case", (MOCHI, WAN_5B, HUNYUAN15, SDXL), ids=lambda case: case.name)
def test_a_step_is_counted_at_the_size_of_the_models_latents(case: Case) -> None:
    pipe = case.build()
    adapter = adapter_for(pipe)
    denoiser = getattr(pipe, adapter.denoiser_attributes[0])
    name = adapter.denoiser_call.sample
    seen = []
    hook = denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs[name] if name in kwargs else args[0]),
        with_kwargs=True,
    )
    case.run(pipe, num_inference_steps=2)
    hook.remove()
    clip = sized_clip_of(case, pipe)
    assert adapter.example_arguments(denoiser, clip, len(seen[0]))[name].shape == seen[0].shape


def test_ranks_that_share_tokens_hold_less_each() -> None:
    adapter = adapter_for_class("MochiPipeline")
    denoiser = in_dtype(full_size_denoiser(adapter), torch.bfloat16)
    what = adapter, denoiser, ClipSize(85, 480, 848), [branches_of(METHODS[2])]
    alone, shared = (
        activation_bytes(*what, uncond=True, degrees=one) for one in (Degrees(), Degrees(ulysses=4))
    )
    assert 0.2 * alone < shared < 0.4 * alone

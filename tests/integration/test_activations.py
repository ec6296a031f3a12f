"""Live bytes of a step, counted without values on few blocks: those of a real step through all of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from oseg_video.jobs.on_meta import FusedAttention
from oseg_video.parallel.degrees import Degrees
from tests.integration.families import COGVIDEOX, HUNYUAN, LTX, MOCHI, SDXL, SVD, WAN, Case

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


def test_ranks_that_share_tokens_hold_less_each() -> None:
    adapter = adapter_for_class("MochiPipeline")
    denoiser = in_dtype(full_size_denoiser(adapter), torch.bfloat16)
    what = adapter, denoiser, ClipSize(85, 480, 848), [branches_of(METHODS[2])]
    alone, shared = (
        activation_bytes(*what, uncond=True, degrees=one) for one in (Degrees(), Degrees(ulysses=4))
    )
    assert 0.2 * alone < shared < 0.4 * alone

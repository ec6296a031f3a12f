"""Ranks that each hold a part of the weights, or no encoders, make the clip of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from oseg_video import guided
from oseg_video.adapters import adapter_for
from oseg_video.jobs.loading.weights import check_shareable, encoder_components, share_weights
from oseg_video.parallel.degrees import Degrees
from oseg_video.parallel.group import ParallelError
from tests.integration.families import CASES
from tests.tiny.wan import tiny_wan_two_experts

from .ranks import Ranks
from .test_parity import BY_NAME, TOLERANCE, UNETS, expected, mesh, method

PIPELINES = [case.name for case in CASES]
TRANSFORMERS = [name for name in PIPELINES if name not in UNETS]
CPU = torch.device("cpu")


def held(module: nn.Module) -> int:
    """Bytes of parameters on this rank."""
    parts = (getattr(p, "to_local", lambda p=p: p)() for p in module.parameters())
    return sum(part.numel() * part.element_size() for part in parts)


def _make(case_name: str, method_name: str, degrees: Degrees) -> tuple[torch.Tensor, list[float]]:
    """(final latents, parts of the weights that this rank holds, before and after)."""
    case = BY_NAME[case_name]
    pipe = case.build()
    adapter = adapter_for(pipe)
    denoiser = adapter.denoisers(pipe)[0]
    whole = held(denoiser)
    share_weights(pipe, adapter, mesh(degrees).sequence, CPU)
    pipe.to(CPU)  # as it is placed after loading
    before = held(denoiser)
    with guided(pipe, method(method_name, case), mesh=mesh(degrees)):
        latents = case.run(pipe)
    return latents, [before / whole, held(denoiser) / whole]


def check(ranks: Ranks, case: str, method_name: str, degrees: Degrees, part: float) -> None:
    for latents, parts in ranks.run(_make, case, method_name, degrees):
        assert_close(latents, expected(case, method_name), **TOLERANCE)
        # Tensors of one row, such as Wan's tables, are whole on the first rank.
        assert parts == pytest.approx([part, part], abs=0.02)


@pytest.mark.parametrize("case", TRANSFORMERS)
def test_two_ranks_share_the_weights(two_ranks: Ranks, case: str) -> None:
    check(two_ranks, case, "oseg", Degrees(ulysses=2), 1 / 2)


@pytest.mark.parametrize("method_name", ["stg, ends", "cfg"])
@pytest.mark.parametrize("case", ["mochi", "wan"])
def test_blocks_that_are_skipped_or_replayed(two_ranks: Ranks, case: str, method_name: str) -> None:
    check(two_ranks, case, method_name, Degrees(ring=2), 1 / 2)


def test_ranks_of_different_branches_do_not_wait_for_each_other(four_ranks: Ranks) -> None:
    check(four_ranks, "mochi", "stg", Degrees(branch=2, ulysses=2), 1 / 2)


def _two_experts_in_bfloat16() -> tuple[float, set[torch.dtype]]:
    """(by what part of itself sharing changes the clip, dtypes of the weights)."""
    clips = []
    degrees = Degrees(ulysses=2)
    for shared in (False, True):
        pipe = tiny_wan_two_experts()
        adapter = adapter_for(pipe)
        for denoiser in adapter.denoisers(pipe):
            for name, parameter in denoiser.named_parameters():
                if not any(part in denoiser._keep_in_fp32_modules for part in name.split(".")):
                    parameter.data = parameter.data.bfloat16()
        if shared:
            share_weights(pipe, adapter, mesh(degrees).sequence, CPU)
        with guided(pipe, method("oseg", BY_NAME["wan"]), mesh=mesh(degrees)):
            clips.append(BY_NAME["wan"].run(pipe))
    whole, shared = clips
    change = float((shared - whole).norm() / whole.norm())
    return change, {parameter.dtype for parameter in denoiser.parameters()}


def test_weights_of_several_number_types(two_ranks: Ranks) -> None:
    for change, dtypes in two_ranks.run(_two_experts_in_bfloat16):
        assert change < 0.01  # rounding: two steps of bfloat16
        assert dtypes == {torch.bfloat16, torch.float32}


@pytest.mark.parametrize(
    ("case", "ranks", "offload", "message"),
    [
        ("svd", 2, "none", "which svd does not have"),
        ("mochi", 1, "none", "there is one of them; give, for example, --parallel ulysses=2"),
        ("mochi", 2, "model", "not both; got offload model"),
    ],
)
def test_what_cannot_be_shared_is_refused(case: str, ranks: int, offload: str, message: str) -> None:
    with pytest.raises(ParallelError, match=message):
        check_shareable(adapter_for(BY_NAME[case].build()), ranks, offload)


# What is set on a pipeline after it is made, so that tiny prompts are short.
_SET_LATER = ("tokenizer_max_length", "tokenizer_2_max_length", "vision_num_semantic_tokens")


def _load_and_make(case_name: str, folder: Path) -> tuple[torch.Tensor, list[str]]:
    """(final latents, components that this rank has not loaded)."""
    case = BY_NAME[case_name]
    model = case.build()
    left_out: dict[str, Any] = {}
    if torch.distributed.get_rank() > 0:
        left_out = dict.fromkeys(encoder_components(model.config))
    # Tiny tokenizers do not survive their files: transformers rebuilds what they make of a template.
    tokenizers = {name: one for name, one in model.components.items() if name.startswith("tokenizer")}
    pipe = type(model).from_pretrained(folder, **tokenizers, **left_out)
    for name in _SET_LATER:
        if hasattr(model, name):
            setattr(pipe, name, getattr(model, name))
    with guided(pipe, method("oseg", case), mesh=mesh(Degrees(branch=2))):
        latents = case.run(pipe)
    return latents, [name for name, one in model.components.items() if one and not getattr(pipe, name)]


ENCODERS = {
    "ltx-image": ["text_encoder"],
    "wan-image": ["image_encoder", "text_encoder"],
    "svd": ["image_encoder"],
    "sdxl": ["text_encoder", "text_encoder_2"],
    "hunyuan": ["text_encoder", "text_encoder_2"],
    "hunyuan15-image": ["image_encoder", "text_encoder", "text_encoder_2"],
}


@pytest.mark.parametrize("case", PIPELINES)
def test_only_the_first_rank_needs_encoders(two_ranks: Ranks, case: str, tmp_path: Path) -> None:
    BY_NAME[case].build().save_pretrained(tmp_path)
    results = two_ranks.run(_load_and_make, case, tmp_path)
    for latents, _ in results:
        assert_close(latents, expected(case, "oseg"), **TOLERANCE)
    left_out = [sorted(names) for _, names in results]
    assert left_out[0] == []
    assert left_out[1] and left_out[1] == ENCODERS.get(case, left_out[1])

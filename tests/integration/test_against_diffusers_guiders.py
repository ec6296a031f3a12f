"""The faults of diffusers' own guiders (as of 0.42.1), each beside a test that shows ours doing it right.

`test_theirs_...` demonstrates a fault, and is skipped with a reason where a later diffusers has fixed it;
`test_ours_...` must hold whatever diffusers does.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import os
import subprocess
import sys
from typing import Any, NoReturn

import diffusers
import pytest
import torch
from diffusers import (
    LayerSkipConfig,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
    SmoothedEnergyGuidanceConfig,
)
from diffusers.hooks import _common, smoothed_energy_guidance_utils
from torch import Tensor, nn
from torch.testing import assert_close

from oseg_video import CFG, PAG, SEG, STG, guided
from oseg_video.adapters import adapter_for
from oseg_video.guidance.methods import Guidance
from oseg_video.guidance.queries import seg_queries
from oseg_video.types import TokenGrid
from tests.integration.families import HUNYUAN, LTX, MOCHI, SCALE, SDXL, Case, quiet

BLOCK = 1
STACK = "transformer_blocks"
FAMILIES = (LTX, MOCHI, HUNYUAN)


@pytest.fixture(params=FAMILIES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def build(case: Case) -> Any:
    return quiet(case.build())


def fixed(what: str) -> NoReturn:
    pytest.skip(f"diffusers {diffusers.__version__} {what}")


def predictions(case: Case, guider: Any) -> list[Tensor]:
    """What a guider of diffusers makes the denoiser predict for one input: cond, uncond and perturbed."""
    pipe = build(case)
    inputs: list[tuple[tuple, dict[str, Any]]] = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: inputs.append((args, kwargs)), with_kwargs=True
    )
    case.run(pipe, num_inference_steps=2)
    handle.remove()
    args, kwargs = inputs[0]
    guider.set_state(step=1, num_inference_steps=10, timestep=torch.tensor(500))
    assert guider.num_conditions == 3
    found = []
    for _ in range(3):
        guider.prepare_models(pipe.transformer)
        with torch.no_grad():
            found.append(pipe.transformer(*args, **kwargs | {"return_dict": False})[0])
        guider.cleanup_models(pipe.transformer)
    return found


def assert_fires(case: Case, guidance: Guidance) -> None:
    """The named site fires in every perturbed pass, and no other; the clip is not that of CFG."""
    pipe = build(case)
    site = f"{STACK}.{BLOCK}.{'attn' if case is HUNYUAN else 'attn1'}"
    with guided(pipe, CFG(guidance_scale=SCALE)):
        plain = case.run(pipe, num_inference_steps=2)
    with guided(pipe, guidance) as report:
        clip = case.run(pipe, num_inference_steps=2)
    fired = [set(one.fired) for step in report.steps for one in step.passes if "perturbed" in one.branches]
    assert fired == [{site}] * 2
    assert not torch.allclose(clip, plain, rtol=1e-3, atol=1e-3)


# -- the SEG guider does nothing


def test_theirs_seg_is_a_no_op(case: Case) -> None:
    config = SmoothedEnergyGuidanceConfig(indices=[BLOCK], fqn=STACK)
    try:
        cond, _, perturbed = predictions(case, SmoothedEnergyGuidance(seg_guidance_config=config))
    except Exception as error:
        fixed(f"no longer does nothing here; it raises {type(error).__name__}: {error}")
    if not torch.equal(perturbed, cond):
        fixed("perturbs the prediction")


def test_ours_seg_fires_at_the_named_site(case: Case) -> None:
    assert_fires(case, SEG(guidance_scale=SCALE, blocks=(BLOCK,)))


# -- the blur has its finite and infinite cases swapped


def their_blur(query_BSC: Tensor, sigma: float) -> Tensor:
    taps = math.ceil(6 * sigma) + 1 - math.ceil(6 * sigma) % 2 if sigma < math.inf else 3
    blur = smoothed_energy_guidance_utils._gaussian_blur_2d
    return blur(query_BSC.clone(), taps, 1e9 if sigma == math.inf else sigma, 9999.0)


def is_mean(blurred: Tensor, query: Tensor) -> bool:
    """Whether every token, along the last dimension but one, is the mean of all."""
    return torch.allclose(blurred, query.mean(dim=-2, keepdim=True).expand_as(query), atol=1e-5)


def test_theirs_finite_blur_is_the_mean_and_the_infinite_one_is_not() -> None:
    query = torch.randn(1, 64, 4, generator=torch.Generator().manual_seed(0))
    if not is_mean(their_blur(query, 1.0), query) or is_mean(their_blur(query, math.inf), query):
        fixed("blurs with the sigma that it is given")


def queries_of_sdxl(monkeypatch: pytest.MonkeyPatch, sigma: float) -> tuple[Tensor, Tensor]:
    """Queries [B, N, S, D] that the middle block's self-attention sees in SDXL, plain and perturbed."""
    pipe, seen, inside = build(SDXL), [], []
    attention = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    real = nn.functional.scaled_dot_product_attention

    def record(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.extend([query] if inside else [])
        return real(query, *args, **kwargs)

    handles = [
        attention.register_forward_pre_hook(lambda *_: inside.append(True)),
        attention.register_forward_hook(lambda *_: inside.clear()),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(nn.functional, "scaled_dot_product_attention", record)
        with guided(pipe, SEG(guidance_scale=1.0, blocks=("mid",), blur_sigma=sigma)):
            SDXL.run(pipe, guidance_scale=1.0, num_inference_steps=1)
    for handle in handles:
        handle.remove()
    plain, perturbed = seen
    return plain, perturbed


def test_ours_finite_blur_is_local_and_the_infinite_one_is_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, perturbed = queries_of_sdxl(monkeypatch, math.inf)
    assert is_mean(perturbed, plain)
    plain, perturbed = queries_of_sdxl(monkeypatch, 0.5)
    assert not is_mean(perturbed, plain) and not torch.allclose(perturbed, plain, atol=1e-3)
    assert_close(perturbed.mean(dim=2), plain.mean(dim=2), rtol=1e-4, atol=1e-5)
    assert (perturbed.var(dim=2) < plain.var(dim=2)).all()


# -- the blur takes every token sequence for a square image


WIDE = TokenGrid(1, 3, 5)


def rows_of(grid: TokenGrid) -> Tensor:
    """Queries [S, 2] that are the same all along a row of the grid."""
    rows = torch.randn(grid.frames, grid.height, 1, 2, generator=torch.Generator().manual_seed(0))
    return rows.expand(-1, -1, grid.width, -1).reshape(grid.tokens, 2).clone()


def varies_along_rows(query_SC: Tensor, grid: TokenGrid) -> bool:
    rows = query_SC.unflatten(0, grid.shape)
    return not torch.allclose(rows, rows[:, :, :1].expand_as(rows), atol=1e-5)


def test_theirs_mixes_up_the_rows_of_a_wide_image_and_leaves_its_end() -> None:
    query = rows_of(WIDE)
    blurred = [their_blur(query[None], sigma)[0] for sigma in (1.0, 1e9)]  # whichever of the two blurs
    if not all(torch.equal(one[9:], query[9:]) and varies_along_rows(one, WIDE) for one in blurred):
        fixed("knows that images are not square")


def test_ours_keeps_to_the_rows_of_a_wide_image_up_to_its_end() -> None:
    query = rows_of(WIDE)
    blurred = seg_queries(query[None, None], WIDE, 1.0)[0, 0]
    assert not varies_along_rows(blurred, WIDE)
    assert not torch.isclose(blurred, query).any()


def test_ours_gets_the_clips_own_grid(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def record(query: Tensor, grid: TokenGrid, *args: Any, **kwargs: Any) -> Tensor:
        seen.append((query.shape[2], grid))
        return seg_queries(query, grid, *args, **kwargs)

    monkeypatch.setattr("oseg_video.guidance.queries.seg_queries", record)
    assert_fires(case, SEG(guidance_scale=SCALE, blocks=(BLOCK,), blur_sigma=1.0))
    grid = case.grid
    assert grid is not None and grid.height != grid.width != math.isqrt(grid.tokens)
    assert set(seen) == {(grid.tokens, grid)}


# -- PAG and skipped attention raise


@pytest.mark.parametrize("method", ("pag", "attention_skip"))
def test_theirs_pag_and_attention_skip_raise(case: Case, method: str) -> None:
    scores = method == "pag"
    config = LayerSkipConfig(
        indices=[BLOCK],
        fqn=STACK,
        skip_attention=not scores,
        skip_attention_scores=scores,
        skip_ff=False,
    )
    guider = (
        PerturbedAttentionGuidance(perturbed_guidance_config=config)
        if scores
        else SkipLayerGuidance(skip_layer_config=config)
    )
    try:
        predictions(case, guider)
    except (AttributeError, ValueError) as error:
        assert "is_cross_attention" in str(error) or "not registered" in str(error)
    else:
        fixed(f"skips the attention of {case.name}")


@pytest.mark.parametrize(
    "guidance",
    (
        PAG(guidance_scale=SCALE, blocks=(BLOCK,)),
        STG(guidance_scale=SCALE, blocks=(BLOCK,), mode="attention_skip"),
    ),
    ids=lambda guidance: guidance.name,
)
def test_ours_pag_and_attention_skip_fire_at_the_named_site(case: Case, guidance: Guidance) -> None:
    assert_fires(case, guidance)


# -- the block stack is picked from a set


HASH_SEEDS = ("0", "1", "2", "3", "4", "5", "6", "7")


def in_other_processes(program: str, seeds: tuple[str, ...]) -> list[Any]:
    """What a program prints as JSON, under every seed of Python's hashes, side by side."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in seeds
    ]
    results = []
    for process in processes:
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        results.append(json.loads(printed))
    return results


def test_theirs_auto_picks_another_stack_from_process_to_process() -> None:
    # Their own statements, without the imports of their module, which take ten seconds a process.
    names = [
        ast.unparse(node)
        for node in ast.parse(inspect.getsource(_common)).body
        if isinstance(node, ast.Assign) and "_BLOCK_IDENTIFIERS" in ast.unparse(node.targets[0])
    ]
    choice = "next(name for name in _ALL_TRANSFORMER_BLOCK_IDENTIFIERS if name in stacks)"
    stacks = ["transformer_blocks", "single_transformer_blocks"]
    assert all(hasattr(build(HUNYUAN).transformer, stack) for stack in stacks)
    program = "\n".join(["import json", f"stacks = {stacks}", *names, f"print(json.dumps({choice}))"])
    if len(set(in_other_processes(program, HASH_SEEDS))) == 1:
        fixed("picks the same stack in every process")


def test_ours_takes_the_named_stack_in_every_process() -> None:
    pipe = build(HUNYUAN)
    expected = [address.path for address in adapter_for(pipe).blocks(pipe.transformer)]
    assert expected == [
        *(f"transformer_blocks.{i}" for i in range(2)),
        *(f"single_transformer_blocks.{i}" for i in range(3)),
    ]
    program = """
import json
from types import SimpleNamespace
from oseg_video.adapters import adapter_for_class
denoiser = SimpleNamespace(transformer_blocks=[None] * 2, single_transformer_blocks=[None] * 3)
adapter = adapter_for_class("HunyuanVideoPipeline")
blocks = adapter.resolve_blocks(denoiser, ("single", 0, "dual:1"))
print(json.dumps([block.path for block in blocks]))
"""
    assert in_other_processes(program, ("0", "2")) == [expected] * 2

"""What is counted on paper for many ranks: against closed forms, and against what real ranks send."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from flops import StepCost, run_step, step_cost
from torch import nn

from oseg_video.adapters import ClipSize, adapter_for_class
from oseg_video.engine.branches import BranchRunner
from oseg_video.guidance.methods import CFG, OSEG, Guidance
from oseg_video.guidance.plan import Branch, Step
from oseg_video.parallel.degrees import Degrees
from oseg_video.parallel.mesh import Mesh
from oseg_video.parallel.shards import part_sizes
from tests.distributed.ranks import Ranks

LAYERS, HEADS, HEAD_DIM = 3, 4, 8
CHANNELS = HEADS * HEAD_DIM
FLOAT = 4
"""Bytes of an entry; the denoisers are in float32."""
COND = {"cond": Branch("cond")}
SMALL: dict[str, dict[str, Any]] = {
    "WanPipeline": {"ffn_dim": 48, "text_dim": 16},
    "MochiPipeline": {"pooled_projection_dim": 24, "in_channels": 12, "text_embed_dim": 32},
}
CLIPS = {"WanPipeline": ClipSize(9, 64, 64), "MochiPipeline": ClipSize(13, 64, 64)}
TOKENS = 48
"""Of both clips: a grid of 3 x 4 x 4."""
UNEVEN = ClipSize(9, 48, 80)
UNEVEN_TOKENS = 45
WAN_TEXT, MOCHI_TEXT = 512, 256
"""Tokens that the pipelines pad their text to."""


def branches(method: Guidance) -> dict[str, Branch]:
    return dict(method.plan(Step(1, 3, 0.5, 4.0)).branches)


OSEG_BRANCHES = branches(OSEG(blocks=(1,), perturb="cond"))


def denoiser(pipeline: str, device: str = "meta", heads: int = HEADS) -> nn.Module:
    adapter = adapter_for_class(pipeline)
    sizes = {"num_attention_heads": heads, "attention_head_dim": HEAD_DIM, "num_layers": LAYERS}
    with torch.device(device):
        return getattr(diffusers, adapter.denoiser_class)(**sizes, **SMALL[pipeline]).eval()


def cost(
    pipeline: str,
    degrees: str = "",
    branches: dict[str, Branch] = COND,
    heads: int = HEADS,
    clip: ClipSize | None = None,
    branch_rank: int = 0,
) -> StepCost:
    return step_cost(
        adapter_for_class(pipeline),
        denoiser(pipeline, heads=heads),
        clip or CLIPS[pipeline],
        branches,
        degrees=Degrees.parse(degrees) if degrees else Degrees(),
        branch_rank=branch_rank,
    )


def gathered(tokens: int, ranks: int, channels: int = CHANNELS) -> int:
    """Bytes of the last block's output, which every rank hands to all others."""
    return (ranks - 1) * part_sizes(tokens, ranks)[0] * channels * FLOAT


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_trades_all_but_its_part_of_queries_keys_values_and_results(ranks: int) -> None:
    of_one_layer = 4 * (TOKENS // ranks) * CHANNELS * (ranks - 1) // ranks
    assert cost("WanPipeline", f"ulysses={ranks}").sent == {
        "all-to-all": LAYERS * of_one_layer * FLOAT,
        "all-gather": gathered(TOKENS, ranks),
    }


@pytest.mark.parametrize(("ranks", "heads"), [(2, 3), (4, 5), (8, 3)])
def test_tokens_and_heads_that_the_ranks_do_not_divide(ranks: int, heads: int) -> None:
    tokens, own_heads = part_sizes(UNEVEN_TOKENS, ranks)[0], part_sizes(heads, ranks)[0]
    away = 3 * tokens * (heads - own_heads)  # queries, keys and values: other ranks' heads of its tokens
    back = own_heads * (UNEVEN_TOKENS - tokens)  # results: its heads of other ranks' tokens
    assert cost("WanPipeline", f"ulysses={ranks}", heads=heads, clip=UNEVEN).sent == {
        "all-to-all": LAYERS * (away + back) * HEAD_DIM * FLOAT,
        "all-gather": gathered(UNEVEN_TOKENS, ranks, heads * HEAD_DIM),
    }


@pytest.mark.parametrize("ranks", [2, 4, 16])
def test_keys_and_values_go_around_the_ring_but_for_the_last_turn(ranks: int) -> None:
    assert cost("WanPipeline", f"ring={ranks}").sent == {
        "send": LAYERS * 2 * (ranks - 1) * (TOKENS // ranks) * CHANNELS * FLOAT,
        "all-gather": gathered(TOKENS, ranks),
    }


def test_a_rank_passes_every_chunk_on_but_its_successors() -> None:
    chunks = part_sizes(UNEVEN_TOKENS, 7)
    passed_on = sum(chunks) - chunks[1]
    assert (
        cost("WanPipeline", "ring=7", clip=UNEVEN).sent["send"] == LAYERS * 2 * passed_on * CHANNELS * FLOAT
    )


def test_the_ring_carries_the_heads_of_one_ulysses_rank() -> None:
    sent = cost("WanPipeline", "ring=4,ulysses=2").sent
    chunk = TOKENS // 4
    assert sent == {
        "all-to-all": LAYERS * 4 * (chunk // 2) * (CHANNELS // 2) * FLOAT,
        "send": LAYERS * 2 * 3 * chunk * (CHANNELS // 2) * FLOAT,
        "all-gather": gathered(TOKENS, 8),
    }


def test_text_is_never_traded_and_its_results_are_gathered() -> None:
    results = LAYERS * 3 * MOCHI_TEXT * (CHANNELS // 4) * FLOAT
    assert cost("MochiPipeline", "ulysses=4").sent == {
        "all-to-all": cost("WanPipeline", "ulysses=4").sent["all-to-all"],
        "all-gather": results + gathered(TOKENS, 4),
    }
    assert cost("MochiPipeline", "ring=4").sent == cost("WanPipeline", "ring=4").sent


def wan_block(tokens: int) -> int:
    """FLOPs of a block for so many of the tokens."""
    attention = 2 * 2 * tokens * TOKENS * CHANNELS
    cross_attention = 2 * 2 * tokens * WAN_TEXT * CHANNELS
    projections = (4 + 2) * 2 * tokens * CHANNELS**2
    mlp = 2 * 2 * tokens * CHANNELS * SMALL["WanPipeline"]["ffn_dim"]
    keys_and_values_of_text = 2 * 2 * WAN_TEXT * CHANNELS**2
    return attention + cross_attention + projections + mlp + keys_and_values_of_text


@pytest.mark.parametrize("degrees", ["ulysses=2", "ulysses=4", "ring=2", "ring=16", "ring=3,ulysses=4"])
def test_a_rank_computes_the_blocks_for_its_tokens_and_the_text(degrees: str) -> None:
    around_the_blocks = cost("WanPipeline").total - LAYERS * wan_block(TOKENS)
    own = wan_block(TOKENS // Degrees.parse(degrees).ranks)
    assert cost("WanPipeline", degrees).total == around_the_blocks + LAYERS * own


def test_joint_attention_is_shared_whole_by_ulysses_and_for_video_queries_by_the_ring() -> None:
    one, two, four = (cost("MochiPipeline", f"ulysses={n}").total for n in (1, 2, 4))
    assert one - two == 2 * (two - four)  # a part that is shared, and one that is not
    every = TOKENS + MOCHI_TEXT
    attention = 2 * 2 * every**2 * CHANNELS
    assert (one - two) * 2 > LAYERS * attention
    with_text_queries = 2 * 2 * (TOKENS // 4 + MOCHI_TEXT) * every * CHANNELS
    assert cost("MochiPipeline", "ring=4").total == four + LAYERS * (with_text_queries - attention // 4)


def test_changing_queries_trades_them_and_their_keys_and_back_again() -> None:
    plain = {name: OSEG_BRANCHES[name] for name in ("uncond", "cond")}
    perturbed = cost("WanPipeline", "ulysses=4", OSEG_BRANCHES).sent["all-to-all"]
    layers = 2 * LAYERS + 2  # the perturbed pass runs blocks 1 and 2
    one_tensor = (TOKENS // 4) * CHANNELS * 3 // 4 * FLOAT
    assert cost("WanPipeline", "ulysses=4", plain).sent["all-to-all"] == 2 * LAYERS * 4 * one_tensor
    assert perturbed == (4 * layers + 3) * one_tensor


def test_branch_ranks_divide_the_passes_and_send_their_predictions() -> None:
    prediction = 3 * 8 * 8 * 16 * FLOAT  # 3 latent frames of 8 x 8, 16 channels
    alone = cost("WanPipeline", branches=OSEG_BRANCHES)
    first, second = (cost("WanPipeline", "branch=2", OSEG_BRANCHES, branch_rank=rank) for rank in range(2))
    assert first.total + second.total == alone.total and first.total != second.total
    assert sorted([first.sent["broadcast"], second.sent["broadcast"]]) == [prediction, 2 * prediction]
    halves = [cost("WanPipeline", "branch=2", branches(CFG()), branch_rank=rank) for rank in range(2)]
    assert [half.total * 2 for half in halves] == [cost("WanPipeline", branches=branches(CFG())).total] * 2


def _really_sent(pipeline: str, degrees: Degrees, heads: int, clip: ClipSize) -> dict[str, int]:
    mesh = Mesh.of(degrees)
    adapter, model = adapter_for_class(pipeline), denoiser(pipeline, "cpu", heads)
    runner = BranchRunner(adapter, model, (1,), sequence=mesh.sequence)
    with runner.active(), torch.no_grad():
        run_step(
            adapter, model, runner, adapter.example_arguments(model, clip, 2), OSEG_BRANCHES, mesh.branch
        )
    return dict(mesh.traffic)


@pytest.mark.parametrize("pipeline", SMALL)
@pytest.mark.parametrize("degrees", ["ulysses=2", "ring=2", "branch=2"])
def test_two_real_ranks_send_what_is_counted(two_ranks: Ranks, pipeline: str, degrees: str) -> None:
    parsed, heads, clip = Degrees.parse(degrees), 3, UNEVEN if pipeline == "WanPipeline" else CLIPS[pipeline]
    sent = two_ranks.run(_really_sent, pipeline, parsed, heads, clip)
    for rank in range(parsed.branch):
        assert sent[rank] == cost(pipeline, degrees, OSEG_BRANCHES, heads, clip, rank).sent


@pytest.mark.parametrize("degrees", ["ring=2,ulysses=2", "branch=2,ulysses=2", "branch=4"])
def test_four_real_ranks_send_what_is_counted(four_ranks: Ranks, degrees: str) -> None:
    parsed = Degrees.parse(degrees)
    sent = four_ranks.run(_really_sent, "WanPipeline", parsed, 5, UNEVEN)
    for rank in range(parsed.branch):
        first_of_its_sequence = rank * (4 // parsed.branch)
        assert (
            sent[first_of_its_sequence] == cost("WanPipeline", degrees, OSEG_BRANCHES, 5, UNEVEN, rank).sent
        )

"""A clip made by several ranks is the clip made by one: every pipeline, method and axis, over three steps."""

from __future__ import annotations

import dataclasses
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from oseg_video import (
    APG,
    CFG,
    NAG,
    OSEG,
    PAG,
    SAG,
    SEG,
    STG,
    CFGZeroStar,
    GuidanceError,
    OSEGReleased,
    Reuse,
    guided,
)
from oseg_video.guidance.methods import Guidance
from oseg_video.parallel.degrees import Degrees
from oseg_video.parallel.group import ParallelError
from oseg_video.parallel.mesh import ONE_RANK, Mesh
from tests.integration.families import CASES, SCALE, Case
from tests.integration.variants import (
    COGVIDEOX_CONTROL,
    LTX_LONG,
    LUCY_EDIT,
    SKYREELS,
    SKYREELS_V2,
    SKYREELS_V2_CAUSAL,
    SKYREELS_V2_LONG,
    WAN_VACE_CONTROL,
)
from tests.tiny import tiny_ltx, tiny_mochi
from tests.tiny.hunyuan import tiny_hunyuan_image
from tests.tiny.wan import tiny_wan_5b

from .ranks import Ranks

BY_NAME = {case.name: case for case in CASES}
BY_NAME["hunyuan-image, token replace"] = dataclasses.replace(
    BY_NAME["hunyuan-image"], build=partial(tiny_hunyuan_image, "token_replace")
)
BY_NAME["wan 5b"] = dataclasses.replace(BY_NAME["wan"], build=tiny_wan_5b, grid=None)  # a timestep per token
# OSEG's released transform folds the channels to an image of 64 rows.
BY_NAME["lucy-edit"], BY_NAME["skyreels-v2"], BY_NAME["skyreels"] = LUCY_EDIT, SKYREELS_V2, SKYREELS
BY_NAME["cogvideox-control"], BY_NAME["ltx-long"] = COGVIDEOX_CONTROL, LTX_LONG
BY_NAME["skyreels-v2-long"], BY_NAME["skyreels-v2-causal"] = SKYREELS_V2_LONG, SKYREELS_V2_CAUSAL
BY_NAME["wan-vace"] = WAN_VACE_CONTROL
BY_NAME["mochi, 64 channels"] = dataclasses.replace(
    BY_NAME["mochi"], build=partial(tiny_mochi, attention_head_dim=16, num_attention_heads=4)
)
BY_NAME["ltx, 64 channels"] = dataclasses.replace(
    BY_NAME["ltx"],
    build=partial(tiny_ltx, attention_head_dim=16, num_attention_heads=4, cross_attention_dim=64),
)
UNETS = ("svd", "sdxl", "sd15")
BRANCHES_ALONE = (*UNETS, "wan-vace", "skyreels-v2-causal")
# Sums over tokens and heads are taken in other orders; that is all that may differ. SVD's noise levels, up to
# 700, enlarge it: 1.7e-5 was seen.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
PROMPTS = ["a red circle", "two blue squares that move up and down"]


def method(name: str, case: Case) -> Guidance:
    last = case.blocks - 1
    text: dict[str, Any] = {"guidance_scale": SCALE}
    methods: dict[str, Guidance] = {
        "cfg": CFG(**text),  # the pipeline's own scale: its calls as it makes them
        "cfg, later": CFG(guidance_scale=SCALE + 1, interval=(0.4, 1.0)),
        "stg": STG(**text, blocks=(2,), scale=1.5),
        "stg, ends": STG(**text, blocks=(0, last), scale=1.5),
        "stg, input": STG(**text, blocks=(1,), scale=1.5, mode="attention_skip"),
        "pag": PAG(**text, blocks=(1, 3), scale=1.5),
        "sag": SAG(**text, blocks=(2,), scale=1.5),
        "seg": SEG(**text, blocks=(2,), scale=1.5, blur_sigma=1.0),
        "oseg": OSEG(**text, blocks=(2,), scale=1.5, blur_sigma=1.0, perturb="cond"),
        "oseg, both": OSEG(**text, blocks=(1, 2), scale=1.5, blur_sigma=(2.0, 1.0)),
        "oseg, frame": OSEG(**text, blocks=(2,), scale=1.5, reference="frame", boundary="reflect"),
        "oseg, principal": OSEG(**text, blocks=(2,), scale=1.5, reference="principal:2"),
        "oseg-released": OSEGReleased(**text, blocks=(2,), scale=1.5),
        "nag": NAG(),
        "nag, text": NAG(**text),
        "apg": APG(**text, eta=0.2, momentum=-0.5),
        "stg, modality": STG(
            **text, blocks=(2,), mode="attention_values", modality_scale=3.0, rescale=0.7, audio_scale=0.5
        ),
        "seg, sound": SEG(**text, blocks=(2,), blur_sigma=1.0, streams="audio"),
        "cfg-zero": CFGZeroStar(**text, zero_steps=1),
    }
    return methods[name]


@cache
def mesh(degrees: Degrees) -> Mesh:
    return Mesh.of(degrees)


def make(case_name: str, method_name: str, prompt: Any, degrees: Degrees | None, **options: Any) -> Any:
    """(final latents, passes of every step); `degrees=None` runs in one process."""
    case = BY_NAME[case_name]
    with guided(
        pipe := case.build(),
        method(method_name, case),
        mesh=mesh(degrees) if degrees else ONE_RANK,
        **options,
    ) as report:
        latents = case.run(pipe, prompt)
    return latents, [step.passes for step in report.steps]


@cache
def expected(case_name: str, method_name: str, batch: bool = False) -> torch.Tensor:
    return make(case_name, method_name, PROMPTS if batch else PROMPTS[0], None)[0]


AXES = {
    "ulysses": Degrees(ulysses=2),
    "ring": Degrees(ring=2),
    "branch": Degrees(branch=2),
}


def check(ranks: Ranks, case: str, method_name: str, degrees: Degrees, batch: bool = False) -> list[Any]:
    prompt: Any = PROMPTS if batch else PROMPTS[0]
    results = ranks.run(make, case, method_name, prompt, degrees)
    for latents, _ in results:
        assert_close(latents, expected(case, method_name, batch), **TOLERANCE)
    return [passes for _, passes in results]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("method_name", ["cfg", "stg", "oseg"])
@pytest.mark.parametrize("case", [name for name in BY_NAME if "channels" not in name])
def test_two_ranks_make_the_clip_of_one(two_ranks: Ranks, case: str, method_name: str, axis: str) -> None:
    if case in BRANCHES_ALONE and axis != "branch":
        pytest.skip("ranks cannot share its tokens")
    check(two_ranks, case, method_name, AXES[axis])


def refused_when_compiled(degrees: Degrees, when: str) -> str:
    case = BY_NAME["wan"]
    pipe = case.build()
    if when == "before":
        pipe.transformer.compile_repeated_blocks(backend="eager")
    elif when == "a block":
        pipe.transformer.blocks[1] = torch.compile(pipe.transformer.blocks[1], backend="eager")
    with pytest.raises(GuidanceError) as error, guided(pipe, method("cfg", case), mesh=mesh(degrees)):
        pipe.transformer.compile_repeated_blocks(backend="eager")
        case.run(pipe)
    return str(error.value)


@pytest.mark.parametrize(
    ("axis", "when"),
    [("ulysses", "before"), ("ring", "before"), ("ulysses", "inside"), ("ulysses", "a block")],
)
def test_compiled_blocks_cannot_share_tokens(two_ranks: Ranks, axis: str, when: str) -> None:
    assert set(two_ranks.run(refused_when_compiled, AXES[axis], when)) == {
        "compiled blocks cannot share their tokens over ranks (ulysses, ring)"
    }


@pytest.mark.parametrize("case", UNETS)
def test_a_branch_runs_where_the_attention_that_it_starts_from_was(two_ranks: Ranks, case: str) -> None:
    (first, *_), (second, *_) = check(two_ranks, case, "sag", AXES["branch"])
    assert [one.branches for one in first] == [("cond",)]
    assert [one.branches for one in second] == [("uncond",), ("perturbed",)]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("method_name", ["nag", "nag, text"])
@pytest.mark.parametrize("case", ["ltx", "ltx2", "wan", "wan-image", "sdxl", "mochi", "hunyuan", "cogvideox"])
def test_attention_to_two_texts(two_ranks: Ranks, case: str, method_name: str, axis: str) -> None:
    if case in UNETS and axis != "branch":
        pytest.skip("no sequence of tokens runs through a UNet")
    check(two_ranks, case, method_name, AXES[axis])


@pytest.mark.parametrize("case", ["mochi", "ltx", "ltx2", "hunyuan", "hunyuan15", "wan", "cogvideox"])
@pytest.mark.parametrize("method_name", ["cfg", "stg", "oseg"])
def test_branch_and_sequence_together(four_ranks: Ranks, case: str, method_name: str) -> None:
    check(four_ranks, case, method_name, Degrees(branch=2, ulysses=2))


OTHER_METHODS = (
    "cfg, later",
    "stg, ends",
    "stg, input",
    "pag",
    "seg",
    "oseg, both",
    "oseg, frame",
    "oseg, principal",
    "apg",
    "cfg-zero",
)


@pytest.mark.parametrize(
    ("case", "method_name"),
    [
        *(("mochi", name) for name in OTHER_METHODS),
        *(("ltx-condition", name) for name in OTHER_METHODS),
        ("mochi, 64 channels", "oseg-released"),
        ("ltx, 64 channels", "oseg-released"),
        ("cogvideox", "pag"),
        ("cogvideox", "oseg, principal"),
        ("wan", "pag"),
        ("ltx2", "pag"),
        ("ltx2", "seg, sound"),
        ("ltx-long", "pag"),
        ("ltx2-condition", "stg, modality"),
        ("ltx2-condition", "oseg, both"),
        ("ltx2-image", "apg"),
    ],
)
def test_every_method_on_four_ranks(four_ranks: Ranks, case: str, method_name: str) -> None:
    check(four_ranks, case, method_name, Degrees(ring=2, ulysses=2))


@pytest.mark.parametrize("case", ["mochi", "ltx", "ltx2", "hunyuan", "hunyuan15", "wan", "cogvideox"])
@pytest.mark.parametrize("axis", ["ulysses", "ring"])
def test_prompts_of_different_lengths_in_one_batch(two_ranks: Ranks, case: str, axis: str) -> None:
    check(two_ranks, case, "oseg", AXES[axis], batch=True)


@pytest.mark.parametrize("case", ["mochi", "svd"])
def test_whole_passes_give_the_same(two_ranks: Ranks, case: str) -> None:
    results = two_ranks.run(
        partial(make, reuse=Reuse(prefix=False)), case, "oseg", PROMPTS[0], Degrees(branch=2)
    )
    for latents, _ in results:
        assert_close(latents, expected(case, "oseg"), **TOLERANCE)


def branches(passes: Any) -> list[tuple[tuple[str, ...], int]]:
    """(branches, first block) of the passes of a step."""
    return [(one.branches, one.start_block) for one in passes]


def test_a_perturbed_branch_stays_with_its_plain_one_where_that_pays(two_ranks: Ranks) -> None:
    one, other = check(two_ranks, "mochi", "oseg", Degrees(branch=2))
    assert [branches(step) for step in one] == [[(("cond",), 0), (("perturbed",), 2)]] * 3
    assert [branches(step) for step in other] == [[(("uncond",), 0)]] * 3


def test_branches_run_whole_where_there_is_a_rank_for_each(four_ranks: Ranks) -> None:
    # Three branches, two of them perturbed from block 1 of 5; the fourth rank only listens.
    results = check(four_ranks, "mochi", "oseg, both", Degrees(branch=4))
    steps = [branches(passes[0]) for passes in results]
    assert sorted(step for step in steps) == [
        [],
        [(("cond",), 0)],
        [(("cond_perturbed",), 0)],
        [(("uncond_perturbed",), 0)],
    ]


def test_calls_of_a_step_are_shared(two_ranks: Ranks) -> None:
    # Wan asks for each condition with a call of its own; each rank computes in one of them only.
    one, other = check(two_ranks, "wan", "cfg, later", Degrees(branch=2))
    assert {names for step in one[1:] for names, _ in branches(step)} != {
        names for step in other[1:] for names, _ in branches(step)
    }


def _without_a_generator(case_name: str, degrees: Degrees) -> Any:
    torch.manual_seed(torch.distributed.get_rank())
    case = BY_NAME[case_name]
    pipe = case.build()
    with guided(pipe, method("oseg", case), mesh=mesh(degrees)):
        return case.run(pipe, generator=None)


# SVD adds noise to the image before it encodes it.
@pytest.mark.parametrize(("case", "axis"), [("mochi", "ulysses"), ("svd", "branch")])
def test_ranks_start_from_one_noise_whatever_their_random_state(
    two_ranks: Ranks, case: str, axis: str
) -> None:
    one, other = two_ranks.run(_without_a_generator, case, AXES[axis])
    assert_close(one, other, **TOLERANCE)


def _in_bfloat16(case_name: str, method_name: str, degrees: Degrees | None) -> Any:
    case = BY_NAME[case_name]
    pipe = case.build().to(torch.bfloat16)
    with guided(pipe, method(method_name, case), mesh=mesh(degrees) if degrees else ONE_RANK):
        return case.run(pipe)


@pytest.mark.parametrize(
    ("case", "method_name", "axis"),
    [
        *(
            (case, name, "branch")
            for case in ("mochi", "hunyuan15", "svd", "sdxl")
            for name in ("cfg", "oseg")
        ),
        *(
            (case, "oseg", axis)
            for case in ("mochi", "hunyuan", "wan", "ltx2")
            for axis in ("ulysses", "ring")
        ),
    ],
)
def test_latents_keep_their_number_type(two_ranks: Ranks, case: str, method_name: str, axis: str) -> None:
    """Some schedulers go on in the type of the prediction, and the network takes its own type only."""
    alone = _in_bfloat16(case, method_name, None)
    for latents in two_ranks.run(_in_bfloat16, case, method_name, AXES[axis]):
        assert latents.dtype == alone.dtype
        assert (latents - alone).float().norm() < 0.1 * alone.float().norm()


def _with_other_latents(degrees: Degrees) -> str:
    case = BY_NAME["mochi"]
    pipe = case.build()
    moved = pipe.scheduler.step

    def step(prediction: Any, timestep: Any, sample: torch.Tensor, **options: Any) -> Any:
        return moved(prediction, timestep, sample + torch.distributed.get_rank(), **options)

    pipe.scheduler.step = step
    with guided(pipe, method("cfg", case), mesh=mesh(degrees)), pytest.raises(GuidanceError) as error:
        case.run(pipe)
    return str(error.value)


def test_ranks_that_sample_apart_are_refused(two_ranks: Ranks) -> None:
    for message in two_ranks.run(_with_other_latents, Degrees(ulysses=2)):
        assert message.startswith("rank 1 holds other latents than rank 0 at step 1")


def _foreign_attention(degrees: Degrees) -> str:
    case = BY_NAME["ltx"]
    pipe = case.build()
    # Stands for the kernels of other libraries, which are called by names of their own.
    pipe.transformer.transformer_blocks[0].attn1.processor = lambda attention, hidden_states, *_: (
        hidden_states
    )
    with guided(pipe, method("cfg", case), mesh=mesh(degrees)), pytest.raises(ParallelError) as error:
        case.run(pipe)
    return str(error.value)


def test_attention_that_cannot_be_spread_is_refused(two_ranks: Ranks) -> None:
    for message in two_ranks.run(_foreign_attention, Degrees(ring=2)):
        assert "transformer_blocks.0.attn1 does not attend through" in message


@pytest.mark.parametrize("case", UNETS)
def test_unets_have_no_sequence_to_share(two_ranks: Ranks, case: str) -> None:
    def message(error: str) -> bool:
        return f"{case} has no sequence of tokens that ranks could share" in error

    with pytest.raises(AssertionError) as failed:
        two_ranks.run(make, case, "cfg", PROMPTS[0], Degrees(ulysses=2))
    assert message(str(failed.value))

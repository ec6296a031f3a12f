"""Reuse between steps: against a slow reference that keeps all predictions, and with what wraps pipelines."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from oseg_video import CFG, OSEG, STG, GuidanceError, Reuse, Schedule, guided
from oseg_video.adapters import adapter_for
from oseg_video.types import SettingError
from tests.integration.checks import ACROSS_BATCHES
from tests.integration.families import (
    CASES,
    COGVIDEOX,
    HUNYUAN,
    HUNYUAN15,
    LTX,
    MOCHI,
    SCALE,
    SDXL,
    SVD,
    WAN,
    Case,
    over,
    quiet,
)
from tests.integration.slow_reuse import Slow, slow_cache
from tests.integration.variants import WAN_5B, WAN_EXPERTS, WAN_VACE

STEPS = 7
CHAINS = (MOCHI, LTX, WAN, WAN_VACE, COGVIDEOX, HUNYUAN, HUNYUAN15)
# Not the pipeline's own scale: a rule is there then.
PLAIN = CFG(guidance_scale=SCALE + 1)
STG_METHOD = STG(guidance_scale=SCALE, blocks=(2,), scale=0.5)
OSEG_METHOD = OSEG(guidance_scale=SCALE, blocks=(2,), scale=0.5)
PLAIN_UNCOND = OSEG(guidance_scale=SCALE, blocks=(2,), scale=0.5, perturb="cond")
ONLY_UNCOND = STG(guidance_scale=SCALE, blocks=(2,), perturb="uncond")
REFRESH = {"uncond": 2, "perturbed": 3}


def run(
    case: Case, pipe: Any, guidance: Any, reuse: Reuse, prompt: Any = "a red circle", **options: Any
) -> tuple[torch.Tensor, list[set[str]]]:
    """Latents, and the branches that were estimated in each step."""
    with guided(pipe, guidance, reuse=reuse) as report:
        latents = case.run(pipe, prompt, **{"num_inference_steps": STEPS, **options})
    return latents, [{*step.estimated} for step in report.steps]


# -- against the reference


@pytest.mark.parametrize(
    "guidance",
    (PLAIN, STG_METHOD, OSEG_METHOD, ONLY_UNCOND),
    ids=("cfg", "stg", "oseg", "stg-uncond"),
)
@over(*CHAINS, SVD, SDXL)
def test_refreshed_branches_follow_by_their_differences(case: Case, pipe: Any, guidance: Any) -> None:
    latents, estimated = run(case, pipe, guidance, Reuse(refresh=REFRESH))
    slow = Slow(inner=guidance, **REFRESH)
    expected, _ = run(case, pipe, slow, Reuse())
    assert_close(latents, expected, **ACROSS_BATCHES)
    assert estimated == slow.estimated and any(estimated) and not estimated[0] and not estimated[-1]
    exact, _ = run(case, pipe, guidance, Reuse())
    assert not torch.allclose(latents, exact, **ACROSS_BATCHES)


# So that some of the steps are skipped, and some of those that may be are not.
THRESHOLDS = {
    **{"mochi": 0.4, "ltx": 0.09, "wan": 0.1, "wan-experts": 0.2, "wan-vace": 0.1},
    **{"cogvideox": 0.4, "hunyuan": 0.4, "hunyuan15": 0.45},
}


def check_cache(
    case: Case, pipe: Any, guidance: Any, prompt: Any = "a red circle", clips: int = 1, **given: Any
) -> None:
    """Steps skipped by the cache, alone and beside refreshed branches, against the reference."""
    threshold = THRESHOLDS[case.name]
    options = {name: given.pop(name) for name in list(given) if name not in ("uncond", "switch")}
    refresh = {"uncond": given["uncond"]} if "uncond" in given else {}
    latents, estimated = run(case, pipe, guidance, Reuse(cache=threshold, refresh=refresh), prompt, **options)
    slow = Slow(inner=guidance, **given)
    with slow_cache(pipe, slow, threshold, clips):
        expected, _ = run(case, pipe, slow, Reuse(), prompt, **options)
    assert_close(latents, expected, **ACROSS_BATCHES)
    assert estimated == slow.estimated
    free = [one.skipped for one in slow.steps if one.index not in (0, STEPS - 1, given.get("switch"))]
    assert any(free) and not all(free)


@pytest.mark.parametrize("given", ({}, {"uncond": 2}), ids=("cache", "both"))
@over(*CHAINS)
def test_cached_steps_run_the_first_block_only(case: Case, pipe: Any, given: Any) -> None:
    check_cache(case, pipe, PLAIN_UNCOND if given else PLAIN, **given)


def test_the_first_step_of_a_second_model_is_computed() -> None:
    pipe = WAN_EXPERTS.build()
    latents, estimated = run(WAN_EXPERTS, pipe, OSEG_METHOD, Reuse(refresh=REFRESH))
    with guided(pipe, OSEG_METHOD) as report:
        WAN_EXPERTS.run(pipe, num_inference_steps=STEPS)
    switch = next(step.index for step in report.steps if step.noise_level < pipe.config.boundary_ratio)
    assert 1 < switch < STEPS - 1
    slow = Slow(inner=OSEG_METHOD, switch=switch, **REFRESH)
    expected, _ = run(WAN_EXPERTS, pipe, slow, Reuse())
    assert_close(latents, expected, **ACROSS_BATCHES)
    assert estimated == slow.estimated and not estimated[switch] and estimated[switch - 1]
    check_cache(WAN_EXPERTS, pipe, PLAIN_UNCOND, switch=switch, uncond=2)


SCHEDULED = STG(
    guidance_scale=SCALE,
    blocks=Schedule(((1.0, (2,)), (0.8, (1, 3)))),
    scale=Schedule(((1.0, 0.5), (0.6, 0.25))),
)
INSIDE = OSEG(guidance_scale=SCALE, blocks=(2,), scale=0.5, interval=(0.2, 0.8))


@pytest.mark.parametrize("guidance", (SCHEDULED, INSIDE), ids=("schedule", "interval"))
@over(LTX, WAN)
def test_schedules_and_intervals_begin_anew(case: Case, pipe: Any, guidance: Any) -> None:
    latents, estimated = run(case, pipe, guidance, Reuse(refresh={"perturbed": 9, "uncond": 9}))
    slow = Slow(inner=guidance, perturbed=9, uncond=9)
    # Outside of the interval the rule is that of CFG, with the pipeline's own scale.
    expected, _ = run(case, pipe, slow, Reuse(), guidance_scale=SCALE + 1)
    assert_close(latents, expected, **ACROSS_BATCHES)
    assert estimated == slow.estimated and any(estimated)
    computed = [index for index, names in enumerate(estimated) if not names]
    assert len(computed) > 2


@pytest.mark.parametrize("several", ("prompts", "videos"))
@over(MOCHI, WAN)
def test_clips_of_a_batch_are_decided_together(case: Case, pipe: Any, several: str) -> None:
    prompt = ["a red circle", "a much longer prompt, x"] if several == "prompts" else "a red circle"
    options = {} if several == "prompts" else {"num_videos_per_prompt": 2}
    check_cache(case, pipe, PLAIN_UNCOND, prompt, clips=2, uncond=2, **options)


# -- exact where it is off


@over(*CASES, WAN_EXPERTS, WAN_5B)
def test_nothing_is_estimated_at_the_neutral_values(case: Case, pipe: Any) -> None:
    for guidance in (CFG(), PLAIN, OSEG_METHOD):
        exact, _ = run(case, pipe, guidance, Reuse(), num_inference_steps=3)
        for neutral in ({"uncond": 1, "perturbed": 1}, {"uncond": 1.0}):
            same, estimated = run(
                case, pipe, guidance, Reuse(refresh=neutral, cache=0.0), num_inference_steps=3
            )
            assert torch.equal(same, exact) and not any(estimated)


# -- what else may wrap the pipeline

BOTH = Reuse(cache=0.3, refresh={"uncond": 2, "perturbed": 3})


@over(MOCHI, WAN_EXPERTS, COGVIDEOX)
def test_offload_changes_nothing(case: Case, pipe: Any) -> None:
    expected, estimated = run(case, pipe, PLAIN_UNCOND, BOTH)
    assert any("cond" in names for names in estimated)
    for denoiser in adapter_for(pipe).denoisers(pipe):
        denoiser.enable_group_offload("cpu", "cpu", "block_level", num_blocks_per_group=2)
    assert torch.equal(run(case, pipe, PLAIN_UNCOND, BOTH)[0], expected)
    pipe = case.build()
    pipe.enable_model_cpu_offload(device="cpu")
    assert_close(run(case, pipe, PLAIN_UNCOND, BOTH)[0], expected, **ACROSS_BATCHES)


@over(LTX, HUNYUAN)
def test_compiled_blocks_are_skipped_all_the_same(case: Case, pipe: Any) -> None:
    expected, estimated = run(case, pipe, PLAIN_UNCOND, BOTH)
    for denoiser in adapter_for(pipe).denoisers(pipe):
        adapter_for(pipe).compile_blocks(denoiser, backend="eager")
    latents, same = run(case, pipe, PLAIN_UNCOND, BOTH)
    assert_close(latents, expected, **ACROSS_BATCHES)
    assert same == estimated and any("cond" in names for names in estimated)


def test_code_that_writes_into_the_first_blocks_output_is_noticed() -> None:
    """What the others added is then another difference; from the next step on the output is copied."""
    pipe = MOCHI.build()
    blocks = pipe.transformer.transformer_blocks
    outputs: list[Any] = []
    blocks[0].register_forward_hook(lambda *given: outputs.append(given[-1]))
    blocks[1].register_forward_hook(lambda *_: outputs[-1][0].mul_(0.5).shape and None)
    _, estimated = run(MOCHI, pipe, PLAIN, Reuse(cache=1.0))
    assert ["cond" in names for names in estimated] == [False, False, *[True] * (STEPS - 3), False]


# -- refusing


def test_a_step_cache_of_diffusers_is_refused_for_ours() -> None:
    from diffusers import FirstBlockCacheConfig

    pipe = LTX.build()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    for guidance, reuse in ((OSEG_METHOD, Reuse()), (CFG(), Reuse(refresh={"uncond": 2}))):
        with pytest.raises(GuidanceError, match=r"reuse=Reuse\(cache=0.1\), or --cache 0.1, is a step cache"):
            run(LTX, pipe, guidance, reuse)


@pytest.mark.parametrize("reuse", (Reuse(), Reuse(refresh={"perturbed": 2})), ids=("exact", "refresh"))
@over(MOCHI, WAN)
def test_a_forward_that_leaves_blocks_out_is_refused(case: Case, pipe: Any, reuse: Reuse) -> None:
    """As TeaCache and its kin do, which replace the denoiser's forward."""
    denoiser = pipe.transformer
    stack = next(name for name in ("transformer_blocks", "blocks") if hasattr(denoiser, name))
    inner, calls = type(denoiser).forward, []

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        blocks = getattr(self, stack)
        if len(calls) > 4:
            self._modules[stack] = torch.nn.ModuleList(list(blocks)[:1])
        try:
            return inner(self, *args, **kwargs)
        finally:
            self._modules[stack] = blocks

    denoiser.forward = types.MethodType(forward, denoiser)
    with pytest.raises(GuidanceError, match=rf"did not call its block {stack}\.1: its forward is replaced"):
        run(case, pipe, STG_METHOD, reuse)


@over(SVD, SDXL)
def test_unets_have_no_step_cache(case: Case, pipe: Any) -> None:
    with pytest.raises(GuidanceError, match=f"cache: {case.name} has no chain of blocks"):
        run(case, pipe, CFG(), Reuse(cache=0.1))


def test_what_is_no_reuse_is_refused() -> None:
    pipe = LTX.build()
    with pytest.raises(SettingError, match=r"reuse must be settings such as Reuse\(cache=0.1\), got True"):
        with guided(pipe, CFG(), reuse=True):
            pass


# -- beside diffusers' first-block cache


def with_theirs(
    case: Case, pipe: Any, threshold: float, **options: Any
) -> tuple[torch.Tensor, list[list[bool]]]:
    """Latents of the stock pipeline with their cache, and which blocks ran in each call of the denoiser."""
    from diffusers import FirstBlockCacheConfig, apply_first_block_cache

    adapter, denoiser = adapter_for(pipe), pipe.transformer
    blocks = [denoiser.get_submodule(address.path) for address in adapter.blocks(denoiser)]
    ran: list[set[int]] = []
    for index, block in enumerate(blocks):

        def forward(*args: Any, inner: Any = block.forward, index: int = index, **kwargs: Any) -> Any:
            if index == 0:
                ran.append(set())
            ran[-1].add(index)
            return inner(*args, **kwargs)

        block.forward = forward
    apply_first_block_cache(denoiser, FirstBlockCacheConfig(threshold=threshold))
    latents = case.run(pipe, num_inference_steps=STEPS, **options)
    return latents, [len(one) == len(blocks) for one in ran]


@pytest.mark.parametrize("text", ("none", "same"))
@over(MOCHI, LTX, WAN, COGVIDEOX)
def test_diffusers_cache_is_the_same_where_the_definitions_agree(case: Case, pipe: Any, text: str) -> None:
    """That is without text guidance, and with it where both texts are the same.

    Else they differ: theirs decides for the rows of both conditions at once, or for each condition apart, and
    adds to each what the blocks added to it; ours decides by the conditional prediction and takes over its
    difference to the other. And ours computes the last step always.
    """
    options: dict[str, Any] = {"guidance_scale": 1.0}
    if text == "same":
        options = {"guidance_scale": SCALE, "negative_prompt": "a red circle"}
    threshold = {"mochi": 0.4, "ltx": 0.07, "wan": 0.1, "cogvideox": 0.3}[case.name]
    latents, estimated = run(case, pipe, CFG(), Reuse(cache=threshold), **options)
    theirs, computed = with_theirs(case, case.build(), threshold, **options)
    calls = len(computed) // STEPS
    assert all(computed[step * calls] == computed[step * calls + calls - 1] for step in range(STEPS))
    skipped = ["cond" in names for names in estimated]
    assert any(skipped) and not all(skipped[1:-1])
    assert [not one for one in computed[::calls]][:-1] == skipped[:-1]
    assert computed[-1] == (case is not COGVIDEOX)
    if computed[-1]:
        assert_close(latents, theirs, **ACROSS_BATCHES)


def test_conditions_do_not_decide_apart_as_with_diffusers_cache() -> None:
    options = {"guidance_scale": SCALE, "negative_prompt": "x"}
    _, computed = with_theirs(WAN, quiet(WAN.build()), 0.12, **options)
    assert computed[::2] != computed[1::2]
    _, estimated = run(WAN, quiet(WAN.build()), CFG(), Reuse(cache=0.12), **options)
    assert all(names in (set(), {"cond", "uncond"}) for names in estimated) and any(estimated)

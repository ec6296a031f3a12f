"""`guided` on the real diffusers pipelines: exact where it must be, restored, and never silent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from oseg_video import (
    CFG,
    OSEG,
    PAG,
    SEG,
    STG,
    GuidanceError,
    OSEGReleased,
    Reuse,
    SilentGuidanceError,
    guided,
)
from oseg_video.adapters import UnknownBlockError, UnsupportedPipelineError, adapter_for
from oseg_video.guidance.methods import S2
from oseg_video.types import SettingError
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
    STEPS,
    WAN,
    Case,
    over,
    quiet,
)
from tests.integration.variants import COGVIDEOX_15, LUCY_EDIT, VARIANTS, WAN_5B, WAN_EXPERTS, one_scale
from tests.tiny import BLOCKS

SEG_METHOD = SEG(guidance_scale=SCALE, blocks=(2, 3), blur_sigma=1.0)
OSEG_METHOD = OSEG(guidance_scale=SCALE, blocks=(2,))
PRINCIPAL = OSEG(guidance_scale=SCALE, blocks=(2,), perturb="cond", reference="principal:2")
METHODS = (
    STG(guidance_scale=SCALE, blocks=(2,)),
    STG(guidance_scale=SCALE, blocks=(2,), mode="attention_skip"),
    PAG(guidance_scale=SCALE, blocks=(1, 3)),
    SEG_METHOD,
    OSEG_METHOD,
    PRINCIPAL,
    OSEG(guidance_scale=SCALE, blocks=(1, 3), keep_parallel=0.5, mix=0.7, rescale=0.7, reference="frame"),
)


@pytest.fixture(params=(MOCHI, LTX), ids=lambda case: case.name)
def family(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def pipe(request: pytest.FixtureRequest) -> Any:
    name = "case" if "case" in request.fixturenames else "family"
    return quiet(request.getfixturevalue(name).build())


# -- exactness


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@over(*CASES, *VARIANTS)
def test_plain_cfg_is_bit_equal_to_the_stock_pipeline(case: Case, pipe: Any, dtype: torch.dtype) -> None:
    pipe.to(dtype)
    if case is LUCY_EDIT:  # which encodes its video in float32, whatever it is
        pipe.vae.float()
    stock = case.run(pipe)
    with guided(pipe, CFG()):
        assert torch.equal(case.run(pipe), stock)
    if same := one_scale(case, SCALE):
        stock = case.run(pipe, **same)
    with guided(pipe, CFG(guidance_scale=SCALE)):
        assert torch.equal(case.run(pipe, **same), stock)


@over(*CASES, *VARIANTS)
def test_the_guidance_scale_of_the_guidance_counts(case: Case, pipe: Any) -> None:
    stock = case.run(pipe, guidance_scale=6.0, **one_scale(case, 6.0))
    with guided(pipe, CFG(guidance_scale=6.0)):
        ours = case.run(pipe, guidance_scale=2.0)
    if adapter_for(pipe).sampling.combines_denoised:  # there and back: the pipeline does so once more
        assert_close(ours, stock, **ACROSS_BATCHES)
    else:
        assert torch.equal(ours, stock)


def test_no_text_guidance_is_the_stock_pipeline_without_it(family: Case, pipe: Any) -> None:
    stock = family.run(pipe, guidance_scale=1.0)
    with guided(pipe, CFG(guidance_scale=1.0)) as report:
        assert torch.equal(family.run(pipe, guidance_scale=1.0), stock)
        assert_close(family.run(pipe, guidance_scale=SCALE), stock, **ACROSS_BATCHES)
    assert [step.passes[0].branches for step in report.steps] == [("cond",)] * 2 * STEPS


@pytest.mark.parametrize(
    "guidance",
    (
        OSEG(guidance_scale=SCALE, blocks=(2,), mix=0.0),
        OSEG(guidance_scale=SCALE, blocks=(2,), scale=0.0, perturb="cond"),
        OSEG(guidance_scale=SCALE, blocks=(2,), blur_sigma=0.0, keep_parallel=1.0),
        SEG(guidance_scale=SCALE, blocks=(2,), blur_sigma=0.0),
        STG(guidance_scale=SCALE, blocks=(2,), scale=0.0),
    ),
    ids=lambda guidance: f"{guidance.name}",
)
def test_a_method_that_is_switched_off_is_cfg(family: Case, pipe: Any, guidance: Any) -> None:
    stock = family.run(pipe)
    with guided(pipe, guidance) as report:
        assert torch.equal(family.run(pipe), stock)
    assert report.block_passes == 2 * STEPS


@over(*CASES, *VARIANTS)
def test_prefix_reuse_changes_nothing(case: Case, pipe: Any) -> None:
    stock, adapter = case.run(pipe), adapter_for(pipe)
    for guidance in METHODS:
        with guided(pipe, guidance, reuse=Reuse(prefix=False)):
            whole = case.run(pipe)
        with guided(pipe, guidance) as report:
            assert_close(case.run(pipe), whole, **ACROSS_BATCHES)
        first = adapter.resolve_blocks(adapter.denoisers(pipe)[0], guidance.blocks)[0].unit
        assert all(max(one.start_block for one in step.passes) == first for step in report.steps)
        assert not torch.equal(whole, stock)


@pytest.mark.parametrize("perturb", ("both", "cond"))
def test_prefix_reuse_shows_in_counted_flops(family: Case, pipe: Any, perturb: str) -> None:
    guidance = OSEG(guidance_scale=SCALE, blocks=(3,), perturb=perturb)

    def flops(prefix: bool) -> int:
        with guided(pipe, guidance, reuse=Reuse(prefix=prefix)), FlopCounterMode(display=False) as counter:
            # As long as the prompt: text is trimmed to its valid tokens.
            family.run(pipe, negative_prompt="a red sphere", num_inference_steps=2)
        return sum(n for name, n in counter.get_flop_counts()["Global"].items() if "conv" not in str(name))

    # Three branches cost 1 + 1 + (L - l) / L passes; embeddings and text encoder are paid in each pass.
    expected = (2 + (BLOCKS - 3) / BLOCKS) / 3
    assert expected <= flops(True) / flops(False) < expected + 0.06


@pytest.mark.parametrize("guidance", (SEG_METHOD, OSEG_METHOD, PRINCIPAL), ids=lambda guidance: guidance.name)
@over(MOCHI, LTX, LTX2, WAN, WAN_EXPERTS, WAN_5B, COGVIDEOX, COGVIDEOX_15)
def test_a_clip_does_not_depend_on_its_batch(case: Case, pipe: Any, guidance: Any) -> None:
    prompts = ["a red circle", "a much longer prompt, x"]
    with guided(pipe, guidance):
        together = case.run(pipe, prompts, seed=5)
        alone = torch.cat([case.run(pipe, prompt, seed=5 + i) for i, prompt in enumerate(prompts)])
        assert_close(together, alone, **ACROSS_BATCHES)
        if case not in (COGVIDEOX, COGVIDEOX_15):  # which make one video per prompt
            videos = case.run(pipe, prompts[0], seed=5, num_videos_per_prompt=2)
            assert_close(videos[:1], alone[:1], **ACROSS_BATCHES)


def test_without_text_guidance_the_perturbed_branch_is_all_there_is(family: Case, pipe: Any) -> None:
    with guided(pipe, OSEG(guidance_scale=1.0, blocks=(1,))) as report:
        family.run(pipe, guidance_scale=1.0)
    assert [p.branches for p in report.steps[0].passes] == [("cond",), ("cond_perturbed",)]


def test_outside_the_interval_the_extra_branches_are_not_run(family: Case, pipe: Any) -> None:
    with guided(pipe, OSEG(guidance_scale=SCALE, blocks=(1,), interval=(0.3, 0.6))) as report:
        family.run(pipe, num_inference_steps=10)
    kinds = [[p.branches for p in step.passes] for step in report.steps]
    plain, oseg = [("uncond", "cond")], [("cond",), ("uncond_perturbed",), ("cond_perturbed",)]
    assert kinds == [plain] * 3 + [oseg] * 3 + [plain] * 4
    levels = [step.noise_level for step in report.steps]
    assert levels == sorted(levels, reverse=True) and levels[0] == pytest.approx(1, abs=0.02)


def test_the_released_rule_runs(family: Case) -> None:
    # 2 heads of 32: the released transform views the channels as 64 x (C / 64)
    pipe = family.build(attention_head_dim=32, **({"cross_attention_dim": 64} if family is LTX else {}))
    pipe.set_progress_bar_config(disable=True)
    stock = family.run(pipe)
    for skip in (False, True):
        guidance = OSEGReleased(
            guidance_scale=SCALE, scale=0.62, mix=0.67, blocks=(2,), skip_conditional=skip
        )
        with guided(pipe, guidance) as report:
            assert not torch.equal(family.run(pipe), stock)
        assert [p.branches for p in report.steps[0].passes] == [("cond",)]
        last = [name for p in report.steps[1].passes for name in p.branches]
        assert last == ["cond", "uncond_perturbed"] + ["cond_perturbed"] * skip


# -- what else may wrap the pipeline


@over(MOCHI, LTX, LTX2, WAN_EXPERTS, COGVIDEOX)
def test_model_offload_keeps_the_guidance_over_several_calls(case: Case, pipe: Any) -> None:
    with guided(pipe, OSEG_METHOD):
        expected = case.run(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    with guided(pipe, OSEG_METHOD) as report:
        # The pipeline takes its offload hooks off and on again at the end of each call.
        assert torch.equal(case.run(pipe), expected)
        assert torch.equal(case.run(pipe), expected)
    assert len(report.steps) == 2 * STEPS


@over(MOCHI, LTX, LTX2, WAN_EXPERTS, COGVIDEOX, HUNYUAN, HUNYUAN15)
def test_compiled_blocks_are_perturbed_all_the_same(case: Case, pipe: Any) -> None:
    guidance = OSEG(guidance_scale=SCALE, blocks=(1, 3))
    with guided(pipe, guidance):
        expected = case.run(pipe)
    adapter = adapter_for(pipe)
    for denoiser in adapter.denoisers(pipe):
        adapter.compile_blocks(denoiser, backend="eager")
    stock = case.run(pipe)  # compiled before the hooks of the guided run exist
    with guided(pipe, guidance):
        assert_close(case.run(pipe), expected, **ACROSS_BATCHES)
    assert torch.equal(case.run(pipe), stock)


def test_a_denoiser_compiled_as_a_whole_is_refused(pipe: Any, family: Case) -> None:
    pipe.transformer.compile(backend="eager")
    with pytest.raises(GuidanceError, match="compile the repeated blocks"), guided(pipe, METHODS[0]):
        pass


def test_a_step_cache_is_refused(pipe: Any, family: Case) -> None:
    from diffusers import FirstBlockCacheConfig

    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(GuidanceError, match="step cache"), guided(pipe, METHODS[0]):
        pass


# -- restoring


@pytest.mark.parametrize("error", (None, RuntimeError, KeyboardInterrupt))
@over(*CASES, *VARIANTS)
def test_the_pipeline_is_as_it_was_afterwards(
    case: Case, pipe: Any, error: type | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = case.run(pipe)  # before the look at the state: diffusers itself notes things in a first run
    before = state_of(pipe)

    steps: list[Any] = []
    scheduler = type(pipe.scheduler)  # LTX-2 steps with a copy besides
    real_step = scheduler.step

    def interrupt(*args: Any, **kwargs: Any) -> Any:
        steps.append(args)
        if error is not None and len(steps) == 2:
            raise error("in the middle")
        return real_step(*args, **kwargs)

    def run() -> None:
        # Not every pipeline has a callback.
        with monkeypatch.context() as patch, guided(pipe, OSEG_METHOD):
            patch.setattr(scheduler, "step", interrupt)
            case.run(pipe)

    if error is None:
        run()
    else:
        with pytest.raises(error):
            run()
    assert state_of(pipe) == before
    assert torch.equal(case.run(pipe), stock)


def test_an_error_inside_a_perturbed_block_leaves_no_hook(
    family: Case, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    family.run(pipe)
    before = state_of(pipe)
    monkeypatch.setattr("oseg_video.guidance.queries.oseg_queries", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError), guided(pipe, OSEG_METHOD):
        family.run(pipe)
    assert state_of(pipe) == before


def test_nesting_is_refused_and_the_outer_guidance_goes_on(family: Case, pipe: Any) -> None:
    with guided(pipe, METHODS[0]):
        expected = family.run(pipe)
    with guided(pipe, METHODS[0]):
        with pytest.raises(GuidanceError, match="guided already"), guided(pipe, CFG()):
            pass
        assert torch.equal(family.run(pipe), expected)


# -- refusing, and never silent


def test_an_unknown_block_is_refused_before_any_work(family: Case, pipe: Any) -> None:
    for selector in (":", ":1", "blocks:"):  # a part left out names nothing
        with pytest.raises(UnknownBlockError), guided(pipe, STG(blocks=(selector,))):
            pytest.fail("the body must not run")
    with pytest.raises(UnknownBlockError, match=f"no block {BLOCKS}.*has {BLOCKS} blocks"):
        with guided(pipe, STG(blocks=(BLOCKS,))):
            pytest.fail("the body must not run")


@over(MOCHI)
def test_s2_draws_from_single_blocks_and_nothing_follows_them(case: Case, pipe: Any) -> None:
    with pytest.raises(SettingError, match=r"s2 draws from single blocks, and all names 5: 0,1,2,3,4"):
        with guided(pipe, S2(blocks=("all",))):
            pytest.fail("the body must not run")
    for reuse in (Reuse(cache=0.1), Reuse(refresh={"perturbed": 2})):
        with pytest.raises(SettingError, match="s2 perturbs other blocks in each, so leave them out"):
            with guided(pipe, S2(blocks=(1, 2)), reuse=reuse):
                pytest.fail("the body must not run")
    with guided(pipe, S2(blocks=(1, 2)), reuse=Reuse(refresh={"uncond": 2})) as report:
        case.run(pipe, num_inference_steps=4)
    assert any(step.estimated for step in report.steps)


def test_a_pipeline_without_its_denoiser_is_refused() -> None:
    pipe = MOCHI.build()
    pipe.transformer = None
    with pytest.raises(UnsupportedPipelineError, match="MochiPipeline was loaded without its transformer"):
        with guided(pipe, CFG()):
            pytest.fail("the body must not run")


def test_another_pipeline_class_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedPipelineError, match=r"no adapter for 'str'.*LTXPipeline.*MochiPipeline"):
        with guided("no pipeline", CFG()):
            pass


def test_a_missing_unconditional_branch_is_refused(family: Case, pipe: Any) -> None:
    with pytest.raises(GuidanceError, match="needs the unconditional branch"), guided(pipe, METHODS[0]):
        family.run(pipe, guidance_scale=1.0)


def test_the_pipelines_own_rescale_is_refused() -> None:
    pipe = LTX.build()
    with pytest.raises(GuidanceError, match=r"guidance_rescale=0\.5"), guided(pipe, METHODS[0]):
        LTX.run(pipe, guidance_rescale=0.5)


def test_a_perturbation_without_effect_raises(
    family: Case, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oseg_video.guidance.queries.seg_queries", lambda query, *_, **__: query)
    # Whole passes over equal batches are bit-equal when nothing is perturbed.
    guidance = SEG(guidance_scale=1.0, blocks=(2,))
    with pytest.raises(SilentGuidanceError, match="did not change"), guided(pipe, guidance):
        family.run(pipe, guidance_scale=1.0)


def test_a_prediction_that_is_no_number_is_refused_at_the_first_step(
    family: Case, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN differs from everything, so it is not taken for an effect."""
    monkeypatch.setattr("oseg_video.guidance.queries.seg_queries", lambda query, *_, **__: query * torch.nan)
    with pytest.raises(
        GuidanceError, match="guided prediction of step 0 has values that are no finite numbers"
    ):
        with guided(pipe, SEG_METHOD):
            family.run(pipe)


def test_a_site_that_never_fires_raises(family: Case, pipe: Any) -> None:
    attention = pipe.transformer.transformer_blocks[2].attn1

    class Bypass:
        """An attention processor that never asks for the query."""

        def __call__(
            self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, *_: Any, **__: Any
        ):
            return (
                hidden_states
                if encoder_hidden_states is None or family is LTX
                else (
                    hidden_states,
                    encoder_hidden_states,
                )
            )

    attention.processor = Bypass()
    with pytest.raises(SilentGuidanceError, match=r"block 2 \(transformer_blocks\.2\).*never fired"):
        with guided(pipe, OSEG_METHOD):
            family.run(pipe)


def test_a_guided_run_without_a_step_is_said(
    family: Case, pipe: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with guided(pipe, METHODS[0]):
        pass
    assert "no step" in caplog.text

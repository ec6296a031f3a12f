"""What people do to a pipeline besides calling it: they share, copy, wrap, subclass and hook its parts."""

from __future__ import annotations

import copy
import gc
import inspect
import logging
import threading
import weakref
from contextlib import ExitStack
from functools import partial
from typing import Any

import accelerate
import pytest
import torch
from diffusers import (
    CogVideoXPipeline,
    HunyuanVideoPipeline,
    MochiPipeline,
    StableDiffusionXLPipeline,
    WanPipeline,
)
from diffusers.callbacks import SDXLCFGCutoffCallback
from torch import Tensor, nn
from torch._dynamo import eval_frame
from torch.testing import assert_close

from oseg_video import APG, CFG, OSEG, SEG, STG, CFGZeroStar, GuidanceError, Reuse, guided
from oseg_video.adapters import UnsupportedPipelineError, adapter_for
from oseg_video.engine.estimates import KeptPredictions
from oseg_video.engine.patching.sites import eager
from oseg_video.settings.schedule import Schedule
from oseg_video.types import SettingError
from tests.integration.checks import ACROSS_BATCHES, state_of
from tests.integration.families import (
    COGVIDEOX,
    HUNYUAN,
    LTX,
    MOCHI,
    SCALE,
    SDXL,
    STEPS,
    SVD,
    WAN,
    Case,
    over,
)
from tests.integration.variants import SECOND_SCALE, SKYREELS_V2, WAN_EXPERTS

PERTURBED = OSEG(guidance_scale=SCALE, blocks=(2,))


def denoiser_of(pipe: Any) -> nn.Module:
    return adapter_for(pipe).denoisers(pipe)[0]


# -- outputs that are written into


def assert_reuse_is_exact(case: Case, pipe: Any, guidance: Any, starts: list[int]) -> None:
    """Prefix reuse gives what whole passes give; `starts`: first unit of each step's perturbed passes."""
    with guided(pipe, guidance, reuse=Reuse(prefix=False)):
        whole = case.run(pipe)
    with guided(pipe, guidance) as report:
        assert_close(case.run(pipe), whole, **ACROSS_BATCHES)
    assert [max(one.start_block for one in step.passes) for step in report.steps] == starts


def write_into_input(_: nn.Module, args: tuple[Tensor, ...]) -> None:
    args[0].mul_(0.9)


@over(SDXL)
def test_freeu_writes_into_what_was_captured(case: Case, pipe: Any) -> None:
    guidance = SEG(guidance_scale=SCALE, blocks=("up.1",))
    assert_reuse_is_exact(case, pipe, guidance, [5] * STEPS)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    # The first step notices; the next ones keep copies.
    assert_reuse_is_exact(case, pipe, guidance, [0] + [5] * (STEPS - 1))


@over(SDXL)
def test_what_is_switched_on_inside_counts_and_stays(case: Case, pipe: Any) -> None:
    guidance = SEG(guidance_scale=SCALE, blocks=("mid",))
    stages = {"s1": 0.9, "s2": 0.2, "b1": 1.3, "b2": 1.4}
    with guided(pipe, guidance):
        without = case.run(pipe)
        pipe.enable_freeu(**stages)
        inside = case.run(pipe)
    after = case.run(pipe)
    pipe.disable_freeu()
    assert not torch.equal(case.run(pipe), after)
    pipe.enable_freeu(**stages)
    with guided(pipe, guidance):
        assert torch.equal(case.run(pipe), inside) and not torch.equal(inside, without)
        pipe.disable_freeu()
        assert torch.equal(case.run(pipe), without)


@over(WAN, SDXL)
def test_a_hook_on_a_block_that_is_set_inside_runs_and_stays(case: Case, pipe: Any) -> None:
    path = adapter_for(pipe).blocks(denoiser_of(pipe))[0].path
    calls: list[None] = []
    with guided(pipe, SEG(guidance_scale=SCALE, blocks=(0,))):
        denoiser_of(pipe).get_submodule(path).register_forward_hook(lambda *_: calls.append(None))
        case.run(pipe)
        inside = len(calls)
    case.run(pipe)
    assert inside >= 2 * STEPS and len(calls) > inside


@over(WAN)
def test_offload_and_compilation_that_are_set_up_inside_work_inside_and_after(case: Case, pipe: Any) -> None:
    before = case.run(pipe)
    with guided(pipe, SEG(guidance_scale=SCALE, blocks=(2,))):
        plain = case.run(pipe)
        accelerate.cpu_offload(pipe.transformer, execution_device=torch.device("cpu"))
        assert torch.equal(case.run(pipe), plain)
    assert torch.equal(case.run(pipe), before)
    accelerate.hooks.remove_hook_from_module(pipe.transformer, recurse=True)
    with guided(pipe, SEG(guidance_scale=SCALE, blocks=(2,))):
        pipe.transformer.compile_repeated_blocks(backend="eager")
        assert_close(case.run(pipe), plain)


@over(WAN)
def test_a_block_may_write_into_its_input(case: Case, pipe: Any) -> None:
    handle = pipe.transformer.blocks[2].register_forward_pre_hook(write_into_input)
    two_perturbed_passes = OSEG(guidance_scale=SCALE, blocks=(2,))
    assert_reuse_is_exact(case, pipe, two_perturbed_passes, [0] + [2] * (STEPS - 1))
    handle.remove()
    assert_reuse_is_exact(case, pipe, two_perturbed_passes, [2] * STEPS)


@over(WAN)
def test_in_inference_mode_no_write_is_counted_so_all_is_copied(case: Case, pipe: Any) -> None:
    pipe.transformer.blocks[2].register_forward_pre_hook(write_into_input)
    with torch.inference_mode():
        assert_reuse_is_exact(case, pipe, PERTURBED, [2] * STEPS)


# -- a denoiser that several pipelines share


def companion(case: Case, pipe: Any) -> Any:
    """Another pipeline over the same components, with a scheduler of its own."""
    other = type(pipe)(**{**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)})
    other.set_progress_bar_config(disable=True)
    return other


def in_thread(call: Any) -> Any:
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


@pytest.mark.parametrize("made", ("before", "inside"))
@pytest.mark.parametrize("threads", (False, True), ids=("callback", "thread"))
@over(MOCHI, WAN, SDXL)
def test_a_pipeline_that_shares_the_denoiser_stays_stock(
    case: Case, pipe: Any, threads: bool, made: str
) -> None:
    """Called between two steps of the guided one, from its callback or from another thread."""
    other = companion(case, pipe)
    expected = case.run(other, seed=7)
    with guided(pipe, PERTURBED):
        alone = case.run(pipe)
    others: list[Tensor] = []

    def serve(_: Any, __: int, ___: Any, given: dict[str, Any]) -> dict[str, Any]:
        # As a server makes one for each request.
        scheduler = copy.deepcopy(pipe.scheduler)
        one = other if made == "before" else type(other).from_pipe(pipe, scheduler=scheduler)
        others.append(in_thread(lambda: case.run(one, seed=7)) if threads else case.run(one, seed=7))
        return given

    with guided(pipe, PERTURBED) as report:
        assert torch.equal(case.run(pipe, callback_on_step_end=serve), alone)
        assert torch.equal(case.run(other, seed=7), expected)  # after it, too
    assert len(others) == STEPS == len(report.steps)
    assert all(torch.equal(one, expected) for one in others)


@over(MOCHI, SDXL)
def test_a_pipeline_of_single_parts_is_stock_in_a_thread_and_refused_in_a_callback(
    case: Case, pipe: Any
) -> None:
    """Parts that are read off the guided pipeline, its denoiser among them, know whose they are."""
    expected = case.run(companion(case, pipe), seed=7)
    others: list[Any] = []

    def serve(_: Any, index: int, __: Any, given: dict[str, Any], *, threads: bool) -> dict[str, Any]:
        if index == 0:
            parts = {name: getattr(pipe, name) for name in pipe.components}
            other = type(companion(case, pipe))(**{**parts, "scheduler": copy.deepcopy(pipe.scheduler)})
            other.set_progress_bar_config(disable=True)
            others.append(in_thread(lambda: case.run(other, seed=7)) if threads else case.run(other, seed=7))
        return given

    with guided(pipe, PERTURBED) as report:
        case.run(pipe, callback_on_step_end=partial(serve, threads=True))
    assert len(report.steps) == STEPS and torch.equal(others[0], expected)
    with (
        guided(pipe, PERTURBED),
        pytest.raises(GuidanceError, match="the denoiser was called again at step 1"),
    ):
        case.run(pipe, callback_on_step_end=partial(serve, threads=False))


@pytest.mark.parametrize("guidance", (PERTURBED, STG(guidance_scale=SCALE, blocks=(2,))), ids=("oseg", "stg"))
@over(LTX, SVD)
def test_it_stays_stock_in_the_middle_of_a_perturbed_pass(case: Case, pipe: Any, guidance: Any) -> None:
    other = companion(case, pipe)
    expected = case.run(other, seed=7)
    with guided(pipe, guidance):
        alone = case.run(pipe)
    main, others = threading.get_ident(), []

    def serve(*_: Any) -> None:
        if threading.get_ident() == main and not others:
            others.append(None)
            others.append(in_thread(lambda: case.run(other, seed=7)))

    adapter = adapter_for(pipe)
    address = adapter.blocks(denoiser_of(pipe))[2]
    site = adapter.site(denoiser_of(pipe).get_submodule(address.path), address)
    for module in (site.attention.to_q, site.attention.to_k):  # before and after our own hooks
        handle = module.register_forward_hook(serve)
        with guided(pipe, guidance):
            assert torch.equal(case.run(pipe), alone)
        handle.remove()
        assert torch.equal(others.pop(), expected)
        others.clear()


def test_a_pipeline_made_from_the_guided_one_outlives_it() -> None:
    pipe = MOCHI.build()
    pipe.set_progress_bar_config(disable=True)
    stock = MOCHI.run(pipe)
    with guided(pipe, PERTURBED):
        parts = ("scheduler", "vae", "text_encoder", "tokenizer", "transformer")
        other = MochiPipeline(**{name: getattr(pipe, name) for name in parts})
        other.set_progress_bar_config(disable=True)
        with pytest.raises(GuidanceError, match="outside of the guided pipeline's own call"):
            MOCHI.run(other)
    assert torch.equal(MOCHI.run(other), stock)


@over(SVD)  # diffusers' models with a cache context are part of a circle of their own
def test_a_model_is_freed_as_soon_as_nobody_holds_it(case: Case, pipe: Any) -> None:
    """Without the garbage collector, which may come when another model no longer fits."""
    gc.disable()
    try:
        own = copy.deepcopy(pipe)
        denoiser = weakref.ref(denoiser_of(own))
        with guided(own, PERTURBED):
            case.run(own)
        del own
        assert denoiser() is None
    finally:
        gc.enable()


def test_two_pipelines_over_one_denoiser_are_not_both_perturbed() -> None:
    pipe = MOCHI.build()
    other = companion(MOCHI, pipe)
    with guided(pipe, PERTURBED):
        with pytest.raises(GuidanceError, match="guided already"), guided(other, PERTURBED):
            pass
        with guided(other, CFG(guidance_scale=2.0)) as report:  # which touches no block
            MOCHI.run(other)
    assert [one.branches for step in report.steps for one in step.passes] == [("uncond", "cond")] * STEPS


# -- copies


@pytest.mark.parametrize("copied", ("pipe", "denoiser"))
@over(MOCHI, SDXL)
def test_a_copy_is_one_of_the_pipeline_as_it_was(case: Case, pipe: Any, copied: str) -> None:
    stock = case.run(pipe)
    with guided(pipe, PERTURBED):
        perturbed = case.run(pipe)
        if copied == "pipe":
            other = copy.deepcopy(pipe)
        else:
            other = companion(case, pipe)
            component = adapter_for(pipe).denoiser_attributes[0]
            setattr(other, component, copy.deepcopy(denoiser_of(pipe)))
        assert type(other) is type(companion(case, other)) is not type(pipe)
        assert_close(case.run(other), stock, **ACROSS_BATCHES)
        with guided(other, PERTURBED):
            assert_close(case.run(other), perturbed, **ACROSS_BATCHES)
    assert [one[2] for one in state_of(other)] == [one[2] for one in state_of(pipe)]


# -- wrapped denoisers


class Wrapper(nn.Module):
    """As PEFT and data parallelism wrap a model: arguments and attributes are handed on."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


def wrap(pipe: Any, wrapped: Any) -> None:
    component = adapter_for(pipe).denoiser_attributes[0]
    vars(pipe)[component] = wrapped(getattr(pipe, component))


@over(MOCHI, LTX, WAN, SKYREELS_V2, COGVIDEOX, HUNYUAN, SVD, SDXL)
def test_a_wrapped_denoiser_is_guided_by_what_is_inside(case: Case, pipe: Any) -> None:
    text = (CFG(guidance_scale=3.0), APG(guidance_scale=3.0), CFGZeroStar(guidance_scale=3.0))
    pipe_wrapped = companion(case, pipe)
    wrap(pipe_wrapped, Wrapper)
    for guidance in (*text, PERTURBED):
        with guided(pipe, guidance):
            expected = case.run(pipe)
        with guided(pipe_wrapped, guidance):
            assert torch.equal(case.run(pipe_wrapped), expected)
    compiled = companion(case, pipe)
    wrap(compiled, torch.compile)
    with torch.compiler.set_stance("force_eager"):
        for guidance in text[1:]:
            with guided(pipe, guidance):
                expected = case.run(pipe)
            with guided(compiled, guidance):
                assert torch.equal(case.run(compiled), expected)
    with pytest.raises(GuidanceError, match="compile the repeated blocks"), guided(compiled, PERTURBED):
        pass


def test_a_denoiser_compiled_for_real_is_guided() -> None:
    pipe = WAN.build(num_layers=3)
    pipe.set_progress_bar_config(disable=True)
    with guided(pipe, APG(guidance_scale=3.0)):
        expected = WAN.run(pipe)
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    with guided(pipe, APG(guidance_scale=3.0)):
        assert_close(WAN.run(pipe), expected, **ACROSS_BATCHES)
    torch.compiler.reset()


def test_a_denoiser_that_does_not_name_its_arguments_is_refused() -> None:
    class Nameless(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> None: ...

    pipe = MOCHI.build()
    blocks = pipe.transformer.transformer_blocks
    vars(pipe)["transformer"] = Nameless()
    pipe.transformer.transformer_blocks = blocks
    with pytest.raises(GuidanceError, match=r"Nameless, whose forward\(\) does not name its arguments"):
        with guided(pipe, CFG()):
            pass


# -- hooks on the denoiser


@over(MOCHI, LTX, WAN, COGVIDEOX, HUNYUAN, SVD, SDXL)
def test_the_denoiser_is_called_as_the_pipeline_calls_it(case: Case, pipe: Any) -> None:
    """As tomesd and DeepCache do, a forward pre-hook reads its positional arguments."""
    seen: list[tuple[int, set[str]]] = []
    handle = denoiser_of(pipe).register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((len(args), set(kwargs), type(module))), with_kwargs=True
    )
    case.run(pipe)
    stock = seen[0]
    with guided(pipe, PERTURBED):
        case.run(pipe)
    handle.remove()
    assert all(one == stock for one in seen) and len(seen) > STEPS
    assert stock[0] == (2 if case in (SVD, SDXL) else 0)


# -- scales that a callback changes


@over(MOCHI, LTX, SDXL, COGVIDEOX, SVD, WAN, HUNYUAN)
def test_a_scale_that_a_callback_changes_is_the_one_that_stock_reads(case: Case, pipe: Any) -> None:
    def lower(pipe: Any, index: int, _: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = pipe._guidance_scale * 0.5
        return given

    def scales(followed: bool) -> list[float]:
        return [SCALE * 0.5 ** (i * followed) for i in range(2)]

    stock = case.run(pipe, num_inference_steps=2)
    followed = not torch.equal(case.run(pipe, num_inference_steps=2, callback_on_step_end=lower), stock)
    assert followed == (case not in (WAN, HUNYUAN))  # which keep the scale of their call
    with guided(pipe, OSEG(blocks=(2,))) as report:
        changed = case.run(pipe, num_inference_steps=2, callback_on_step_end=lower)
    first, second = scales(followed)
    schedule = Schedule(((1.0, first), (report.steps[1].noise_level, second)))
    with guided(pipe, OSEG(guidance_scale=schedule, blocks=(2,))):
        assert_close(case.run(pipe, num_inference_steps=2), changed, **ACROSS_BATCHES)


@over(SDXL)
def test_a_callback_that_ends_text_guidance(case: Case, pipe: Any) -> None:
    cut = {"callback_on_step_end": SDXLCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)}
    cut["callback_on_step_end_tensor_inputs"] = cut["callback_on_step_end"].tensor_inputs
    with pytest.raises(
        GuidanceError, match=r"stopped running it at step 3 of 3; leave the guidance_scale of"
    ):
        with guided(pipe, PERTURBED):
            case.run(pipe, **cut)
    with guided(pipe, OSEG(blocks=(2,))) as report:
        case.run(pipe, **cut)
    first = [step.passes[0].branches for step in report.steps]
    assert first == [("cond",)] * 3
    assert ["uncond_perturbed" in str(step.passes) for step in report.steps] == [True, True, False]


# -- calls in which the method does not act


@pytest.mark.parametrize(
    "guidance",
    (
        STG(guidance_scale=SCALE, blocks=(2,), interval=(0.9, 1.0)),
        STG(guidance_scale=SCALE, blocks=(2,), scale=0.0),
        OSEG(guidance_scale=SCALE, blocks=(2,), mix=0.0),
        SEG(guidance_scale=SCALE, blocks=(2,), scale=Schedule(((1.0, 0.0), (0.01, 1.0)))),
        SEG(guidance_scale=SCALE, blocks=Schedule(((1.0, ()), (0.01, (2,))))),
    ),
    ids=("interval", "scale", "mix", "scales", "blocks"),
)
def test_a_call_without_a_perturbed_step_is_said(guidance: Any, caplog: pytest.LogCaptureFixture) -> None:
    pipe = LTX.build()
    stock = LTX.run(pipe)
    caplog.clear()
    with guided(pipe, guidance):
        assert torch.equal(LTX.run(pipe), stock)
        (line,) = [one.getMessage() for one in caplog.records if one.name == "oseg_video"]
        assert line == f"{guidance.name} perturbs no step: scale, blocks, schedules and interval leave none"
        caplog.clear()


def test_text_guidance_outside_of_every_step_is_said(caplog: pytest.LogCaptureFixture) -> None:
    pipe = LTX.build()
    with guided(pipe, CFG(guidance_scale=SCALE, interval=(0.9, 1.0))):
        LTX.run(pipe)
    assert "cfg guides no step: its interval leaves none" in caplog.text


@pytest.mark.parametrize("guidance", (CFG(guidance_scale=1.0), CFG(), PERTURBED, APG(interval=(0.0, 0.1))))
def test_a_method_that_acts_or_is_not_to_act_is_not_complained_about(
    guidance: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = LTX.build()
    with guided(pipe, guidance), caplog.at_level(logging.WARNING, logger="oseg_video"):
        LTX.run(pipe)
    assert "no step" not in caplog.text


# -- subclasses


class OwnMochi(MochiPipeline):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("note", None)
        return super().__call__(*args, **kwargs)


class OwnWan(WanPipeline):
    def __call__(self, prompt: Any = None, *, guidance_scale: float = 2.0, **kwargs: Any) -> Any:
        return super().__call__(prompt, guidance_scale=guidance_scale, **kwargs)


class OwnSDXL(StableDiffusionXLPipeline):
    pass


@pytest.mark.parametrize(
    ("case", "own"), [(MOCHI, OwnMochi), (WAN, OwnWan), (SDXL, OwnSDXL)], ids=("mochi", "wan", "sdxl")
)
def test_a_subclass_of_a_supported_pipeline_is_guided(case: Case, own: type, pipe: Any) -> None:
    mine = own(**pipe.components)
    mine.set_progress_bar_config(disable=True)
    with guided(pipe, OSEG(blocks=(2,))):
        expected = case.run(pipe)
    with guided(mine, OSEG(blocks=(2,))):
        assert torch.equal(case.run(mine, **({"note": "for myself"} if own is OwnMochi else {})), expected)
    assert type(mine) is own and adapter_for(mine) is adapter_for(pipe)


class NinefoldWan(WanPipeline):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **{**kwargs, "guidance_scale": 9.0})


class NegativeHunyuan(HunyuanVideoPipeline):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **{**kwargs, "true_cfg_scale": 4.0, "negative_prompt": "no"})


class CondCogVideoX(CogVideoXPipeline):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **{**kwargs, "guidance_scale": 1.0})


@pytest.mark.parametrize(
    ("case", "own", "same"),
    [
        (WAN, NinefoldWan, {"guidance_scale": 9.0}),
        (HUNYUAN, NegativeHunyuan, {"true_cfg_scale": 4.0, "negative_prompt": "no"}),
        (COGVIDEOX, CondCogVideoX, {"guidance_scale": 1.0}),
    ],
    ids=("wan", "hunyuan", "cogvideox"),
)
def test_what_a_subclass_makes_of_its_arguments_counts(case: Case, own: Any, same: Any, pipe: Any) -> None:
    mine = own(**pipe.components)
    mine.set_progress_bar_config(disable=True)
    method = STG(guidance_scale=None, blocks=(2,))
    with guided(pipe, method):
        expected = case.run(pipe, **same)
    with guided(mine, method):
        assert torch.equal(case.run(mine), expected)


@over(MOCHI, SDXL)
def test_a_guided_pipeline_has_the_signature_of_its_call(case: Case, pipe: Any) -> None:
    expected = inspect.signature(pipe.__call__)
    with guided(pipe, PERTURBED):
        assert inspect.signature(pipe.__call__) == expected
        case.run(pipe)


# -- a denoiser that is exchanged, wrapped, or offloaded inside


@pytest.mark.parametrize("wrap", [copy.deepcopy, torch.compile], ids=("exchanged", "compiled"))
@over(MOCHI)
def test_a_denoiser_that_is_exchanged_inside_is_refused(case: Case, pipe: Any, wrap: Any) -> None:
    """It would run without guidance, and nobody would notice."""
    with guided(pipe, PERTURBED):
        case.run(pipe)
        pipe.transformer = pipe.transformer.to(torch.float32)  # the same one
        case.run(pipe)
        pipe.transformer = wrap(pipe.transformer)
        with pytest.raises(GuidanceError, match=r"transformer was exchanged or wrapped inside guided\(\)"):
            case.run(pipe)


@pytest.mark.parametrize("inside", (False, True), ids=("after", "inside"))
@over(WAN)
def test_group_offload_knows_the_denoiser_itself(case: Case, pipe: Any, inside: bool) -> None:
    """diffusers compares the module that it is called for with the one that it was switched on at."""
    denoiser = pipe.transformer
    to_cpu = {"onload_device": torch.device("cpu"), "offload_device": torch.device("cpu")}
    with guided(pipe, PERTURBED):
        expected = case.run(pipe)
        if inside:
            pipe.transformer.enable_group_offload(**to_cpu, offload_type="leaf_level")
            assert torch.equal(case.run(pipe), expected)
    if not inside:
        denoiser.enable_group_offload(**to_cpu, offload_type="leaf_level")
    registry = denoiser._diffusers_hook
    group = registry.get_hook("group_offloading").group
    assert registry._module_ref is denoiser is group.onload_leader
    loads: list[None] = []
    load = group.onload_
    group.onload_ = lambda: (loads.append(None), load())
    case.run(pipe)
    assert loads


def test_threads_that_run_eager_leave_the_compiler_as_it_was() -> None:
    """They leave in another order than they came."""
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(eager())
        second.enter_context(eager())
        first.close()
        assert eval_frame._stance.stance == "force_eager"
        second.close()
        assert eval_frame._stance.stance == "default"


# -- latents of another size, fewer tokens, the room of what was kept


@pytest.mark.parametrize("reuse", [Reuse(refresh={"uncond": 3}), Reuse(cache=0.5)], ids=("refresh", "cache"))
@over(MOCHI)
def test_nothing_is_kept_of_latents_of_another_size(case: Case, pipe: Any, reuse: Reuse) -> None:
    def enlarge(_: Any, index: int, __: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        latents = given["latents"]
        return {"latents": latents.repeat_interleave(2, -2) if index == 0 else latents}

    with guided(pipe, APG(guidance_scale=SCALE, momentum=-0.5), reuse=reuse) as report:
        clip = case.run(pipe, callback_on_step_end=enlarge, callback_on_step_end_tensor_inputs=["latents"])
    assert clip.shape[-2] == 2 * case.run(pipe).shape[-2]
    assert not report.steps[0].estimated and not report.steps[1].estimated


@over(SDXL)
def test_an_attention_over_fewer_tokens_is_refused(case: Case, pipe: Any) -> None:
    attention = next(one for name, one in pipe.unet.named_modules() if name.endswith("attn1"))
    forward = attention.forward

    def on_every_second(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return forward(hidden_states[:, ::2], *args, **kwargs).repeat_interleave(2, 1)

    attention.forward = on_every_second
    case.run(pipe)
    with (
        guided(pipe, OSEG(blocks="all")),
        pytest.raises(GuidanceError, match=r"an attention sees .* what merges tokens, or leaves some out"),
    ):
        case.run(pipe)


@over(WAN)
def test_what_was_kept_is_gone_when_the_clip_is_decoded(
    case: Case, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[weakref.ref[KeptPredictions]] = []

    def keep(*args: Any) -> KeptPredictions:
        made = KeptPredictions(*args)
        kept.append(weakref.ref(made))
        return made

    monkeypatch.setattr("oseg_video.engine.guided.KeptPredictions", keep)
    decode, alive = pipe.vae.decode, []

    def decode_seeing(*args: Any, **kwargs: Any) -> Any:
        alive.append([one() is not None and bool(one()._differences) for one in kept])
        return decode(*args, **kwargs)

    pipe.vae.decode = decode_seeing
    with guided(pipe, CFG(guidance_scale=SCALE), reuse=Reuse(refresh={"uncond": 2})):
        case.run(pipe, output_type="pt")
    assert len(kept) == 2 and alive == [[False, False]]


# -- one expert in both places


def test_both_experts_of_wan_may_be_one() -> None:
    pipe = WAN_EXPERTS.build()
    pipe.set_progress_bar_config(disable=True)
    parts = {**pipe.components, "transformer_2": pipe.transformer}
    one = WanPipeline(**parts, boundary_ratio=pipe.config.boundary_ratio)
    two = WanPipeline(
        **{**parts, "transformer_2": copy.deepcopy(pipe.transformer)},
        boundary_ratio=pipe.config.boundary_ratio,
    )
    clips = []
    for each in (one, two):
        each.set_progress_bar_config(disable=True)
        with guided(each, OSEG(blocks=(2,))) as report:
            clips.append(WAN_EXPERTS.run(each))
        assert len(report.steps) == STEPS
    assert_close(clips[0], clips[1], **ACROSS_BATCHES)
    with guided(one, OSEG(blocks=(2,))):  # the second scale counts where the second expert is asked
        assert not torch.equal(WAN_EXPERTS.run(one, guidance_scale_2=SECOND_SCALE + 1), clips[0])
    assert one.transformer is one.transformer_2 and type(one.transformer) is type(two.transformer)


# -- arguments that are none


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ((OSEG,), r"must be a method with its settings, such as OSEG\(\.\.\.\), got the class OSEG"),
        ((4.5,), r"must be a guidance method, such as CFG\(guidance_scale=4\.5\), got 4\.5"),
        ((None,), "must be a guidance method.*got None"),
        ((CFG(), 2), r"mesh must be the ranks of this run, such as Mesh\.of\(.*\), got 2"),
    ),
)
def test_an_argument_that_is_none_is_refused_in_one_line(arguments: tuple[Any, ...], message: str) -> None:
    guidance, *mesh = arguments
    with pytest.raises(SettingError, match=message) as error:
        with guided(MOCHI.build(), guidance, **({"mesh": mesh[0]} if mesh else {})):
            pass
    assert "\n" not in str(error.value)


def test_a_pipeline_class_in_place_of_a_pipeline_is_refused() -> None:
    with pytest.raises(
        UnsupportedPipelineError, match=r"class MochiPipeline is no pipeline object; load one"
    ):
        with guided(MochiPipeline, CFG()):
            pass

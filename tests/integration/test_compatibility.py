"""What else diffusers users switch on, with every family: it works under guidance, or one line refuses it.

Batches, model offload and compiled blocks are also in test_guided (Mochi, LTX), test_hunyuan, test_wan,
test_cogvideox and test_unets; here stands what they leave open. The table in the README is drawn from both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import Tensor, nn
from torch.testing import assert_close

from oseg_video import CFG, OSEG, PAG, STG, GuidanceError, SilentGuidanceError, guided
from oseg_video.adapters import adapter_for
from oseg_video.adapters.base import AttentionSite
from oseg_video.guidance.methods import CFGZeroStar, Guidance
from tests.integration import families
from tests.integration.families import (
    COGVIDEOX,
    HUNYUAN,
    HUNYUAN15,
    LTX,
    LTX2,
    MOCHI,
    SCALE,
    SDXL,
    SVD,
    WAN,
)
from tests.tiny.wan import tiny_wan_two_experts

FAMILIES = {case.name: case for case in (MOCHI, LTX, LTX2, HUNYUAN, HUNYUAN15, WAN, COGVIDEOX, SVD, SDXL)}
TRANSFORMERS = ("mochi", "ltx", "hunyuan", "hunyuan15", "wan", "cogvideox")
BLOCK = 2
TEXT_ONLY = CFG(guidance_scale=SCALE)
PERTURBED = OSEG(guidance_scale=SCALE, blocks=(BLOCK,))
# Other kernels, batches of other sizes and weights that lie elsewhere in memory (those of a pipeline that was
# built anew) sum in another order; SVD starts from noise of sigma 700.
ROUNDING = {"rtol": 5e-4, "atol": 5e-4}


def over(*names: str) -> Any:
    return pytest.mark.parametrize("name", names or tuple(FAMILIES))


def build(name: str) -> Any:
    return families.quiet(FAMILIES[name].build())


def denoiser_of(pipe: Any) -> nn.Module:
    return adapter_for(pipe).denoisers(pipe)[0]


def sites_of(pipe: Any) -> list[AttentionSite]:
    adapter, denoiser = adapter_for(pipe), denoiser_of(pipe)
    return [adapter.site(denoiser.get_submodule(a.path), a) for a in adapter.blocks(denoiser)]


def run(name: str, pipe: Any, guidance: Guidance | None, **overrides: Any) -> Tensor:
    """Latents of the shortest run; a perturbed method must have reached its block's site in every pass."""
    arguments = {"num_inference_steps": adapter_for(pipe).minimum_steps, **overrides}
    if guidance is None:
        return FAMILIES[name].run(pipe, **arguments)
    adapter, denoiser = adapter_for(pipe), denoiser_of(pipe)
    address = adapter.blocks(denoiser)[BLOCK]
    block = denoiser.get_submodule(address.path)
    expected = {adapter.stream_site(block, address, stream).name for stream in adapter.streams}
    with guided(pipe, guidance) as report:
        latents = FAMILIES[name].run(pipe, **arguments)
    perturbed = [one for step in report.steps for one in step.passes if "perturbed" in one.branches[0]]
    assert bool(perturbed) == bool(guidance.blocks_used)
    assert all(set(one.fired) == expected for one in perturbed)
    return latents


@cache
def without(name: str) -> dict[Guidance, Tensor]:
    """What a fresh pipeline makes with nothing else switched on."""
    pipe = build(name)
    clips = {guidance: run(name, pipe, guidance) for guidance in (TEXT_ONLY, PERTURBED)}
    assert not torch.allclose(clips[TEXT_ONLY], clips[PERTURBED], **ROUNDING)
    return clips


def assert_as_without(name: str, pipe: Any) -> None:
    """The pipeline makes the clips that it makes with nothing switched on."""
    for guidance, expected in without(name).items():
        assert_close(run(name, pipe, guidance), expected, **ROUNDING)


def assert_as(name: str, pipe: Any, reference: Any) -> None:
    """Both pipelines make the same clips, others than with nothing switched on."""
    for guidance, untouched in without(name).items():
        clip, expected = run(name, pipe, guidance), run(name, reference, guidance)
        assert_close(clip, expected, **ROUNDING)
        assert (clip - expected).norm() < 0.1 * (clip - untouched).norm()


# -- several clips in one call, and negative prompts


@pytest.mark.parametrize(
    ("name", "argument", "still"),
    # SVD draws the noise on its image from the first generator alone, whatever the clip.
    [("svd", "num_videos_per_prompt", {"noise_aug_strength": 0.0}), ("sdxl", "num_images_per_prompt", {})],
)
def test_several_clips_per_prompt(name: str, argument: str, still: dict[str, float]) -> None:
    pipe = build(name)
    shape = without(name)[PERTURBED].shape
    latents = torch.randn(2, *shape[1:], generator=torch.Generator().manual_seed(5))
    together = run(name, pipe, PERTURBED, latents=latents, **{argument: 2}, **still)
    alone = [run(name, pipe, PERTURBED, latents=one[None], **still) for one in latents]
    assert_close(together, torch.cat(alone), **ROUNDING)


@over("svd")
def test_a_batch_of_images(name: str) -> None:
    pipe, images = build(name), ["one", "another"]
    together = run(name, pipe, PERTURBED, prompt=images, seed=5)
    alone = [run(name, pipe, PERTURBED, prompt=one, seed=5 + i) for i, one in enumerate(images)]
    assert_close(together, torch.cat(alone), **ROUNDING)


@over(*(name for name in FAMILIES if name != "svd"))  # which knows no text
def test_the_negative_prompt_is_the_one_that_the_perturbed_branch_gets(name: str) -> None:
    """With the prompt for a negative one, U = C and U~ = C~: OSEG is `C + (w - 1 + lambda) (C - C~)`."""
    pipe, same = build(name), {"negative_prompt": "a red circle"}
    pushed = OSEG(guidance_scale=1.0, scale=SCALE - 1 + 1.0, blocks=(BLOCK,))
    assert_close(run(name, pipe, PERTURBED, **same), run(name, pipe, pushed), **ROUNDING)
    other = {"negative_prompt": "a blue square, x"}
    assert not torch.allclose(run(name, pipe, PERTURBED, **same), run(name, pipe, PERTURBED, **other))
    assert torch.equal(run(name, pipe, TEXT_ONLY, **other), run(name, pipe, None, **other))


# -- LoRA


def lora_of(pipe: Any) -> dict[str, Tensor]:
    """A LoRA of rank 2 on query and key of the perturbed block and of its neighbours."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for site in sites_of(pipe)[BLOCK - 1 : BLOCK + 2]:
        for projection in ("to_q", "to_k"):
            rows, columns = getattr(site.attention, projection).weight.shape
            key = f"{site.name}.{projection}"
            state[f"{key}.lora_A.weight"] = torch.randn(2, columns, generator=generator)
            state[f"{key}.lora_B.weight"] = 0.1 * torch.randn(rows, 2, generator=generator)
    return state


def load(pipe: Any, state: dict[str, Tensor]) -> None:
    """Through the pipeline; HunyuanVideo 1.5 has a loader on its denoiser only."""
    if hasattr(pipe, "load_lora_weights"):
        component = adapter_for(pipe).denoiser_attributes[0]
        pipe.load_lora_weights({f"{component}.{key}": value for key, value in state.items()})
    else:
        denoiser_of(pipe).load_lora_adapter(dict(state), prefix=None)


def merged(name: str, state: dict[str, Tensor], scale: float = 1.0) -> Any:
    """A fresh pipeline with the LoRA added to its weights by hand."""
    pipe = build(name)
    with torch.no_grad():
        for key in state:
            layer, _, matrix = key.partition(".lora_")
            if matrix == "A.weight":
                update = state[f"{layer}.lora_B.weight"] @ state[key]
                denoiser_of(pipe).get_submodule(layer).weight += scale * update
    return pipe


WITH_LORA = tuple(name for name in FAMILIES if name != "svd")  # UNetSpatioTemporalConditionModel has none


@over(*WITH_LORA)
def test_lora(name: str) -> None:
    pipe = build(name)
    state = lora_of(pipe)
    load(pipe, state)
    assert_as(name, pipe, merged(name, state))
    argument = "cross_attention_kwargs" if name == "sdxl" else "attention_kwargs"
    half, scaled = merged(name, state, scale=0.5), {argument: {"scale": 0.5}}
    assert_close(run(name, pipe, PERTURBED, **scaled), run(name, half, PERTURBED), **ROUNDING)
    denoiser_of(pipe).unload_lora()
    assert_close(run(name, pipe, PERTURBED), without(name)[PERTURBED], **ROUNDING)


@over(*WITH_LORA)
def test_a_lora_loaded_while_the_pipeline_is_guided_counts_and_stays(name: str) -> None:
    pipe = build(name)
    state = lora_of(pipe)
    with guided(pipe, PERTURBED):
        load(pipe, state)
        inside = FAMILIES[name].run(pipe, num_inference_steps=adapter_for(pipe).minimum_steps)
    assert_close(inside, run(name, merged(name, state), PERTURBED), **ROUNDING)
    assert not torch.allclose(inside, without(name)[PERTURBED], **ROUNDING)
    assert torch.equal(run(name, pipe, PERTURBED), inside)


def test_svd_has_no_lora() -> None:
    pipe = build("svd")
    assert not hasattr(pipe, "load_lora_weights") and not hasattr(pipe.unet, "load_lora_adapter")


# -- weights of fewer bits


@over()
def test_layerwise_casting(name: str) -> None:
    pipe, reference = build(name), build(name)
    storage = torch.float8_e4m3fn
    denoiser_of(pipe).enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
    stored = {key: value for key, value in denoiser_of(pipe).state_dict().items() if value.dtype == storage}
    site = sites_of(pipe)[BLOCK].name
    assert {f"{site}.to_q.weight", f"{site}.to_k.weight"} <= stored.keys()
    rounded = {key: value.float() for key, value in stored.items()}
    denoiser_of(reference).load_state_dict(rounded, strict=False)
    assert_as(name, pipe, reference)


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights and a scale per row that is no `nn.Linear` and has no `weight`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.register_buffer("scale", weight.abs().amax(dim=1, keepdim=True) / 127)
        self.register_buffer("levels", (weight / self.scale).round().to(torch.int8))
        self.bias = linear.bias

    def dequantised(self) -> Tensor:
        return self.levels * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dequantised(), self.bias)


@over()
def test_layers_of_8_bits_that_are_no_linear_layers(name: str) -> None:
    """As bitsandbytes, quanto and GGUF put them in place of the projections."""
    pipe, reference = build(name), build(name)
    for site, twin in zip(sites_of(pipe), sites_of(reference), strict=True):
        for projection in ("to_q", "to_k", "to_v"):
            layer = Int8Linear(getattr(site.attention, projection))
            setattr(site.attention, projection, layer)
            getattr(twin.attention, projection).weight.data = layer.dequantised()
    assert_as(name, pipe, reference)


@over()
def test_torchao_int8_weights(name: str) -> None:
    """Not among the developer's packages: torchao writes warnings into every start of diffusers."""
    quantization = pytest.importorskip("torchao.quantization")
    pipe, reference = build(name), build(name)
    quantization.quantize_(denoiser_of(pipe), quantization.Int8WeightOnlyConfig())
    quantised = {
        layer: module.weight.dequantize()
        for layer, module in denoiser_of(pipe).named_modules()
        if isinstance(module, nn.Linear) and type(module.weight.data) is not Tensor
    }
    assert f"{sites_of(pipe)[BLOCK].name}.to_q" in quantised
    for layer, weight in quantised.items():
        denoiser_of(reference).get_submodule(layer).weight.data = weight
    assert_as(name, pipe, reference)


# -- offload. On a CPU nothing moves, but the same hooks stand at the same modules.


def by_groups(pipe: Any, kind: str) -> None:
    groups = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    cpu = torch.device("cpu")
    denoiser_of(pipe).enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type=kind, **groups)


@over()
@pytest.mark.parametrize("kind", ("block_level", "leaf_level"))
def test_group_offload(name: str, kind: str) -> None:
    pipe = build(name)
    by_groups(pipe, kind)
    hooked = [module for module in denoiser_of(pipe).modules() if hasattr(module, "_diffusers_hook")]
    assert len(hooked) > (20 if kind == "leaf_level" else 1)
    assert_as_without(name, pipe)


@over("hunyuan", "hunyuan15")
def test_model_offload(name: str) -> None:
    pipe = build(name)
    pipe.enable_model_cpu_offload(device="cpu")
    assert_as_without(name, pipe)


@over()
def test_sequential_offload(name: str) -> None:
    """As `enable_sequential_cpu_offload` does per component; on the text encoders it fails on a CPU."""
    pipe = build(name)
    cpu_offload(denoiser_of(pipe), execution_device=torch.device("cpu"))
    assert sites_of(pipe)[BLOCK].attention.to_q.weight.is_meta
    assert_as_without(name, pipe)


# -- compiled blocks


@pytest.fixture
def forgetful_compiler() -> Iterator[None]:
    """Frames that are compiled elsewhere count against the compiler's limit of recompilations."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled_blocks(pipe: Any) -> list[str]:
    denoiser = denoiser_of(pipe)
    paths = [address.path for address in adapter_for(pipe).blocks(denoiser)]
    return [path for path in paths if denoiser.get_submodule(path)._compiled_call_impl is not None]


def assert_compiled_blocks_are_perturbed(name: str, pipe: Any) -> None:
    """All blocks are compiled; only the perturbed one stays so, as all would take a minute."""
    adapter, denoiser = adapter_for(pipe), denoiser_of(pipe)
    blocks = compiled_blocks(pipe)
    assert blocks == [address.path for address in adapter.blocks(denoiser)]
    for path, module in denoiser.named_modules():
        if path != blocks[BLOCK]:
            module._compiled_call_impl = None
    assert_close(run(name, pipe, PERTURBED), without(name)[PERTURBED], **ROUNDING)


def test_compiled_blocks_of_svd(forgetful_compiler: None) -> None:
    pipe = build("svd")
    adapter_for(pipe).compile_blocks(denoiser_of(pipe), backend="eager")
    assert_compiled_blocks_are_perturbed("svd", pipe)


@over("ltx", "hunyuan", "hunyuan15", "wan", "sdxl")
def test_compile_repeated_blocks_of_diffusers(name: str, forgetful_compiler: None) -> None:
    pipe = build(name)
    denoiser_of(pipe).compile_repeated_blocks(backend="eager")
    assert_compiled_blocks_are_perturbed(name, pipe)


@over("mochi", "cogvideox", "svd")
def test_families_without_compile_repeated_blocks(name: str) -> None:
    with pytest.raises(ValueError, match="_repeated_blocks"):
        denoiser_of(build(name)).compile_repeated_blocks(backend="eager")


def test_guiding_again_compiles_nothing_anew(forgetful_compiler: None) -> None:
    pipe = build("hunyuan15")  # whose attention processors are others while it is guided
    denoiser_of(pipe).transformer_blocks[0].compile(backend="eager")
    runs = [compilations(lambda: run("hunyuan15", pipe, PERTURBED)) for _ in range(2)]
    assert runs[0] > 0 and runs[1] == 0


def compilations(call: Callable[[], Any]) -> int:
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    call()
    return torch._dynamo.utils.counters["stats"]["unique_graphs"] - before


# -- step caches


def pyramid(pipe: Any) -> Any:
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: pipe.current_timestep,
    )


def faster(pipe: Any) -> Any:
    return FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: pipe.current_timestep,
    )


def first_block(pipe: Any) -> Any:
    return FirstBlockCacheConfig(threshold=10.0)


def taylor(pipe: Any) -> Any:
    return TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1, max_order=1)


CACHES = {
    "first_block": first_block,
    "pyramid": pyramid,
    "taylor": taylor,
    "faster": faster,
}
# Elsewhere diffusers itself does not know the blocks, finds none of its layers, or fails.
CACHED = [
    *[("first_block", name) for name in TRANSFORMERS if name != "hunyuan15"],
    *[("pyramid", name) for name in TRANSFORMERS],
    *[("taylor", name) for name in ("hunyuan", "hunyuan15")],
    *[("faster", name) for name in ("mochi", "cogvideox")],
]


@pytest.mark.parametrize(("kind", "name"), CACHED)
def test_a_step_cache_works_with_text_guidance_and_is_refused_with_a_perturbation(
    kind: str, name: str
) -> None:
    pipe, steps = build(name), {"num_inference_steps": 3}
    plain = run(name, pipe, None, **steps)
    denoiser_of(pipe).enable_cache(CACHES[kind](pipe))
    cached = run(name, pipe, None, **steps)
    assert not torch.allclose(cached, plain, **ROUNDING)  # or there would be nothing to see
    # At another scale than the pipeline's, so that it is our rule that combines the predictions.
    assert torch.equal(run(name, pipe, TEXT_ONLY, guidance_scale=2.0, **steps), cached)
    with pytest.raises(GuidanceError, match="a step cache is enabled"), guided(pipe, PERTURBED):
        pytest.fail("the body must not run")
    for guidance in (CFG(guidance_scale=SCALE, interval=(0.0, 0.5)), CFGZeroStar(guidance_scale=SCALE)):
        with pytest.raises(GuidanceError, match=r"would miss step \d, where CFG.* runs no (un)?cond"):
            run(name, pipe, guidance, **steps)
    denoiser_of(pipe).disable_cache()
    assert_close(run(name, pipe, PERTURBED), without(name)[PERTURBED], **ROUNDING)


@over(*TRANSFORMERS)
def test_a_step_cache_that_was_applied_by_hand_is_refused(name: str) -> None:
    pipe = build(name)
    diffusers.hooks.apply_pyramid_attention_broadcast(denoiser_of(pipe), pyramid(pipe))
    assert not denoiser_of(pipe).is_cache_enabled
    with pytest.raises(GuidanceError, match="a step cache is enabled"), guided(pipe, PERTURBED):
        pytest.fail("the body must not run")


@over(*TRANSFORMERS)
def test_a_step_cache_cannot_be_enabled_while_perturbations_are_at_work(name: str) -> None:
    pipe = build(name)
    with guided(pipe, PERTURBED), pytest.raises(GuidanceError, match=r"enable_cache\(\) cannot be called"):
        denoiser_of(pipe).enable_cache(first_block(pipe))
    with pytest.raises(GuidanceError, match="a step cache is enabled"), guided(pipe, PERTURBED):
        diffusers.hooks.apply_pyramid_attention_broadcast(denoiser_of(pipe), pyramid(pipe))
        FAMILIES[name].run(pipe)


@pytest.mark.parametrize("denoiser", ("transformer", "transformer_2"))
@pytest.mark.parametrize("apply", ("enable_cache", "by hand"))
def test_a_step_cache_on_either_expert_is_refused(denoiser: str, apply: str) -> None:
    pipe = tiny_wan_two_experts()
    expert = getattr(pipe, denoiser)
    if apply == "enable_cache":
        expert.enable_cache(first_block(pipe))
    else:
        diffusers.hooks.apply_first_block_cache(expert, first_block(pipe))
    with pytest.raises(GuidanceError, match="a step cache is enabled"), guided(pipe, PERTURBED):
        pytest.fail("the body must not run")


@over("svd", "sdxl")
def test_unets_have_no_step_caches(name: str) -> None:
    assert not hasattr(denoiser_of(build(name)), "enable_cache")


# -- attention


@pytest.fixture
def backend_of_everyone() -> Iterator[None]:
    """diffusers notes the backend of one model as that of all models."""
    before = _AttentionBackendRegistry.get_active_backend()[0]
    yield
    _AttentionBackendRegistry.set_active_backend(before)


@over()
def test_another_attention_backend(name: str, backend_of_everyone: None) -> None:
    pipe = build(name)
    denoiser_of(pipe).set_attention_backend("_native_math")
    assert_as_without(name, pipe)


@over("ltx", "hunyuan", "hunyuan15", "svd")
def test_fused_projections_that_the_attention_does_not_use(name: str) -> None:
    """diffusers adds the fused layers there, but the processors keep to the separate ones."""
    pipe = build(name)
    denoiser_of(pipe).fuse_qkv_projections()
    assert_as_without(name, pipe)


@over("wan", "cogvideox", "sdxl")
def test_fused_projections_that_hide_the_query_are_refused(name: str) -> None:
    pipe = build(name)
    denoiser_of(pipe).fuse_qkv_projections()
    assert_close(run(name, pipe, TEXT_ONLY), without(name)[TEXT_ONLY], **ROUNDING)
    stock = FAMILIES[name].run(pipe)
    for guidance in (PERTURBED, PAG(guidance_scale=SCALE, blocks=(BLOCK,))):
        with pytest.raises(SilentGuidanceError, match="fused projections"):
            run(name, pipe, guidance)
    with guided(pipe, STG(guidance_scale=SCALE, blocks=(BLOCK,))):  # does not ask for the query
        assert not torch.allclose(FAMILIES[name].run(pipe), stock, **ROUNDING)
    denoiser_of(pipe).unfuse_qkv_projections()
    assert_as_without(name, pipe)


def test_mochi_has_no_fused_projections() -> None:
    assert not hasattr(denoiser_of(build("mochi")), "fuse_qkv_projections")


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="diffusers")

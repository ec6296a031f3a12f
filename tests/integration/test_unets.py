"""What is special about UNets: stages, spatial and temporal sites, odd sizes, SVD's scale, SDXL's prompts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPAGPipeline,
    Transformer2DModel,
)
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import Tensor, nn
from torch.testing import assert_close

from oseg_video import CFG, OSEG, PAG, SEG, STG, GuidanceError, Reuse, guided
from oseg_video.adapters import UnknownBlockError, adapter_for
from oseg_video.adapters.base import ClipSize
from oseg_video.jobs.loading.meta import full_size_denoiser
from oseg_video.types import TokenGrid
from tests.integration.families import SD15, SDXL, SVD, Case, quiet
from tests.tiny.unet import (
    SDXL_ODD_SIZE,
    SDXL_SIZE,
    SDXL_SQUARE_SIZE,
    SVD_ODD_SIZE,
    SVD_SIZE,
    TEXT_LENGTH,
    UNET_STAGES,
    level_size,
    self_attentions,
    tiny_image,
    tiny_sdxl,
)

FRAMES = SVD_SIZE["num_frames"]
RAMP = {"min_guidance_scale": 1.0, "max_guidance_scale": 3.0}  # the pipeline's defaults
# float32 networks against float64 ones, and batches of different sizes, over one prediction or a few steps.
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(params=(SVD, SDXL), ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def svd() -> Any:
    return quiet(SVD.build())


@pytest.fixture
def sdxl() -> Any:
    return quiet(SDXL.build())


def names_of(pipe: Any, wanted: Callable[[str, str], bool] = lambda name, stage: True) -> list[str]:
    """Self-attentions, in order of execution, of which `wanted(name, stage)` holds."""
    return [name for name, stage, _, _ in self_attentions(pipe.unet) if wanted(name, stage)]


def is_temporal(name: str) -> bool:
    return ".temporal_transformer_blocks." in name


def grid_of(pipe: Any, name: str, size: dict[str, int]) -> TokenGrid:
    """The tokens that a self-attention sees."""
    (level,) = [level for other, _, level, _ in self_attentions(pipe.unet) if other == name]
    return TokenGrid(FRAMES, 1, 1) if is_temporal(name) else TokenGrid(1, *level_size(size, level))


# -- blocks and selectors


def test_blocks_stand_in_order_of_execution(case: Case, pipe: Any) -> None:
    adapter = adapter_for(pipe)
    fired: list[str] = []
    for name, _, _, attention in self_attentions(pipe.unet):
        attention.to_q.register_forward_pre_hook(lambda *_, name=name: fired.append(name))
    case.run(pipe, num_inference_steps=1)
    blocks = adapter.blocks(pipe.unet)
    assert [f"{block.path}.attn1" for block in blocks] == fired == names_of(pipe)
    assert [block.index for block in blocks] == list(range(case.blocks))
    assert [block.stage for block in blocks] == [stage for _, stage, _, _ in self_attentions(pipe.unet)]
    units = adapter.blocks.units(pipe.unet)
    assert all(block.path.startswith(units[block.unit] + ".") for block in blocks)


def test_units_are_the_stages(case: Case, pipe: Any) -> None:
    paths = [stage.replace("down", "down_blocks").replace("up", "up_blocks") for stage in UNET_STAGES]
    assert adapter_for(pipe).blocks.units(pipe.unet) == [path.replace("mid", "mid_block") for path in paths]


SELECTED: dict[str, dict[Any, Callable[[str, str], bool]]] = {
    "svd": {
        "mid": lambda name, stage: stage == "mid",
        "up.1": lambda name, stage: stage == "up.1",
        "up.1:temporal": lambda name, stage: stage == "up.1" and is_temporal(name),
        "temporal:up.1": lambda name, stage: stage == "up.1" and is_temporal(name),
        "up.1:spatial:1": lambda name, stage: name == "up_blocks.1.attentions.1.transformer_blocks.0.attn1",
        "up.2:temporal:1": lambda name, stage: (
            name == "up_blocks.2.attentions.1.temporal_transformer_blocks.0.attn1"
        ),
        "spatial": lambda name, stage: not is_temporal(name),
        "temporal": lambda name, stage: is_temporal(name),
        "down": lambda name, stage: stage in ("down.0", "down.1"),
        3: lambda name, stage: name == "down_blocks.1.attentions.0.temporal_transformer_blocks.0.attn1",
    },
    "sdxl": {
        "mid": lambda name, stage: stage == "mid",
        "mid:1": lambda name, stage: name == "mid_block.attentions.0.transformer_blocks.1.attn1",
        "up.0:2": lambda name, stage: name == "up_blocks.0.attentions.1.transformer_blocks.0.attn1",
        "up": lambda name, stage: stage in ("up.0", "up.1"),
        "down": lambda name, stage: stage in ("down.1", "down.2"),
        0: lambda name, stage: name == "down_blocks.1.attentions.0.transformer_blocks.0.attn1",
    },
}


@pytest.mark.parametrize(
    ("name", "selector"), [(name, selector) for name, table in SELECTED.items() for selector in table]
)
def test_selectors_reach_the_sites_that_they_name(name: str, selector: Any) -> None:
    case = {"svd": SVD, "sdxl": SDXL}[name]
    pipe = quiet(case.build())
    wanted = names_of(pipe, SELECTED[name][selector])
    assert wanted
    with guided(pipe, SEG(blocks=(selector,))) as report:
        case.run(pipe, num_inference_steps=1)
    assert list(report.steps[0].passes[-1].fired) == wanted


@pytest.mark.parametrize(
    ("family", "selector", "message"),
    (
        (SVD, "down.2", r"no block down\.2: this svd model has 14 blocks.*up\.1:temporal:0 to 1"),
        (SVD, "mid:spatial:1", "no block mid:spatial:1"),
        (SVD, 14, "no block 14: this svd model has 14 blocks, 0 to 13"),
        (SDXL, "spatial", r"no block spatial: this sdxl model has 11 blocks.*up\.0:0 to 3"),
        (SDXL, "up.2", r"no block up\.2"),
    ),
    ids=lambda one: getattr(one, "name", None),
)
def test_a_selector_that_names_no_block_is_refused(family: Case, selector: Any, message: str) -> None:
    pipe = family.build()
    with pytest.raises(UnknownBlockError, match=message), guided(pipe, SEG(blocks=(selector,))):
        pytest.fail("the body must not run")


def test_a_unet_without_a_middle_is_served() -> None:
    """As in SSD-1B, distilled from SDXL."""
    pipe = quiet(tiny_sdxl(mid_block_type=None))
    stock = SDXL.run(pipe)
    with pytest.raises(UnknownBlockError, match="no block mid"), guided(pipe, SEG(blocks=("mid",))):
        pass
    with guided(pipe, SEG(blocks=("up.0",))) as report:
        assert not torch.equal(SDXL.run(pipe), stock)
    assert report.steps[0].passes[-1].start_block == 3


# -- the token grid


@pytest.mark.parametrize(
    ("family", "size"),
    (
        pytest.param(SVD, SVD_SIZE, id="svd"),
        pytest.param(SVD, SVD_ODD_SIZE, id="svd-odd"),
        pytest.param(SDXL, SDXL_SIZE, id="sdxl"),
        pytest.param(SDXL, SDXL_ODD_SIZE, id="sdxl-odd"),
        pytest.param(SDXL, SDXL_SQUARE_SIZE, id="sdxl-square"),
    ),
)
def test_the_grid_of_a_site_is_what_the_site_sees(family: Case, size: dict[str, int]) -> None:
    pipe = quiet(family.build())
    tokens: dict[str, int] = {}
    images: dict[str, tuple[int, int]] = {}
    for name, _, _, attention in self_attentions(pipe.unet):
        attention.to_q.register_forward_hook(lambda *a, name=name: tokens.update({name: a[-1].shape[1]}))
    for name, module in pipe.unet.named_modules():
        if isinstance(module, Transformer2DModel | TransformerSpatioTemporalModel):
            module.register_forward_pre_hook(lambda _, a, name=name: images.update({name: a[0].shape[2:]}))
    arguments = first_call(family, pipe, **size)
    adapter = adapter_for(pipe)
    for address in adapter.blocks(pipe.unet):
        found = adapter.video_tokens(pipe.unet, arguments, address)
        (image,) = [shape for name, shape in images.items() if address.path.startswith(f"{name}.")]
        shape = (FRAMES, 1, 1) if address.kind == "temporal" else (1, *image)
        assert found.grid.shape == shape and found.start == 0
        assert found.grid.tokens == tokens[f"{address.path}.attn1"]
        assert found.grid == grid_of(pipe, f"{address.path}.attn1", size)


# -- calls, predictions, and a slow float64 reference


def first_call(family: Case, pipe: Any, **overrides: Any) -> dict[str, Any]:
    """The arguments of the first call of the UNet in a stock run, by name."""
    calls: list[dict[str, Any]] = []

    def record(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        calls.append(dict(zip(("sample", "timestep"), args, strict=True)) | kwargs)

    handle = pipe.unet.register_forward_pre_hook(record, with_kwargs=True)
    try:
        family.run(pipe, **({"num_inference_steps": 1} | overrides))
    finally:
        handle.remove()
    return calls[0]


def first_prediction(family: Case, pipe: Any, guidance: Any, **overrides: Any) -> Tensor:
    """What the scheduler is given on the first step of a guided run."""
    outputs: list[Tensor] = []
    step = pipe.scheduler.step

    def record(output: Tensor, *args: Any, **kwargs: Any) -> Any:
        outputs.append(output)
        return step(output, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, guided(pipe, guidance):
        patch.setattr(pipe.scheduler, "step", record)
        family.run(pipe, **({"num_inference_steps": 1} | overrides))
    return outputs[0]


Change = Callable[[Tensor, Tensor, TokenGrid], Tensor]
"""New queries from queries and keys, all [B, S, N, D]."""


class SlowAttention:
    """Self-attention written out with einsum; its queries are changed, or what it mixes is replaced."""

    def __init__(self, grid: TokenGrid, change: Change | str) -> None:
        self.grid = grid
        self.change = change

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        split = partial(torch.unflatten, dim=2, sizes=(attn.heads, -1))
        query, key = split(attn.to_q(hidden_states)), split(attn.to_k(hidden_states))
        value = split(attn.to_v(hidden_states))
        if self.change == "values":
            out = value.flatten(2)
        elif self.change == "input":
            out = hidden_states
        else:
            assert callable(self.change)
            query = self.change(query, key, self.grid)
            logits = torch.einsum("bind,bjnd->bnij", query, key) / math.sqrt(query.shape[-1])
            out = torch.einsum("bnij,bjnd->bind", logits.softmax(-1), value).flatten(2)
        return attn.to_out[0](out)


class PassThrough(nn.Module):
    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


def reference_unet(pipe: Any, names: list[str], change: Change | str, size: dict[str, int]) -> nn.Module:
    """A float64 copy of the UNet whose self-attentions `names` are perturbed by other means than hooks."""
    unet = copy.deepcopy(pipe.unet).double()
    for name in names:
        if change == "skip":
            unet.set_submodule(name.removesuffix(".attn1"), PassThrough())
        else:
            unet.get_submodule(name).processor = SlowAttention(grid_of(pipe, name, size), change)
    return unet


def reference_branches(
    pipe: Any, arguments: dict[str, Any], names: list[str], change: Change | str, size: dict[str, int]
) -> list[Tensor]:
    """Predictions U, C, U~, C~ in float64 (C, C~ of a call without text guidance)."""

    def double(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: double(item) for key, item in value.items()}
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    arguments = double(arguments) | {"return_dict": False}
    with torch.no_grad():
        plain = copy.deepcopy(pipe.unet).double()(**arguments)[0]
        weak = reference_unet(pipe, names, change, size)(**arguments)[0]
    rows = 2 if pipe.do_classifier_free_guidance else 1
    return [*plain.chunk(rows), *weak.chunk(rows)]


def folded_gaussian(length: int, sigma: float) -> Tensor:
    """Weights of a Gaussian on the extension .. 1 0 | 0 1 .. L-1 | L-1 .., tap by tap."""
    if math.isinf(sigma):
        return torch.full((length, length), 1 / length, dtype=torch.float64)
    weights = torch.zeros(length, length, dtype=torch.float64)
    for row in range(length):
        for tap in range(-40, 41):
            place = (row + tap) % (2 * length)
            weights[row, min(place, 2 * length - 1 - place)] += math.exp(-0.5 * (tap / sigma) ** 2)
    return weights / weights.sum(dim=1, keepdim=True)


def blurred(x: Tensor, grid: TokenGrid, frame_sigma: float, space_sigma: float) -> Tensor:
    """x [B, S, N, D] smoothed over frames, rows and columns."""
    sigmas = (frame_sigma, space_sigma, space_sigma)
    matrices = [folded_gaussian(length, sigma) for length, sigma in zip(grid.shape, sigmas, strict=True)]
    volume = x.unflatten(1, grid.shape)
    return torch.einsum("af,bh,cw,xfhwnd->xabcnd", *matrices, volume).flatten(1, 3)


def seg_change(query: Tensor, key: Tensor, grid: TokenGrid) -> Tensor:
    return blurred(query, grid, 0.8, 0.8)


def oseg_change(query: Tensor, key: Tensor, grid: TokenGrid) -> Tensor:
    along = (query * key).sum(-1, keepdim=True) / (key * key).sum(-1, keepdim=True) * key
    return 0.25 * query + 0.75 * (0.3 * along + blurred(query - along, grid, 0.6, 1.1))


OSEG_OPTIONS = {"mix": 0.75, "keep_parallel": 0.3, "blur_sigma": (0.6, 1.1)}
WEIGHT = 1.5
PERTURBED: dict[str, tuple[Any, Change | str]] = {
    "stg": (partial(STG, scale=WEIGHT), "skip"),
    "stg-attention": (partial(STG, scale=WEIGHT, mode="attention_skip"), "input"),
    "pag": (partial(PAG, scale=WEIGHT), "values"),
    "seg": (partial(SEG, scale=WEIGHT, blur_sigma=0.8), seg_change),
    "oseg": (partial(OSEG, scale=WEIGHT, **OSEG_OPTIONS), oseg_change),
    "oseg-cond": (
        partial(OSEG, scale=WEIGHT, perturb="cond", **OSEG_OPTIONS),
        oseg_change,
    ),
    "stg-uncond": (partial(STG, scale=WEIGHT, perturb="uncond"), "skip"),
    "pag-uncond": (partial(PAG, perturb="uncond"), "values"),
    "seg-uncond": (partial(SEG, blur_sigma=0.8, perturb="uncond"), seg_change),
    "oseg-uncond": (partial(OSEG, perturb="uncond", **OSEG_OPTIONS), oseg_change),
}


def expected_prediction(method: str, branches: list[Tensor], scale: float | Tensor) -> Tensor:
    """The method's formula on U, C, U~, C~, or on C, C~."""
    if len(branches) == 2:
        cond, weak_cond = branches
        return cond + WEIGHT * (cond - weak_cond)
    uncond, cond, weak_uncond, weak_cond = branches
    if method.endswith("-uncond"):
        return weak_uncond + scale * (cond - weak_uncond)
    base = weak_uncond if method == "oseg" else uncond
    return cond + (scale - 1) * (cond - base) + WEIGHT * (cond - weak_cond)


def scale_per_frame(first: float, last: float) -> Tensor:
    """[F, 1, 1, 1], growing evenly over the frames."""
    steps = [first + (last - first) * i / (FRAMES - 1) for i in range(FRAMES)]
    return torch.tensor(steps, dtype=torch.float64).reshape(FRAMES, 1, 1, 1)


@pytest.mark.parametrize("selector", ("down.1", "mid", "up.1:temporal", "spatial"))
@pytest.mark.parametrize("method", PERTURBED)
def test_svd_predicts_what_a_slow_reference_does_with_a_scale_per_frame(
    svd: Any, method: str, selector: str
) -> None:
    build, change = PERTURBED[method]
    wanted = SELECTED["svd"].get(selector, lambda _, stage: stage == selector)
    size = SVD_ODD_SIZE if selector in ("up.1:temporal", "spatial") else SVD_SIZE
    arguments = first_call(SVD, svd, **RAMP, **size)
    branches = reference_branches(svd, arguments, names_of(svd, wanted), change, size)
    guided_prediction = first_prediction(SVD, svd, build(blocks=(selector,)), **RAMP, **size)
    expected = expected_prediction(method, branches, scale_per_frame(1.0, 3.0))
    assert_close(guided_prediction.double(), expected, **ROUNDING)
    assert not torch.allclose(expected, expected_prediction(method, branches, 2.0), **ROUNDING)


@pytest.mark.parametrize("selector", ("down", "mid", "up.0:2"))
@pytest.mark.parametrize("method", PERTURBED)
def test_sdxl_predicts_what_a_slow_reference_does(sdxl: Any, method: str, selector: str) -> None:
    build, change = PERTURBED[method]
    size = SDXL_ODD_SIZE if selector == "down" else SDXL_SIZE
    arguments = first_call(SDXL, sdxl, **size)
    branches = reference_branches(sdxl, arguments, names_of(sdxl, SELECTED["sdxl"][selector]), change, size)
    guidance = build(guidance_scale=3.0, blocks=(selector,))
    expected = expected_prediction(method, branches, 3.0)
    assert_close(first_prediction(SDXL, sdxl, guidance, **size).double(), expected, **ROUNDING)


# -- SVD's scale


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("prompts", ("a", ["a", "b"]), ids=("one", "batch"))
def test_plain_cfg_keeps_the_ramp_bit_for_bit(svd: Any, dtype: torch.dtype, prompts: Any) -> None:
    svd.to(dtype)
    stock = SVD.run(svd, prompts, **RAMP)
    with guided(svd, CFG()):
        assert torch.equal(SVD.run(svd, prompts, **RAMP), stock)
    assert not torch.equal(SVD.run(svd, prompts, guidance_scale=2.0), stock)


def test_a_number_takes_the_place_of_the_ramp(svd: Any) -> None:
    stock = SVD.run(svd, guidance_scale=2.0)
    with guided(svd, CFG(guidance_scale=2.0)):
        assert torch.equal(SVD.run(svd, **RAMP), stock)


def test_svd_without_its_unconditional_branch_is_refused_where_it_is_needed(svd: Any) -> None:
    with guided(svd, OSEG(blocks=("mid",))) as report:
        SVD.run(svd, guidance_scale=1.0)
    assert [p.branches for p in report.steps[0].passes] == [("cond",), ("cond_perturbed",)]
    with pytest.raises(GuidanceError, match="max_guidance_scale above 1"):
        with guided(svd, OSEG(guidance_scale=2.0, blocks=("mid",))):
            SVD.run(svd, guidance_scale=1.0)


def test_the_noise_level_of_svd_falls_from_almost_one(svd: Any) -> None:
    with guided(svd, CFG()) as report:
        SVD.run(svd, num_inference_steps=10)
    levels = [step.noise_level for step in report.steps]
    assert levels == sorted(levels, reverse=True) and levels[0] == pytest.approx(700 / 701)
    assert [step.index for step in report.steps] == list(range(10))


# -- what attention sees


@contextmanager
def attention_by_site(unet: nn.Module) -> Iterator[dict[str, list[tuple[Tensor, Tensor, Tensor]]]]:
    """(query, key, value), each [B, N, S, D], at every call of scaled dot-product attention, by site."""
    calls: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    inside: list[str] = []
    real = F.scaled_dot_product_attention

    def record(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if inside:
            calls.setdefault(inside[-1], []).append((query, key, value))
        return real(query, key, value, *args, **kwargs)

    handles = []
    for name, _, _, attention in self_attentions(unet):
        handles.append(attention.register_forward_pre_hook(lambda *_, name=name: inside.append(name)))
        handles.append(attention.register_forward_hook(lambda *_: inside.clear()))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(F, "scaled_dot_product_attention", record)
            yield calls
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("size", ("regular", "odd"))
def test_only_the_chosen_queries_change_and_they_are_orthogonal_to_their_keys(
    case: Case, pipe: Any, size: str
) -> None:
    """Without blur the query that attention sees is the part of the plain one off its own key."""
    pipe.to(torch.float64)
    selector = "up.1" if case is SVD else "up.0"
    pixels = {"regular": case.size, "odd": SVD_ODD_SIZE if case is SVD else SDXL_ODD_SIZE}[size]
    guidance = OSEG(guidance_scale=1.0, blocks=(selector,), blur_sigma=0.0)
    with attention_by_site(pipe.unet) as calls, guided(pipe, guidance):
        case.run(pipe, guidance_scale=1.0, num_inference_steps=1, **pixels)
    chosen = names_of(pipe, lambda _, stage: stage == selector)
    assert len(chosen) == 4
    first = names_of(pipe).index(chosen[0])
    for name in names_of(pipe)[:first]:
        assert len(calls[name]) == 1  # its stage is replayed
    (query, key, value), (perturbed, perturbed_key, perturbed_value) = calls[chosen[0]]
    assert torch.equal(perturbed_key, key) and torch.equal(perturbed_value, value)
    along = (query * key).sum(-1, keepdim=True) / (key * key).sum(-1, keepdim=True) * key
    assert_close(perturbed, query - along)
    for name in chosen:
        plain, weak = calls[name]
        assert (
            (weak[0] * weak[1]).sum(-1).abs().max() < 1e-12 < 1e-3 < (plain[0] * plain[1]).sum(-1).abs().max()
        )
    for name in names_of(pipe)[first + 4 :]:
        plain, weak = calls[name]  # a later stage, itself unperturbed, runs on perturbed hidden states
        assert not torch.equal(plain[0], weak[0])
        assert (weak[0] * weak[1]).sum(-1).abs().max() > 1e-3


# -- replayed stages


@pytest.mark.parametrize("perturb", ("both", "cond"))
@pytest.mark.parametrize(("selector", "unit"), (("down.1", 1), ("mid", 3), ("up.1", 5)))
def test_stages_before_the_first_perturbed_one_are_replayed(
    case: Case, pipe: Any, selector: str, unit: int, perturb: str
) -> None:
    """Also for a batch, whose frames are folded, and for sizes at which stages round up."""
    size = SVD_ODD_SIZE if case is SVD else SDXL_ODD_SIZE
    run = partial(case.run, pipe, ["a red circle", "a blue square, x"], seed=3, **size)
    guidance = OSEG(blocks=(selector,), perturb=perturb)
    with guided(pipe, guidance, reuse=Reuse(prefix=False)):
        whole = run()
    calls = dict.fromkeys(adapter_for(pipe).blocks.units(pipe.unet), 0)
    for stage in calls:
        pipe.unet.get_submodule(stage).register_forward_pre_hook(
            lambda *_, stage=stage: calls.update({stage: calls[stage] + 1})
        )
    with guided(pipe, guidance) as report:
        assert_close(run(), whole, **ROUNDING)
    passes = [one for step in report.steps for one in step.passes]
    # A perturbed `uncond` of which no plain one was run has nothing to start from.
    replaying = [one for one in passes if one.branches[0] in ("cond_perturbed", "perturbed")]
    assert [one.start_block for one in passes] == [unit if one in replaying else 0 for one in passes]
    before, after = len(passes) - len(replaying), len(passes)
    assert list(calls.values()) == [before] * unit + [after] * (len(calls) - unit)
    assert not torch.equal(whole, run())


# -- SDXL: with a prompt, with an empty one, without text guidance


@pytest.mark.parametrize("prompt", ("a red circle", ""))
@pytest.mark.parametrize("scale", (1.0, 5.0), ids=("plain", "cfg"))
def test_sdxl_with_and_without_a_prompt(sdxl: Any, prompt: str, scale: float) -> None:
    """With guidance_scale=None the pipeline's call decides: `C + lambda (C - C~)` without text guidance."""
    call = {"prompt": prompt, "guidance_scale": scale}
    arguments = first_call(SDXL, sdxl, **call)
    branches = reference_branches(
        sdxl, arguments, names_of(sdxl, SELECTED["sdxl"]["mid"]), oseg_change, SDXL_SIZE
    )
    assert len(branches) == (2 if scale == 1 else 4)
    guidance = OSEG(scale=WEIGHT, blocks=("mid",), **OSEG_OPTIONS)
    expected = expected_prediction("oseg", branches, scale)
    assert_close(first_prediction(SDXL, sdxl, guidance, **call).double(), expected, **ROUNDING)


@pytest.mark.parametrize("method", [method for method in PERTURBED if not method.endswith("-uncond")])
@pytest.mark.parametrize("family", (SDXL, SD15), ids=lambda family: family.name)
def test_without_a_prompt_it_is_one_plain_branch_and_its_perturbed_one(family: Case, method: str) -> None:
    """`U + lambda (U - U~)`, U being the prediction for the empty prompt (SAG: test_sag)."""
    pipe = quiet(family.build())
    make, change = PERTURBED[method]
    call = {"prompt": "", "guidance_scale": 1.0}
    arguments = first_call(family, pipe, **call)
    names = names_of(pipe, SELECTED["sdxl"]["mid"])
    uncond, weak = reference_branches(pipe, arguments, names, change, family.size)
    prediction = first_prediction(family, pipe, make(blocks=("mid",)), **call)
    assert_close(prediction.double(), uncond + WEIGHT * (uncond - weak), **ROUNDING)
    with guided(pipe, make(blocks=("mid",))) as report:
        family.run(pipe, num_inference_steps=1, **call)
    assert [one.rows for one in report.steps[0].passes] == [1, 1]


def test_every_row_of_a_batch_keeps_its_own_text_and_sizes(sdxl: Any) -> None:
    """The pooled text and the sizes stand in a dictionary of their own; a mix-up would show in the image."""
    guidance = OSEG(blocks=("up.0",), perturb="cond")
    prompts, negative = ["a red circle", "nothing at all"], {"negative_original_size": (7, 9)}
    sizes = {"negative_target_size": (30, 20), "negative_crops_coords_top_left": (3, 5)}
    with guided(sdxl, guidance):
        together = SDXL.run(sdxl, prompts, seed=1, original_size=(50, 60))
        alone = [SDXL.run(sdxl, one, seed=1 + i, original_size=(50, 60)) for i, one in enumerate(prompts)]
        other = SDXL.run(sdxl, prompts[0], seed=1, original_size=(50, 60), **negative, **sizes)
    assert_close(together, torch.cat(alone), **ROUNDING)
    assert not torch.allclose(other, alone[0], **ROUNDING)


# -- against published code


def published_blur(sigma: float) -> Change:
    """SEG-SDXL's blur: a Gaussian image filter with reflected edges, limited by the image's side."""

    def change(query: Tensor, key: Tensor, grid: TokenGrid) -> Tensor:
        side = math.isqrt(query.shape[1])
        if sigma > 9999:
            return query.mean(dim=1, keepdim=True).expand_as(query)
        taps = math.ceil(6 * sigma)
        taps = min(taps + 1 - taps % 2, side - (side % 2 - 1))
        place = torch.linspace(-(taps - 1) / 2, (taps - 1) / 2, taps, dtype=query.dtype)
        kernel = torch.exp(-0.5 * (place / sigma) ** 2)
        kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
        images = query.permute(0, 2, 3, 1).reshape(-1, 1, side, side)
        padded = F.pad(images, [taps // 2] * 4, mode="reflect")
        out = F.conv2d(padded, kernel.reshape(1, 1, taps, taps))
        batch, _, heads, dim = query.shape
        return out.reshape(batch, heads, dim, -1).permute(0, 3, 1, 2)

    return change


@pytest.mark.parametrize("sigma", (0.7, 10.0, 1e4))
@pytest.mark.parametrize("selector", ("mid", "up.1"))  # 3 x 3 and 6 x 6 tokens
def test_seg_with_reflected_edges_is_the_published_one_on_square_images(
    sdxl: Any, selector: str, sigma: float
) -> None:
    names = names_of(sdxl, lambda _, stage: stage == selector)
    arguments = first_call(SDXL, sdxl, **SDXL_SQUARE_SIZE)
    branches = reference_branches(sdxl, arguments, names, published_blur(sigma), SDXL_SQUARE_SIZE)
    guidance = SEG(scale=WEIGHT, blocks=(selector,), blur_sigma=sigma, boundary="reflect")
    prediction = first_prediction(SDXL, sdxl, guidance, **SDXL_SQUARE_SIZE)
    assert_close(prediction.double(), expected_prediction("seg", branches, 4.0), **ROUNDING)
    if sigma == 10:
        other = replace(guidance, boundary="symmetric")
        other_prediction = first_prediction(SDXL, sdxl, other, **SDXL_SQUARE_SIZE)
        assert not torch.allclose(prediction, other_prediction, **ROUNDING)


@pytest.mark.parametrize(
    ("theirs", "ours"), (("mid", "mid"), ("up_blocks.1", "up.1"), ("down_blocks.2", "down.2"))
)
@pytest.mark.parametrize("scale", (1.0, 4.0), ids=("plain", "cfg"))
def test_pag_is_that_of_diffusers_own_pipeline(sdxl: Any, theirs: str, ours: str, scale: float) -> None:
    pag = quiet(StableDiffusionXLPAGPipeline(**sdxl.components, pag_applied_layers=[theirs]))
    expected = SDXL.run(pag, guidance_scale=scale, pag_scale=2.0)
    with guided(sdxl, PAG(scale=2.0, blocks=(ours,))):
        assert_close(SDXL.run(sdxl, guidance_scale=scale), expected, **ROUNDING)


# -- further pipelines of SDXL, and where sampling stands


def _image_case(cls: type, **extra: Any) -> Case:
    return Case(
        cls.__name__,
        partial(tiny_sdxl, cls),
        {},
        lambda: {"image": tiny_image(SDXL_SIZE), "strength": 0.6} | extra,
        condition=SDXL.condition,
        result="images",
        blocks=SDXL.blocks,
    )


@pytest.mark.parametrize(
    "family",
    (
        _image_case(StableDiffusionXLImg2ImgPipeline),
        _image_case(
            StableDiffusionXLInpaintPipeline, mask_image=tiny_image(SDXL_SIZE).convert("L"), **SDXL_SIZE
        ),
    ),
    ids=lambda family: family.name,
)
def test_pipelines_that_start_from_an_image(family: Case) -> None:
    pipe = quiet(family.build())
    run = partial(family.run, pipe, num_inference_steps=5)
    stock = run()
    with guided(pipe, CFG()) as report:
        assert torch.equal(run(), stock)
    assert [step.index for step in report.steps] == [0, 1, 2]
    guidance = OSEG(blocks=("mid",))
    with guided(pipe, guidance, reuse=Reuse(prefix=False)):
        whole = run()
    with guided(pipe, guidance):
        assert_close(run(), whole, **ROUNDING)
    assert not torch.allclose(whole, stock, **ROUNDING)


def test_a_run_that_leaves_the_end_to_a_refiner_counts_its_own_steps(sdxl: Any) -> None:
    with guided(sdxl, OSEG(blocks=("mid",), interval=(0.5, 1.0))) as report:
        SDXL.run(sdxl, num_inference_steps=10, denoising_end=0.4)
    assert [step.index for step in report.steps] == [0, 1, 2, 3]
    assert [len(step.passes) for step in report.steps] == [1, 1, 3, 3]


def test_a_pipelines_own_rescale_is_refused(sdxl: Any) -> None:
    with pytest.raises(GuidanceError, match=r"guidance_rescale=0\.5"), guided(sdxl, OSEG(blocks=("mid",))):
        SDXL.run(sdxl, guidance_rescale=0.5)


# -- what a step costs, without weights


def test_example_arguments_are_those_of_the_pipelines_calls(case: Case, pipe: Any) -> None:
    size = {"num_frames": 1} | case.size
    clip = ClipSize(size["num_frames"], size["height"], size["width"])
    example = adapter_for(pipe).example_arguments(pipe.unet, clip, rows=2)

    def shapes(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: shapes(item) for name, item in value.items()}
        return (value.dtype.is_floating_point, tuple(value.shape))

    passed = {name: value for name, value in first_call(case, pipe).items() if name in example}
    left_out = {"return_dict", "timestep_cond", "cross_attention_kwargs"}
    assert first_call(case, pipe).keys() - left_out == example.keys()
    if case is SDXL:  # its tiny tokenizers make shorter texts
        example["encoder_hidden_states"] = example["encoder_hidden_states"][:, :TEXT_LENGTH]
    assert shapes(passed) == shapes(example)


@pytest.mark.parametrize(("family", "parameters"), ((SVD, 1_524_623_082), (SDXL, 2_567_463_684)))
def test_the_full_size_is_that_of_the_published_weights(family: Case, parameters: int) -> None:
    denoiser = full_size_denoiser(adapter_for(family.build()))
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == parameters


# -- what else may wrap the pipeline, and restoring


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_half_precision_runs_through(case: Case, pipe: Any, dtype: torch.dtype) -> None:
    """The schedulers give latents the dtype of the prediction, and the UNet takes only its own."""
    guidance = OSEG(blocks=("mid",))
    with guided(pipe, guidance):
        exact = case.run(pipe)
    pipe.to(dtype)
    with guided(pipe, guidance):
        rough = case.run(pipe)
    assert rough.dtype == dtype
    assert (rough - exact).norm() < 0.1 * exact.norm()


def test_compiled_blocks_are_perturbed_all_the_same(sdxl: Any) -> None:
    guidance = OSEG(blocks=("mid", "up.1:0"))
    with guided(sdxl, guidance):
        expected = SDXL.run(sdxl)
    adapter_for(sdxl).compile_blocks(sdxl.unet, backend="eager")
    stock = SDXL.run(sdxl)  # compiled before the hooks of the guided run exist
    with guided(sdxl, guidance):
        assert_close(SDXL.run(sdxl), expected, **ROUNDING)
    assert torch.equal(SDXL.run(sdxl), stock)


def test_model_offload_keeps_the_guidance_over_several_calls(case: Case, pipe: Any) -> None:
    guidance = OSEG(blocks=("mid",))
    with guided(pipe, guidance):
        expected = case.run(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    with guided(pipe, guidance):
        assert torch.equal(case.run(pipe), expected)
        assert torch.equal(case.run(pipe), expected)


def state_of(unet: nn.Module) -> list[tuple]:
    return [
        (name, id(module), type(module), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in unet.named_modules()
    ]


@pytest.mark.parametrize("selector", ("down.1", "mid", "up.1"))
def test_an_error_inside_a_stage_leaves_nothing_behind(
    case: Case, pipe: Any, selector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = case.run(pipe)
    before, order = state_of(pipe.unet), [type(block) for block in pipe.unet.down_blocks]
    with monkeypatch.context() as patch:
        patch.setattr("oseg_video.guidance.queries.oseg_queries", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError), guided(pipe, OSEG(blocks=(selector,))):
            case.run(pipe)
    assert state_of(pipe.unet) == before
    assert [type(block) for block in pipe.unet.down_blocks] == order
    assert torch.equal(case.run(pipe), stock)

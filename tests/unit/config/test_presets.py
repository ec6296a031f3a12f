"""The shipped recipes: one per family and method, valid, sourced, and true to what they are taken from."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest

from oseg_video.adapters import ModelAdapter, all_adapters
from oseg_video.adapters.unet import UNetAdapter
from oseg_video.config import (
    GenerateJob,
    read_notes,
    read_recipe,
    recipe_names,
    recipe_path,
    resolve_job,
    shipped_recipe,
)
from oseg_video.config.keys import job_to_plain
from oseg_video.config.recipes import NOTES, SECTIONS, WEIGHTS, recipe_folder
from oseg_video.config.strict_yaml import load_yaml
from oseg_video.embedded import MODELS
from oseg_video.guidance.flat import flat_settings
from oseg_video.guidance.methods import METHODS, OSEGReleased
from oseg_video.guidance.perturbations import ReleasedQueries, ReplaceAttention, SkipBlock
from oseg_video.guidance.plan import Step
from oseg_video.jobs.checks import check_fits
from oseg_video.jobs.loading.catalogue import catalogue
from oseg_video.jobs.loading.meta import empty_denoiser, full_size_denoiser
from oseg_video.jobs.loading.pipeline import ModelSource, find_model
from oseg_video.types import SettingError

ADAPTERS = {adapter.family: adapter for adapter in all_adapters()}
FAMILIES = (*MODELS, *ADAPTERS)
GUIDING = [name for name in METHODS if name not in ("none", "oseg-released")]
# SAG reads attention maps, which UNets have; S2-Guidance draws from the blocks of a transformer; NAG takes a
# text.
SERVED = {
    "sag": {family for family, one in ADAPTERS.items() if isinstance(one, UNetAdapter)},
    "s2": {family for family in FAMILIES if not isinstance(ADAPTERS.get(family), UNetAdapter)},
    "nag": {family for family in FAMILIES if family != "svd"},
}
PRESETS = [
    (family, method) for family in FAMILIES for method in GUIDING if family in SERVED.get(method, FAMILIES)
]
# Their papers name no setting for one of the families: their defaults are for all.
WITHOUT_SECTION = ("fdg", "mambo-g", "mg", "smc-cfg", "tag", "tag-cfg")
RELEASED = ("mochi-oseg-released", "hunyuan-oseg-released")
# Flow matching, the only kind of model that CFG-Zero*'s zero steps are for.
PREDICTS_VELOCITY = ("embedded", "embedded-two", "mochi", "ltx", "ltx2", "hunyuan", "hunyuan15", "wan")


def adapter_of(family: str) -> ModelAdapter:
    return find_model(family).adapter if family in MODELS else ADAPTERS[family]


def resolve(family: str, config: Path | str | None = None, **flags: object) -> GenerateJob:
    """The job that the command line makes of a family, with what its pipeline needs from the user."""
    adapter = adapter_of(family)
    given = {"model": family, **flags}
    if adapter.text_to_video is None:
        given["image"] = "image.png"
    else:
        given["prompts"] = ["a red ball"]
    return resolve_job(given, config, family_of=lambda model, revision: family)


def preset(family: str, method: str) -> GenerateJob:
    return resolve(family, guidance=method)


def released(name: str) -> GenerateJob:
    return resolve(name.partition("-")[0], recipe_path(name))


@cache
def full_size(family: str):
    """The denoiser of the family's weights on the meta device."""
    if family in MODELS:
        return empty_denoiser(find_model(family))
    return full_size_denoiser(ADAPTERS[family])


@pytest.fixture(scope="module")
def source_of(tmp_path_factory):
    """What the configuration files of a family's weights say, as far as a job is checked against them."""

    @cache
    def source(family: str, pipeline: str | None = None) -> ModelSource:
        if family in MODELS:
            return find_model(family)
        adapter, folder = ADAPTERS[family], tmp_path_factory.mktemp(family)
        pipeline = pipeline or adapter.text_to_video or adapter.image_to_video
        denoiser = adapter.denoiser_attributes[0]
        files = {
            "model_index.json": {"_class_name": pipeline},
            f"{denoiser}/config.json": dict(full_size(family).config),
            "vae/config.json": {},
            "scheduler/scheduler_config.json": {},
        }
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(content))
        return ModelSource(family, pipeline, adapter, family, folder)

    return source


@pytest.mark.parametrize(("family", "method"), PRESETS)
def test_every_family_has_a_recipe_of_every_method(family, method, source_of):
    assert recipe_path(family), f"configs/{family}.yaml is missing"
    named = shipped_recipe(f"{family}-{method}") is not None
    assert named == (method not in WITHOUT_SECTION), f"section {method} of configs/{family}.yaml"
    job = preset(family, method)
    guidance = job.guidance
    assert type(guidance) is METHODS[method]
    check_fits(job, source_of(family))
    resolved = adapter_of(family).resolve_blocks(full_size(family), guidance.blocks_used)
    assert bool(resolved) == ("blocks" in type(guidance).__dataclass_fields__ or method == "nag")


@pytest.mark.parametrize("family", FAMILIES)
def test_without_guidance_the_recipe_of_the_family_is_enough(family):
    assert preset(family, "none").guidance.largest_guidance_scale == 1


# What the files of the weights say, as far as a job with them is checked against it.
TIMESTEP_VAE = {"vae/config.json": {"timestep_conditioning": True}}
LTX_CONDITION = {"model_index.json": {"_class_name": "LTXConditionPipeline"}, **TIMESTEP_VAE}
ROTARY = {"transformer/config.json": {"use_rotary_positional_embeddings": True, "max_text_seq_length": 224}}
OF_WEIGHTS = {
    "LTX-Video-0.9.1": TIMESTEP_VAE,
    "LTX-Video-0.9.5": LTX_CONDITION,
    "LTX-Video-0.9.7-dev": LTX_CONDITION,
    "LTX-Video-0.9.7-distilled": LTX_CONDITION,
    "LTX-Video-0.9.8-13B-distilled": LTX_CONDITION,
    "CogVideoX1.5-5B": ROTARY,
    "CogVideoX1.5-5B-I2V": ROTARY,
    "Wan2.2-T2V-A14B-Diffusers": {
        "model_index.json": {"_class_name": "WanPipeline", "boundary_ratio": 0.875}
    },
    "Wan2.2-I2V-A14B-Diffusers": {
        "model_index.json": {"_class_name": "WanImageToVideoPipeline", "boundary_ratio": 0.9}
    },
    "Wan2.2-TI2V-5B-Diffusers": {
        "model_index.json": {"_class_name": "WanPipeline", "expand_timesteps": True},
        "vae/config.json": {"scale_factor_spatial": 16},
    },
    "HunyuanVideo-1.5-Diffusers-720p_i2v": {"transformer/config.json": {"target_size": 960}},
    "HunyuanVideo-1.5-Diffusers-720p_i2v_distilled": {"transformer/config.json": {"target_size": 960}},
}
ALL_WEIGHTS = [
    (path.stem, name)
    for path in sorted(recipe_folder().glob("*.yaml"))
    for name in load_yaml(path).get(WEIGHTS, {})
]


def shown_an_image(adapter: ModelAdapter, weights: str) -> bool:
    return (
        OF_WEIGHTS.get(weights) is LTX_CONDITION
        or adapter.text_to_video is None
        or "I2V" in weights.upper().split("TI2V")[0]
    )


@pytest.mark.parametrize(("family", "weights"), ALL_WEIGHTS)
@pytest.mark.parametrize("method", ["none", "cfg", "cfg-zero", "stg", "oseg"])
def test_what_single_weights_need_fits_them(family, weights, method, tmp_path):
    adapter = ADAPTERS[family]
    image = shown_an_image(adapter, weights)
    pipeline = adapter.image_to_video if image else adapter.text_to_video
    files: dict[str, dict] = {"transformer/config.json": {}, "vae/config.json": {}}
    files |= {
        "model_index.json": {"_class_name": pipeline},
        "scheduler/scheduler_config.json": {"shift": 1.0},
    }
    for name, content in OF_WEIGHTS.get(weights, {}).items():
        files[name] = {**files[name], **content}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    index = files["model_index.json"]
    source = ModelSource(weights, index["_class_name"], adapter, family, tmp_path, index=index)
    shown = {"image": "image.png"} if image else {}
    prompts = [] if adapter.text == "none" else ["a red ball"]
    job = resolve_job(
        {"model": f"owner/{weights}", "guidance": method, "prompts": prompts, **shown},
        family_of=lambda model, revision: family,
    )
    check_fits(job, source)
    if method == "cfg-zero" and family in PREDICTS_VELOCITY:
        assert job.guidance.zero_steps <= 0.04 * job.steps
    written = dict(load_yaml(recipe_path(family))[WEIGHTS][weights])
    sections = written.pop(SECTIONS, {})
    guidance = {**sections.get("cfg", {}), **sections.get(method, {})}
    settings = job_to_plain(job)
    without_text = job.guidance.largest_guidance_scale == 1
    for name, value in written.items():
        if not (without_text and name in adapter.own_scales):
            assert settings[name] == value, name
    if method != "none":
        assert {name: settings[name] for name in guidance} == guidance


FILES = sorted(path.stem for path in recipe_folder().glob("*.yaml"))


@pytest.mark.parametrize("name", FILES)
def test_every_setting_of_a_recipe_has_its_source_above(name):
    """Cheap: a group of lines starts with a comment; `extends`, the notes and empty lines end a group."""
    sourced = False
    for number, line in enumerate(recipe_path(name).read_text().splitlines(), start=1):
        key = re.match(r" *([\w-]+):", line)
        if line.lstrip().startswith("#"):
            sourced = True
        elif not line or (key and key[1] in ("extends", SECTIONS, WEIGHTS, *METHODS, *NOTES)):
            sourced = False
        elif re.fullmatch(r"  [\w.]+-[\w.-]+:", line):  # a name of weights
            sourced = False
        elif key:
            assert sourced, f"{name}.yaml line {number}: no source above {key[1]}"


@pytest.mark.parametrize("name", FILES)
def test_recipes_are_short_text_lines_without_links(name):
    text = recipe_path(name).read_text()
    assert max(map(len, text.splitlines())) <= 118
    assert "://" not in text


@pytest.mark.parametrize("name", FILES)
def test_every_recipe_belongs_to_a_family_and_sets_what_its_kind_may(name):
    family = max((one for one in FAMILIES if f"{name}-".startswith(f"{one}-")), key=len)
    special = name.removeprefix(family)
    settings = read_recipe(recipe_path(name))
    assert not set(settings) & {"prompts", "seeds", "out", "image", "device"}, "the user's to choose"
    if not special:
        assert set(read_notes(recipe_path(name))) == set(NOTES)
        assert not set(settings) & {"guidance", *flat_settings()}, "what holds for every method"
    else:
        assert {"model", "guidance"} <= set(settings), "a recipe for --config says for what it is"


def test_every_recipe_is_listed_with_its_family():
    listed = {entry["name"]: entry["recipes"] for entry in catalogue()}
    assert list(listed) == list(FAMILIES)
    assert sorted(name for names in listed.values() for name in names) == recipe_names()
    for entry in catalogue():
        assert entry["about"] and entry["tested"] != "not tested", entry["name"]


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_steps_are_for_flow_matching_only(family):
    job = preset(family, "cfg-zero")
    assert (job.guidance.zero_steps > 0) == (family in PREDICTS_VELOCITY)
    assert job.guidance.zero_steps <= max(1, 0.04 * job.steps)


@pytest.mark.parametrize("family", FAMILIES)
def test_oseg_smooths_with_the_slides_sigma(family):
    assert preset(family, "oseg").guidance.blur_sigma == 5.0


# shared/spec/method.md; for SVD: issue 3
BLOCKS = {
    ("ltx", "stg"): (19,),
    ("mochi", "stg"): (34,),
    ("hunyuan", "stg"): ("dual:2",),
    ("mochi", "oseg"): (34,),
    ("hunyuan", "oseg"): ("dual:2",),
    ("svd", "oseg"): ("mid", "up"),
    ("sdxl", "seg"): ("mid",),
    ("sdxl", "pag"): ("mid",),
    ("sdxl", "sag"): ("mid:0",),
    ("sd15", "sag"): ("mid:0",),
}


# Blocks that the comments of the recipes count.
BLOCK_COUNTS = {"mochi": 48, "ltx": 28, "hunyuan": 20 + 40, "hunyuan15": 54, "wan": 30, "cogvideox": 42}


@pytest.mark.parametrize("family", BLOCK_COUNTS)
def test_the_full_size_models_have_as_many_blocks_as_the_recipes_say(family):
    assert len(ADAPTERS[family].blocks(full_size(family))) == BLOCK_COUNTS[family]


@pytest.mark.parametrize(("family", "method"), BLOCKS)
def test_blocks_of_the_specification(family, method):
    assert preset(family, method).guidance.blocks == BLOCKS[family, method]


def test_image_presets_have_the_slides_scales():
    seg, pag = preset("sdxl", "seg").guidance, preset("sdxl", "pag").guidance
    assert (seg.guidance_scale, seg.scale, seg.blur_sigma) == (3.0, 3.0, float("inf"))
    assert pag.scale == 3.0


# With the pipelines of their weights.
DISTILLED = {"ltx-13b-distilled": "LTXConditionPipeline", "sdxl-turbo": "StableDiffusionXLPipeline"}


@pytest.mark.parametrize("method", ("", "pag", "seg", "oseg", "cfg"))
@pytest.mark.parametrize("name", DISTILLED)
def test_distilled_weights_run_without_an_unconditional_pass(name, method, source_of):
    """By the name of the recipe a negative prompt in one pass; with a method's name behind it, two passes."""
    family = name.partition("-")[0]
    job = resolve(family, f"{name}-{method}" if method else name)
    check_fits(job, source_of(family, DISTILLED[name]))
    assert job.guidance.name == method or (job.guidance.name == "nag" and not method)
    steps = [Step(index, job.steps, 1 - index / job.steps, 1.0) for index in range(job.steps)]
    branches = [one for step in steps for one in job.guidance.plan(step).branches.values()]
    assert {one.condition for one in branches} == {"cond"} and job.steps <= 8
    assert len(branches) == job.steps * (2 if method in ("pag", "seg", "oseg") else 1)


@pytest.mark.parametrize(
    ("given", "message"),
    (
        ({"steps": 7}, "ltx: timesteps has 8 of them, where steps is 7"),
        (
            {"timesteps": [1000, 500, 500], "steps": 3},
            "ltx: timesteps must fall .* got .1000.0, 500.0, 500.0.",
        ),
        ({"timesteps": [1001, 500], "steps": 2}, "timesteps must be from 0 to 1000, got 1001"),
    ),
)
def test_timesteps_of_distilled_weights_are_checked(given, message, source_of):
    with pytest.raises(SettingError, match=message):
        job = resolve("ltx", "ltx-13b-distilled", **given)
        check_fits(job, source_of("ltx", "LTXConditionPipeline"))


def test_hunyuan_runs_true_guidance_only_where_it_says_so():
    scales = {method: preset("hunyuan", method).guidance.guidance_scale for method in GUIDING}
    assert scales.pop("apg") > 1
    assert set(scales.values()) == {None}
    assert released("hunyuan-oseg-released").guidance.guidance_scale > 1


def test_svd_keeps_the_pipelines_scale_of_every_frame():
    for method in (method for family, method in PRESETS if family == "svd"):
        job = preset("svd", method)
        assert job.guidance.guidance_scale is None and not {*job.own} & {*ADAPTERS["svd"].own_scales}


# shared/spec/method.md, "What the released code does differently"
MIX = {"mochi": 0.67, "hunyuan": 1.0}
OSEG_SCALE = {"mochi": 0.62, "hunyuan": 1.2}
LAYER = {"mochi": (34,), "hunyuan": ("dual:2",)}
# guidance_scale, 1 + gamma: the default that Mochi's script leaves in force; the constant in Hunyuan's code
SCALE = {"mochi": 4.5, "hunyuan": 2.1}


@pytest.mark.parametrize("name", RELEASED)
def test_recipes_of_the_released_code_do_what_the_released_code_does(name, source_of):
    family = name.partition("-")[0]
    job = released(name)
    oseg = job.guidance
    assert isinstance(oseg, OSEGReleased)
    check_fits(job, source_of(family))
    assert (oseg.mix, oseg.scale, oseg.blocks, oseg.guidance_scale) == (
        MIX[family],
        OSEG_SCALE[family],
        LAYER[family],
        SCALE[family],
    )
    assert ADAPTERS[family].resolve_blocks(full_size(family), oseg.blocks_used)
    first, second = (oseg.plan(Step(i, job.steps, 1 - i / job.steps, oseg.guidance_scale)) for i in (0, 1))
    assert set(first.branches) == {"cond"}
    changes = {
        name: branch.perturbation.change for name, branch in second.branches.items() if branch.perturbation
    }
    skipped = {"cond_perturbed": SkipBlock()} if family == "hunyuan" else {}
    assert changes == {"uncond_perturbed": ReleasedQueries(MIX[family]), **skipped}


def test_svd_stg_has_the_attention_form_of_its_script():
    job = preset("svd", "stg")
    plan = job.guidance.plan(Step(3, job.steps, 0.8, 3.0))
    (change,) = [b.perturbation.change for b in plan.branches.values() if b.perturbation]
    assert change == ReplaceAttention("values")
    (block,) = ADAPTERS["svd"].resolve_blocks(full_size("svd"), job.guidance.blocks)
    assert block.path == "up_blocks.1.attentions.0.transformer_blocks.0"

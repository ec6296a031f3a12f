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
from oseg_video.config.recipes import NOTES, SECTIONS, recipe_folder
from oseg_video.guidance.flat import flat_settings
from oseg_video.guidance.methods import METHODS, OSEGReleased
from oseg_video.guidance.perturbations import ReleasedQueries, ReplaceAttention, SkipBlock
from oseg_video.guidance.plan import Step
from oseg_video.jobs.checks import check_fits
from oseg_video.jobs.loading.catalogue import catalogue
from oseg_video.jobs.loading.meta import empty_denoiser, full_size_denoiser
from oseg_video.jobs.loading.pipeline import EMBEDDED, ModelSource, find_model

ADAPTERS = {adapter.family: adapter for adapter in all_adapters()}
FAMILIES = (EMBEDDED, *ADAPTERS)
GUIDING = [name for name in METHODS if name not in ("none", "oseg-released")]
PRESETS = [
    (family, method)
    for family in FAMILIES
    for method in GUIDING
    # SAG reads attention maps, which UNets have; S2-Guidance draws from the blocks of a transformer.
    if method not in ("sag", "s2") or (method == "sag") == isinstance(ADAPTERS.get(family), UNetAdapter)
]
# Their papers name no setting for one of the families: their defaults are for all.
WITHOUT_SECTION = ("fdg", "mambo-g", "mg", "smc-cfg", "tag", "tag-cfg")
RELEASED = ("mochi-oseg-released", "hunyuan-oseg-released")
# Flow matching, the only kind of model that CFG-Zero*'s zero steps are for.
PREDICTS_VELOCITY = ("embedded", "mochi", "ltx", "ltx2", "hunyuan", "hunyuan15", "wan")


def adapter_of(family: str) -> ModelAdapter:
    return find_model(EMBEDDED).adapter if family == EMBEDDED else ADAPTERS[family]


def resolve(family: str, config: Path | None = None, **flags: object) -> GenerateJob:
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
    if family == EMBEDDED:
        return empty_denoiser(find_model(EMBEDDED))
    return full_size_denoiser(ADAPTERS[family])


@pytest.fixture(scope="module")
def source_of(tmp_path_factory):
    """What the configuration files of a family's weights say, as far as a job is checked against them."""

    @cache
    def source(family: str) -> ModelSource:
        if family == EMBEDDED:
            return find_model(EMBEDDED)
        adapter, folder = ADAPTERS[family], tmp_path_factory.mktemp(family)
        pipeline = adapter.text_to_video or adapter.image_to_video
        denoiser = adapter.denoiser_attributes[0]
        files = {
            "model_index.json": {"_class_name": pipeline},
            f"{denoiser}/config.json": dict(full_size(family).config),
            "vae/config.json": {},
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
    assert bool(resolved) == ("blocks" in type(guidance).__dataclass_fields__)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_guidance_the_recipe_of_the_family_is_enough(family):
    assert preset(family, "none").guidance.largest_guidance_scale == 1


FILES = sorted(path.stem for path in recipe_folder().glob("*.yaml"))


@pytest.mark.parametrize("name", FILES)
def test_every_setting_of_a_recipe_has_its_source_above(name):
    """Cheap: a group of lines starts with a comment; `extends`, the notes and empty lines end a group."""
    sourced = False
    for number, line in enumerate(recipe_path(name).read_text().splitlines(), start=1):
        key = re.match(r" *([\w-]+):", line)
        if line.lstrip().startswith("#"):
            sourced = True
        elif not line or (key and key[1] in ("extends", SECTIONS, *METHODS, *NOTES)):
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
    family, _, special = name.partition("-")
    assert family in FAMILIES
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

"""Jobs and recipes: strict reading, layers, and round trips."""

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oseg_video.guidance.schedule import Breakpoints
from oseg_video.guidance.text import TextName

from oseg_video.config import (
    FIELDS,
    GUIDANCE_NAMES,
    ConfigError,
    GenerateJob,
    Schedule,
    build_guidance,
    dump_yaml,
    is_optional,
    job_from_plain,
    job_to_plain,
    read_recipe,
    recipe_names,
    recipe_path,
    resolve_job,
)
from oseg_video.config.job import GUIDANCE_FIELDS, LARGEST_SEED, STG_MODES, TEXT_TREATMENTS
from oseg_video.guidance.methods import METHODS, STG
from oseg_video.types import SettingError

SIZE = {"steps": 2, "frames": 13, "height": 48, "width": 32, "fps": 8.0}


def make_job(**settings):
    return GenerateJob(**{"prompts": ("a red circle",), **SIZE, **settings})


def resolve(flags, config=None, family="embedded"):
    return resolve_job({"prompts": ["x"], **flags}, config, family_of=lambda model, revision: family)


def write_yaml(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
numbers = st.floats(allow_nan=False, allow_infinity=False)
sigmas = st.one_of(numbers, st.just(math.inf), st.tuples(numbers, st.just(math.inf)))
selectors = st.integers() | st.sampled_from(["mid", "dual:2", "up.1:temporal"])
block_lists = st.lists(selectors, max_size=4).map(tuple)


def schedules(values):
    """Schedules in both forms, their levels falling and at first 1."""
    levels = st.lists(st.floats(0, 0.999), max_size=4, unique=True).map(lambda x: [1.0, *sorted(x)[::-1]])
    pairs = levels.flatmap(lambda x: st.tuples(*(st.tuples(st.just(level), values) for level in x)))
    return st.builds(Schedule, st.sampled_from(["breakpoints", "lower_edges"]), pairs)


scales = st.none() | numbers | schedules(numbers)
jobs = st.builds(
    GenerateJob,
    prompts=st.lists(texts.filter(str.strip), min_size=1, max_size=3).map(tuple),
    negative_prompt=st.none() | texts,
    seeds=st.lists(st.integers(0, LARGEST_SEED), min_size=1, max_size=3, unique=True).map(tuple),
    steps=st.integers(1, 1000),
    frames=st.integers(1, 10_000),
    height=st.integers(1, 10_000),
    width=st.integers(1, 10_000),
    fps=st.floats(0.1, 1000),
    model=texts,
    vae_tiling=st.booleans(),
    guidance=st.sampled_from(GUIDANCE_NAMES),
    guidance_scale=scales,
    pag_scale=scales,
    rescale=scales,
    blocks=st.none() | block_lists | schedules(block_lists),
    mode=st.none() | st.sampled_from(STG_MODES),
    text=st.none() | st.sampled_from(TEXT_TREATMENTS),
    eta=st.none() | numbers,
    zero_steps=st.none() | st.integers(),
    blur_sigma=st.none() | sigmas,
    perturb_unconditional=st.none() | st.booleans(),
    interval=st.none() | st.tuples(numbers, numbers),
    out=texts,
)


@given(job=jobs)
def test_yaml_gives_the_same_job_back(job, tmp_path_factory):
    path = tmp_path_factory.mktemp("yaml") / "job.yaml"
    path.write_bytes(dump_yaml(job).encode())
    assert job_from_plain(read_recipe(path)) == job


@given(job=jobs)
def test_json_gives_the_same_job_back(job):
    text = json.dumps(job_to_plain(job), allow_nan=False)
    assert job_from_plain(json.loads(text)) == job


def test_every_setting_says_what_it_is_and_has_a_unit_or_a_meaning():
    for name, spec in FIELDS.items():
        assert len(spec.metadata["help"]) > 10, name


def test_every_argument_of_every_method_is_a_setting():
    assert set(GUIDANCE_NAMES) == {"none", *METHODS}
    arguments = {spec.name for method in METHODS.values() for spec in fields(method)}
    assert arguments == set(GUIDANCE_FIELDS)
    assert all(is_optional(FIELDS[name]) for name in GUIDANCE_FIELDS)
    assert get_args(TextName) == TEXT_TREATMENTS
    assert get_args(get_type_hints(STG)["mode"]) == STG_MODES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be from 1 to 1000, got 0"),
        ({"steps": 2.5}, "steps must be an integer, got 2.5"),
        ({"steps": True}, "steps must be an integer, got True"),
        ({"fps": math.nan}, "fps must be a number, got nan"),
        ({"fps": 0}, "fps must be from 0.1 to 1000, got 0"),
        ({"seeds": ()}, "seeds must name at least one"),
        ({"seeds": (1, 1)}, "seeds must differ"),
        ({"seeds": (2**63,)}, "seeds must be from 0 to 9223372036854775807"),
        ({"prompts": ("\udce4",)}, "UTF-8"),
        ({"dtype": "int8"}, "dtype must be one of auto, float32, bfloat16, float16, got 'int8'"),
        ({"vae_tiling": "yes"}, "vae_tiling must be true or false, got 'yes'"),
        ({"interval": (0.1,)}, "interval must be two numbers"),
        ({"blocks": [1]}, "blocks must be block indices or names, got [1]"),
        ({"blocks": (1, "")}, "blocks must be block indices or names, got ''"),
        ({"blocks": (1.5,)}, "blocks must be block indices or names, got 1.5"),
        ({"stg_scale": "4"}, "stg_scale must be a number, got '4'"),
        ({"text": "zero"}, "text must be one of cfg, apg, cfg-zero, got 'zero'"),
        ({"mode": "skip"}, "mode must be one of residual, attention_skip, attention_values, got 'skip'"),
        ({"guidance": "CFG"}, "guidance must be one of none, cfg, cfg-zero, apg, stg, pag, seg, oseg, got"),
    ],
)
def test_a_wrong_value_is_refused_by_name(settings, message):
    with pytest.raises(SettingError) as refused:
        make_job(**settings)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stpes: 3", "mine.yaml: unknown key 'stpes'; did you mean 'steps'?"),
        ("zzz: 3", "mine.yaml: unknown key 'zzz'; known: prompts"),
        ("steps: many", "mine.yaml: steps must be an integer, got 'many'"),
        ("steps: 1e1", "mine.yaml: steps must be an integer, got '1e1'"),
        ("prompts: [no]", "prompts must be text, got False; put it in quotes"),
        ("steps: null", "steps must be an integer, got null"),
        ("steps: 3\nsteps: 4", "mine.yaml: key 'steps' is given twice"),
        ("stg_scale: {1.0: 4}", "scheduled by one of breakpoints or lower_edges, got {1.0: 4}"),
        ("stg_scale: {levels: {1.0: 4}}", "scheduled by one of breakpoints or lower_edges, got {'levels'"),
        ("stg_scale: {breakpoints: 4}", "stg_scale must be scheduled by noise levels, such as {breakpoints:"),
        ("stg_scale: {breakpoints: {}}", "stg_scale must be scheduled by one noise level or more"),
        (
            "stg_scale: {breakpoints: {0.5: 4}}",
            "scheduled from noise level 1 down, got a first breakpoint at",
        ),
        ("stg_scale: {breakpoints: {1.0: x}}", "stg_scale must be a number, got 'x'"),
        ("stg_scale: {breakpoints: {1.0: 1, 2: 3}}", "scheduled by noise levels from 0 to 1, got 2"),
        ("stg_scale: {breakpoints: {1.0: 1, -0.1: 3}}", "scheduled by noise levels from 0 to 1, got -0.1"),
        ("stg_scale: {breakpoints: {1.0: 1, false: 3}}", "scheduled by noise levels from 0 to 1, got False"),
        (
            "stg_scale: {breakpoints: {1.0: 1, '1': 3}}",
            "scheduled by noise levels that differ, got [1.0, 1.0]",
        ),
        (
            "stg_scale: {breakpoints: {1.0: 1}, lower_edges: {}}",
            "scheduled by one of breakpoints or lower_edges",
        ),
        ("blocks: {breakpoints: {1.0: [x, 1.5]}}", "blocks must be block indices or names, got 1.5"),
        ("- 1", "must be a mapping of settings, got list"),
        ("steps: [", "mine.yaml line 1: "),
        ("a: b: c", "mine.yaml line 1: "),
        ("extends: 3", "extends must be the name of a YAML file, got 3"),
        ("extends: mine.yaml", "extends itself"),
        ("extends: nowhere.yaml", "nowhere.yaml: No such file"),
        ("? [a]\n: 1", "mine.yaml"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(ConfigError) as refused:
        read_recipe(write_yaml(tmp_path, text))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"model: \xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_recipe(path)


def test_extends_takes_a_file_beside_it_then_a_shipped_recipe(tmp_path):
    write_yaml(tmp_path, "steps: 7\nfps: 3", "base.yaml")
    assert read_recipe(write_yaml(tmp_path, "extends: base.yaml\nsteps: 8")) == {"steps": 8, "fps": 3}
    shipped = read_recipe(write_yaml(tmp_path, "extends: mochi-stg.yaml\nstg_scale: 2.0"))
    assert shipped["blocks"] == [34] and shipped["stg_scale"] == 2.0


def test_layers_later_ones_win(tmp_path):
    config = write_yaml(tmp_path, "steps: 5\nfps: 9\nguidance: stg\nstg_scale: 0.5")
    job = resolve({"steps": 6}, config)
    recipe = read_recipe(recipe_path("embedded"))
    assert (job.steps, job.fps, job.height) == (6, 9.0, recipe["height"])
    # The method came from the file, so the recipe of model and method is STG's.
    assert job.blocks == tuple(read_recipe(recipe_path("embedded-stg"))["blocks"])
    assert build_guidance(job) == METHODS["stg"](
        guidance_scale=job.guidance_scale, stg_scale=0.5, blocks=job.blocks
    )


def test_what_nothing_sets_is_named():
    with pytest.raises(SettingError, match="nothing sets steps, frames, height, width"):
        resolve({}, family="unheard-of")


PERTURBED = ("stg", "pag", "seg", "oseg")


@pytest.mark.parametrize("guidance", GUIDANCE_NAMES)
@pytest.mark.parametrize("family", ["embedded", "mochi", "ltx"])
def test_every_family_takes_every_method(family, guidance):
    flags = {"guidance": guidance}
    if guidance in PERTURBED and not recipe_path(f"{family}-{guidance}"):
        with pytest.raises(SettingError, match="blocks must name at least one block"):
            build_guidance(resolve(flags, family=family))
        flags["blocks"] = [1]
    method = build_guidance(resolve(flags, family=family))
    assert method.name == ("cfg" if guidance == "none" else guidance)
    assert bool(method.blocks_used) == (guidance in PERTURBED)
    assert (method.guidance_scale == 1.0) == (guidance == "none")


def test_schedules_reach_the_method():
    recipe = {
        "guidance": "stg",
        "guidance_scale": {"breakpoints": {0.5: 2, 1: 4}},
        "stg_scale": {"lower_edges": {"1.0": 0, "0.9": 3, "0.4": 1}},
        "rescale": {"breakpoints": {1.0: 0.7}},
        "blocks": {"breakpoints": {1.0: [3, "dual:2"], 0.5: []}},
        "mode": "attention_skip",
        "text": "apg",
        "momentum": 0.25,
    }
    assert build_guidance(resolve(recipe, family="ltx")) == STG(
        guidance_scale=Breakpoints(((1.0, 4.0), (0.5, 2.0))),
        stg_scale=Breakpoints.from_lower_edges([1.0, 0.9, 0.4], [0.0, 3.0, 1.0]),
        rescale=Breakpoints(((1.0, 0.7),)),
        blocks=Breakpoints(((1.0, (3, "dual:2")), (0.5, ()))),
        mode="attention_skip",
        text="apg",
        momentum=0.25,
    )


def test_a_schedule_that_a_method_cannot_take_is_refused_by_name():
    for value, message in (
        ({"breakpoints": {1.0: 4, 0.5: "inf"}}, "stg_scale: breakpoint values must be all finite numbers"),
        ({"breakpoints": {1.0: 4, 0.5: -1}}, "stg_scale must be a finite number >= 0, got -1.0"),
    ):
        with pytest.raises(SettingError, match=message):
            build_guidance(resolve({"guidance": "stg", "stg_scale": value}, family="ltx"))


@pytest.mark.parametrize(
    ("guidance", "setting", "message"),
    [
        ("cfg", {"eta": 0.5}, "eta has no effect with guidance cfg; it belongs to apg, stg, pag, seg, oseg"),
        ("apg", {"zero_steps": 1}, "zero_steps has no effect with guidance apg; it belongs to cfg-zero, stg"),
        ("seg", {"mode": "residual"}, "mode has no effect with guidance seg; it belongs to stg"),
        ("cfg-zero", {"text": "apg"}, "text has no effect with guidance cfg-zero; it belongs to stg, pag"),
        ("stg", {"blocks": (1,), "eta": 0.5}, "eta=0.5 has no meaning with text='cfg'"),
    ],
)
def test_a_setting_without_effect_is_refused(guidance, setting, message):
    with pytest.raises(SettingError, match=message):
        build_guidance(make_job(guidance=guidance, **setting))


def test_published_settings_are_in_the_recipes():
    assert resolve({"guidance": "stg"}, family="mochi").blocks == (34,)
    assert resolve({"guidance": "stg"}, family="ltx").blocks == (19,)
    assert resolve({"guidance": "oseg"}, family="mochi").blur_sigma == 5.0
    assert {name.split("-")[0] for name in recipe_names()} >= {"embedded", "mochi", "ltx"}


def test_a_setting_of_another_method_is_refused():
    with pytest.raises(SettingError, match="mix has no effect with guidance stg; it belongs to oseg"):
        build_guidance(make_job(guidance="stg", blocks=(1,), mix=0.5))
    with pytest.raises(SettingError, match="guidance_scale has no effect with guidance none"):
        build_guidance(make_job(guidance="none", guidance_scale=3.0))

"""The recipe of a sweep and its table: what is read, what is refused, and what an item's name depends on."""

import dataclasses
import json
import re

import pytest
from PIL import Image

from oseg_video.config import ConfigError
from oseg_video.config.prompts import read_vbench_prompts
from oseg_video.config.recipes import recipe_folder
from oseg_video.sweeps.recipe import Subject, read_sweep
from oseg_video.sweeps.table import build_table, plan_variations
from oseg_video.types import OsegVideoError
from tests.sweeps import GIF, table, write_recipe

VBENCH = [
    {"prompt_en": "In a still frame, a stop sign", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a person", "dimension": ["human_action", "imaging_quality"]},
    {"prompt_en": "a dog", "dimension": ["imaging_quality"], "auxiliary_info": {}},
    {"prompt_en": "a person", "dimension": ["imaging_quality"]},
]


def prompts_of(path):
    return [subject.prompt for subject in read_sweep(path).subjects]


def test_the_axes_of_a_recipe(tmp_path):
    recipe = read_sweep(
        write_recipe(
            tmp_path,
            methods={"cfg": None, "strong": {"guidance": "oseg", "oseg_scale": 2.0}},
            models={"embedded": {"steps": 3}},
            seeds={"first": 5, "count": 2},
        )
    )
    assert recipe.subjects == (Subject(prompt="a red circle"), Subject(prompt="a blue square"))
    assert recipe.seeds == (5, 6)
    assert recipe.methods == {"cfg": {"guidance": "cfg"}, "strong": {"guidance": "oseg", "oseg_scale": 2.0}}
    assert recipe.models == {"embedded": {"model": "embedded", "steps": 3}}
    # The model's settings win over the common ones, the method's over the model's.
    jobs = [variation.job for variation in plan_variations(recipe)]
    assert [(job.guidance.name, job.steps) for job in jobs] == [("cfg", 3), ("oseg", 3)]
    assert jobs[1].guidance.scale == 2.0


def test_prompts_from_files(tmp_path):
    (tmp_path / "lines.txt").write_text("one\n\n two \n", encoding="utf-8")
    assert prompts_of(write_recipe(tmp_path, prompts={"file": "lines.txt"})) == ["one", "two"]
    (tmp_path / "VBench_full_info.json").write_text(json.dumps(VBENCH))
    vbench = {"vbench": "VBench_full_info.json"}
    assert prompts_of(write_recipe(tmp_path, prompts=vbench)) == [
        "In a still frame, a stop sign",
        "a person",
        "a dog",
    ]
    one = {**vbench, "dimensions": ["human_action"]}
    assert prompts_of(write_recipe(tmp_path, prompts=one)) == ["a person"]


@pytest.mark.parametrize(
    ("content", "dimensions", "message"),
    [
        ("[", (), "is not valid JSON"),
        ('[{"prompt": "x"}]', (), "is not VBench's list"),
        (json.dumps(VBENCH), ("human_acton",), "no dimension 'human_acton'; did you mean 'human_action'?"),
    ],
)
def test_a_list_that_is_not_vbenchs(tmp_path, content, dimensions, message):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_vbench_prompts(tmp_path / "list.json", dimensions)


def test_images_are_subjects(tmp_path):
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    recipe = read_sweep(write_recipe(tmp_path, prompts={"images": "."}))
    assert [subject.image for subject in recipe.subjects] == [str(tmp_path / n) for n in ("a.jpg", "b.png")]
    recipe = read_sweep(write_recipe(tmp_path, prompts=[{"prompt": "x", "image": "b.png"}]))
    assert recipe.subjects == (Subject(prompt="x", image=str(tmp_path / "b.png")),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"promts": []}, "unknown key 'promts'; did you mean 'prompts'?"),
        ({"prompts": []}, "a sweep needs prompts"),
        ({"prompts": [{"promt": "x"}]}, "a prompt must be text, or a mapping of prompt and image"),
        ({"prompts": {"files": "x"}}, "prompts must be a list, or one of"),
        ({"prompts": {"file": "nothing.txt"}}, "nothing.txt: No such file"),
        ({"prompts": {"images": "nothing"}}, "nothing: No such file"),
        ({"methods": ["cgf"]}, "unknown method 'cgf'; did you mean 'cfg'?"),
        ({"methods": ["cfg", "cfg"]}, "methods must be a list of different names"),
        ({"methods": {"cfg": {"oseg_scal": 2}}}, "unknown key 'oseg_scal'; did you mean 'oseg_scale'?"),
        ({"methods": {"cfg": {"seeds": [2]}}}, "methods: cfg: seeds is an axis of the sweep"),
        ({"settings": {"guidance": "cfg"}}, "settings: guidance is an axis of the sweep"),
        ({"models": "embedded"}, "models must be a list of different names"),
        ({"seeds": {"count": 0}}, "seeds must be a list, or first and count"),
        ({"seeds": ["x"]}, "seeds must be an integer, got 'x'"),
        ({"out": 3}, "out must be a folder or a URL, got 3"),
        ({"prompts": {"file": "a\0b"}}, "no such file"),
        ({"prompts": {"images": "a\0b"}}, "no such folder"),
        (
            {"settings": {"methods": {"oseg": {"oseg_scale": 2}}}},
            "settings: methods are sections of a recipe",
        ),
        ({"models": {"embedded": {"weights": {"x": {}}}}}, "models: embedded: weights are sections of"),
        ({"published": {}}, "published is called reported now"),
        (
            {"seeds": {"count": 30_000}},
            "at most 100000 clips, got 2 prompts x 30000 seeds x 2 methods x 1 models",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(tmp_path, content, message):
    with pytest.raises(ConfigError) as refused:
        read_sweep(write_recipe(tmp_path, **content))
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"settings": {**GIF, "frames": 8}}, "frames 8: mochi makes 6 k + 1 frames"),
        ({"methods": {"cfg": {"oseg_scale": 2.0}}}, "oseg_scale has no effect with guidance cfg"),
        ({"methods": {"stg": {"blocks": [9]}}}, "no block 9"),
        ({"models": ["mochy"]}, "did you mean 'mochi'?"),
        ({"prompts": [{"prompt": "x", "image": "a.png"}]}, "makes clips from text only"),
        ({"prompts": ["x", "x"]}, "'x' (seed 0) of cfg on embedded are the same clip"),
        ({"methods": {"cfg": {}, "mine": {"guidance": "cfg"}}}, "of cfg on embedded and 'a red circle'"),
    ],
)
def test_what_cannot_be_made_is_refused_with_the_table(tmp_path, content, message):
    with pytest.raises(OsegVideoError) as refused:
        table(tmp_path, **content)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_method_extends_a_recipe_with_its_section(tmp_path):
    (tmp_path / "base.yaml").write_text("steps: 3\nmethods: {oseg: {oseg_scale: 7}, stg: {stg_scale: 5}}")
    methods = {"oseg": {"extends": "base.yaml"}, "mine": {"guidance": "stg", "extends": "base.yaml"}}
    oseg, mine = plan_variations(read_sweep(write_recipe(tmp_path, methods=methods)))
    assert (oseg.job.guidance.scale, mine.job.guidance.scale) == (7, 5)
    assert oseg.job.steps == mine.job.steps == 3


def test_flags_win_over_a_recipe(tmp_path):
    recipe = read_sweep(
        write_recipe(
            tmp_path,
            methods={"cfg": {}, "strong": {"guidance": "oseg", "oseg_scale": 2.0, "steps": 5}},
            models={"short": {"model": "embedded", "steps": 3}},
        )
    )
    assert recipe.changed() == recipe
    changed = recipe.changed(
        seeds=(7,),
        methods={"strong": {"guidance": "strong"}, "stg": {"guidance": "stg"}},
        models={"embedded": {"model": "embedded"}},
        settings={"steps": 4},
        limit=1,
    )
    jobs = [variation.job for variation in plan_variations(changed)]
    assert [(job.guidance.name, job.guidance.scale, job.steps) for job in jobs] == [
        ("oseg", 2.0, 4),
        ("stg", 0.5, 4),
    ]
    assert all((job.prompts, job.seeds) == (("a red circle",), (7,)) for job in jobs)
    assert list(changed.models) == ["embedded"]


def test_every_combination_is_one_item_model_by_model(tmp_path):
    items = table(tmp_path, models={"a": {"model": "embedded"}, "b": {"model": "embedded", "steps": 3}})
    assert len(items) == 16 == len({item.key for item in items}) == len({item.file for item in items})
    assert [item.model for item in items] == ["a"] * 8 + ["b"] * 8
    combinations = {(i.model, i.method, i.prompt, i.seed) for i in items}
    assert len(combinations) == 16
    assert all(
        re.fullmatch(r"a-(red-circle|blue-square)-\w+-seed[01]-[0-9a-f]{16}\.gif", i.file) for i in items
    )


def test_the_key_depends_on_what_determines_the_clip_and_on_nothing_else(tmp_path):
    def keys(**content):
        return [item.key for item in table(tmp_path, **content)]

    before = keys()
    assert keys() == before
    assert keys(out="elsewhere", methods={"one": {"guidance": "cfg"}, "two": {"guidance": "oseg"}}) == before
    for changed in (
        {"settings": {**GIF, "steps": 3}},
        {"settings": {**GIF, "fps": 9}},
        {"settings": {**GIF, "format": "mp4"}},
        {"settings": {**GIF, "dtype": "bfloat16"}},
        {"seeds": [2, 3]},
        {"prompts": ["a red circle.", "a blue square."]},
    ):
        assert not set(keys(**changed)) & set(before), changed
    # A method's setting changes the items of this method only.
    mixed = keys(methods={"cfg": {}, "oseg": {"oseg_scale": 3.0}})
    assert mixed[:4] == before[:4] and not set(mixed[4:]) & set(before)


def test_the_dtype_auto_is_that_of_the_device(tmp_path):
    settings = {name: value for name, value in GIF.items() if name != "device"}
    variations = plan_variations(read_sweep(write_recipe(tmp_path, settings=settings)))
    on_cpu, on_gpu = (build_table(variations, kind) for kind in ("cpu", "cuda"))
    assert {item.job.dtype for item in on_cpu} == {"float32"}
    assert {item.job.dtype for item in on_gpu} == {"bfloat16"}
    assert not {item.key for item in on_cpu} & {item.key for item in on_gpu}


def test_the_shipped_recipe_is_read():
    (path,) = (recipe_folder() / "sweeps").glob("embedded.yaml")
    items = build_table(plan_variations(read_sweep(path)), "cpu")
    assert len(items) == 8 and len({dataclasses.replace(i.job, seeds=(0,)) for i in items}) == 4

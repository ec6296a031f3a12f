"""Jobs and recipes: strict reading, layers, and round trips."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oseg_video.config import (
    ConfigError,
    GenerateJob,
    dump_yaml,
    job_from_nested,
    job_from_plain,
    job_to_nested,
    job_to_plain,
    known_keys,
    read_recipe,
    recipe,
    recipe_names,
    recipe_path,
    resolve_job,
    shipped_recipe,
)
from oseg_video.config.job import LARGEST_SEED
from oseg_video.guidance.flat import flat_name, flat_settings
from oseg_video.guidance.methods import APG, METHODS, OSEG, STG, CFGZeroStar
from oseg_video.guidance.methods.base import text_methods
from oseg_video.guidance.reuse import Reuse
from oseg_video.settings import settings_of
from oseg_video.settings.schedule import Schedule
from oseg_video.types import SettingError

SIZE = {"steps": 2, "frames": 13, "height": 48, "width": 32, "fps": 8.0}


def make_job(**keys):
    return job_from_plain({"prompts": ("a red circle",), **SIZE, "guidance": "cfg", **keys})


def resolve(flags, config=None, family="embedded"):
    return resolve_job({"prompts": ["x"], **flags}, config, family_of=lambda model, revision: family)


def write_yaml(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
selectors = st.integers(0, 99) | st.sampled_from(["mid", "dual:2", "up.1:temporal"])
block_lists = st.lists(selectors, min_size=1, max_size=4, unique=True).map(tuple)


def schedules(values):
    """Schedules in both forms, their levels falling and at first 1."""
    levels = st.lists(st.floats(0, 0.999), max_size=4, unique=True).map(lambda x: [1.0, *sorted(x)[::-1]])
    pairs = levels.flatmap(lambda x: st.tuples(*(st.tuples(st.just(level), values) for level in x)))
    return st.builds(Schedule, pairs, st.sampled_from(["breakpoints", "lower_edges"]))


def values(name, setting):
    """Values that a setting allows."""
    if name == "blocks":
        return block_lists | schedules(block_lists)
    if name == "text":
        return st.builds(APG, eta=st.floats(0, 1)) | st.builds(CFGZeroStar, zero_steps=st.integers(0, 9))
    if name == "reference":
        return st.sampled_from(["token", "frame", "clip", "principal:3"])
    if name == "interval":
        return st.tuples(st.floats(0, 0.5), st.floats(0.51, 1))
    if setting.choices:
        return st.sampled_from(setting.choices)
    if isinstance(setting.default, bool):
        return st.booleans()
    if isinstance(setting.default, int):
        return st.integers(0, 9)
    low, high = max(setting.low, -100), min(setting.high, 100)
    numbers = st.floats(low, high, exclude_min=setting.exclusive, exclude_max=setting.exclusive)
    if name == "blur_sigma":
        return numbers | st.just(math.inf) | st.tuples(numbers, st.just(math.inf))
    return numbers | schedules(numbers) if "scale" in name else numbers


def guidances(method):
    """Instances of a method with any settings that it allows."""
    settings = {name: values(name, one) for name, one in settings_of(method).items()}
    needed = {name: settings.pop(name) for name in ("blocks",) if name in settings}
    return st.fixed_dictionaries(needed, optional=settings).map(lambda given: method(**given))


every = st.integers(1, 9) | st.floats(0.01, 0.99)
reuses = st.builds(
    Reuse,
    refresh=st.dictionaries(st.sampled_from(["uncond", "perturbed"]), every),
    cache=st.floats(0, 1),
)
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
    guidance=st.one_of(*(guidances(method) for method in METHODS.values())),
    reuse=reuses,
    own=st.dictionaries(st.sampled_from(["motion_bucket_id", "decode_chunk_size"]), st.integers(1, 200)),
    out=texts,
)


@given(job=jobs)
def test_yaml_gives_the_same_job_back(job, tmp_path_factory):
    path = tmp_path_factory.mktemp("yaml") / "job.yaml"
    path.write_bytes(dump_yaml(job).encode())
    assert job_from_plain(read_recipe(path)) == job


@given(job=jobs)
def test_json_gives_the_same_job_back(job):
    for write, read in ((job_to_plain, job_from_plain), (job_to_nested, job_from_nested)):
        assert read(json.loads(json.dumps(write(job), allow_nan=False))) == job
    assert job_from_plain(job_to_plain(job, defaults=False)) == job


def test_what_has_its_default_can_be_left_out():
    job = make_job(guidance="oseg", blocks=[1], blur_sigma=5.0, mix=0.5)
    short = job_to_plain(job, defaults=False)
    assert {name: short[name] for name in ("guidance", "blocks", "mix")} == {
        "guidance": "oseg",
        "blocks": [1],
        "mix": 0.5,
    }
    assert not {"blur_sigma", "oseg_scale", "text", "rescale", "refresh", "cache"} & set(short)


def test_every_setting_says_what_it_is_and_has_a_unit_or_a_meaning():
    for name, key in known_keys().items():
        assert len(key.help) > 10, name


def test_every_setting_of_every_method_is_a_key():
    flat = flat_settings()
    for method in METHODS.values():
        for name, one in settings_of(method).items():
            key = flat_name(method.name, name, one)
            assert one.per_method == (name in ("scale", "audio_scale"))
            assert method.name in flat[key].owners
            assert known_keys()[key].group == "guidance"
            assert one.help.removesuffix(".") in known_keys()[key].help


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
        ({"seeds": tuple(range(100_001))}, "a job makes at most 100000 clips, got 1 prompts x 100001 seeds"),
        ({"seeds": (2**63,)}, "seeds must be from 0 to 9223372036854775807"),
        ({"prompts": ("\udce4",)}, "UTF-8"),
        ({"dtype": "int8"}, "dtype must be one of auto, float32, bfloat16, float16, got 'int8'"),
        ({"vae_tiling": "yes"}, "vae_tiling must be true or false, got 'yes'"),
        ({"interval": (0.1,)}, "interval must be two numbers"),
        (
            {"blocks": (1, "")},
            "or names (a-z, 0-9 and _ . : -), got ''",
        ),
        (
            {"blocks": (1.5,)},
            "blocks must be block indices (integers >= 0) or names (a-z, 0-9 and _ . : -), got 1.5",
        ),
        ({"stg_scale": "4"}, "stg_scale must be a number, got '4'"),
        (
            {"text": "zero"},
            f"text must be one of {', '.join(text_methods())}, got 'zero'",
        ),
        ({"mode": "skip"}, "mode must be one of residual, attention_skip, attention_values, got 'skip'"),
        ({"guidance": "CFG"}, f"guidance must be one of {', '.join(METHODS)}, got 'CFG'"),
        ({"refresh": {"uncond": 0}}, "refresh must be numbers of steps from 1, or fractions"),
        ({"refresh": {"perturb": 2}}, "refresh must be steps by branch, which is one of uncond, perturbed"),
        ({"cache": 2}, "cache must be from 0 to 1, got 2"),
        ({"rule": "published"}, "rule is no setting any more: guidance oseg has the slides' rule"),
        ({"published_skip": True}, "it is skip_conditional of guidance oseg-released now"),
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
        ("blocks: {breakpoints: {1.0: [x, 1.5]}}", "blocks must be block indices (integers >= 0) or names"),
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
    assert shipped["blocks"] == [34] and shipped["stg_scale"] == 2.0 and shipped["guidance"] == "stg"
    with pytest.raises(ConfigError, match="is called mochi-oseg-released"):
        read_recipe(write_yaml(tmp_path, "extends: mochi-oseg-published.yaml"))


def test_a_recipe_has_sections_for_methods(tmp_path):
    text = "steps: 7\nmethods:\n  cfg: {guidance_scale: 3.0}\n  stg: {blocks: [2], guidance_scale: 4.0}\n"
    write_yaml(tmp_path, text, "base.yaml")
    assert read_recipe(tmp_path / "base.yaml") == {"steps": 7}
    stg = read_recipe(write_yaml(tmp_path, "extends: base.yaml\nguidance: stg\nstg_scale: 2.0"))
    assert stg == {"steps": 7, "guidance": "stg", "guidance_scale": 4.0, "blocks": [2], "stg_scale": 2.0}
    seg = read_recipe(write_yaml(tmp_path, "extends: base.yaml\nguidance: seg"))
    assert seg == {"steps": 7, "guidance": "seg", "guidance_scale": 3.0}
    none = read_recipe(write_yaml(tmp_path, "extends: base.yaml\nguidance: none"))
    assert none == {"steps": 7, "guidance": "none"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods: [stg]", "methods must be mappings of settings by method, got ['stg']"),
        ("methods: {stg: 3}", "methods must be mappings of settings by method"),
        ("weights: {tiny: 3}", "weights must be mappings of settings by name, got {'tiny': 3}"),
        ("weights: {tiny: {stpes: 3}}", "unknown key 'stpes'; did you mean 'steps'?"),
        ("weights: {tiny: {steps: x}}", "steps must be an integer, got 'x'"),
        ("weights: {tiny: {methods: {cfg: {steps: 3}}}}", "steps under methods is no setting of a method"),
        ("methods: {stgg: {}}", "unknown method 'stgg'; did you mean 'stg'?"),
        ("methods: {stg: {blocs: [1]}}", "unknown key 'blocs'; did you mean 'blocks'?"),
        ("methods: {stg: {steps: 3}}", "steps under methods is no setting of a method"),
    ],
)
def test_a_wrong_section_is_refused(tmp_path, text, message):
    with pytest.raises(ConfigError) as refused:
        read_recipe(write_yaml(tmp_path, text))
    assert message in str(refused.value)


def test_shipped_recipes_have_names():
    assert recipe("mochi", "oseg") == OSEG(guidance_scale=4.5, blocks=(34,))
    assert recipe("mochi", "stg", scale=0.5, text=APG()) == STG(
        guidance_scale=4.5, scale=0.5, text=APG(), blocks=(34,)
    )
    with pytest.raises(SettingError, match="stg has no setting 'sclae'; did you mean 'scale'"):
        recipe("mochi", "stg", sclae=0.5)
    assert shipped_recipe("mochi-stg")["blocks"] == [34] and shipped_recipe("nothing") is None
    with pytest.raises(SettingError, match="no recipe for a family 'mochy'; did you mean 'mochi'"):
        recipe("mochy")
    with pytest.raises(SettingError, match=r"guidance must be one of .*, got 'osge'; did you mean 'oseg'"):
        recipe("mochi", "osge")


def test_layers_later_ones_win(tmp_path):
    config = write_yaml(tmp_path, "steps: 5\nfps: 9\nguidance: stg\nstg_scale: 0.5")
    job = resolve({"steps": 6}, config)
    assert (job.steps, job.fps, job.height) == (6, 9.0, read_recipe(recipe_path("embedded"))["height"])
    # The method came from the file, so the recipe of model and method is STG's.
    stg = shipped_recipe("embedded-stg")
    assert job.guidance == STG(guidance_scale=stg["guidance_scale"], scale=0.5, blocks=stg["blocks"])


def test_what_nothing_sets_is_named():
    with pytest.raises(SettingError, match="nothing sets steps, frames, height, width"):
        resolve({}, family="unheard-of")


PERTURBED = ("stg", "s2", "pag", "sag", "seg", "oseg", "oseg-released")


@pytest.mark.parametrize("guidance", METHODS)
@pytest.mark.parametrize("family", ["embedded", "mochi", "ltx"])
def test_every_family_takes_every_method(family, guidance):
    flags = {"guidance": guidance}
    if guidance in PERTURBED and guidance != "sag" and f"{family}-{guidance}" not in recipe_names():
        with pytest.raises(SettingError, match="blocks must name at least one block"):
            resolve(flags, family=family)
        flags["blocks"] = [1]
    elif guidance == "oseg-released":
        flags["blocks"] = [34]
    method = resolve(flags, family=family).guidance
    assert method.name == guidance
    assert bool(method.blocks_used) == (guidance in (*PERTURBED, "nag"))
    assert (method.largest_guidance_scale == 1.0) == (guidance == "none")


def test_schedules_reach_the_method():
    given = {
        "guidance": "stg",
        "guidance_scale": {"breakpoints": {0.5: 2, 1: 4}},
        "stg_scale": {"lower_edges": {"1.0": 0, "0.9": 3, "0.4": 1}},
        "rescale": {"breakpoints": {1.0: 0.7}},
        "blocks": {"breakpoints": {1.0: [3, "dual:2"], 0.5: []}},
        "mode": "attention_skip",
        "text": "apg",
        "momentum": 0.25,
    }
    assert resolve(given, family="ltx").guidance == STG(
        guidance_scale=Schedule(((1.0, 4.0), (0.5, 2.0))),
        scale=Schedule(((1.0, 0.0), (0.9, 3.0), (0.4, 1.0)), "lower_edges"),
        rescale=Schedule(((1.0, 0.7),)),
        blocks=Schedule(((1.0, (3, "dual:2")), (0.5, ()))),
        mode="attention_skip",
        text=APG(momentum=0.25),
    )


def test_a_schedule_that_a_method_cannot_take_is_refused_by_name():
    for value, message in (
        ({"breakpoints": {1.0: 4, 0.5: "inf"}}, "stg_scale must be a finite number, got inf"),
        ({"breakpoints": {1.0: 4, 0.5: -1}}, "stg_scale must be at least 0, got -1.0"),
    ):
        with pytest.raises(SettingError, match=message):
            resolve({"guidance": "stg", "stg_scale": value}, family="ltx")


@pytest.mark.parametrize(
    ("guidance", "setting", "message"),
    [
        ("cfg", {"eta": 0.5}, "eta has no effect with guidance cfg; it belongs to apg, "),
        ("apg", {"zero_steps": 1}, "zero_steps has no effect with guidance apg; it belongs to cfg-zero, "),
        ("seg", {"mode": "residual"}, "mode has no effect with guidance seg; it belongs to stg"),
        ("cfg-zero", {"text": "apg"}, "text has no effect with guidance cfg-zero; it belongs to "),
        ("stg", {"blocks": (1,), "eta": 0.5}, "eta has no effect with text cfg; it belongs to apg"),
    ],
)
def test_a_setting_without_effect_is_refused(guidance, setting, message):
    with pytest.raises(SettingError, match=message):
        make_job(guidance=guidance, **setting)


def test_known_settings_are_in_the_recipes():
    assert resolve({"guidance": "stg"}, family="mochi").guidance.blocks == (34,)
    assert resolve({"guidance": "stg"}, family="ltx").guidance.blocks == (19,)
    assert resolve({"guidance": "oseg"}, family="mochi").guidance.blur_sigma == 5.0
    assert {name.split("-")[0] for name in recipe_names()} >= {"embedded", "mochi", "ltx"}


def test_a_setting_of_another_method_is_refused():
    with pytest.raises(SettingError, match="mix has no effect with guidance stg; it belongs to oseg"):
        make_job(guidance="stg", blocks=(1,), mix=0.5)
    with pytest.raises(SettingError, match="guidance_scale has no effect with guidance none"):
        make_job(guidance="none", guidance_scale=3.0)


# -- what single weights need


OWN_WEIGHTS = """
negative_prompt: bad
steps: 9
weights:
  tiny-1.0:
    steps: 5
    flow_shift: 2.0
    methods:
      cfg: {guidance_scale: 4}
      stg: {stg_scale: 7}
"""


@pytest.mark.parametrize("model", ["owner/tiny-1.0", "/models/tiny-1.0", "models/tiny-1.0/"])
def test_weights_have_what_stands_under_their_name(tmp_path, model):
    path = write_yaml(tmp_path, OWN_WEIGHTS)
    job = resolve({"model": model, "guidance": "stg", "blocks": [1]}, path)
    assert (job.steps, job.own, job.negative_prompt) == (5, {"flow_shift": 2.0}, "bad")
    other = resolve({"model": "owner/tiny-1.1", "guidance": "stg", "blocks": [1]}, path)
    assert other.steps == 9 and other.own == {}


def test_weights_go_over_what_they_extend_and_under_what_extends_them(tmp_path):
    write_yaml(tmp_path, OWN_WEIGHTS, "base.yaml")
    path = write_yaml(tmp_path, "extends: base.yaml\nmodel: owner/tiny-1.0\nguidance: cfg\nsteps: 3\n")
    settings = read_recipe(path)
    assert (settings["steps"], settings["flow_shift"], settings["guidance_scale"]) == (3, 2.0, 4)


def test_a_recipe_of_family_and_method_is_extended_with_all_that_the_family_has(tmp_path):
    weights = {"model": "Wan-AI/Wan2.1-T2V-14B-Diffusers"}
    extending = write_yaml(tmp_path, "extends: wan-stg\nsteps: 3\n")
    by_name = resolve({**weights, "steps": 3}, "wan-stg", family="wan")
    assert resolve(weights, extending, family="wan") == by_name
    assert (by_name.height, by_name.own["flow_shift"], by_name.guidance.name) == (720, 5.0, "stg")
    # Another method takes its place, with none of its settings.
    assert resolve({**weights, "guidance": "seg"}, extending, family="wan").guidance.name == "seg"


def test_a_text_guidance_in_a_method_has_what_the_recipe_says_of_it(tmp_path):
    seg = resolve({"guidance": "seg", "text": "cfg-zero"}, family="sd15").guidance
    assert (seg.text.zero_steps, CFGZeroStar().zero_steps) == (0, 1)
    stg = resolve({"guidance": "stg", "text": "apg"}, family="wan").guidance
    apg = resolve({"guidance": "apg"}, family="wan").guidance
    own = ("eta", "momentum", "norm_threshold")
    assert [getattr(stg.text, name) for name in own] == [getattr(apg, name) for name in own]
    path = write_yaml(tmp_path, "methods:\n  apg: {eta: 0.25, guidance_scale: 9}\n  stg: {text: apg}\n")
    mine = resolve({"guidance": "stg", "momentum": -0.1, "blocks": [1]}, path).guidance
    assert (mine.text.eta, mine.text.momentum) == (0.25, -0.1) and mine.guidance_scale != 9


def test_the_scale_of_a_second_expert_is_left_out_with_a_method_of_its_own_scale():
    weights = {"model": "Wan-AI/Wan2.2-T2V-A14B-Diffusers"}
    assert resolve({**weights, "guidance": "cfg"}, family="wan").own["guidance_scale_2"] == 3.0
    assert "guidance_scale_2" not in resolve({**weights, "guidance": "nag"}, family="wan").own


@pytest.mark.parametrize("key", ["guidance: nag", "model: mochi", "image: a.png", "weights: {b: {steps: 7}}"])
def test_what_decides_about_weights_does_not_stand_under_them(tmp_path, key):
    path = write_yaml(tmp_path, f"weights:\n  tiny-1.0: {{{key}}}\n")
    with pytest.raises(ConfigError, match=f"{key.split(':')[0]} cannot stand under weights"):
        resolve({}, path)


def test_the_default_model_has_its_weights_section_too(tmp_path):
    path = write_yaml(tmp_path, "weights:\n  embedded: {steps: 7}\n")
    assert resolve({}, path).steps == resolve({"model": "embedded"}, path).steps == 7


@pytest.mark.parametrize(
    ("model", "image", "steps"),
    [
        ("wan", None, 50),
        ("wan", "a.png", 40),
        ("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", "a.png", 40),
    ],
)
@pytest.mark.parametrize("config", [None, "wan-cfg"])
def test_a_family_name_stands_for_its_weights(model, image, steps, config):
    flags = {"model": model, **({"image": image} if image else {}), **({} if config else {"guidance": "cfg"})}
    assert resolve(flags, config, family="wan").steps == steps


def test_what_stands_in_flags_goes_over_the_weights():
    flags = {"model": "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "guidance": "cfg", "flow_shift": 4.0, "fps": 30.0}
    job = resolve(flags, family="wan")
    assert (job.own, job.fps, job.frames, job.height) == ({"flow_shift": 4.0}, 30.0, 121, 704)


EXPERTS = {"model": "Wan-AI/Wan2.2-T2V-A14B-Diffusers"}


def test_what_a_recipe_says_of_text_guidance_is_left_out_without():
    job = resolve({**EXPERTS, "guidance": "cfg"}, family="wan")
    assert job.negative_prompt.startswith("Bright tones") and job.own["guidance_scale_2"] == 3.0
    for flags in ({"guidance": "none"}, {"guidance": "cfg", "guidance_scale": 1.0}):
        for config in (None, "wan-cfg") if "guidance_scale" in flags else (None,):
            job = resolve({**EXPERTS, **flags}, config, family="wan")
            assert job.negative_prompt is None and set(job.own) == {"flow_shift"}
    scheduled = {"guidance": "cfg", "guidance_scale": {"breakpoints": {1.0: 4, 0.5: 2}}}
    job = resolve({**EXPERTS, **scheduled}, family="wan")
    assert job.negative_prompt and set(job.own) == {"flow_shift"}


def test_what_the_user_says_of_it_stays_to_be_refused(tmp_path):
    said = {"negative_prompt": "x", "guidance_scale_2": 2.0}
    job = resolve({**EXPERTS, **said, "guidance": "none"}, family="wan")
    assert (job.negative_prompt, job.own["guidance_scale_2"]) == ("x", 2.0)
    path = write_yaml(tmp_path, "extends: wan.yaml\nnegative_prompt: x\nguidance: none\n")
    assert resolve(EXPERTS, path, family="wan").negative_prompt == "x"


def test_what_a_recipe_says_of_an_image_is_left_out_without():
    flags = {"model": "Lightricks/LTX-Video-0.9.5", "guidance": "cfg"}
    assert "image_cond_noise_scale" not in resolve(flags, family="ltx").own
    assert resolve({**flags, "image": "a.png"}, family="ltx").own["image_cond_noise_scale"] == 0.025
    said = {**flags, "image_cond_noise_scale": 0.1}
    assert resolve(said, family="ltx").own["image_cond_noise_scale"] == 0.1


def test_ltx_has_its_text_whole():
    for method in ("cfg", "stg"):
        assert resolve({"model": "ltx", "guidance": method}, family="ltx").max_sequence_length == 256
    job = resolve({}, recipe_path("ltx-13b-stg"), family="ltx")
    assert job.max_sequence_length == 256
    assert job.own == {"decode_timestep": 0.05, "decode_noise_scale": 0.025}


def test_hunyuan_has_its_embedded_guidance_for_an_image_too():
    for flags in ({}, {"image": "a.png"}):
        job = resolve({"model": "hunyuan", "guidance": "cfg", **flags}, family="hunyuan")
        assert job.own["embedded_guidance_scale"] == 6.0
    flags = {"model": "hunyuanvideo-community/HunyuanVideo-I2V-33ch", "image": "a.png", "guidance": "cfg"}
    assert resolve(flags, family="hunyuan").own["embedded_guidance_scale"] == 1.0


def test_sections_of_a_users_file_are_those_of_the_method_asked_for(tmp_path):
    sections = "methods: {stg: {stg_scale: 3.25, blocks: [1]}, oseg: {oseg_scale: 2.25, blocks: [2]}}"
    mine = write_yaml(tmp_path, f"model: embedded\n{sections}")
    stg = resolve({"guidance": "stg"}, mine).guidance
    assert (stg.name, stg.scale, stg.blocks) == ("stg", 3.25, (1,))
    assert resolve({}, mine).guidance.scale == 2.25  # the method of the recipe of its model
    named = write_yaml(tmp_path, f"guidance: oseg\n{sections}")
    assert resolve({"guidance": "stg"}, named).guidance.blocks == (1,)
    assert resolve({}, named).guidance.blocks == (2,)
    # Of a shipped recipe that names another method, nothing stays that only that one has.
    assert resolve({"guidance": "stg"}, "ltx-13b-distilled", family="ltx").guidance.blocks == (42,)


def test_recipes_of_single_weights_name_them():
    for name, model in (
        ("ltx-13b-distilled", "Lightricks/LTX-Video-0.9.8-13B-distilled"),
        ("sdxl-turbo-pag", "stabilityai/sdxl-turbo"),
        ("sdxl-turbo.yaml", "stabilityai/sdxl-turbo"),
        ("mochi-stg", "mochi"),
    ):
        seen = []

        def family_of(name, revision, seen=seen):
            seen.append(name)
            return "ltx" if "LTX" in name else "sdxl" if "sdxl" in name else name

        job = resolve_job({"prompts": ["x"]}, name, family_of=family_of)
        assert seen == [model] and job.model == model


def test_without_words_a_guidance_scale_of_a_recipe_is_off_and_the_users_own_is_not(tmp_path):
    empty = {"prompts": [""]}
    assert resolve(empty).guidance.guidance_scale == 1
    for config in ("embedded", "embedded-oseg"):
        assert resolve(empty, config).guidance.guidance_scale == 1
    own = write_yaml(tmp_path, "guidance_scale: 2.5")
    assert resolve(empty, own).guidance.guidance_scale == 2.5
    in_section = write_yaml(tmp_path, "methods: {oseg: {guidance_scale: 2.5}}")
    assert resolve(empty, in_section).guidance.guidance_scale == 2.5


def test_a_config_without_a_name_is_refused():
    with pytest.raises(ConfigError, match="cannot read"):
        resolve({}, "")

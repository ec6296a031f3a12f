"""The shipped recipes of tables: the toy ones run, shortened; the others as far as they need no weights."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from oseg_video.adapters import all_adapters
from oseg_video.cli import main
from oseg_video.comparison.compare import compare
from oseg_video.comparison.planned import check_metrics, planned_clips
from oseg_video.comparison.recipe import label, read_comparison
from oseg_video.config.prompts import read_prompts
from oseg_video.embedded.dataset import parse_caption
from oseg_video.evaluation.features.protocols import PROTOCOLS
from oseg_video.evaluation.metrics.base import MetricOptions, known_metrics
from oseg_video.jobs.loading import hub
from oseg_video.media import write_clip
from oseg_video.sweeps.recipe import Subject, SweepRecipe
from oseg_video.sweeps.table import plan_variations
from tests.fake_vbench import build_environment
from tests.tiny.unet import tiny_sdxl
from tests.unit.sweep.conftest import painter  # noqa: F401

TABLES = Path(__file__).parents[2] / "configs" / "tables"
SLIDES = {
    "mochi cfg": (0.524, 0.507, 0.985, 0.87, 0.976),
    "mochi stg": (0.628, 0.554, 0.988, 0.86, 0.978),
    "mochi oseg": (0.644, 0.567, 0.992, 0.86, 0.981),
    "hunyuan cfg": (0.533, 0.482, 0.977, 0.913, 0.965),
    "hunyuan stg": (0.598, 0.495, 0.963, 0.872, 0.961),
    "hunyuan oseg": (0.613, 0.502, 0.975, 0.896, 0.983),
    "cfg": (151.3, 38.0, 0.687, 0.637, 0.966, 0.562),
    "stg": (128.7, 38.5, 0.694, 0.639, 0.968, 0.694),
    "oseg": (122.3, 39.2, 0.698, 0.646, 0.972, 0.703),
}
"""Tables 3 and 4 of OSEG's slides, row by row, in the order of their columns."""
IMAGES = {
    "table1": {
        "sag": (106.683, 0.706, 0.644),
        "pag": (105.271, 0.542, 0.472),
        "seg": (95.316, 0.522, 0.454),
        "oseg": (88.014, 0.506, 0.422),
    },
    "table2": {
        "sag": (72.08, 0.364, 0.912, 0.905),
        "pag": (65.45, 0.301, 0.743, 0.715),
        "seg": (59.49, 0.312, 0.729, 0.704),
        "oseg": (56.94, 0.363, 0.713, 0.686),
    },
}
"""Tables 1 and 2, likewise."""


def read(name, tmp_path, **options):
    return read_comparison(TABLES / f"{name}.yaml", images=tmp_path / "images", **options)


def check_reported(recipe):
    """The numbers of the slides, all of them, under names that exist."""
    sweep = recipe.sweep
    labels = [label(sweep, model, method) for model in sweep.models for method in sweep.methods]
    rows = {name: dict(zip(recipe.metrics, SLIDES[name], strict=True)) for name in labels}
    assert recipe.reported.values == rows
    assert {*recipe.metrics} <= {*known_metrics()}


@pytest.fixture
def repositories(tmp_path, monkeypatch):
    """The hub, as far as it describes models without their weights."""

    def fetch_file(repository, commit, name):
        (adapter,) = (one for one in all_adapters() if one.hub_repository == repository)
        denoiser = adapter.denoiser_attributes[0]
        contents = {
            "model_index.json": {
                "_class_name": adapter.pipelines[0],
                denoiser: ["diffusers", adapter.denoiser_class],
            },
            f"{denoiser}/config.json": adapter.full_size,
            "scheduler/scheduler_config.json": {"shift": 1.0},
        }
        path = tmp_path / "hub" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(contents[name]))
        return path

    monkeypatch.setattr(hub, "find_commit", lambda repository, revision: "c0ffee")
    monkeypatch.setattr(hub, "fetch_file", fetch_file)


@pytest.fixture(scope="module")
def data_home(tmp_path_factory):
    home = tmp_path_factory.mktemp("data")
    build_environment(home)
    return home


@pytest.fixture
def vbench(data_home, tmp_path, monkeypatch):
    """VBench's interpreter, with a stand-in for the package."""
    monkeypatch.setenv("XDG_DATA_HOME", str(data_home))
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "calls.jsonl"))
    monkeypatch.delenv("FAKE_VBENCH", raising=False)


@pytest.mark.usefixtures("vbench", "repositories")
def test_table_3_from_prompts_to_a_table_beside_the_reported_one(tmp_path, painter):  # noqa: F811
    recipe = read("table3", tmp_path)
    check_reported(recipe)
    variations = plan_variations(recipe.sweep)
    assert sum(one.count for one in variations) == 600
    planned = planned_clips(variations)
    check_metrics(recipe.metrics, planned, MetricOptions())
    assert all(clip.frames / clip.fps < 5 for clips in planned.values() for clip in clips)

    changes = {"height": 64, "width": 64, "device": "cpu"}
    small = {name: {**model, **changes} for name, model in recipe.sweep.models.items()}
    short = dataclasses.replace(recipe.sweep, subjects=recipe.sweep.subjects[:2], models=small)
    done = compare(
        short, tmp_path / "out", recipe.metrics, baseline=recipe.baseline, reported=recipe.reported
    )
    assert done.complete and done.summary.made == 12 == len(painter.painted)
    lines = done.table.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:14]] == [
        f"| {model} {method}{suffix}"
        for model in ("mochi", "hunyuan")
        for method in ("cfg", "stg", "oseg")
        for suffix in ("", ", reported")
    ]
    assert lines[13] == "| hunyuan oseg, reported | - | 0.613 | 0.502 | 0.975 | 0.896 | 0.983 |"
    assert [line.split(" | ")[0] for line in lines if " minus " in line] == [
        f"| {model} {method} minus {model} cfg"
        for model in ("mochi", "hunyuan")
        for method in ("stg", "oseg")
    ]


@pytest.mark.usefixtures("vbench", "repositories")
def test_table_4_starts_from_clips_of_ucf_101(tmp_path):
    names = read_prompts(TABLES / "table4-clips.txt")
    assert len({*names}) == len(names) == PROTOCOLS["fvd:fvd2048_16f"].clips
    assert len({name.split("/")[0] for name in names[:101]}) == 101
    clip = torch.zeros(17, 3, 64, 80, dtype=torch.uint8)
    for name in names[:10]:
        (tmp_path / "UCF-101" / name).parent.mkdir(parents=True)
        path = tmp_path / "UCF-101" / name
        write_clip(path.with_suffix(".mp4"), clip, 25, format="mp4")
        path.with_suffix(".mp4").rename(path)
    recipe = read("table4", tmp_path, real=tmp_path / "UCF-101", limit=10)
    check_reported(recipe)
    variations = plan_variations(recipe.sweep)
    assert sum(one.count for one in variations) == 30
    dimensions = [name for name in recipe.metrics if name.startswith("vbench:")]
    check_metrics(dimensions, planned_clips(variations), MetricOptions())


def test_the_toy_tables_shortened(tmp_path):
    for name, values in (("table3", 6), ("table4", 4)):
        recipe = read(f"{name}-embedded", tmp_path)
        assert list(recipe.sweep.methods) == ["cfg", "stg", "oseg"]
        settings = {**recipe.sweep.settings, "steps": 2, "device": "cpu"}
        quick = dataclasses.replace(recipe.sweep, settings=settings).changed(limit=10)
        done = compare(quick, tmp_path / "out", recipe.metrics, baseline=recipe.baseline)
        # The second table is about the clips of the first.
        assert done.complete and done.summary.made == (30 if name == "table3" else 0)
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        assert len(results["differences"]) == 2 * values
        assert all(one["interval"] and one["pairs"] == 10 for one in results["differences"])
    prompts = read_prompts(TABLES / "embedded-prompts.txt")
    shown = [parse_caption(prompt) for prompt in prompts]
    assert len({(one.colour, one.shape, one.motion) for one in shown}) == len(prompts) == 6 * 4 * 8


@pytest.mark.usefixtures("repositories")
@pytest.mark.parametrize("name", IMAGES)
def test_tables_1_and_2_say_what_they_would_cost(name, tmp_path, capsys):
    recipe = read(name, tmp_path)
    *reported, last = recipe.metrics
    assert last == "colours" and {*recipe.metrics} <= {*known_metrics()}
    rows = {method: dict(zip(reported, row, strict=True)) for method, row in IMAGES[name].items()}
    assert recipe.reported.values == rows
    assert list(recipe.sweep.methods) == ["none", *rows]
    assert len(recipe.sweep.subjects) * len(recipe.sweep.seeds) == 5000
    assert main(["compare", name, "--explain", "--limit", "2"]) == 0
    said = capsys.readouterr().out
    push = "0.75 (C - P)" if name == "table1" else "4 (C - U) + 0.75 (U - P)"
    assert f"rule     C + {push}, {2 if name == 'table1' else 3}.00 passes a step" in said
    assert f"total    {2 * 5 if name == 'table1' else 2 * 5 * 625} clips" in said
    assert "metric   lpips:vgg: " in said and "reported OSEG's slides" in said
    assert main(["compare", name]) == 2
    assert "the following arguments are required: --out" in capsys.readouterr().err


@pytest.mark.usefixtures("repositories")
def test_the_ablation_of_sigma_is_about_four_of_them(tmp_path, capsys):
    assert main(["compare", "ablation-sigma", "--explain", "--limit", "1"]) == 0
    said = capsys.readouterr().out
    assert "sigma inf: 1 clips" in said and "total    5 clips" in said
    sigmas = [method.get("blur_sigma") for method in read("ablation-sigma", tmp_path).sweep.methods.values()]
    assert sigmas == [None, 3, 5, 15, float("inf")]


def test_the_toy_tables_of_images_shortened(tmp_path):
    for name, values in (("table1", 3), ("table2", 7), ("ablation-sigma", 7)):
        recipe = read(f"{name}-embedded", tmp_path)
        settings = {**recipe.sweep.settings, "steps": 2, "device": "cpu"}
        quick = dataclasses.replace(recipe.sweep, settings=settings).changed(limit=5)
        done = compare(quick, tmp_path / name, recipe.metrics, baseline=recipe.baseline)
        assert done.complete and done.summary.made == 5 * len(quick.methods)
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert len(results["differences"]) == values * (len(quick.methods) - 1)
        assert all(one["interval"] and one["pairs"] == 5 for one in results["differences"])
        assert done.page.is_file()


def test_images_without_a_prompt_from_sampling_to_the_page(tmp_path):
    """What table 1 does, with a tiny SDXL of random weights and the metrics that need none."""
    tiny_sdxl().save_pretrained(tmp_path / "sdxl")
    size = {"height": 96, "width": 64, "steps": 2, "device": "cpu", "dtype": "float32", "vae_tiling": False}
    recipe = SweepRecipe(
        subjects=(Subject(prompt=""),),
        seeds=(0, 1, 2),
        methods={name: {"guidance": name} for name in ("none", "sag", "seg")},
        models={"sdxl": {"model": str(tmp_path / "sdxl")}},
        settings=size,
    )
    done = compare(recipe, tmp_path / "out")
    assert done.complete and done.summary.made == 9
    assert list(done.results["better"]) == ["colours:saturation", "colours:contrast"]
    assert len(done.results["differences"]) == 4
    assert all(one["pairs"] == 3 and one["interval"] for one in done.results["differences"])
    page = json.loads(done.page.read_text().split('id="data">')[1].split("</script>")[0])
    assert [(row["text"], row["seed"]) for row in page["rows"]] == [
        ("(empty prompt)", seed) for seed in range(3)
    ]
    shown = [clip for row in page["rows"] for clip in row["clips"].values()]
    assert len(shown) == 9 and all(clip["still"] and clip["src"].endswith(".png") for clip in shown)
    assert {setting["guidance_scale"] for setting in page["settings"] if "guidance_scale" in setting} == {1.0}
    main(["contact-sheet", str(tmp_path / "out" / "clips"), "--out", str(tmp_path / "sheet.png"), "--quiet"])
    assert (tmp_path / "sheet.png").is_file()

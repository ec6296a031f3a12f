"""Recipes of comparisons: what they say about metric values, and where their images come from."""

import json

import pytest
import torch
import yaml
from PIL import Image

from oseg_video.cli import main
from oseg_video.comparison.compare import compare
from oseg_video.comparison.recipe import read_comparison
from oseg_video.config import ConfigError
from oseg_video.evaluation.results import Reported
from oseg_video.media import MediaError, write_clip
from oseg_video.sweeps.recipe import Subject, SweepRecipe, read_sweep
from tests.sweeps import SMALL
from tests.unit.sweep.conftest import painter  # noqa: F401

pytestmark = pytest.mark.slow

VALUES = {"oseg": {"frame_difference": 12.5, "alignment:embedded:colour": 1}}


@pytest.fixture(autouse=True)
def painted(painter):  # noqa: F811
    """No test here samples."""
    return painter


def write(folder, **content):
    recipe = {"prompts": ["a", "b", "c"], "methods": ["cfg", "oseg"], "settings": SMALL, **content}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def reported(**methods):
    return {"reported": {"source": "a paper", "values": methods}}


def read(path, **options):
    return read_comparison(path, images=path.parent / "images", **options)


def test_a_sweep_is_a_comparison_and_the_other_way_round(tmp_path):
    plain = read(write(tmp_path))
    assert (plain.metrics, plain.baseline, plain.reported) == (None, None, None)
    path = write(
        tmp_path,
        metrics=["frame_difference"],
        baseline="oseg",
        **reported(**VALUES),
    )
    recipe = read(path)
    assert recipe.sweep == plain.sweep == read_sweep(path)
    assert (recipe.metrics, recipe.baseline) == (("frame_difference",), "oseg")
    assert recipe.reported == Reported(source="a paper", values=VALUES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"metrics": "frame_difference"}, "metrics must be a list of names, got 'frame_difference'"),
        ({"baseline": "stg"}, "baseline must be one of the methods cfg, oseg, got 'stg'"),
        ({"baseline": ["cfg"]}, r"baseline must be one of the methods cfg, oseg, got \['cfg'\]"),
        ({"metrisc": ["x"]}, "unknown key 'metrisc'; did you mean 'metrics'"),
        ({"reported": {"values": {}}}, r"reported must have a source \(text\) and values"),
        ({"published": {}}, "published is called reported now"),
        (reported(osge={}), "unknown method 'osge'; did you mean 'oseg'"),
        (reported(cfg={"is:c3": 1}), "unknown metric 'is:c3'; did you mean"),
        (reported(cfg={"is:c3d": "1"}), "mapping of metrics to numbers"),
    ],
)
def test_mistakes_are_named(tmp_path, content, message):
    with pytest.raises(ConfigError, match=f"recipe.yaml: .*{message}"):
        read(write(tmp_path, **content))


def test_the_command_takes_from_the_recipe_what_no_flag_says(tmp_path, capsys):
    theirs = {"source": "a paper | of theirs", "values": VALUES}
    path = write(tmp_path, metrics=["frame_difference"], baseline="oseg", reported=theirs)
    command = ["compare", str(path), "--out", str(tmp_path / "out"), "--quiet"]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert "| oseg, reported | - | 12.5 |" in table and r"Reported: a paper \| of theirs" in table
    assert "| cfg minus oseg | 3 |" in table and "cfg, reported" not in table
    assert json.loads((tmp_path / "out" / "results.json").read_text())["reported"] == theirs
    assert main([*command, "--baseline", "cfg", "--metrics", "block_motion", "--limit", "2"]) == 0
    table = capsys.readouterr().out
    assert "| oseg minus cfg | 2 |" in table and "| oseg, reported | - | - |" in table


def test_flags_win_over_the_recipe(tmp_path, capsys, painted):
    path = write(tmp_path, metrics=["frame_difference"], baseline="oseg")
    command = ["compare", str(path), "--out", str(tmp_path / "out"), "--quiet", "--seeds", "3", "4"]
    assert main([*command, "--guidance", "cfg,stg", "--prompt", "d", "--steps", "3"]) == 0
    assert "| stg minus cfg | 2 |" in capsys.readouterr().out, (
        "the recipe's baseline is not among the methods"
    )
    assert painted.painted == [("d", seed, method) for method in ("cfg", "stg") for seed in (3, 4)]
    manifests = [json.loads(file.read_text()) for file in (tmp_path / "out" / "clips").glob("*.json")]
    assert {manifest["job"]["steps"] for manifest in manifests} == {3} and len(manifests) == 4


@pytest.mark.parametrize("flag", ["--dry-run", "--explain"])
def test_a_dry_run_makes_nothing(tmp_path, capsys, painted, real, flag):
    path = write(tmp_path, metrics=["frame_difference"])
    command = ["compare", str(path), "--out", str(tmp_path / "out"), flag]
    assert main([*command, "--seconds-per-pass", "1800"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "6 clips: 0 done, 0 failed, 6 to do"
    assert [line.split()[-1] for line in lines[2:4]] == ["12", "15"]  # 3 clips of 4 passes, 3 of 5
    assert lines[4].startswith("about 13.5 GPU hours") and "1800 s a pass" in lines[4]
    assert lines[5:] == ["metrics: frame_difference", "difference: oseg minus cfg"]
    assert not (tmp_path / "out").exists() and not painted.loaded
    assert main([*command, "--metrics", "frame_diference"]) == 2
    assert "did you mean 'frame_difference'" in capsys.readouterr().err


def test_a_shipped_recipe_works_by_its_name(tmp_path, capsys):
    assert main(["compare", "table3-embedded", "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("576 clips: 0 done")
    assert main(["compare", "embedded", "--out", str(tmp_path / "out"), "--dry-run", "--limit", "1"]) == 0
    assert capsys.readouterr().out.startswith("4 clips: 0 done")


@pytest.mark.parametrize("there", [True, False])
def test_the_page_opens_in_a_browser_if_there_is_one(tmp_path, monkeypatch, capsys, there):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or there)
    out = tmp_path / "a b"
    assert main(["compare", str(write(tmp_path)), "--out", str(out), "--quiet", "--open"]) == 0
    assert opened == [f"file://{tmp_path}/a%20b/index.html"]
    assert ("no browser" in capsys.readouterr().err) is not there


def test_every_model_has_its_own_baseline(tmp_path):
    recipe = SweepRecipe(
        subjects=(Subject(prompt="a"), Subject(prompt="b")),
        methods={"cfg": {"guidance": "cfg"}, "oseg": {"guidance": "oseg"}},
        models={"short": {"model": "embedded"}, "long": {"model": "embedded", "frames": 13}},
        settings={**SMALL, "frames": 7},
    )
    done = compare(recipe, tmp_path, ["frame_difference"])
    assert {(d["method"], d["baseline"]) for d in done.results["differences"]} == {
        ("short oseg", "short cfg"),
        ("long oseg", "long cfg"),
    }


@pytest.fixture
def real(tmp_path):
    """Two clips of one colour each, the first frame darker."""
    for name, level in (("a/one", 100), ("b/two", 200)):
        path = tmp_path / "real" / f"{name}.mp4"
        path.parent.mkdir(parents=True)
        frames = torch.full((4, 3, 32, 32), level, dtype=torch.uint8)
        frames[0] //= 2
        write_clip(path, frames, 8, format="mp4")
    (tmp_path / "list.txt").write_text("b/two.mp4\na/one.mp4\n")
    return tmp_path / "real"


def test_clips_start_from_first_frames_of_real_clips(tmp_path, real):
    path = write(tmp_path, prompts={"first_frames": "list.txt"})
    subjects = read(path, real=real).sweep.subjects
    assert [subject.image for subject in subjects] == [
        str(tmp_path / "images" / name) for name in ("b/two.png", "a/one.png")
    ]
    for subject, level in zip(subjects, (100, 50), strict=True):
        with Image.open(subject.image) as image:
            assert image.size == (32, 32) and abs(image.getpixel((16, 16))[1] - level) <= 2
    assert len(read(path, real=real, limit=1).sweep.subjects) == 1
    assert not list(tmp_path.rglob("images/**/.*"))


def test_a_limit_of_first_frames_leaves_the_seeds(tmp_path, real, monkeypatch):
    made = []
    monkeypatch.setattr(
        "oseg_video.comparison.explain.explain_comparison", lambda recipe, options: str(made.append(recipe))
    )
    path = write(tmp_path, prompts={"first_frames": "list.txt"}, seeds=[3, 4])
    command = ["compare", str(path), "--explain", "--reference", str(real), "--limit", "1"]
    assert main(command) == 0
    (tmp_path / "list.txt").write_text("b/two.mp4\n")
    assert main(command) == 0
    assert [(len(one.sweep.subjects), one.sweep.seeds) for one in made] == [(1, (3, 4)), (1, (3,))]


def test_real_clips_that_only_start_clips_are_no_reference_of_a_metric(tmp_path, real, capsys):
    path = write(
        tmp_path, prompts={"first_frames": "list.txt"}, metrics=["frame_difference"], methods=["cfg"]
    )
    command = ["compare", str(path), "--out", str(tmp_path / "out"), "--quiet", "--reference", str(real)]
    assert main(command) == 2  # the shipped model takes no image, which is found out after the reference
    assert "--reference" not in capsys.readouterr().err
    path = write(tmp_path, metrics=["frame_difference"], methods=["cfg"])
    assert main(command) == 2
    assert (
        "--reference is about real clips, which none of the metrics compares with" in capsys.readouterr().err
    )


def test_real_clips_that_are_missing_or_broken_are_named(tmp_path, real):
    path = write(tmp_path, prompts={"first_frames": "list.txt"})
    with pytest.raises(ConfigError, match=r"must be their folder, with b/two\.mp4 in it; got None"):
        read(path)
    (real / "a" / "one.mp4").rename(real / "a" / "1.mp4")
    with pytest.raises(ConfigError, match=r"real lacks 1 of 2 clips that the recipe lists, first a/one.mp4"):
        read(path, real=real)
    assert not (tmp_path / "images").exists()
    (real / "a" / "one.mp4").write_bytes(b"no clip")
    with pytest.raises(MediaError, match=r"cannot read .*a/one.mp4"):
        read(path, real=real)
    with pytest.raises(ConfigError, match="prompts must be a list"):
        read_sweep(path)

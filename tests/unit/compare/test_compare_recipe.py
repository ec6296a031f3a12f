"""Recipes of comparisons: what they say about figures, and where their pictures come from."""

import json

import pytest
import torch
import yaml
from PIL import Image

from oseg_video.cli import main
from oseg_video.compare.compare import compare
from oseg_video.compare.recipe import read_comparison
from oseg_video.config import ConfigError
from oseg_video.evaluation.results import Published
from oseg_video.media import MediaError, write_clip
from oseg_video.sweep.recipe import Subject, SweepRecipe, read_sweep
from tests.sweeps import SMALL
from tests.unit.sweep.conftest import painter  # noqa: F401

FIGURES = {"oseg": {"frame_difference": 12.5, "alignment:embedded:colour": 1}}


@pytest.fixture(autouse=True)
def painted(painter):  # noqa: F811
    """No test here samples."""
    return painter


def write(folder, **content):
    recipe = {"prompts": ["a", "b", "c"], "methods": ["cfg", "oseg"], "settings": SMALL, **content}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def figures(**methods):
    return {"published": {"source": "a paper", "figures": methods}}


def read(path, **options):
    return read_comparison(path, pictures=path.parent / "pictures", **options)


def test_a_sweep_is_a_comparison_and_the_other_way_round(tmp_path):
    plain = read(write(tmp_path))
    assert (plain.metrics, plain.baseline, plain.published) == (None, None, None)
    path = write(
        tmp_path,
        metrics=["frame_difference"],
        baseline="oseg",
        published={"source": "a paper", "figures": FIGURES},
    )
    recipe = read(path)
    assert recipe.sweep == plain.sweep == read_sweep(path)
    assert (recipe.metrics, recipe.baseline) == (("frame_difference",), "oseg")
    assert recipe.published == Published(source="a paper", figures=FIGURES)
    assert read(path, limit=2).sweep.subjects == plain.sweep.subjects[:2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"metrics": "frame_difference"}, "metrics must be a list of names, got 'frame_difference'"),
        ({"baseline": "stg"}, "baseline must be one of the methods cfg, oseg, got 'stg'"),
        ({"metrisc": ["x"]}, "unknown key 'metrisc'; did you mean 'metrics'"),
        ({"published": {"figures": {}}}, r"published must have a source \(text\) and figures"),
        (figures(osge={}), "unknown method 'osge'; did you mean 'oseg'"),
        (figures(cfg={"is:c3": 1}), "unknown figure 'is:c3'; did you mean"),
        (figures(cfg={"is:c3d": "1"}), "mapping of figures to numbers"),
    ],
)
def test_mistakes_are_named(tmp_path, content, message):
    with pytest.raises(ConfigError, match=f"recipe.yaml: .*{message}"):
        read(write(tmp_path, **content))


def test_the_command_takes_from_the_recipe_what_no_flag_says(tmp_path, capsys):
    published = {"source": "a paper | of theirs", "figures": FIGURES}
    path = write(tmp_path, metrics=["frame_difference"], baseline="oseg", published=published)
    command = ["compare", str(path), "--out", str(tmp_path / "out"), "--quiet"]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert "| oseg, published | - | 12.5 |" in table and "Published: a paper | of theirs" in table
    assert "| cfg minus oseg | 3 |" in table and "cfg, published" not in table
    assert json.loads((tmp_path / "out" / "results.json").read_text())["published"] == published
    assert main([*command, "--baseline", "cfg", "--metrics", "block_motion", "--limit", "2"]) == 0
    table = capsys.readouterr().out
    assert "| oseg minus cfg | 2 |" in table and "| oseg, published | - | - |" in table


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
        str(tmp_path / "pictures" / name) for name in ("b/two.png", "a/one.png")
    ]
    for subject, level in zip(subjects, (100, 50), strict=True):
        with Image.open(subject.image) as picture:
            assert picture.size == (32, 32) and abs(picture.getpixel((16, 16))[1] - level) <= 2
    assert len(read(path, real=real, limit=1).sweep.subjects) == 1
    assert not list(tmp_path.rglob("pictures/**/.*"))


def test_real_clips_that_only_start_clips_are_no_reference_of_a_metric(tmp_path, real, capsys):
    path = write(
        tmp_path, prompts={"first_frames": "list.txt"}, metrics=["frame_difference"], methods=["cfg"]
    )
    command = ["compare", str(path), "--out", str(tmp_path / "out"), "--quiet", "--reference", str(real)]
    assert main(command) == 2  # the shipped model takes no picture, which is found out after the reference
    assert "--reference" not in capsys.readouterr().err
    path = write(tmp_path, metrics=["frame_difference"], methods=["cfg"])
    assert main(command) == 2
    assert "--reference is about real clips for fvd" in capsys.readouterr().err


def test_real_clips_that_are_missing_or_broken_are_named(tmp_path, real):
    path = write(tmp_path, prompts={"first_frames": "list.txt"})
    with pytest.raises(ConfigError, match=r"must be their folder, with b/two\.mp4 in it; got None"):
        read(path)
    (real / "a" / "one.mp4").rename(real / "a" / "1.mp4")
    with pytest.raises(ConfigError, match=r"real lacks 1 of 2 clips that the recipe lists, first a/one.mp4"):
        read(path, real=real)
    assert not (tmp_path / "pictures").exists()
    (real / "a" / "one.mp4").write_bytes(b"no clip")
    with pytest.raises(MediaError, match=r"cannot read .*a/one.mp4"):
        read(path, real=real)
    with pytest.raises(ConfigError, match="prompts must be a list"):
        read_sweep(path)

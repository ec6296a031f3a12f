"""`oseg-video compare` and its library call, with a model that paints; what is refused, and when."""

import json
import re
from pathlib import Path

import pytest

from oseg_video.cli import main
from oseg_video.comparison import compare as module
from oseg_video.comparison.compare import CompareError, compare
from oseg_video.config import ConfigError
from oseg_video.evaluation.clips import FoundClips
from oseg_video.evaluation.metrics.base import EvaluationError, MetricOptions
from oseg_video.files import FileError
from oseg_video.sweeps import worker
from oseg_video.sweeps.recipe import Subject, SweepRecipe
from oseg_video.types import OsegVideoError
from tests.sweeps import SMALL, Painter
from tests.unit.sweep.conftest import painter  # noqa: F401

pytestmark = pytest.mark.slow

FLAGS = ["--frames", "7", "--height", "32", "--width", "32", "--steps", "2", "--device", "cpu", "--quiet"]
METRICS = ["frame_difference"]


@pytest.fixture(autouse=True)
def painted(painter):  # noqa: F811
    """No test here samples."""
    return painter


def recipe(*prompts, seeds=(0, 1), methods=("oseg", "cfg"), **settings):
    return SweepRecipe(
        subjects=tuple(Subject(prompt=prompt) for prompt in prompts or ("b", "a")),
        seeds=seeds,
        methods={name: {"guidance": name} for name in methods},
        settings={**SMALL, **settings},
    )


def page_data(out):
    (text,) = re.findall(r'id="data">(.*?)</script>', (out / "index.html").read_text(), re.DOTALL)
    return json.loads(text)


def test_clips_metric_values_and_page(tmp_path, painted):
    done = compare(recipe(), tmp_path)
    assert done.complete and done.summary.made == 8 == len(painted.painted)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["baselines"] == {"cfg": "oseg"} and list(results["results"]) == ["oseg", "cfg"]
    assert list(results["better"]) == ["block_motion", "frame_difference", "temporal_flickering"]
    assert all(one["interval"] for one in results["results"]["cfg"])
    # Both methods paint the same noise.
    assert [(d["method"], d["value"], d["pairs"]) for d in results["differences"]] == [("cfg", 0, 4)] * 3
    written = (tmp_path / "results.md").read_text()
    assert written.startswith(done.table.rstrip("\n")) and "| cfg | 4 |" in done.table
    assert written.endswith("<!-- made by oseg-video -->\n")
    page = page_data(tmp_path)
    assert page["methods"] == ["oseg", "cfg"]
    assert [(row["text"], row["seed"]) for row in page["rows"]] == [("b", 0), ("b", 1), ("a", 0), ("a", 1)]
    for row in page["rows"]:
        for method, clip in row["clips"].items():
            assert (tmp_path / clip["src"]).is_file()
            assert (clip["frames"], clip["height"], clip["width"]) == (7, 32, 32)
            assert page["settings"][clip["settings"]]["guidance"] == method
    assert page["results"] == results


def test_what_is_there_is_not_made_again(tmp_path, painted, monkeypatch):
    compare(recipe(), tmp_path, METRICS)
    looked = []
    evaluate = module.evaluate
    monkeypatch.setattr(module, "evaluate", lambda *a, **b: looked.append(1) or evaluate(*a, **b))
    (tmp_path / "index.html").unlink()
    again = compare(recipe(), tmp_path, METRICS)
    assert again.summary.made == 0 and not looked and again.complete and again.page.is_file()
    compare(recipe(), tmp_path, METRICS, baseline="cfg")
    compare(recipe(), tmp_path, ["temporal_flickering"])
    assert len(looked) == 2 and len(painted.painted) == 8
    more = compare(recipe(seeds=(0, 1, 2)), tmp_path, METRICS)
    assert more.summary.made == 4 and len(looked) == 3
    assert more.results["methods"]["cfg"]["clips"] == 6


def test_metric_values_are_worked_out_anew_where_weights_or_real_clips_have_changed(tmp_path):
    weights, real = tmp_path / "w.pt", tmp_path / "real" / "class" / "clip.mp4"
    real.parent.mkdir(parents=True)

    def question():
        options = MetricOptions(reference=tmp_path / "real", weights={"is:c3d": str(weights)})
        return module._digest(FoundClips((), {}), METRICS, {}, None, options)

    questions = []
    for change in (weights, real, real, weights):
        change.write_bytes(bytes(len(questions) + 1))
        questions.append(question())
    assert len(set(questions)) == 4 and question() == questions[-1]


def test_clips_of_earlier_comparisons_do_not_count(tmp_path):
    compare(recipe("a"), tmp_path, METRICS)
    other = compare(recipe("a", "c", seeds=(1, 2), fps=9), tmp_path, METRICS)
    assert other.results["methods"]["cfg"]["clips"] == 4 and other.results["methods"]["cfg"]["fps"] == [9]
    assert len(page_data(tmp_path)["rows"]) == 4


def test_variants_of_a_method_are_columns_under_their_own_names(tmp_path):
    methods = {"cfg": {"guidance": "cfg"}, "strong": {"guidance": "cfg", "guidance_scale": 9.0}}
    plan = SweepRecipe(subjects=(Subject(prompt="a"),), seeds=(0, 1), methods=methods, settings=SMALL)
    assert list(compare(plan, tmp_path, METRICS).results["results"]) == ["cfg", "strong"]
    assert page_data(tmp_path)["methods"] == ["cfg", "strong"]


class Faulty(Painter):
    def make_clip(self, job, *rest):
        if (job.guidance.name, job.prompts[0], job.seeds[0]) == ("oseg", "a", 1):
            raise OsegVideoError("out of paint")
        return super().make_clip(job, *rest)


def test_a_clip_that_fails_leaves_a_gap_and_exit_code_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(worker, "LoadedModel", Faulty)
    command = [
        "compare",
        "--guidance",
        "oseg,cfg",
        "--prompt",
        "a",
        "--prompt",
        "b",
        "--seeds",
        "0,1",
        *FLAGS,
    ]
    command += ["--out", str(tmp_path), "--metrics", "frame_difference"]
    assert main(command) == 1
    output = capsys.readouterr()
    assert "7 of 8 clips, 7 of them made now" in output.out and "out of paint" in output.err
    (row,) = [row for row in page_data(tmp_path)["rows"] if (row["text"], row["seed"]) == ("a", 1)]
    assert row["clips"]["oseg"] == {"failed": "out of paint"} and "src" in row["clips"]["cfg"]
    monkeypatch.setattr(worker, "LoadedModel", Painter)
    assert main([*command, "--retry-failed"]) == 0
    assert "8 of 8 clips, 1 of them made now" in capsys.readouterr().out


def test_a_clip_that_fails_costs_only_the_values_that_need_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(worker, "LoadedModel", Faulty)
    plan = recipe("a", seeds=tuple(range(10)), height=64, width=64, frames=19)
    done = compare(plan, tmp_path, ["frame_difference", "is:embedded"])
    assert not done.complete and done.results["failed"] == {
        "oseg: is:embedded": "is:embedded has 10 splits; oseg has 9 clips"
    }
    assert list(done.results["skipped"].values()) == ["out of paint"]
    assert len(done.results["results"]["cfg"]) == 2 and len(page_data(tmp_path)["rows"]) == 10


@pytest.mark.parametrize(
    ("changes", "arguments", "error", "message"),
    [
        ({}, {"metrics": ["alignment:embedded"]}, EvaluationError, "alignment:embedded needs clips of .* 64"),
        ({}, {"metrics": ["frame_diference"]}, EvaluationError, "did you mean 'frame_difference'"),
        ({}, {"baseline": "stg"}, ConfigError, "here oseg, cfg; got 'stg'"),
        ({"methods": ("cfg",)}, {"baseline": "cfg"}, ConfigError, "one of several methods"),
        (
            {},
            {"options": MetricOptions(reference=Path("."))},
            EvaluationError,
            "--reference is about real clips",
        ),
        ({"format": "gif"}, {}, CompareError, "plays mp4 files only, got format gif"),
        ({"frames": 8}, {}, OsegVideoError, "frames"),
    ],
)
def test_what_is_refused_is_refused_before_any_clip(tmp_path, painted, changes, arguments, error, message):
    with pytest.raises(error, match=message):
        compare(recipe(**changes), tmp_path / "out", **arguments)
    assert painted.loaded == 0 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["index.html", "results.json", "results.md"])
def test_a_file_of_the_user_in_the_way_is_refused_before_any_clip(tmp_path, painted, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileError, match=rf"{name} is in the way and was not made by oseg-video"):
        compare(recipe(), tmp_path)
    assert painted.loaded == 0 and [one.name for one in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--guidance", "cfg,osge", "--prompt", "a"], "unknown method 'osge'; did you mean 'oseg'"),
        (["--guidance", "cfg,cfg", "--prompt", "a"], "names cfg twice"),
        (["--guidance", "cfg"], "without a recipe there must be --prompt"),
        (["--prompt", "a"], "without a recipe there must be --guidance"),
        (["--guidance", "cfg", "--prompt", "a", "--seeds", "x"], "must be an integer, got 'x'"),
        (["tabel3"], "no recipe is called 'tabel3'; did you mean 'table3'?"),
        (["no/sweep.yaml"], "cannot read no/sweep.yaml: No such file"),
        (["embedded", "--guidance", "osge"], "unknown method 'osge'; did you mean 'oseg'"),
        (["embedded", "--seconds-per-pass", "1"], "--seconds-per-pass has no effect without --dry-run"),
        (["--guidance", "cfg", "--prompt", "a", "--out", "s3://b/c"], "must be a folder of this machine"),
    ],
)
def test_mistakes_in_the_call_are_one_line(tmp_path, capsys, arguments, message):
    assert main(["compare", "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"oseg-video: error: [^\n]+\n", error) and message in error

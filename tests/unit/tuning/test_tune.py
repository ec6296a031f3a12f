"""`oseg-video tune` with a model that paints: what it finds, claims and writes, resumes and refuses."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml

from oseg_video.cli import main
from oseg_video.config import ConfigError, resolve_job
from oseg_video.config.manifest import read_manifest
from oseg_video.jobs.loading.pipeline import recipe_of
from oseg_video.sweeps import worker
from oseg_video.sweeps.recipe import sweep_of
from oseg_video.tuning import plan
from oseg_video.tuning import tune as module
from oseg_video.tuning.recipe import read_tune
from oseg_video.tuning.tune import tune
from oseg_video.types import OsegVideoError
from tests.sweeps import GIF, Painter

pytestmark = pytest.mark.slow


class PlantedPainter(Painter):
    """Paints flicker, of which block 2 makes the least; more of it or less by prompt and seed."""

    better_block = 2

    def paint(self, job: Any, seed: int) -> torch.Tensor:
        away = min((abs(block - self.better_block) for block in job.guidance.blocks_used), default=3)
        chance = torch.Generator().manual_seed(hash((job.prompts[0].encode()[-1], seed, away)) % 1000)
        level = 20 + 12 * away + 10 * float(torch.rand((), generator=chance))
        flicker = level * (torch.arange(job.frames) % 2).view(-1, 1, 1, 1)
        return (100 + flicker).expand(-1, 3, job.height, job.width).to(torch.uint8)


class Interrupting(PlantedPainter):
    """Paints so many clips, and then the process is asked to end."""

    left = 0

    def make_clip(self, *arguments: Any) -> Any:
        if not type(self).left:
            raise KeyboardInterrupt
        type(self).left -= 1
        return super().make_clip(*arguments)


@pytest.fixture(autouse=True)
def painter(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Painter]]:
    """No test here samples."""
    monkeypatch.setattr(Painter, "painted", [], raising=False)
    monkeypatch.setattr(worker, "LoadedModel", PlantedPainter)
    # GIF files need no other program to be written, and here nobody looks at the page.
    monkeypatch.setattr(plan, "require_shown", lambda _: None)
    yield Painter


RECIPE: dict[str, Any] = {
    "metric": "frame_difference",
    "better": "lower",
    "methods": {"oseg": {"blocks": "all"}},
    "prompts": ["a", "b", "c", "d"],
    "seeds": [0, 1],
    "test": {"seeds": [2]},
    "settings": GIF,
    "clips": 46,
}


def write(folder: Path, **content: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **content}, sort_keys=False))
    return path


def written(out: Path) -> dict[str, bytes]:
    """What a search leaves behind beside clips."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def test_it_finds_the_planted_block_and_leaves_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["tune", str(write(tmp_path)), "--out", str(out), "--quiet"]
    assert main(command) == 0
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"oseg blocks=2 beat the baseline on the test split by -\d+\S* \[-\S+, -\S+\]", said[0]
    )
    assert "paired 95 % interval over 4 clips each" in said[1] and "6 arms of oseg" in said[2]
    took = int(re.findall(r"took (\d+) clips", said[2])[0])
    assert took == len(Painter.painted) == len(list((out / "clips").glob("*.gif"))) <= 46

    found = (out / "found.yaml").read_text()
    header = [line for line in found.splitlines() if line.startswith("#")]
    assert header[0] == "# made by oseg-video tune" and header[1:4] == [f"# {line}" for line in said[:3]]
    best = (out / "best-oseg.yaml").read_text()
    assert yaml.safe_load(best) == yaml.safe_load(found) and "The best of 6 arms of oseg" in best
    job = resolve_job({"prompts": ["a"], "seeds": [2]}, out / "found.yaml", family_of=recipe_of)
    made = [read_manifest(clip) for clip in (out / "clips").glob("*.gif")]
    assert job.guidance.blocks_used == (2,)
    assert any(one.read_job().guidance == job.guidance and one.prompt == "a" for one in made)

    arms = json.loads((out / "arms.json").read_text())
    assert list(arms["methods"])[:2] == ["baseline", "oseg blocks=2"] and len(arms["methods"]) == 7
    assert arms["methods"]["oseg blocks=2"]["fate"] == "best of its method"
    assert arms["methods"]["oseg blocks=2"]["settings"] == {"guidance": "oseg", "blocks": [2]}
    assert arms["better"] == {"frame_difference": "lower"}
    rows = list(csv.DictReader((out / "arms.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == list(arms["methods"])
    assert "- oseg blocks=5: " in (out / "arms.md").read_text()
    plot = ElementTree.parse(out / "arms.svg").getroot()
    titles = [one.text or "" for one in plot.iter("{http://www.w3.org/2000/svg}title")]
    assert any(one.startswith("oseg blocks=2, test, 4 clips: -") for one in titles)
    assert {one.split(",")[0] for one in titles} == {f"oseg blocks={block}" for block in range(6)}
    test = json.loads((out / "test.json").read_text())
    assert (
        list(test["methods"]) == ["baseline", "oseg blocks=2"]
        and "oseg blocks=2" in (out / "index.html").read_text()
    )

    before = written(out)
    assert main(command) == 0 and len(Painter.painted) == took
    assert written(out) == before and capsys.readouterr().out.splitlines() == [*said]


def test_without_an_effect_no_arm_wins_and_the_baseline_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LoadedModel", Painter)  # paints by seed alone
    done = tune(read_tune(write(tmp_path, baseline="stg")), tmp_path / "out")
    assert not done.findings.won and done.findings.claim.value == 0 and done.complete
    assert done.words[0] == (
        "the search's choice, oseg blocks=0, did not beat the baseline: on the test split +0 [+0, +0]"
    )
    found = done.recipe.read_text()
    assert yaml.safe_load(found)["guidance"] == "stg" and f"# {done.words[0]}\n" in found
    assert yaml.safe_load((tmp_path / "out" / "best-oseg.yaml").read_text())["guidance"] == "oseg"


def test_an_arm_that_is_worse_on_the_test_does_not_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Turning(PlantedPainter):
        def paint(self, job: Any, seed: int) -> torch.Tensor:
            frames = super().paint(job, seed)
            return frames if seed < 2 or not job.guidance.blocks_used else (255 - 4 * (frames - 80))

    monkeypatch.setattr(worker, "LoadedModel", Turning)
    done = tune(read_tune(write(tmp_path)), tmp_path / "out")
    assert done.winner == "oseg blocks=2" and not done.findings.won and done.findings.claim.value > 0
    assert done.words[0].startswith("the search's choice, ")


def test_a_run_that_was_stopped_goes_on_and_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_tune(write(tmp_path, methods={"oseg": {"blocks": [0, 2, 5]}, "stg": {}}, clips=60))
    tune(recipe, tmp_path / "whole")
    whole = sorted(Painter.painted)
    Painter.painted.clear()
    monkeypatch.setattr(worker, "LoadedModel", Interrupting)
    for count in (1, 12, 100):
        Interrupting.left = count
        if count < 100:
            with pytest.raises(KeyboardInterrupt):
                tune(recipe, tmp_path / "stopped")
        else:
            tune(recipe, tmp_path / "stopped")
    assert sorted(Painter.painted) == whole
    assert written(tmp_path / "stopped") == written(tmp_path / "whole")


def test_methods_meet_on_the_test_and_one_of_them_is_the_winner(tmp_path: Path) -> None:
    methods = {"far": {"guidance": "stg", "blocks": [4, 5]}, "near": {"guidance": "oseg", "blocks": [0, 2]}}
    done = tune(read_tune(write(tmp_path, methods=methods, clips=60)), tmp_path / "out")
    assert (
        done.findings.best == {"far": "far blocks=4", "near": "near blocks=2"}
        and done.winner == "near blocks=2"
    )
    test = json.loads((tmp_path / "out" / "test.json").read_text())
    assert [one["method"] for one in test["differences"]] == ["far blocks=4", "near blocks=2"]
    far = yaml.safe_load((tmp_path / "out" / "best-far.yaml").read_text())
    assert (far["guidance"], far["blocks"]) == ("stg", [4])


def test_a_search_that_grows_keeps_its_clips_under_their_new_names(tmp_path: Path) -> None:
    tune(read_tune(write(tmp_path, methods={"oseg": {"blocks": [1, 2]}}, clips=30)), tmp_path)
    before = len(Painter.painted)
    methods = {"oseg": {"blocks": [1, 2], "blur_sigma": [5.0, 1.0]}}
    done = tune(read_tune(write(tmp_path, methods=methods, clips=60)), tmp_path)
    assert done.winner.startswith("oseg blocks=2 blur_sigma=") and done.complete
    assert len(list((tmp_path / "clips").glob("*.gif"))) == len(Painter.painted) > before


def test_clips_that_fail_are_named_and_their_arm_is_judged_by_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Faulty(PlantedPainter):
        def make_clip(self, job: Any, plan: Any, start: Any) -> Any:
            blocks = job.guidance.blocks_used
            if blocks == (5,) or (blocks == (2,) and plan.seed == 2 and plan.prompt == "a"):
                raise OsegVideoError("out of paint")
            return super().make_clip(job, plan, start)

    monkeypatch.setattr(worker, "LoadedModel", Faulty)
    command = ["tune", str(write(tmp_path)), "--out", str(tmp_path / "out"), "--quiet"]
    assert main(command) == 1
    output = capsys.readouterr()
    assert output.out.startswith("oseg blocks=2 beat the baseline") and "over 3 clips each" in output.out
    assert "--retry-failed tries failed clips again" in output.err
    assert "- oseg blocks=5: no value after round 1" in (tmp_path / "out" / "arms.md").read_text()
    monkeypatch.setattr(worker, "LoadedModel", PlantedPainter)
    assert main([*command, "--retry-failed"]) == 0
    assert "over 4 clips each" in capsys.readouterr().out


def test_nothing_that_can_be_measured_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(PlantedPainter, "make_clip", lambda *_: 1 / 0)
    assert main(["tune", str(write(tmp_path)), "--out", str(tmp_path / "out"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1] == (
        "oseg-video: error: no clip of the baseline could be made: ZeroDivisionError: division by zero"
    )


def test_flags_win_over_the_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, methods={"oseg": {"blocks": [1, 2]}, "stg": {"blocks": [0, 1]}})
    command = ["tune", str(path), "--out", str(tmp_path / "out"), "--quiet", "--clips", "20", "--limit", "2"]
    assert main([*command, "--guidance", "stg", "--steps", "3", "--seeds", "4", "5", "--prompt", "z"]) == 0
    assert {guidance for _, _, guidance in Painter.painted} == {"stg", "cfg"}
    search = {(prompt, seed) for prompt, seed, _ in Painter.painted if seed != 2}
    assert search == {("z", 4), ("z", 5)} and {p for p, seed, _ in Painter.painted if seed == 2} == {"a", "b"}
    made = [read_manifest(clip).read_job() for clip in (tmp_path / "out" / "clips").glob("*.gif")]
    assert {job.steps for job in made} == {3}
    assert yaml.safe_load((tmp_path / "out" / "best-stg.yaml").read_text())["steps"] == 3


def test_the_plan_is_shown_and_nothing_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["tune", str(write(tmp_path)), "--out", str(tmp_path / "out")]
    assert main([*command, "--dry-run", "--seconds-per-pass", "1800"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:6] == [
        "frame_difference, lower is better; at most 46 clips in all",
        "oseg: 6 arms, at most 38 clips, the baseline's among them",
        "  round 1: 6 arms and the baseline, 1 clips each",
        "  round 2: 3 arms and the baseline, 4 clips each",
        "  round 3: 2 arms and the baseline, 8 clips each",
        "test: the best arm of every method and the baseline, 4 clips each, 8 in all",
    ]
    assert "31 clips: 0 done, 0 failed, 31 to do" in lines and "8 clips: 0 done, 0 failed, 8 to do" in lines
    assert sum("1800 s a pass" in line for line in lines) == 2
    assert main([*command, "--explain"]) == 0
    assert "no estimate for 31 clips: none is finished yet" in capsys.readouterr().out
    assert not (tmp_path / "out").exists() and not Painter.painted


def test_the_engine_is_that_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def make(*_: Any, **options: Any) -> Any:
        asked.append(options)
        raise OsegVideoError("as far as it goes")

    monkeypatch.setattr(module, "make_variations", make)
    command = ["tune", str(write(tmp_path)), "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*command, "--engine", "ray", "--address", "auto", "--workers", "3", "--gpus", "2"]) == 2
    assert main([*command, "--retry-failed"]) == 2
    common = {"on_record": None}
    assert asked == [
        {"cluster": True, "address": "auto", "workers": 3, "gpus": 2, "retry_failed": False, **common},
        {"cluster": False, "address": None, "workers": None, "gpus": 1, "retry_failed": True, **common},
    ]


def test_a_ranking_gives_the_blocks_and_breaks_ties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LoadedModel", Painter)
    recipe = read_tune(write(tmp_path, methods={"oseg": {"blocks": "auto"}}, clips=20))
    with pytest.raises(OsegVideoError, match="blocks: auto needs a ranking of the blocks"):
        tune(recipe, tmp_path / "out")
    done = tune(recipe, tmp_path / "out", ranking=[4, 1])
    assert (
        done.winner == "oseg blocks=4"
        and len(json.loads((tmp_path / "out/arms.json").read_text())["methods"]) == 3
    )


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"metrc": "x"}, "unknown key 'metrc'; did you mean 'metric'"),
    ({"metric": None}, "a search needs metric"),
    ({"metric": ["a"]}, "metric must be text"),
    ({"metric": "frame_diference"}, "did you mean 'frame_difference'"),
    ({"metric": "alignment:embedded"}, "alignment:embedded is not: alignment:embedded:colour, "),
    ({"metric": "alignment:embedded:size"}, "metric must be one value"),
    ({"metric": "alignment:embedded:all", "better": None}, "needs clips of the shipped model"),
    ({"metric": "temporal_flickering"}, "of temporal_flickering higher is better, got better: lower"),
    ({"better": None}, "better must be higher or lower"),
    ({"better": "more"}, "better must be higher or lower, got 'more'"),
    ({"metric": "fvd:embedded"}, "compares with real clips|needs"),
    ({"metric": "fvd:fvd2048_16f", "better": None}, "give --reference"),
    ({"methods": {}}, "a search needs methods"),
    ({"methods": ["oseg"]}, "methods must be a mapping"),
    ({"methods": {"osge": {}}}, "unknown method 'osge'; did you mean 'oseg'"),
    ({"methods": {"oseg": ["blocks"]}}, "methods: oseg must be a mapping"),
    ({"methods": {"o/x": {"guidance": "oseg"}}}, "a name has letters, digits"),
    ({"methods": {"oseg": {"blok": [1]}}}, "methods: oseg: unknown setting 'blok'; did you mean 'blocks'"),
    ({"methods": {"oseg": {"blocks": []}}}, "blocks must have a value"),
    ({"methods": {"oseg": {"blocks": [1, 2, 1]}}}, "blocks names 1 twice"),
    ({"methods": {"oseg": {"blocks": [1, 77]}}}, "no block 77: this mochi model has 6 blocks"),
    ({"methods": {"oseg": {"blocks": {"low": 0, "high": 3}}}, "random": 2}, "must have two finite numbers"),
    ({"methods": {"stg": {"blur_sigma": [1, 2]}}}, "blur_sigma has no effect with guidance stg"),
    ({"methods": {"oseg": {"oseg_scale": {"low": 0, "high": 2}}}}, "is a range, which needs random: N"),
    ({"methods": {"oseg": {"oseg_scale": {"low": 2, "high": 1}}}}, "must have low < high"),
    ({"methods": {"oseg": {"oseg_scale": {"low": 0, "high": 1, "log": True}}}}, "0 < low < high with log"),
    ({"methods": {"oseg": {"oseg_scale": {"low": 0}}}}, "two finite numbers, got 0 and None"),
    ({"methods": {"oseg": {"oseg_scale": {"low": 0, "high": 1, "step": 1}}}}, "must have low and high"),
    ({"methods": {"oseg": {"oseg_scale": [-1, 1]}}}, "oseg_scale must be at least 0"),
    ({"methods": {"oseg": {"text": {"low": 0, "high": 1}}}}, "text must be"),
    ({"methods": {"oseg": {"device": ["cpu", "cuda"]}}}, "device is no setting that can be searched"),
    ({"methods": {"oseg": {"blocks": [1]}}}, "at least 2 different arms, got 1"),
    ({"methods": {"cfg": {"guidance_scale": [2.0, 2]}}}, "guidance_scale names 2 twice"),
    ({"methods": {"cfg": {"steps": [2, 3], "fps": 12}}}, "at least 2 different arms, got 1"),
    ({"methods": {"oseg": {"fps": list(range(1, 101)), "oseg_scale": list(range(20))}}}, "at most 1000 arms"),
    ({"baseline": {"guidance_scale": 2}}, "baseline must be a method, or settings with guidance"),
    ({"baseline": "cfgg"}, "guidance must be one of"),
    ({"models": ["embedded", "mochi"]}, "a search is about one model, got embedded, mochi"),
    ({"test": {}}, "a search needs test"),
    ({"test": [1]}, "test must be a mapping"),
    ({"test": {"seeds": [1, 2]}}, "both have '.' with seed 1"),
    ({"test": {"prompts": ["z"], "seeds": [0]}}, "at least 2 prompts or 2 seeds"),
    ({"prompts": ["a", "a"]}, "prompts must differ"),
    ({"clips": 10}, "clips must be at least 11 .* test's 8, got 10"),
    ({"clips": 0}, "clips must be a whole number of at least 1, got 0"),
    ({"clips": None}, "give --clips, or clips in the recipe"),
    ({"random": "x"}, "random must be a whole number"),
]


@pytest.mark.parametrize(("content", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_mistakes_are_one_line_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict[str, Any], message: str
) -> None:
    out = tmp_path / "out"
    named = {"methods": {"oseg": {"blocks": [1, 2]}}}  # counting the blocks takes a second
    assert main(["tune", str(write(tmp_path, **{**named, **content})), "--out", str(out), "--quiet"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("oseg-video: error: ") and re.search(message, error), error
    assert not Painter.painted and not list(out.rglob("*.gif"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--address", "auto"], "--address has no effect without --engine ray"),
        (["--seconds-per-pass", "1"], "--seconds-per-pass has no effect without --dry-run"),
        (["--out", "s3://b/c"], "--out must be a folder of this machine"),
        (["--guidance", "cfg"], "unknown method 'cfg'; known: oseg"),
        (["--clips", "3"], "clips must be at least"),
        (["--weights", "x"], "--weights must be METRIC=PATH"),
    ],
)
def test_mistakes_in_the_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["tune", str(write(tmp_path)), "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"oseg-video: error: [^\n]+\n", error) and message in error


def test_what_the_page_cannot_play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(OsegVideoError, match="plays mp4 files only, got format gif"):
        tune(read_tune(write(tmp_path)), tmp_path / "out")


def test_what_is_somebody_elses_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "found.yaml").write_text("mine: 1\n")
    assert main(["tune", str(write(tmp_path)), "--out", str(tmp_path), "--quiet"]) == 2
    assert "was not made by oseg-video" in capsys.readouterr().err and not Painter.painted


def test_a_search_made_in_python_is_checked_as_well(tmp_path: Path) -> None:
    recipe = read_tune(write(tmp_path))
    with pytest.raises(OsegVideoError, match="has one method, called baseline"):
        type(recipe)(
            metric="x",
            sweep=sweep_of({"prompts": ["a"], "methods": ["cfg"]}, tmp_path),
            test=recipe.test,
            methods={},
        )
    with pytest.raises(ConfigError, match="No such file"):
        read_tune(tmp_path / "missing.yaml")

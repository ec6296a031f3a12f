"""What the READMEs of sweeps, comparisons and searches show works as it stands there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from oseg_video.cli import main, parse
from oseg_video.comparison.recipe import read_comparison
from oseg_video.config import find_recipe
from oseg_video.embedded.classifier import load_classifier
from oseg_video.embedded.dataset import parse_caption
from oseg_video.media import read_clip
from oseg_video.sweeps.recipe import read_sweep
from oseg_video.tuning.recipe import read_tune

PACKAGE = Path(__file__).parents[2] / "oseg_video"


def blocks(room: str, language: str) -> list[str]:
    """The code blocks of a room's README, in order."""
    text = (PACKAGE / room / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(block: str) -> list[list[str]]:
    """The arguments of `oseg-video` of every line."""
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines]


def test_the_comparisons_run_as_they_stand_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, tables = blocks("comparison", "bash")
    by_flags, by_recipe, sheet = commands(text)
    monkeypatch.chdir(tmp_path)
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    assert main([*by_flags, "--steps", "2"]) == 0
    assert "16 of 16 clips, 16 of them made now: outputs/comparison/index.html" in capsys.readouterr().out
    assert opened == [(tmp_path / "outputs" / "comparison" / "index.html").as_uri()]
    results = json.loads((tmp_path / "outputs" / "comparison" / "results.json").read_text())
    assert list(results["results"]) == ["cfg", "stg", "seg", "oseg"]
    assert all(one["interval"] for row in results["results"].values() for one in row)
    assert {one["baseline"] for one in results["differences"]} == {"cfg"}
    assert main(sheet) == 0 and (tmp_path / "sheet.pdf").read_bytes().startswith(b"%PDF")
    assert main([*by_recipe, "--limit", "1", "--steps", "2"]) == 0
    assert (tmp_path / "outputs" / "recipe" / "index.html").is_file()
    for arguments in commands(tables):  # test_tables runs these recipes
        assert find_recipe(parse(arguments).recipe, "tables").parent.name == "tables"


def test_the_sweeps_make_their_clips_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = blocks("sweeps", "bash")
    dry, real, changed = commands(block)
    monkeypatch.chdir(tmp_path)
    assert main(dry) == 0
    assert capsys.readouterr().out.startswith("8 clips: 0 done, 0 failed, 8 to do\n")
    for made in (8, 0):
        assert main(real) == 0
        assert capsys.readouterr().out.startswith(
            f"8 of 8 clips are in outputs/sweep-embedded, {made} of them"
        )
    clips = sorted((tmp_path / "outputs" / "sweep-embedded").glob("*.mp4"))
    manifests = [json.loads(clip.with_suffix(".json").read_text()) for clip in clips]
    judged = load_classifier().judge(torch.stack([read_clip(clip).frames for clip in clips]).float() / 255)
    assert judged == [parse_caption(manifest["job"]["prompts"][0]) for manifest in manifests]
    assert main([*changed, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("12 clips: 0 done")


def test_the_probes_run_as_they_stand_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell, drawn = blocks("probing", "bash")
    monkeypatch.chdir(tmp_path)
    assert main(commands(drawn)[0]) == 0 and capsys.readouterr().out == "landscape.png\n"
    for arguments in commands(shell):
        assert main([*arguments, "--queries", "1"]) == 0
        assert capsys.readouterr().out.endswith("outputs/probe/probe.html\n")
    (sample,) = blocks("probing", "python")
    exec(sample, {})
    *table, block = capsys.readouterr().out.splitlines()
    assert len([line for line in table if line.strip()[:1].isdigit()]) == 6 and 0 <= int(block) < 6


def test_the_search_runs_as_it_stands_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = blocks("tuning", "bash")
    dry, real, generate = commands(block)
    monkeypatch.chdir(tmp_path)
    assert main(dry) == 0
    assert capsys.readouterr().out.startswith("alignment:embedded:all, higher is better; at most 800 clips")
    short = ["--limit", "2", "--steps", "2", "--clips", "32", "--quiet"]
    for _ in range(2):
        assert main([*real, *short]) == 0
        assert "beat the baseline" in capsys.readouterr().out
    assert len(list((tmp_path / "outputs" / "tune" / "clips").glob("*.mp4"))) <= 32
    assert main([*generate, "--quiet"]) == 0 and (tmp_path / "a.mp4").is_file()

    (recipe,), (sample,) = blocks("tuning", "yaml"), blocks("tuning", "python")
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    (tmp_path / "mine.yaml").write_text(recipe)
    found = read_tune(tmp_path / "mine.yaml")
    assert list(found.methods) == ["oseg", "late"] and found.random == 16 and found.test.seeds == (2, 3)
    changes = {
        "methods": {"oseg": {"blocks": "auto"}},
        "random": None,
        "settings": {"steps": 2, "frames": 19},
        "prompts": ["a red circle moving left on a white background"],
        "seeds": [0],
        "clips": 10,
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**yaml.safe_load(recipe), **changes}))
    exec(compile(sample, "README.md", "exec"), {})
    assert "did not beat the baseline: on the test split" in capsys.readouterr().out


def test_the_recipes_can_be_read(tmp_path: Path) -> None:
    (sweep,), (more,) = blocks("sweeps", "yaml"), blocks("comparison", "yaml")
    path = tmp_path / "mine.yaml"
    path.write_text(sweep)
    recipe = read_sweep(path)
    assert recipe.methods["strong"] == {"guidance": "oseg", "oseg_scale": 2.0} and len(recipe.subjects) == 2
    path.write_text(sweep.replace("strong:", "oseg:") + more)
    comparison = read_comparison(path, images=tmp_path)
    assert comparison.baseline == "cfg" and comparison.metrics == (
        "temporal_flickering",
        "alignment:embedded",
    )
    assert comparison.reported and comparison.reported.values == yaml.safe_load(more)["reported"]["values"]

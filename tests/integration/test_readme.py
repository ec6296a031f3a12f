"""What the README shows works as it stands there, with the shipped model."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from oseg_video.adapters import all_adapters
from oseg_video.cli import main, parse
from oseg_video.embedded.classifier import load_classifier
from oseg_video.embedded.dataset import parse_caption
from oseg_video.evaluation.metrics.base import known_metrics
from oseg_video.guidance.methods import METHODS, STG
from oseg_video.jobs.loading.pipeline import EMBEDDED, find_model
from oseg_video.media import read_clip
from tests.drawn import write_drawn
from tests.integration.families import CASES

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def table(first_header: str) -> list[dict[str, str]]:
    """The README's table whose first column has this header: a dict by header for each row."""
    lines = iter(README.read_text(encoding="utf-8").splitlines())
    header = next(line for line in lines if line.startswith(f"| {first_header} |"))
    rows = [
        line for line in itertools.takewhile(lambda line: line.startswith("|"), lines) if "---" not in line
    ]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, *rows)]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]


def methods(text: str) -> list[str]:
    """Names of the methods in a list such as "CFG-Zero*, STG (3 modes)"."""
    return [name.strip(" *").lower() for name in re.sub(r"\(.*?\)", "", text).split(",")]


def test_the_python_sample_runs_and_shows_what_its_prompt_says(capsys: pytest.CaptureFixture) -> None:
    (sample,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in sample.splitlines() if line.strip()]) <= 10
    torch.manual_seed(0)
    names: dict = {}
    exec(sample, names)
    frames = torch.stack([torch.from_numpy(np.array(picture)) for picture in names["clip"]])
    (judged,) = load_classifier().judge(frames.permute(0, 3, 1, 2)[None] / 255)
    assert judged == parse_caption(names["prompt"])
    assert "'method': 'oseg'" in capsys.readouterr().out


def test_the_table_of_models_and_methods_is_of_what_there_is() -> None:
    family, pipelines, *columns = table("family (`--model`)")[0]
    assert [name for column in columns for name in methods(column)] == list(METHODS)
    modes = get_args(get_type_hints(STG)["mode"])
    assert f"STG ({len(modes)} modes)" in columns[1]
    rows = {re.search(r"`(.+)`", row[family])[1]: row for row in table("family (`--model`)")}
    served = {name: [f"{one}Pipeline" for one in row[pipelines].split(", ")] for name, row in rows.items()}
    expected = {adapter.family: list(adapter.pipelines) for adapter in all_adapters()}
    assert served == {EMBEDDED: [find_model(EMBEDDED).pipeline], **expected}
    measured = json.loads((ROOT / "scripts" / "measure_tiny.json").read_text())["rows"]
    judged = []
    for name, row in rows.items():
        for column in columns:
            if name == EMBEDDED:
                which = re.fullmatch(r"end to end(?: \((.+)\))?", row[column])[1]
                judged += methods(which or column)
            else:  # test_every_method runs all of these cases
                assert row[column] == "tiny" and name in {case.name for case in CASES}
    assert {*judged, "none"} == measured.keys()


def test_the_shipped_recipe_makes_the_clip_and_reproduce_makes_it_again(tmp_path: Path) -> None:
    prompt = "a blue square moving up on a black background"
    command = [sys.executable, "-m", "oseg_video"]
    flags = ["--guidance", "oseg", "--seed", "7", "--out", "a.mp4", "--quiet"]
    subprocess.run([*command, "generate", "--prompt", prompt, *flags], cwd=tmp_path, check=True)
    done = subprocess.run(
        [*command, "reproduce", "a.mp4", "--json"], cwd=tmp_path, check=True, capture_output=True
    )
    assert json.loads(done.stdout)["identical"] is True
    clip = read_clip(tmp_path / "a.mp4")
    assert clip.frames.shape == (19, 3, 64, 64) and clip.fps == pytest.approx(12)
    (judged,) = load_classifier().judge(clip.frames[None].float() / 255)
    assert judged == parse_caption(prompt)
    manifest = json.loads((tmp_path / "a.json").read_text())
    (kind,) = manifest["passes"]["step_kinds"]
    assert kind["passes"][1]["fired"] == ["transformer_blocks.3.attn1"]


def test_the_evaluation_commands_run_as_they_stand_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = README.read_text(encoding="utf-8").split("\n## Evaluation\n")[1].split("\n## ")[0]
    runnable, with_weights = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for guidance, seed in (("cfg", 0), ("oseg", 1)):
        write_drawn(tmp_path / "clips", 10, guidance=guidance, seed=seed)
    for folder, format in (("old", "mp4"), ("new", "gif"), ("real", "png")):
        write_drawn(tmp_path / folder, 4, seed=2, format=format)
    for line in runnable.splitlines():
        with contextlib.suppress(SystemExit):  # of a flag that prints and ends
            assert main(shlex.split(line)[1:]) == 0, line
    results = json.loads((tmp_path / "results.json").read_text())
    assert [difference["name"] for difference in results["differences"]][-1] == "fvd:embedded"
    assert "| oseg minus cfg |" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "real.safetensors").is_file()
    for line in with_weights.splitlines():
        metrics = parse(shlex.split(line, comments=True)[1:]).metrics
        assert set(metrics) <= set(known_metrics())

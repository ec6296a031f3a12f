"""What READMEs show works as it stands there, with the shipped model; more rooms are in test_room_readmes."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from oseg_video.adapters import all_adapters
from oseg_video.cli import main
from oseg_video.config import resolve_job
from oseg_video.embedded import MODELS
from oseg_video.embedded.classifier import load_classifier
from oseg_video.embedded.dataset import parse_caption
from oseg_video.guidance.methods import METHODS
from oseg_video.jobs.loading.pipeline import find_model
from oseg_video.media import read_clip
from tests.integration.families import CASES

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
COVERED_HERE = {"README.md", "configs/README.md", "oseg_video/guidance/README.md"}
COVERED_ELSEWHERE = {
    "oseg_video/adapters/README.md",
    "oseg_video/comparison/README.md",
    "oseg_video/engine/README.md",
    "oseg_video/evaluation/README.md",
    "oseg_video/parallel/README.md",
    "oseg_video/probing/README.md",
    "oseg_video/sweeps/README.md",
    "oseg_video/tuning/README.md",
    # The suite runs these scripts, or, for tables of hours, what they consist of.
    "scripts/README.md",
    "scripts/study/README.md",
    "tests/README.md",
}


def text(path: str = "README.md") -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def blocks(path: str, language: str) -> list[str]:
    """The code blocks of a README, in order."""
    return re.findall(rf"```{language}\n(.*?)```", text(path), re.DOTALL)


def commands(block: str) -> list[list[str]]:
    """The words of every command line."""
    return [
        shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines() if line.strip()
    ]


def table(first_header: str) -> list[dict[str, str]]:
    """The README's table whose first column has this header: a dict by header for each row."""
    lines = iter(text().splitlines())
    header = next(line for line in lines if line.startswith(f"| {first_header} |"))
    rows = [
        line for line in itertools.takewhile(lambda line: line.startswith("|"), lines) if "---" not in line
    ]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, *rows)]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]


def test_no_readme_shows_code_that_no_test_runs() -> None:
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*README.md"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    shown = {path for path in files if re.search(r"```(python|bash|yaml)", text(path))}
    assert shown <= COVERED_HERE | COVERED_ELSEWHERE


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(text().splitlines()) <= 120
    assert len(text().split()) <= 900
    links = re.findall(r"\]\((?!http)([^)#]+)", text())
    assert len(links) > 10
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_python_sample_runs_and_shows_what_its_prompt_says(capsys: pytest.CaptureFixture) -> None:
    (sample,) = blocks("README.md", "python")
    assert len([line for line in sample.splitlines() if line.strip()]) <= 10
    torch.manual_seed(0)
    names: dict = {}
    exec(sample, names)
    frames = torch.stack([torch.from_numpy(np.array(image)) for image in names["clip"]])
    (judged,) = load_classifier().judge(frames.permute(0, 3, 1, 2)[None] / 255)
    assert judged == parse_caption(names["prompt"])
    assert "'method': 'oseg'" in capsys.readouterr().out


def test_the_table_of_models_is_of_what_there_is() -> None:
    family, pipelines, tested = table("family (`--model`)")[0]
    rows = {re.search(r"`(.+)`", row[family])[1]: row for row in table("family (`--model`)")}
    served = {name: [f"{one}Pipeline" for one in row[pipelines].split(", ")] for name, row in rows.items()}
    expected = {adapter.family: list(adapter.pipelines) for adapter in all_adapters()}
    assert served == {**{name: [find_model(name).pipeline] for name in MODELS}, **expected}
    assert {rows.pop(name)[tested] for name in MODELS} == {"end to end"}
    for name, row in rows.items():  # test_every_method runs all of these cases
        assert row[tested] == "tiny" and name in {case.name for case in CASES}


def test_the_shell_lines_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts, shell, search = blocks("README.md", "bash")
    for words in commands(scripts):
        assert (ROOT / words[0]).is_file()
    monkeypatch.chdir(tmp_path)
    for program, *arguments in commands(shell):
        assert program == "oseg-video" and main(arguments) == 0, arguments
    said = capsys.readouterr().out
    assert "identical: every frame equals those of a.mp4" in said and "cost      2.29 passes a step" in said
    clip = read_clip(tmp_path / "a.mp4")
    assert clip.frames.shape == (19, 3, 64, 64) and clip.fps == pytest.approx(12)
    (judged,) = load_classifier().judge(clip.frames[None].float() / 255)
    manifest = json.loads((tmp_path / "a.json").read_text())
    assert judged == parse_caption(manifest["job"]["prompts"][0])
    (kind,) = manifest["passes"]["step_kinds"]
    assert kind["passes"][1]["fired"] == ["transformer_blocks.3.attn1"]
    assert not (tmp_path / "boat.mp4").exists()
    for program, *arguments in commands(search):
        assert program == "oseg-video" and main(arguments) == 0, arguments
    said = capsys.readouterr().out
    assert "of its bound in" in said and "beat the baseline" in said and (tmp_path / "best.mp4").is_file()


@pytest.fixture
def methods_as_they_were() -> Iterator[None]:
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


def test_a_method_is_added_as_the_readme_of_guidance_says(
    methods_as_they_were: None, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict = {"__name__": __name__}
    for block in blocks("oseg_video/guidance/README.md", "python"):
        exec(block, names)
    flags = [
        *("--guidance", "temperature", "--factor", "0.3"),
        *("--temperature-scale", "0.5", "--blocks", "2"),
    ]
    assert all(flag.split("=")[0] in text("oseg_video/guidance/README.md") for flag in flags[::2][:-1])
    assert main(["generate", "--prompt", "a red circle", *flags, "--explain"]) == 0
    assert "queries times 0.3 in block 2" in capsys.readouterr().out
    assert names["Temperature"](blocks=(2,), scale=0.5).scale == 0.5


def test_recipes_work_as_their_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (shell,), (mine,) = blocks("configs/README.md", "bash"), blocks("configs/README.md", "yaml")
    for program, *arguments in commands(shell):
        assert program == "oseg-video" and main(arguments) == 0, arguments
    assert "(mochi, 48 blocks" in capsys.readouterr().out
    (tmp_path / "mine.yaml").write_text(mine)
    job = resolve_job({"prompts": ["x"]}, tmp_path / "mine.yaml", family_of=lambda model, revision: model)
    assert job.guidance.scale.at(0.8) == 2.0 and job.guidance.blocks == (34,) and job.steps == 64

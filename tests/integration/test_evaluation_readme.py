"""What the README of evaluation shows works as it stands there, with drawn clips of the shipped model."""

import json
import re
import shlex
from pathlib import Path

import pytest

from oseg_video import evaluation
from oseg_video.cli import main, parse
from oseg_video.evaluation.evaluate import evaluate
from oseg_video.evaluation.metrics import base
from oseg_video.evaluation.metrics.base import known_metrics
from tests.drawn import write_drawn

README = Path(evaluation.__file__).with_name("README.md").read_text(encoding="utf-8")


def blocks(language):
    """The code blocks of the README, in order."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(block):
    """The arguments of `oseg-video` of every line."""
    return [shlex.split(line, comments=True)[1:] for line in block.splitlines()]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The folders that the README speaks of."""
    monkeypatch.chdir(tmp_path)
    for guidance in ("cfg", "oseg"):
        write_drawn(tmp_path / "clips", 10, guidance=guidance)
    for name, seed in (("old", 1), ("new", 2), ("real", 3)):
        for clip in write_drawn(tmp_path / name, 4, seed=seed):
            clip.with_name(f"{clip.name}.json").unlink()
    return tmp_path


def test_the_commands(folders, capsys):
    listing, *runs = commands(blocks("bash")[0])
    with pytest.raises(SystemExit) as end:
        main(listing)
    assert end.value.code == 0 and capsys.readouterr().out.startswith("alignment:embedded ")
    for arguments in runs:
        assert main([*arguments, "--quiet"]) == 0, arguments
    assert json.loads((folders / "results.json").read_text())["baselines"] == {"oseg": "cfg"}
    assert (folders / "real.safetensors").is_file()
    for arguments in commands(blocks("bash")[1]):  # these need weights
        assert set(parse(arguments).metrics) <= set(known_metrics())


def test_the_library_call(folders, capsys):
    exec(blocks("python")[0], {})
    assert "| new minus old | 4 |" in capsys.readouterr().out


def test_the_metric_of_the_readme(folders, monkeypatch):
    known_metrics()
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    exec(blocks("python")[1], {})
    assert known_metrics()["brightness"].summary == "mean of all 8-bit values"
    (result,) = evaluate([folders / "old"], ["brightness"]).results["old"]
    assert 0 < result.value < 255 and result.clips == 4

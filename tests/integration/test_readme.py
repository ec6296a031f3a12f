"""What the README shows works as it stands there, with the shipped model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from oseg_video.embedded.classifier import load_classifier
from oseg_video.embedded.dataset import parse_caption
from oseg_video.media import read_clip

README = Path(__file__).parents[2] / "README.md"


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

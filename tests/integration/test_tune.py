"""Searches of real pipelines: a block that is made to matter, kills, and every family."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml

from oseg_video.cli import main
from oseg_video.config.manifest import read_manifest
from oseg_video.evaluation.metrics import base
from oseg_video.evaluation.metrics.base import MetricValue, known_metrics, register_metrics
from oseg_video.evaluation.observe import Look, MeanMetric
from tests.integration.test_generate_families import (  # noqa: F401
    MODELS,
    PROMPT,
    cat,
    folders,
    tiny_hunyuan_text,
)
from tests.processes import Command
from tests.sweeps import SMALL
from tests.tiny import MOCHI_SIZE, TEXT_LENGTH, tiny_mochi


class Contrast(MeanMetric):
    """Standard deviation of all values of the middle frame."""

    row_protocol: ClassVar = {"metric": "contrast"}
    values = (MetricValue(name="contrast", better="higher", protocol=row_protocol),)

    def look(self, clip: Any) -> Look:
        return _Middle(clip.frames // 2)


class _Middle(Look):
    def __init__(self, place: int) -> None:
        self._place = place

    def add(self, frame: Any) -> None:
        if frame.index == self._place:
            self._value = float(frame.rgb_HWC.astype("float64").std())
            self.done = True

    def seen(self) -> torch.Tensor:
        return torch.tensor([self._value], dtype=torch.float64)


@pytest.fixture
def contrast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metric, registered for one test."""
    known_metrics()
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    register_metrics({"contrast": "how far pixels are from each other"}, Contrast)


@pytest.fixture
def planted(tmp_path: Path) -> Iterator[Path]:
    """A pipeline in which attention counts in block 3 and hardly in others."""
    pipe = tiny_mochi()
    for place, block in enumerate(pipe.transformer.transformer_blocks):
        with torch.no_grad():
            for parameter in block.attn1.to_out.parameters():
                parameter *= 3.0 if place == 3 else 1e-3
    pipe.save_pretrained(tmp_path / "model")
    yield tmp_path / "model"
    shutil.rmtree(tmp_path / "model")


def write(folder: Path, **content: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_the_block_that_matters_is_found_in_a_real_pipeline(
    tmp_path: Path, planted: Path, contrast: None, capsys: pytest.CaptureFixture[str]
) -> None:
    size = {name.removeprefix("num_"): value for name, value in MOCHI_SIZE.items()}
    path = write(
        tmp_path,
        metric="contrast",
        baseline="none",
        methods={"oseg": {"blocks": "all", "oseg_scale": 8, "guidance_scale": 1, "perturb": "cond"}},
        models={"planted": {"model": str(planted)}},
        prompts=["a red circle", "a blue square", "a green cross"],
        seeds=[0, 1],
        test={"prompts": ["a red square", "a blue circle", "a green circle", "a red cross"]},
        settings={**size, "steps": 2, "fps": 8, "max_sequence_length": TEXT_LENGTH, "device": "cpu"},
        clips=54,
    )
    assert main(["tune", str(path), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("oseg blocks=3 beat the baseline on the test split by +"), said
    clip = str(tmp_path / "again.mp4")
    found = ["--config", str(tmp_path / "out" / "found.yaml")]
    assert (
        main(["generate", *found, "--prompt", "a red square", "--seed", "1", "--out", clip, "--quiet"]) == 0
    )
    tested = [read_manifest(one) for one in (tmp_path / "out" / "clips").glob("*.mp4")]
    (same,) = (
        one
        for one in tested
        if (one.prompt, one.seed) == ("a red square", 1) and one.read_job().guidance.blocks_used == (3,)
    )
    again = read_manifest(Path(clip))
    assert again.clip["sha256"] == same.clip["sha256"]


def test_a_search_that_is_killed_makes_nothing_twice(tmp_path: Path) -> None:
    settings = {**SMALL, "height": 64, "width": 64}
    path = write(
        tmp_path,
        metric="frame_difference",
        better="higher",
        methods={"oseg": {"blocks": [1, 2, 3]}},
        prompts=[
            "a red circle moving left on a white background",
            "a blue square moving up on a white background",
        ],
        test={"seeds": [1]},
        settings=settings,
        clips=16,
    )
    clips = tmp_path / "out" / "clips"

    def made() -> dict[str, int]:
        return {one.name: one.stat().st_mtime_ns for one in clips.glob("*.mp4")}

    arguments = ["tune", str(path), "--out", str(tmp_path / "out"), "--quiet"]
    seen: dict[str, int] = {}
    for more in (2, 3):
        with Command(*arguments) as run:
            before, deadline = len(made()), time.monotonic() + 600
            while len(made()) < before + more:
                assert run.poll() is None and time.monotonic() < deadline, run.err
                time.sleep(0.02)
        kept = made()
        assert seen.items() <= kept.items()
        seen = kept
    assert main(arguments) == 0
    assert seen.items() <= made().items()
    lines = [json.loads(line) for line in (clips / "index.jsonl").read_text().splitlines()]
    done = [line["item"] for line in lines if line["state"] == "done"]
    assert len({*done}) == len(made()) and not list((clips / ".work").rglob("*.mp4"))


@pytest.mark.parametrize("name", ["mochi", "ltx", "hunyuan", "hunyuan15", "wan", "cogvideox", "svd", "sdxl"])
def test_every_family_can_be_searched(
    tmp_path: Path,
    folders: Any,  # noqa: F811
    cat: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    model = MODELS[name]
    size = {key.removeprefix("num_"): value for key, value in model.size.items()}
    text = {"max_sequence_length": TEXT_LENGTH} if model.flags else {}
    fps = {} if name == "sdxl" else {"fps": 8}
    scale = {} if name == "svd" else {"guidance_scale": 3.0}
    subject = PROMPT[1] if model.prompt else {"image": str(cat)}
    path = write(
        tmp_path,
        metric="colours:contrast" if name == "sdxl" else "frame_difference",
        better="lower",
        baseline={"guidance": "cfg", **scale},
        methods={"stg": {"blocks": [0, 1], **scale}},
        models={name: {"model": str(folders(name))}},
        prompts=[subject],
        test={"seeds": [1, 2]},
        settings={
            **size,
            **text,
            **fps,
            "frames": size.get("frames", 1),
            "steps": 2,
            "dtype": "float32",
            "vae_tiling": False,
        },
        clips=7,
    )
    capsys.readouterr()
    code = main(["tune", str(path), "--out", str(tmp_path / "out"), "--quiet"])
    output = capsys.readouterr()
    assert code == 0, output.err
    assert "search and test took 7 clips" in output.out
    assert yaml.safe_load((tmp_path / "out" / "best-stg.yaml").read_text())["guidance"] == "stg"

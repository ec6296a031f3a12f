"""The study as it is run, with few clips of few steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from study.bench import Bench

from oseg_video.embedded.tasks import TWO_SHAPES

ROOT = Path(__file__).parents[2]
METHODS = """
arms: 2
plain:
  none: {guidance: cfg, guidance_scale: 1}
  cfg: {guidance: cfg, guidance_scale: [1.5, 3]}
alone:
  pag: {guidance: pag, blocks: [1], pag_scale: 0.25}
  seg: {guidance: seg, blocks: [2], seg_scale: 1, blur_sigma: .inf}
  stg: {guidance: stg, blocks: [0], stg_scale: 0.5}
  oseg: {guidance: oseg, blocks: [4], oseg_scale: 1, blur_sigma: 1}
  oseg frame: {guidance: oseg, blocks: [4], oseg_scale: 1, blur_sigma: 1, reference: frame}
with text:
  stg: {guidance: stg, blocks: [3], stg_scale: 0.5}
  oseg: {guidance: oseg, blocks: [3], oseg_scale: 0.5, blur_sigma: 5, perturb: cond}
  oseg frame: {guidance: oseg, blocks: [3], oseg_scale: 0.5, blur_sigma: 5, perturb: cond, reference: frame}
"""


def run(folder: Path, *stages: str, groups: int = 3, others: Sequence[Path] = (TWO_SHAPES.model,)) -> dict:
    out = folder / "results.json"
    arguments = ["--methods", folder / "methods.yaml", "--run-dir", folder / "rows", "--out", out]
    arguments += [
        "--float32",
        "--steps",
        "2",
        "--one-shape-steps",
        "2",
        "--regimes",
        "3",
        "--budget",
        "12",
        "--clips",
        "4",
        "--fewer",
        "4",
        "--resamples",
        "3",
        "--groups",
        groups,
        "--other",
        *others,
    ]
    command = [
        sys.executable,
        ROOT / "scripts" / "run_study.py",
        *arguments,
        "--threads",
        "1",
        "--stage",
        *stages,
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(out.read_text())


def test_every_stage_runs_and_a_second_time_makes_no_clip_again(tmp_path: Path) -> None:
    (tmp_path / "methods.yaml").write_text(METHODS)
    stages = (
        "search",
        "test",
        "inside",
        "regimes",
        "blocks",
        "blocks-other",
        "search-other",
        "reuse",
        "one-shape",
        "one-shape-reuse",
    )
    first = run(tmp_path, "search", "test", groups=1)
    assert [row["label"] for row in first["test"]["found"]] == ["none", "cfg"]
    found = run(tmp_path, *stages)
    plain = found["test"]["found"][:2]
    kept = [{key: value for key, value in row.items() if key != "oseg minus it"} for row in plain]
    assert kept == first["test"]["found"]
    assert [*found] == ["made_by", *stages]
    labels = ["none", "cfg", "pag", "seg", "stg", "oseg", "oseg frame", "stg", "oseg", "oseg frame"]
    assert [row["label"] for row in found["test"]["found"]] == labels
    assert [row.get("minus") for row in found["test"]["found"]] == [None, *["none"] * 6, *["cfg"] * 3]
    passes = {row["label"]: row["values"]["passes"] for row in found["test"]["found"][:6]}
    assert passes == {"none": 1, "cfg": 2, "pag": 1.8, "seg": 1.6, "stg": 2, "oseg": 1.2}
    for row in found["reuse"]["found"]:
        if row["reuse"] != "none":
            low, high = row["differences"]["all"][1:]
            assert low <= high
    labels = ["none", "cfg", "stg", "seg", "oseg"]
    assert [row["label"] for row in found["one-shape"]["found"]] == labels
    on_one = [row["reuse"] for row in found["one-shape-reuse"]["found"]]
    assert on_one[:4] == ["none", "uncond=2", "uncond=0.5", "cache=0.1"]
    assert {*found["blocks"]["found"]["probe"]["oseg"]} >= {"effect: change"}
    other = found["blocks-other"]["found"][TWO_SHAPES.model.name]  # the same network, from other files
    assert other["gains"] == found["blocks"]["found"]["gains"] and {*other} == {*found["blocks"]["found"]}
    searched = found["search-other"]["found"][TWO_SHAPES.model.name]
    assert searched["search"] == found["search"]["found"]
    assert [row["label"] for row in searched["test"]] == [row["label"] for row in found["test"]["found"]]
    assert [*found["regimes"]["found"]] == ["3 steps", TWO_SHAPES.model.name]
    for rows in found["regimes"]["found"].values():
        alone = ["pag", "seg", "stg", "oseg", "oseg frame"]
        assert [row["label"] for row in rows] == ["none", "cfg", *alone, "oseg frame"]
        assert rows[1]["guidance"]["guidance_scale"] == rows[-1]["guidance"]["guidance_scale"]
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}
    again = run(tmp_path, "search", "test")
    assert again["test"]["found"] == found["test"]["found"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()} == made
    # Without other weights, what was found of them stays.
    fewer = run(tmp_path, "regimes", others=())["regimes"]
    assert {*fewer["found"]} == {*found["regimes"]["found"]}
    assert fewer["made with"]["other weights"] == found["regimes"]["made with"]["other weights"] != {}
    with pytest.raises(SystemExit, match="--stage search-other needs the folder of other weights: --oth"):
        run(tmp_path, "search-other", others=())


@pytest.mark.parametrize(
    ("kept", "step", "name"), [("second-5500", 5500, "a second network"), ("two-16000", 16000, "step 16,000")]
)
def test_the_weights_that_are_kept_are_those_of_the_results(
    tmp_path: Path, kept: str, step: int, name: str
) -> None:
    """As the README exports them for `--other`."""
    weights = ROOT / "scripts" / "study" / "checkpoints" / f"{kept}.safetensors"
    few = ("--clips", "2", "--scales", "1", "--threads", "1")
    command = (sys.executable, ROOT / "scripts" / "train_two.py", "--stage", "export", "--kept", weights)
    done = subprocess.run(
        list(map(str, (*command, "--run-dir", tmp_path, *few))),
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    digest = Bench(TWO_SHAPES, tmp_path / "rows", model=tmp_path / f"export-{step}").digest
    results = json.loads((ROOT / "scripts" / "study" / "results.json").read_text())
    assert results["regimes"]["made with"]["other weights"][name] == digest

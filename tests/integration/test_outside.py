"""A guidance method and a model family that are defined here and registered by the documented means.

They are there in Python, as flags, in help, as YAML keys with bounds, in --explain, in manifests, in
reproduce and in sweeps.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import MochiPipeline
from torch import Tensor

import oseg_video
from oseg_video import guided
from oseg_video.adapters import base as adapters
from oseg_video.adapters.mochi import MochiAdapter
from oseg_video.cli import main
from oseg_video.config import resolve_job
from oseg_video.config.manifest import read_manifest
from oseg_video.guidance.methods import METHODS, PerturbedGuidance, guidance_method
from oseg_video.settings import Setting, setting
from oseg_video.settings.kinds import FINITE, INTEGER
from oseg_video.types import OsegVideoError, TokenGrid
from tests.tiny import MOCHI_SIZE, TEXT_LENGTH, tiny_mochi


@dataclasses.dataclass(frozen=True)
class ShrinkQueries:
    """Queries times a factor: attention closer to uniform."""

    factor: float
    site: ClassVar[Any] = "normalised"

    def __call__(self, query: Tensor, key: Tensor, grid: TokenGrid) -> Tensor:
        return query * self.factor

    @property
    def identity(self) -> bool:
        return self.factor == 1

    @property
    def words(self) -> str:
        return f"queries shrunk by {self.factor:g}"


class PaperPipeline(MochiPipeline):
    """A pipeline of a family that this package does not know."""

    folded: ClassVar[list[int]] = []


@pytest.fixture
def shrink(monkeypatch: pytest.MonkeyPatch) -> type[PerturbedGuidance]:
    """The method `shrink`, known for as long as the test runs."""
    monkeypatch.setattr("oseg_video.guidance.methods.base.METHODS", METHODS)
    before = dict(METHODS)

    @guidance_method
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Shrink(PerturbedGuidance):
        """Push away from attention with smaller queries."""

        name: ClassVar[str] = "shrink"

        factor: float = setting(FINITE, "factor of the queries, 0 to 1; 1 is off", default=0.5, low=0, high=1)

        @property
        def change(self) -> Any:
            return ShrinkQueries(self.factor)

    yield Shrink
    METHODS.clear()
    METHODS.update(before)


@pytest.fixture
def paper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The family `paper`, known for as long as the test runs; flags of a quick job with it."""

    @adapters.register_adapter
    class PaperAdapter(MochiAdapter):
        """Mochi, folded."""

        family = "paper"
        text_to_video = "PaperPipeline"
        hub_repository = "nobody/paper"
        own_settings: ClassVar[dict[str, Setting]] = {
            "folds": Setting(kind=INTEGER, help="how often it is folded", default=None, low=1, high=7)
        }

        def pipeline_class(self, name: str) -> Any:
            return PaperPipeline

        def configure(self, pipe: Any, settings: Mapping[str, Any]) -> Mapping[str, Any]:
            pipe.folded.append(settings.get("folds"))
            return {name: value for name, value in settings.items() if name != "folds"}

    folder = tmp_path_factory.mktemp("paper")
    pipe = tiny_mochi()
    PaperPipeline(**pipe.components).save_pretrained(folder)
    size = [f"--{name.removeprefix('num_')}={value}" for name, value in MOCHI_SIZE.items()]
    yield [
        *("--model", str(folder), *size, "--steps=2", "--blocks=2", "--fps=8"),
        f"--max-sequence-length={TEXT_LENGTH}",
    ]
    adapters._ADAPTERS.pop("PaperPipeline")


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    code = main([*map(str, arguments)])
    output = capsys.readouterr()
    assert code == 0, output.err
    return output.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main([*map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_a_method_of_ones_own_in_python(shrink: Any) -> None:
    assert oseg_video.Shrink is shrink
    pipe = tiny_mochi()
    pipe.set_progress_bar_config(disable=True)
    call = {**MOCHI_SIZE, "num_inference_steps": 2, "output_type": "latent", "prompt": "a"}

    def run(guidance: Any) -> tuple[Tensor, Any]:
        with guided(pipe, guidance) as report:
            seed = torch.Generator().manual_seed(0)
            return pipe(**call, max_sequence_length=TEXT_LENGTH, generator=seed).frames, report

    weak, report = run(shrink(guidance_scale=2.0, blocks=(2,), factor=0.25))
    assert report.method == "shrink" and torch.isfinite(weak).all()
    off, _ = run(shrink(guidance_scale=2.0, blocks=(2,), factor=1.0))
    assert not torch.equal(weak, off)
    with pytest.raises(OsegVideoError, match="factor must be from 0 to 1, got 2"):
        shrink(blocks=(1,), factor=2.0)


def test_a_method_of_ones_own_on_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, shrink: Any, paper: list[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    text = capsys.readouterr().out
    assert "--shrink-scale" in text and "--factor" in text and "factor of the queries" in text
    assert "shrink" in text.partition("--guidance {")[2].partition("}")[0]

    job = [*paper, "--prompt", "a red circle", "--guidance", "shrink"]
    said = run(capsys, "generate", *job, "--factor=0.25", "--explain")
    assert "queries shrunk by 0.25 in block 2" in said and "+ 1 (C - P)" in said
    assert "--factor must be from 0 to 1, got 3" in refused(capsys, "generate", *job, "--factor=3")
    assert "factor has no effect with guidance stg; it belongs to shrink" in refused(
        capsys, "generate", *job[:-1], "stg", "--factor=0.5"
    )

    out = tmp_path / "a.mp4"
    run(capsys, "generate", *job, "--factor=0.25", "--shrink-scale=0.5", "--out", out, "--quiet")
    guidance = json.loads((tmp_path / "a.json").read_text())["job"]["guidance"]
    assert (guidance["method"], guidance["factor"], guidance["scale"]) == ("shrink", 0.25, 0.5)
    assert '"identical": true' in run(capsys, "reproduce", out, "--quiet", "--json")
    assert "factor: 0.25" in run(capsys, "info", out, "--yaml")


def test_a_method_of_ones_own_in_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, shrink: Any, paper: list[str]
) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(
        "guidance: shrink\nfactor: 0.125\nshrink_scale: {breakpoints: {1.0: 2, 0.5: 1}}\nblocks: [1]"
    )
    job = resolve_job({"prompts": ["x"]}, config, family_of=lambda model, revision: "mochi")
    assert isinstance(job.guidance, shrink) and job.guidance.factor == 0.125
    assert job.guidance.scale.at(0.7) == 2.0 and job.guidance.guidance_scale == 4.5  # of the family's recipe
    config.write_text("factor: 1.5")
    error = refused(capsys, "generate", "--prompt", "x", "--config", config)
    assert "mine.yaml: factor must be from 0 to 1, got 1.5" in error

    sweep = tmp_path / "sweep.yaml"
    settings = {"steps": 2, "frames": 7, "height": 32, "width": 32, "device": "cpu"}
    methods = {"cfg": {}, "weak": {"guidance": "shrink", "factor": 0.25, "blocks": [2]}}
    sweep.write_text(json.dumps({"prompts": ["a"], "methods": methods, "settings": settings, "out": "x"}))
    assert "2 clips" in run(capsys, "sweep", sweep, "--out", tmp_path / "x", "--dry-run")


def test_a_family_of_ones_own(capsys: pytest.CaptureFixture[str], tmp_path: Path, paper: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    assert "paper: how often it is folded" in " ".join(capsys.readouterr().out.split())
    assert "paper" in run(capsys, "models")

    job = [*paper, "--prompt", "a red circle", "--guidance", "stg"]
    said = run(capsys, "generate", *job, "--folds=3", "--explain")
    assert "(paper, " in said
    assert "--folds must be from 1 to 7, got 9" in refused(capsys, "generate", *job, "--folds=9")
    error = refused(capsys, "generate", "--prompt", "x", "--guidance", "cfg", "--folds=3")
    assert "folds has no effect with mochi; it belongs to paper" in error

    out = tmp_path / "a.mp4"
    PaperPipeline.folded.clear()
    run(capsys, "generate", *job, "--folds=3", "--out", out, "--quiet")
    assert PaperPipeline.folded == [3]
    manifest = read_manifest(out)
    assert manifest.job["own"] == {"folds": 3} and manifest.model["pipeline"] == "PaperPipeline"
    assert '"identical": true' in run(capsys, "reproduce", out, "--quiet", "--json")
    assert PaperPipeline.folded == [3, 3]
    config = tmp_path / "mine.yaml"
    config.write_text("folds: 8")
    assert "folds must be from 1 to 7, got 8" in refused(
        capsys, "generate", "--prompt", "x", "--config", config
    )

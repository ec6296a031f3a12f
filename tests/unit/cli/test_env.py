"""`oseg-video env`: one line a thing, whatever is missing, and nothing heavy imported."""

import importlib.metadata
import json
import subprocess
import sys

import pytest

from oseg_video.cli import env, main


@pytest.fixture
def printed(capsys):
    def run(*flags):
        assert main(["env", *flags]) == 0
        output = capsys.readouterr()
        assert output.err == ""
        return output.out

    return run


def test_versions_and_machine_one_a_line_or_as_json(printed):
    as_json = json.loads(printed("--json"))
    lines = dict(
        line.split(maxsplit=1) for line in printed().splitlines() if not line.startswith("torch built")
    )
    for package in ("oseg-video", "torch", "diffusers", "transformers", "decord"):
        assert lines[package] == as_json[package] == importlib.metadata.version(package)
    assert as_json["python"] == sys.version.split()[0]
    assert int(as_json["cores"]) >= 1 and as_json["memory"].endswith("GiB free")
    assert as_json["ffmpeg"][0] in "n0123456789" and as_json["ffmpeg"].endswith(")")
    # Of the packages that are asked for, none of the developers' alone.
    assert {"imageio-ffmpeg", "ray"} <= as_json.keys() and not {"pytest", "ruff", "mypy"} & as_json.keys()


def test_gpus_are_those_of_nvidia_smi(printed, monkeypatch):
    def smi(command, **_):
        text = "NVIDIA H100, 81559 MiB, 570.86\nNVIDIA H100, 81559 MiB, 570.86\n"
        assert command[0] == "nvidia-smi" or "-version" in command
        return subprocess.CompletedProcess(command, 0, text, "")

    monkeypatch.setattr(env.subprocess, "run", smi)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    one = "NVIDIA H100, 81559 MiB, 570.86"
    assert json.loads(printed("--json"))["gpu"] == f"{one}; {one} (CUDA_VISIBLE_DEVICES=1)"


def test_what_is_missing_is_said(printed, monkeypatch):
    def absent(*_, **__):
        raise FileNotFoundError

    def unknown(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(env.subprocess, "run", absent)
    monkeypatch.setattr(importlib.metadata, "version", unknown)
    monkeypatch.setattr(importlib.metadata, "requires", unknown)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(env.Path, "read_text", absent)
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = json.loads(printed("--json"))
    for name in ("oseg-video", "torch built for", "gpu", "ffmpeg", "memory"):
        assert found[name] == "not found"
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert json.loads(printed("--json"))["ffmpeg"] == "not found"


@pytest.mark.parametrize(
    ("text", "built"),
    [
        ("cuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n", "cuda 12.8"),
        ("hip = '6.4'\n", "hip 6.4"),
    ],
)
def test_what_torch_is_built_for(printed, monkeypatch, text, built):
    monkeypatch.setattr(env.Path, "read_text", lambda *_, **__: text)
    assert json.loads(printed("--json"))["torch built for"] == built


def test_neither_torch_nor_diffusers_is_imported():
    code = (
        "import sys; from oseg_video.cli import main; main(['env']); "
        "print([name for name in ('torch', 'diffusers', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"

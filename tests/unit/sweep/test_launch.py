"""What a sweep refuses before it starts a worker."""

import pytest
import torch

from oseg_video.cli import main
from oseg_video.jobs.loading import device
from oseg_video.jobs.loading.errors import LoadError
from oseg_video.sweeps.launch import sweep
from oseg_video.sweeps.recipe import read_sweep
from tests.sweeps import GIF, SMALL, write_recipe


@pytest.mark.parametrize("flags", [["--workers", "2"], ["--gpus", "2"], []])
def test_several_processes_share_no_gpu(capsys, tmp_path, monkeypatch, flags):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    path = write_recipe(tmp_path, settings={**GIF, "device": "cuda:1"})
    assert main(["sweep", str(path), *flags]) == 2
    assert capsys.readouterr().err == (
        "oseg-video: error: device cuda:1: of several processes each has its own GPU; use auto, or --workers "
        "1 --gpus 1\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_what_no_clip_could_have_is_refused_once_for_all(capsys, tmp_path):
    """Before, each clip failed in its worker, and stayed failed in the index."""
    path = write_recipe(tmp_path, settings={**GIF, "offload": "model"})
    assert main(["sweep", str(path)]) == 2
    assert capsys.readouterr().err == (
        "oseg-video: error: --offload model needs a GPU: on the CPU there is nothing to offload to\n"
    )
    assert not list((tmp_path / "out").glob("index*"))
    assert main(["sweep", str(path), "--dry-run"]) == 0  # for a machine that has one
    said = "warning: this machine cannot make them: --offload model needs a GPU"
    assert said in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.usefixtures("painter")
def test_what_is_finished_asks_for_no_device(capsys, tmp_path):
    """Made on a machine with a GPU, looked at on another one."""
    assert main(["sweep", str(write_recipe(tmp_path)), "--quiet"]) == 0
    path = write_recipe(tmp_path, settings={**GIF, "offload": "model"})  # which is no part of a clip
    assert main(["sweep", str(path), "--quiet"]) == 0
    assert "8 of 8 clips are in" in capsys.readouterr().out


def test_a_large_model_is_not_run_on_a_cpu_that_nobody_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "_LARGE", 1000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipe = read_sweep(write_recipe(tmp_path, settings={**GIF, "device": "auto"}))
    with pytest.raises(LoadError, match="would run on the CPU, for hours or days"):
        sweep(recipe)
    assert not list((tmp_path / "out").glob("index*"))


@pytest.mark.parametrize("command", ["sweep", "compare", "tune"])
def test_a_home_folder_of_nobody_is_refused(capsys, tmp_path, command):
    recipe = "embedded" if command == "tune" else str(write_recipe(tmp_path))
    assert main([command, recipe, "--out=~nobody-of-this-name/x"]) == 2
    assert capsys.readouterr().err == (
        "oseg-video: error: ~nobody-of-this-name/x: there is no home folder of that name\n"
    )


def test_what_recipes_say_reaches_no_terminal_raw(capsys, tmp_path):
    path = write_recipe(tmp_path, settings=SMALL, methods={"x\x1b]0;title\a\x1b[31mred": {"guidance": "cfg"}})
    for command in (["sweep"], ["compare", f"--out={tmp_path / 'made'}"], ["compare"]):
        assert main([*command[:1], str(path), *command[1:], "--dry-run"]) == 0
        out = capsys.readouterr().out
        assert "\\x1b]0;title\\x07\\x1b[31mred" in out and "\x1b" not in out and "\a" not in out

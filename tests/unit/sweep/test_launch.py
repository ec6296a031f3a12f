"""What a sweep refuses before it starts a worker."""

import pytest
import torch

from oseg_video.cli import main
from tests.sweeps import GIF, write_recipe


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

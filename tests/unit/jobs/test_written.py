"""A clip and its manifest, as they get to their places."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from oseg_video.config.keys import job_from_plain
from oseg_video.config.manifest import new_manifest
from oseg_video.files import FileError
from oseg_video.jobs import model
from oseg_video.jobs.outputs import ClipPlan

SIZE = {"steps": 2, "frames": 2, "height": 8, "width": 8}


def write(folder: Path, prompt: str, level: int) -> None:
    plan = ClipPlan(prompt, 0, folder / "a.gif", "gif")
    frames = torch.full((2, 3, 8, 8), level, dtype=torch.uint8)
    frames[1] += 1
    manifest = new_manifest(job_from_plain({**SIZE, "prompts": [prompt], "seeds": [0], "guidance": "cfg"}))
    model._write(plan, frames, 8, manifest, None)


@pytest.mark.parametrize("fails", ["clip", "manifest"])
def test_a_clip_never_stands_beside_the_manifest_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """A disk that is full when one of both is written leaves the old two."""
    write(tmp_path, "a cat", 10)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    owner, name = (model, "write_clip") if fails == "clip" else (Path, "write_text")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(FileError, match="No space left on device"):
            write(tmp_path, "a dog", 200)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    write(tmp_path, "a dog", 200)
    assert json.loads((tmp_path / "a.json").read_text())["job"]["prompts"] == ["a dog"]
    assert (tmp_path / "a.gif").read_bytes() != before["a.gif"]

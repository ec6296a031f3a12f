"""The Python of the READMEs of engine, adapters and parallel runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOMS = Path(__file__).parents[2] / "oseg_video"


def samples(room: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOMS / room / "README.md").read_text("utf-8"), re.DOTALL)


def printed(script: str, folder: Path) -> str:
    """A process of its own: a sample may register a family."""
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_engine_shows_its_passes(tmp_path: Path) -> None:
    output = printed("\n".join(samples("engine")), tmp_path).splitlines()
    shown = [
        [line[4:] for line in lines.splitlines()]
        for lines in re.findall(
            r"```\n\n(.*?)    \.\.\.", (ROOMS / "engine" / "README.md").read_text("utf-8"), re.DOTALL
        )
    ]
    steps, reuse = output[:8], [line.strip() for line in output[8:]]
    assert steps[:4] == shown[0] and steps[4].startswith("1 ")
    assert reuse[:4] == shown[1] and len(reuse) == 9


def test_a_family_is_one_class(tmp_path: Path) -> None:
    script = [
        *samples("adapters"),
        "example = OwnAdapter().example_arguments(pipe.transformer.to('meta'), ClipSize(7, 64, 64), 1)",
        "print({x.device.type for x in example.values()})",
    ]
    assert printed("\n".join(["from oseg_video.adapters import ClipSize", *script]), tmp_path) == "{'meta'}\n"


def test_ranks_from_python(tmp_path: Path) -> None:
    one, counted = samples("parallel")
    assert printed(one, tmp_path) == "{}\n"
    shape, traffic = printed(counted, tmp_path).splitlines()
    assert shape == "torch.Size([1, 6, 400, 128])"
    assert traffic == f"Counter({{'all-to-all': {24 * 100 * 128 * 4 * 3 // 4}}})"


@pytest.mark.parametrize("room", ("engine", "adapters", "parallel"))
def test_files_that_are_named_exist(room: str) -> None:
    text = (ROOMS / room / "README.md").read_text("utf-8").split("\n## What it works with")[0]
    for name in re.findall(r"`((?:[a-z_0-9]+/)*[a-z_0-9]+\.py)`", text):
        places = (ROOMS / room / name, ROOMS / name, ROOMS / room / "patching" / name, ROOMS.parent / name)
        assert any(place.is_file() for place in places), name

"""The names that a user imports, and what a type checker makes of them in a user's file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import oseg_video

ROOT = Path(__file__).parents[2]


def test_every_name_is_there_and_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, oseg_video; from oseg_video import OSEG, APG; OSEG(text=APG(eta=0.5), blocks=(34,));"
        "print([m for m in ('torch', 'numpy', 'diffusers') if m in sys.modules]);"
        "[getattr(oseg_video, name) for name in oseg_video.__all__]; print('all', oseg_video.__version__);"
        "print(callable(oseg_video.compare), callable(oseg_video.sweep))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["[]", f"all {oseg_video.__version__}", "True True"]
    with pytest.raises(AttributeError, match="OSEGG"):
        oseg_video.OSEGG  # noqa: B018


def test_a_type_checker_knows_the_settings(tmp_path: Path) -> None:
    user = tmp_path / "user.py"
    user.write_text(
        "from oseg_video import APG, OSEG, guided\n"
        "OSEG(blur_sigma=1.0, text=APG(eta=0.5), blocks=(34,))\n"
        "OSEG(blur_sgima=1)\n"
        "OSEG(text='apg')\n"
        "guided(object(), 3)\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    said = subprocess.run([*command, str(user)], cwd=ROOT, capture_output=True, text=True).stdout
    wrong = {
        int(line.split(":")[1]) for line in said.splitlines() if "user.py" in line and ": error:" in line
    }
    assert wrong == {3, 4, 5}, said
    assert 'Unexpected keyword argument "blur_sgima"' in said

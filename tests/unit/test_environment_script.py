"""scripts/environment.sh: a Python that is too old is one line, and no .venv stays that cannot work."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Stands for an interpreter: knows its version, makes a .venv with itself inside, writes down what it runs.
PYTHON = """#!/bin/sh
echo "$*" >> {log}
case "$*" in
  *version_info*pip*|*pip*version_info*) exit {without_pip} ;;
  *version_info*) exit {too_old} ;;
  -V) echo Python {version} ;;
  "-m venv --clear .venv")
    rm -rf .venv && mkdir -p .venv/bin
    [ {half} = 1 ] && exit 1
    cp {new} .venv/bin/python ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """The files that the script reads, in a folder with a space in its name, and a place for interpreters."""
    folder = tmp_path / "a checkout"
    (folder / "scripts").mkdir(parents=True)
    for name in ("pyproject.toml", "scripts/environment.sh", "scripts/constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def interpreter(path, *, version="3.11.9", too_old=0, without_pip=0, half=0, new=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = PYTHON.format(
        log=path.parent / "log",
        version=version,
        too_old=too_old,
        without_pip=without_pip,
        half=half,
        new=new or path,
    )
    path.write_text(text)
    path.chmod(0o755)
    return path


def source(checkout, python, extras=""):
    """Sources the script as demo.sh does, with this interpreter for `python3`."""
    (checkout / "scripts" / "demo.sh").write_text(f'extras="{extras}"\n. scripts/environment.sh\n')
    environment = {**os.environ, "PYTHON": str(python)}
    command = ["bash", "scripts/demo.sh"]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def log(checkout):
    """What the .venv's interpreter has run."""
    return (checkout.parent / "log").read_text().splitlines()


def installs(checkout):
    return [line for line in log(checkout) if line.startswith("-m pip install")]


def test_a_python_that_is_too_old_is_one_line_and_leaves_nothing(checkout):
    old = interpreter(checkout.parent / "python3.9", version="3.9.2", too_old=1)
    done = source(checkout, old)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: needs Python 3.11 or newer, {old} is Python 3.9.2; name another")
    assert done.stderr.count("\n") == 1
    assert not (checkout / ".venv").exists()
    new = interpreter(checkout.parent / "python3")
    assert source(checkout, new).returncode == 0
    assert installs(checkout) == [
        "-m pip install --quiet --disable-pip-version-check -c scripts/constraints.txt -e ."
    ]


def test_no_python_at_all_is_one_line(checkout):
    done = source(checkout, "python3.99")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "python3.99" in done.stderr


@pytest.mark.parametrize("broken", ["without pip", "gone", "empty"])
def test_a_venv_that_cannot_work_is_made_anew(checkout, broken):
    inside = checkout / ".venv" / "bin" / "python"
    if broken == "gone":  # the interpreter that it was made with is uninstalled
        inside.parent.mkdir(parents=True)
        inside.symlink_to(checkout.parent / "uninstalled")
    elif broken == "empty":
        (checkout / ".venv").mkdir()
    else:
        interpreter(inside, without_pip=1)
    (checkout / ".venv" / "left.txt").touch()
    assert source(checkout, interpreter(checkout.parent / "python3")).returncode == 0
    assert not (checkout / ".venv" / "left.txt").exists()
    assert "-m venv --clear .venv" in log(checkout) and len(installs(checkout)) == 1


def test_a_venv_that_could_not_be_made_does_not_stay(checkout):
    assert source(checkout, interpreter(checkout.parent / "python3", half=1)).returncode == 1
    assert not (checkout / ".venv").exists()


def test_a_venv_that_works_is_kept_and_installed_into_once(checkout):
    python = interpreter(checkout.parent / "python3")
    for extras in ("[dev]", "[dev]", ""):  # the developer's installation contains the user's
        assert source(checkout, python, extras).returncode == 0
    assert log(checkout).count("-m venv --clear .venv") == 1 and len(installs(checkout)) == 1
    (checkout / "scripts" / "constraints.txt").write_text("torch==1\n")
    assert source(checkout, python).returncode == 0
    assert len(installs(checkout)) == 2

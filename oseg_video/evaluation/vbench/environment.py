"""The interpreter that VBench runs in: building it, and finding it again.

VBench 0.1.5 pins numpy < 2 and transformers 4.33.2, which no current diffusers works with. So it gets a
virtual environment with versions of its own (`requirements.txt`, a lock file); `worker` runs inside.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oseg_video.console import logger
from oseg_video.evaluation.alone import LOCK, alone_in
from oseg_video.evaluation.errors import VBenchError
from oseg_video.files import expanded

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
WORKER = Path(__file__).with_name("worker.py")
DETECTRON2 = "git+https://github.com/facebookresearch/detectron2.git"
"""No release of it is on a package registry; this is the place that VBench's README names."""

_PYTHON = "3.11"
# transformers 4.33.2 wants tokenizers 0.13: no wheels for a newer Python; scipy 1.17 has none for an older.
# Some packages build with pkg_resources, which newer setuptools no longer has.
_BUILD_TOOLS = ("setuptools==69.5.1", "wheel==0.48.0")
_DISK_GB = 8
_RECORD = "oseg-video.json"


@dataclass(frozen=True)
class Environment:
    """A virtual environment with VBench."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"


def find_environment() -> Environment:
    """The environment that the last `set_up` built. Raises VBenchError if there is none or half of one."""
    folder = _noted_folder() or default_folder()
    record = _read_json(folder / _RECORD)
    if not record or not Environment(folder).python.exists():
        raise VBenchError(
            "VBench is not set up; `oseg-video vbench setup` builds an interpreter of its own for it (6.4 GB)"
        )
    if record != _whole():
        fault = "has other packages than this version wants" if record.get("complete") else "is half built"
        raise VBenchError(f"VBench's interpreter in {folder} {fault}; `oseg-video vbench setup` goes on")
    return Environment(folder)


def set_up(*, where: Path | None = None, python: Path | None = None, detectron2: bool = False) -> Environment:
    """Build the environment; after a stop anew, from what pip has downloaded.

    where: its folder; default: that of the earlier call, else `default_folder()`.
    python: the Python 3.11 that it is made from; default: the running one, else `python3.11`.
    detectron2: add detectron2, which four dimensions need; compiled from its repository on GitHub.

    Stages are logged, and what pip prints is shown where those are. Raises VBenchError: wrong Python,
    folder in use for something else, disk full, packages not to be had.
    """
    folder = (expanded(where) if where else _noted_folder() or default_folder()).absolute()
    environment = Environment(folder)
    base = _interpreter(python)
    _check_folder(folder)
    with alone_in(folder, "`oseg-video vbench setup`") as lock:
        os.set_inheritable(lock.fileno(), True)  # a pip may outlive this process
        if _read_json(folder / _RECORD) != _whole() or not environment.python.exists():
            _write_json(folder / _RECORD, {**_whole(), "complete": False})
            _write_json(_note(), {"folder": str(folder)})
            logger.info("1/2 virtual environment in %s", folder)
            # Anew, since a pip that was killed leaves packages without some of their files.
            for part in ("bin", "lib", "include"):
                shutil.rmtree(folder / part, ignore_errors=True)
            _run([base, "-m", "venv", str(folder)], f"{base} cannot make a virtual environment")
            logger.info("2/2 packages (about 3 GB to download, 6.4 GB on disk)")
            _pip(environment, *_BUILD_TOOLS)
            _pip(environment, "--no-build-isolation", "-r", str(REQUIREMENTS))
            _write_json(folder / _RECORD, _whole())
        _write_json(_note(), {"folder": str(folder)})
        if detectron2:
            logger.info("detectron2 from %s (compiled, minutes)", DETECTRON2)
            _pip(environment, "--no-build-isolation", DETECTRON2)
    return environment


def default_folder() -> Path:
    """Where the environment is put unless told otherwise: the XDG data folder of the user."""
    return _data_folder() / "vbench"


def _data_folder() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "oseg-video"


def _note() -> Path:
    """The file that says where the environment is."""
    return _data_folder() / "vbench.json"


def _noted_folder() -> Path | None:
    folder = _read_json(_note()).get("folder")
    return Path(folder) if folder else None


def _whole() -> dict[str, Any]:
    """The record of an environment that is built to its end, with these packages."""
    return {"complete": True, "requirements": hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()}


def _interpreter(python: Path | None) -> str:
    """A Python of the right version that can make virtual environments."""
    given = [str(python)] if python else [sys.executable, "python3.11"]
    seen = {path: _version_of(path) for name in given if (path := shutil.which(name))}
    for path, version in seen.items():
        if version == _PYTHON:
            return path
    about = ", ".join(f"{path} is {version}" for path, version in seen.items())
    raise VBenchError(
        f"VBench's packages need Python {_PYTHON} with venv; {about or f'{given[0]} is no program'}"
        + ("" if python else f", and there is no python{_PYTHON}; give one with --python PATH")
    )


def _version_of(python: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2]); import venv, ensurepip"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "no Python"
    if done.returncode and done.stdout:
        return f"{done.stdout.strip()} without venv (Debian has it in python{_PYTHON}-venv)"
    return done.stdout.strip() or "no Python"


def _check_folder(folder: Path) -> None:
    """Whether it is ours or empty, and has room."""
    try:
        inside = [path.name for path in folder.iterdir()] if folder.exists() else []
    except OSError as error:
        raise VBenchError(f"cannot use {folder}: {error.strerror}") from None
    if _RECORD in inside:
        return
    if strangers := [name for name in inside if name != LOCK]:
        raise VBenchError(f"{folder} holds other things ({strangers[0]}); give --where an empty folder")
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(nearest).free / 1e9
    if free < _DISK_GB:
        raise VBenchError(f"{nearest} has {free:.1f} GB free; VBench's packages need {_DISK_GB}")


def _pip(environment: Environment, *arguments: str) -> None:
    _run(
        [str(environment.python), "-m", "pip", "install", "--disable-pip-version-check", *arguments],
        "pip could not install VBench's packages (its messages are above); the same command tries again",
    )


def _run(command: list[str], failure: str) -> None:
    """Run with output on standard error: standard output belongs to our own results."""
    # Packages of the running environment must not count as installed in the other one.
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET")}
    output = sys.stderr.fileno() if logger.isEnabledFor(logging.INFO) else subprocess.DEVNULL
    if subprocess.run(command, env=clean, stdout=output, close_fds=False, check=False).returncode:
        raise VBenchError(failure)


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
    os.replace(temporary, path)

"""`oseg-video env`: what a bug report needs to know of the machine."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
from argparse import Namespace
from pathlib import Path

from oseg_video.cli.output import PROGRAM
from oseg_video.cli.parsing import Commands, add_command, add_debug_flag

_MISSING = "not found"


def register(commands: Commands) -> None:
    parser = add_command(
        commands, "env", _run, help="print versions, GPU, ffmpeg and machine, for bug reports"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_debug_flag(parser)


def _run(options: Namespace) -> int:
    found = {
        PROGRAM: _version(PROGRAM),
        "python": platform.python_version(),
        **{name: _version(name) for name in _dependencies()},
        "torch built for": _torch_build(),
        "gpu": _gpus(),
        "ffmpeg": _ffmpeg(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": _memory(),
    }
    if options.json:
        print(json.dumps(found))
    else:
        width = max(map(len, found))
        for name, value in found.items():
            print(f"{name:{width}}  {value}")
    return 0


def _dependencies() -> list[str]:
    """The packages that this one asks for, those of its extras but the developers' too."""
    try:
        asked = importlib.metadata.requires(PROGRAM) or []
    except importlib.metadata.PackageNotFoundError:
        asked = []
    names = {
        re.split(r"[^\w.-]", one, maxsplit=1)[0] for one in asked if not re.search("extra == .dev.", one)
    }
    return sorted(names)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return _MISSING


def _torch_build() -> str:
    """What torch computes on. Read from its files: importing it takes seconds."""
    with contextlib.suppress(Exception):  # a torch that is absent or broken is no reason to say nothing
        spec = importlib.util.find_spec("torch")
        assert spec and spec.origin
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
        built = {kind: re.search(rf"^{kind}\b.*= '(.+)'$", text, re.MULTILINE) for kind in ("cuda", "hip")}
        return ", ".join(f"{kind} {found[1]}" for kind, found in built.items() if found) or "cpu"
    return _MISSING


def _gpus() -> str:
    """Every GPU with its memory and driver, as nvidia-smi knows them."""
    query = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    found = _first_lines(query, 64)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "; ".join(found) + (f" (CUDA_VISIBLE_DEVICES={hidden})" if hidden is not None else "")


def _ffmpeg() -> str:
    try:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # no package; a package that brings no program for this machine
        return _MISSING
    (line,) = _first_lines((program, "-version"), 1)
    version = re.match(r"ffmpeg version (\S+)", line)
    return f"{version[1]} ({program})" if version else line


def _processor() -> str:
    with contextlib.suppress(OSError):  # Linux only
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def _memory() -> str:
    try:
        import psutil
    except ImportError:
        return _MISSING
    memory = psutil.virtual_memory()
    return f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB free"


def _first_lines(command: tuple[str, ...], count: int) -> list[str]:
    """The first lines of a program's output; one that says so where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return [_MISSING]
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return lines[:count] if lines and done.returncode == 0 else [_MISSING]

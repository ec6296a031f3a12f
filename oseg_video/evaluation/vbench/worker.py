"""What runs inside VBench's interpreter. Imports the standard library, vbench and what vbench brings, never
oseg_video; run as `python -I worker.py`, so that neither this folder nor PYTHONPATH is searched.

One JSON request comes in on standard input. Events go out on standard output, one JSON object a line with the
key "event"; the last one is "end". All that VBench and its libraries print goes to standard error. When
standard input ends, nobody listens any more, and the process ends too.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import urllib.request
from collections.abc import Callable
from typing import Any

Emit = Callable[..., None]
Request = dict[str, Any]

_PACKAGES = ("vbench", "torch", "torchvision", "numpy", "transformers", "opencv-python", "decord")


class FetchError(Exception):
    """Weights that could not be fetched."""


def main() -> None:
    # The two pipes to the parent go out of reach of everything that VBench starts or prints.
    requests, events = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    def emit(event: str, **content: Any) -> None:
        events.write(json.dumps({"event": event, **content}) + "\n")

    def end(*_: Any) -> None:
        raise SystemExit(1)

    def end_with_parent() -> None:
        requests.read()
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)  # so that temporary files are removed
    request = json.loads(requests.readline())
    threading.Thread(target=end_with_parent, daemon=True).start()
    _fetch_whole_files(emit)
    _report_progress(emit)
    {"describe": describe, "evaluate": evaluate, "filter": filter_static}[request["task"]](request, emit)
    emit("end")


def describe(request: Request, emit: Emit) -> None:
    """Versions, GPUs, VBench's data files, and why a dimension of the request cannot be imported."""
    failures = {}
    for dimension in request["dimensions"]:
        try:
            importlib.import_module(f"vbench.{dimension}")
        except Exception as error:
            traceback.print_exc()
            failures[dimension] = reason(error)
    import torch
    import vbench

    folder = os.path.dirname(vbench.__file__)
    emit(
        "described",
        versions={"python": sys.version.split()[0], **_versions()},
        gpus=torch.cuda.device_count(),
        failures=failures,
        suite=os.path.join(folder, "VBench_full_info.json"),
        actions=os.path.join(folder, "third_party", "umt", "kinetics_400_categories.txt"),
    )


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "unknown"
    return versions


def evaluate(request: Request, emit: Emit) -> None:
    """Run the jobs one after the other: "scored" for each, or one "failed" and no more."""
    for job in request["jobs"]:
        emit("started", job=job["name"])
        try:
            score, entries = _evaluate_job(job, request["device"])
        except Exception as error:
            traceback.print_exc()
            emit("failed", what=job["dimension"], reason=reason(error))
            return
        emit("scored", job=job["name"], score=score, entries=entries)


def _evaluate_job(job: Request, device: str) -> Any:
    # VBench turns whatever goes wrong in this import into "UnImplemented dimension".
    importlib.import_module(f"vbench.{job['dimension']}")
    from vbench import VBench

    # A torch.device, as in VBench's own command: motion_smoothness shrinks large frames if it gets a string.
    bench = VBench(_use_device(device), job["suite"], job["output"])
    try:
        bench.evaluate(
            videos_path=job["videos"],
            name=job["name"],
            prompt_list=job["prompts"],
            dimension_list=[job["dimension"]],
            mode=job["mode"],
        )
    except ZeroDivisionError:
        if job["dimension"] != "color":
            raise
        return 0.0, []  # it divides by the number of clips in which it has found the object
    with open(os.path.join(job["output"], f"{job['name']}_eval_results.json"), encoding="utf-8") as file:
        return json.load(file)[job["dimension"]]


def filter_static(request: Request, emit: Emit) -> None:
    """VBench's static filter: "filtered" with the first `keep` static clips of each prompt, in its order."""
    try:
        judge = _static_filter(request["device"])
        for done, (prompt, paths) in enumerate(request["clips"].items(), start=1):
            static = (path for path in sorted(paths) if judge.infer(path))
            emit("filtered", prompt=prompt, kept=list(itertools.islice(static, request["keep"])))
            emit("progress", done=done, total=len(request["clips"]))
    except Exception as error:
        traceback.print_exc()
        emit("failed", what="static filter", reason=reason(error))


def _static_filter(name: str) -> Any:
    from vbench.cli import static_filter
    from vbench.utils import init_submodules

    device = _use_device(name)
    static_filter.DEVICE = device  # its own is always "cuda"
    weights = init_submodules(["dynamic_degree"])["dynamic_degree"]["model"]
    options = argparse.Namespace(model=weights, small=False, mixed_precision=False, alternate_corr=False)
    return static_filter.StaticFilter(options, device)


def _use_device(name: str) -> Any:
    import torch

    device = torch.device(name)
    if device.type == "cpu" and not isinstance(torch.load, functools.partial):
        # Some of the weights were saved on a GPU, and VBench does not say where to load them.
        torch.load = functools.partial(torch.load, map_location=device)
    return device


def _fetch_whole_files(emit: Emit) -> None:
    """Do VBench's downloads here: a file appears whole or not at all, and failures are raised.

    VBench takes any file that is there for the whole one, and some of its calls ignore that wget failed.
    """
    run = subprocess.run

    def fetch(url: str, path: str) -> None:
        emit("fetching", url=url)
        _fetch(url, path)

    def run_or_fetch(command: Any, *arguments: Any, **options: Any) -> Any:
        if not isinstance(command, list) or command[0] != "wget":
            return run(command, *arguments, **options)
        url = next(word for word in command if "://" in word)
        fetch(url, os.path.join(command[command.index("-P") + 1], url.rsplit("/", 1)[1].split("?")[0]))
        return subprocess.CompletedProcess(command, 0)

    subprocess.run = run_or_fetch  # type: ignore[assignment]
    urllib.request.urlretrieve = fetch  # type: ignore[assignment]


def _fetch(url: str, path: str) -> None:
    """Raises FetchError."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        whole = os.path.join(temporary, "whole")
        try:
            with urllib.request.urlopen(url, timeout=60) as source, open(whole, "wb") as target:
                shutil.copyfileobj(source, target)
        except OSError as error:
            raise FetchError(
                f"its weights could not be fetched from {url} ({getattr(error, 'reason', error)}); "
                f"without network, put the file at {path}"
            ) from error
        os.replace(whole, path)


def _report_progress(emit: Emit) -> None:
    """Turn VBench's bars over lists of clips into events, and leave other bars (downloads) as they are."""
    import tqdm

    class Reporting(tqdm.tqdm):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            if not isinstance(self.iterable, list):
                yield from super().__iter__()
                return
            for done, item in enumerate(self.iterable):
                emit("progress", done=done, total=len(self.iterable))
                yield item

    # VBench's modules take the name from the package when they are imported, which is later.
    tqdm.tqdm = Reporting  # type: ignore[misc]


def reason(error: BaseException) -> str:
    """One line for a person who has not seen the traceback."""
    if isinstance(error, FetchError):
        return str(error)
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    line = f"{type(error).__name__}: {text}"
    if isinstance(error, EOFError) or "PytorchStreamReader" in text or "UnpicklingError" in line:
        folder = getattr(sys.modules.get("vbench.utils"), "CACHE_DIR", "VBench's cache")
        return f"{line} (a weights file in {folder} may be cut off; delete it, and it is fetched again)"
    return line


if __name__ == "__main__":
    main()

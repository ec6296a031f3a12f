"""Processes of VBench's interpreter: start, follow, end. What they do is in `worker`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from oseg_video.evaluation.errors import VBenchError
from oseg_video.evaluation.vbench.environment import WORKER, Environment

Request = Mapping[str, Any]
Event = Mapping[str, Any]
OnEvent = Callable[[int, Event], None]

_STOP_SECONDS = 10


def ask(environment: Environment, request: Request) -> Event:
    """The last event of a request, for one that has one answer. Raises VBenchError."""
    events: list[Event] = []
    run_workers(environment, [request], lambda _, event: events.append(event))
    return events[-1]


def run_workers(environment: Environment, requests: Sequence[Request], on_event: OnEvent) -> None:
    """One process per request, side by side, until all have ended or one has failed.

    A request with the key "gpu" sees only that GPU: an index among those that this process may see.
    on_event: called with the request's number and each event; from several threads.

    Raises VBenchError with VBench's reason, and the file that holds all that it printed.
    """
    processes: list[subprocess.Popen[str]] = []
    logs = Path(tempfile.mkdtemp(prefix="oseg-video-vbench-"))
    try:
        with ThreadPoolExecutor(len(requests)) as pool:
            try:
                for number, request in enumerate(requests):
                    processes.append(_start(environment, request, logs / f"{number}.txt"))
                followed = [pool.submit(_follow, p, i, on_event) for i, p in enumerate(processes)]
                for future in wait(followed, return_when=FIRST_EXCEPTION).done:
                    future.result()
            finally:
                for process in processes:
                    _stop(process)
    except VBenchError as error:
        raise VBenchError(f"{error} (all that VBench printed: {logs})") from None
    except BaseException:
        shutil.rmtree(logs)
        raise
    shutil.rmtree(logs)


def _start(environment: Environment, request: Request, log: Path) -> subprocess.Popen[str]:
    variables = dict(os.environ)
    if "gpu" in request:
        visible = variables.get("CUDA_VISIBLE_DEVICES", "").split(",")
        variables["CUDA_VISIBLE_DEVICES"] = visible[request["gpu"]] if visible[0] else str(request["gpu"])
    with open(log, "w") as output:
        process = subprocess.Popen(
            [str(environment.python), "-I", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            env=variables,
            text=True,
            # A group of its own, so that whatever VBench starts ends with it.
            start_new_session=True,
        )
    with contextlib.suppress(BrokenPipeError):  # a process that ended at once: `_follow` says why
        assert process.stdin is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
    return process


def _follow(process: subprocess.Popen[str], number: int, on_event: OnEvent) -> None:
    assert process.stdout is not None
    ended = False
    with process.stdout:
        for line in process.stdout:
            event = json.loads(line)
            ended = event["event"] == "end"
            if event["event"] == "failed":
                raise VBenchError(f"VBench's {event['what']} failed: {event['reason']}")
            if not ended:
                on_event(number, event)
    code = process.wait()
    if not ended:
        how = (
            f"was ended by signal {-code} (9: often too little memory)" if code < 0 else f"ended with {code}"
        )
        raise VBenchError(f"VBench's process {how}")


def _stop(process: subprocess.Popen[str]) -> None:
    """End the process and what it has started, first kindly: it then removes half-fetched files."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, kind)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()

"""What the commands print: clips on standard output, the rest on standard error."""

from __future__ import annotations

import contextlib
import json
import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from oseg_video import console

if TYPE_CHECKING:
    from oseg_video.jobs.model import ClipResult

PROGRAM = "oseg-video"


def say(text: str) -> None:
    """One line on standard error, whatever line ends `text` has, and however long it is."""
    # A terminal that was closed takes no line, which is no reason to fail.
    with contextlib.suppress(OSError, ValueError):
        print(f"{PROGRAM}: {console.one_line(text)}", file=sys.stderr, flush=True)


def announce_loading() -> None:
    """Say at once that the libraries are being loaded, to someone at a terminal: it takes seconds."""
    if "torch" not in sys.modules and console.bars_shown():
        console.logger.info("loading torch and diffusers")


def print_clip(result: ClipResult, options: Namespace, **extra: Any) -> None:
    """The final line of a clip, on standard output."""
    if options.json:
        line = {
            "path": str(result.path),
            "prompt": result.prompt,
            "seed": result.seed,
            "seconds": round(result.seconds, 3),
            "seconds_per_step": result.seconds_per_step,
            "sha256": result.sha256,
            **extra,
        }
        print(json.dumps(line), flush=True)
    elif options.quiet:
        print(result.path, flush=True)
    else:
        step = "" if result.seconds_per_step is None else f"  {result.seconds_per_step:.2f} s/step"
        print(f"{result.path}  {result.seconds:.1f} s{step}", flush=True)

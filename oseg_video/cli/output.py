"""What the commands print: clips on standard output, the rest on standard error."""

from __future__ import annotations

import contextlib
import json
import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oseg_video.jobs.model import ClipResult

PROGRAM = "oseg-video"
# A path may have 4096 letters, of which 255 are one name; what is longer is a value that was mistyped.
_LONGEST_WORD, _LONGEST_LINE = 512, 1500


def say(text: str) -> None:
    """One line on standard error, whatever line ends `text` has, and however long it is."""
    # A terminal that was closed takes no line, which is no reason to fail.
    with contextlib.suppress(OSError, ValueError):
        print(f"{PROGRAM}: {shortened(' '.join(text.split()))}", file=sys.stderr, flush=True)


def shortened(text: str) -> str:
    """A line in which no value goes on and on: of long words the ends are kept, and of long lines."""
    words = (_ends(word, _LONGEST_WORD) for word in text.split(" "))
    return _ends(" ".join(words), _LONGEST_LINE)


def _ends(text: str, most: int) -> str:
    half = most // 2
    return text if len(text) <= most else f"{text[:half]}[...]{text[-half:]}"


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

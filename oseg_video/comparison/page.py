"""The page of a comparison: one HTML file beside its clips, which opens from disk without a server.

Style sheet, scripts and data are inside the file; clips are linked by relative path. Text of the user, such
as a prompt, reaches the page as JSON only, and the scripts show it as text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from oseg_video.evaluation.clips import ClipFile
from oseg_video.files import write_text

_SCRIPTS = ("dom.js", "player.js", "grid.js", "overlay.js", "slider.js", "metrics.js", "main.js")
_PER_CLIP = ("prompts", "seeds", "image")


@dataclass(frozen=True)
class Gap:
    """A clip that could not be made."""

    prompt: str | None
    image: str | None
    seed: int
    method: str
    reason: str


def write_page(
    path: Path,
    clips: Sequence[ClipFile],
    methods: Sequence[str],
    *,
    gaps: Sequence[Gap] = (),
    results: Mapping[str, Any] | None = None,
) -> None:
    """Write the page at `path`, whole or not at all.

    clips: in the order in which their prompts are shown. methods: the columns, in order. results: metric
    values as of `as_json`. Raises FileError if it cannot be written.
    """
    write_text(path, page_text(page_data(path.parent, clips, methods, gaps, results)))


def page_data(
    folder: Path,
    clips: Sequence[ClipFile],
    methods: Sequence[str],
    gaps: Sequence[Gap] = (),
    results: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the page shows, as plain JSON types: a row for every prompt, image and seed.

    folder: of the page.
    """
    shared: dict[str, int] = {}
    rows: dict[tuple[str, int], dict[str, Any]] = {}

    def row_of(start: str, prompt: str | None, image: str | None, seed: int | None) -> dict[str, Any]:
        file = Path(image).name if image else None
        text = prompt if prompt is not None else file or start
        new: dict[str, Any] = {"text": text or "(empty prompt)", "image": file, "seed": seed, "clips": {}}
        return rows.setdefault((start, -1 if seed is None else seed), new)

    for clip in clips:
        row = row_of(clip.start, clip.prompt, clip.settings.get("image"), clip.seed)
        same = {k: v for k, v in clip.settings.items() if k not in _PER_CLIP and v is not None}
        row["clips"][clip.method] = {
            "name": clip.name,
            "src": _relative(clip.path, folder),
            "frames": clip.frames,
            "fps": clip.fps,
            "height": clip.height,
            "width": clip.width,
            "still": clip.frames == 1 and clip.path.is_file() and clip.reader == "pillow",
            "sound": clip.sound,
            "settings": shared.setdefault(json.dumps(same), len(shared)),
        }
    starts = {(clip.prompt, clip.settings.get("image")): clip.start for clip in clips}
    for gap in gaps:
        start = starts.get((gap.prompt, gap.image), f"{gap.prompt}\n{gap.image}")
        row = row_of(start, gap.prompt, gap.image, gap.seed)
        row["clips"].setdefault(gap.method, {"failed": gap.reason})
    return {
        "methods": list(methods),
        "rows": list(rows.values()),
        "settings": [json.loads(text) for text in shared],
        "results": results,
    }


def page_text(data: Mapping[str, Any]) -> str:
    """The HTML file that shows `data`."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    # In a script element only "<" can end it or open a comment.
    parts = {"style": _part("report.css"), "script": "\n".join(map(_part, _SCRIPTS))}
    parts["data"] = text.replace("<", "\\u003c")  # last, so that nothing in it is taken for a place
    page = _part("index.html")
    for name, content in parts.items():
        page = page.replace(f"/*{name}*/", content, 1)
    return page


@cache
def _part(name: str) -> str:
    return (files("oseg_video.comparison") / "report" / name).read_text(encoding="utf-8")


def _relative(path: Path, folder: Path) -> str:
    """As a URL."""
    return quote(Path(os.path.relpath(path, folder)).as_posix())

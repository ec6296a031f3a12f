"""An image of many clips: a row for every prompt, a column for every method, a few frames of each clip."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from oseg_video.evaluation.clips import ClipFile, FoundClips
from oseg_video.files import MARK, atomic_path
from oseg_video.media import MediaError, stream_clip
from oseg_video.types import OsegVideoError

SUFFIXES = (".png", ".pdf")
_DPI = 300
_MOST_PIXELS = 150_000_000
_INK, _EDGE, _PAPER = (20, 20, 20), (190, 190, 190), (255, 255, 255)
_LINE = 2
"""Pixels between the frames of a clip."""


class ContactSheetError(OsegVideoError):
    """A sheet that cannot be made; the message says why."""


def write_contact_sheet(
    found: FoundClips,
    out: Path,
    *,
    methods: Sequence[str] | None = None,
    frames: int = 3,
    rows: int | None = None,
    height: int = 192,
    font: Path | None = None,
) -> tuple[int, int, dict[str, str]]:
    """Write the sheet as PNG or PDF, whole or not at all.

    Returns the rows that it has and that there are, and clips that cannot be read: name -> why. Their places
    stay empty.

    methods: the columns, in order; by default all. frames: of each clip, spread evenly from its first to its
    last. rows: at most so many, the first. height: of a frame, pixels. font: a TrueType or OpenType file, for
    prompts in other scripts than Latin.

    Raises ContactSheetError, and FileError for what cannot be written.
    """
    out = Path(out)
    if out.suffix.lower() not in SUFFIXES:
        raise ContactSheetError(f"a contact sheet is written as {' or '.join(SUFFIXES)}, not {out}")
    letters = _font(font, max(10, height // 8))
    methods = _known(found, methods)
    requests: dict[tuple[str, int], dict[str, ClipFile]] = {}
    for clip in (clip for clip in found.clips if clip.method in methods):
        requests.setdefault(clip.key, {}).setdefault(clip.method, clip)
    chosen = list(requests.values())[:rows]
    layout = _Layout(chosen, methods, frames, height, letters)
    sheet = layout.draw()
    if len(layout.broken) == sum(map(len, chosen)):
        name, reason = next(iter(layout.broken.items()))
        raise ContactSheetError(f"no clip can be read; {name}: {reason}")
    info = PngInfo()
    info.add_text("Software", MARK)
    with atomic_path(out) as temporary:  # what the format does not know is ignored
        sheet.save(temporary, resolution=_DPI, dpi=(_DPI, _DPI), pnginfo=info, producer=MARK.encode())
    return len(chosen), len(requests), layout.broken


def _known(found: FoundClips, methods: Sequence[str] | None) -> list[str]:
    known = list(found.methods)
    for method in methods or ():
        if method not in known:
            raise ContactSheetError(f"there are no clips of {method!r}; there are: {', '.join(known)}")
    return list(dict.fromkeys(methods or known))


class _Layout:
    """Where everything is, in pixels."""

    def __init__(
        self,
        rows: Sequence[dict[str, ClipFile]],
        methods: Sequence[str],
        frames: int,
        height: int,
        font: ImageFont.FreeTypeFont,
    ) -> None:
        self.rows, self.methods, self.frames, self.font = rows, methods, frames, font
        self.broken: dict[str, str] = {}
        self.gap = max(2, height // 24)
        self.line = round(font.size * 1.3)
        self.height = height
        self.cell = max(_strip_width(clip, frames, height) for row in rows for clip in row.values())
        self.label = height * 2
        self.size = (
            self.label + len(methods) * (self.cell + 2 * self.gap),
            self.line + 2 * self.gap + len(rows) * (height + self.gap),
        )
        if self.size[0] * self.size[1] > _MOST_PIXELS:
            raise ContactSheetError(
                f"the sheet would have {self.size[0]} x {self.size[1]} pixels; ask for fewer rows or frames, "
                "or smaller ones"
            )

    def draw(self) -> Image.Image:
        sheet = Image.new("RGB", self.size, _PAPER)
        pen = ImageDraw.Draw(sheet)
        for column, method in enumerate(self.methods):
            centre = self._left(column) + self.cell // 2
            pen.text((centre, self.gap), method, fill=_INK, font=self.font, anchor="ma")
        for index, row in enumerate(self.rows):
            top = self.line + 2 * self.gap + index * (self.height + self.gap)
            pen.multiline_text(
                (self.gap, top), self._words(next(iter(row.values()))), fill=_INK, font=self.font
            )
            for column, method in enumerate(self.methods):
                if clip := row.get(method):
                    try:
                        strip = _strip(clip, self.frames, self.height)
                    except MediaError as error:
                        self.broken[clip.name] = str(error)
                        continue
                    sheet.paste(strip, (self._left(column), top))
                    right, bottom = self._left(column) + strip.width - 1, top + self.height - 1
                    box = (self._left(column), top, right, bottom)
                    pen.rectangle(box, outline=_EDGE)
        return sheet

    def _left(self, column: int) -> int:
        return self.label + column * (self.cell + 2 * self.gap)

    def _words(self, clip: ClipFile) -> str:
        """The prompt broken into lines that fit, and the seed."""
        image = clip.settings.get("image")
        text = clip.prompt if clip.prompt is not None else Path(image).name if image else clip.start
        wide = self.font.getlength("n")
        most = max(1, self.height // self.line - 1)
        width = max(4, int((self.label - 2 * self.gap) / wide))
        lines = textwrap.wrap(text, width, max_lines=most, placeholder=" …") or [""]
        return "\n".join([*lines, "" if clip.seed is None else f"seed {clip.seed}"])


def _frame_width(clip: ClipFile, height: int) -> int:
    return max(1, round(clip.width * height / clip.height))


def _strip_width(clip: ClipFile, frames: int, height: int) -> int:
    return _width_of(min(frames, clip.frames), _frame_width(clip, height))


def _width_of(count: int, width: int) -> int:
    """Of so many frames side by side, with lines between them."""
    return count * (width + _LINE) - _LINE


def _strip(clip: ClipFile, frames: int, height: int) -> Image.Image:
    """A few frames side by side."""
    count = min(frames, clip.frames)
    # One frame alone is the middle one.
    places = np.linspace(0, clip.frames - 1, count).round().astype(int) if count > 1 else [clip.frames // 2]
    chosen = dict.fromkeys(map(int, places))
    # To the end: a clip may be damaged further on.
    seen = {frame.index: frame.rgb_HWC for frame in stream_clip(clip.path) if frame.index in chosen}
    if len(seen) < len(chosen):
        raise MediaError(
            f"cannot read {clip.path}: it has fewer than the {clip.frames} frames that it tells of"
        )
    width = _frame_width(clip, height)
    strip = Image.new("RGB", (_width_of(count, width), height), _PAPER)
    # Sharp pixels where a small clip is enlarged.
    method = Image.Resampling.NEAREST if height > clip.height else Image.Resampling.LANCZOS
    for position, index in enumerate(chosen):
        frame = Image.fromarray(seen[index])
        strip.paste(frame.resize((width, height), method), (position * (width + _LINE), 0))
    return strip


def _font(path: Path | None, size: int) -> ImageFont.FreeTypeFont:
    if path is None:
        font = ImageFont.load_default(size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise ContactSheetError("this Pillow was built without FreeType, so it has no font to write with")
        return font
    try:
        return ImageFont.truetype(str(path), size)
    except OSError as error:
        raise ContactSheetError(f"cannot use {path} as a font: {error}") from None

"""A landscape as an image, an SVG file or a page: rows are energy and attention, columns kinds of queries."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from oseg_video.files import MARK
from oseg_video.probing.landscape import Landscape

if TYPE_CHECKING:
    from PIL import Image

# From low to high: dark blue over teal to yellow, with rising lightness.
_COLOURS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], float)
_GAP, _TOP, _LEFT, _LABEL = 2, 34, 12, 16
_MAP_WIDTH = 480
_CELLS = (2, 24)
"""Least and largest side of a token, in pixels."""


def draw(found: Landscape, suffix: str) -> bytes:
    """The content of a file whose name ends in .png, .svg or .html."""
    if suffix == ".png":
        return _png(found)
    svg = _svg(found)
    if suffix == ".svg":
        return svg.encode()
    title = html.escape(f"Landscape of {found.block}")
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<style>svg { max-width: 100%; height: auto }</style></head>\n"
        f"<body>{svg}</body></html>\n"
    )
    return page.encode()


def _panels(found: Landscape) -> list[tuple[str, dict[str, Tensor], float, float]]:
    """Rows: what is shown, the maps by kind of queries, and the ends of their colour scale."""
    rows = []
    for name, maps in (("energy", found.energy), ("attention", found.attention)):
        values = [value for one in maps.values() for value in (float(one.min()), float(one.max()))]
        rows.append((name, maps, min(values), max(values)))
    return rows


def _tile(values_FHW: Tensor, low: float, high: float) -> Image.Image:
    """An image of a map, its frames side by side."""
    from PIL import Image

    share = (values_FHW.numpy() - low) / ((high - low) or 1)
    place = share.clip(0, 1) * (len(_COLOURS) - 1)
    first = place.astype(int).clip(max=len(_COLOURS) - 2)
    part = (place - first)[..., None]
    pixels = (_COLOURS[first] * (1 - part) + _COLOURS[first + 1] * part).round().astype(np.uint8)
    frames, _, width = values_FHW.shape
    cell = min(max(_MAP_WIDTH // (frames * width), _CELLS[0]), _CELLS[1])
    pixels = pixels.repeat(cell, axis=1).repeat(cell, axis=2)
    gap = np.full((len(pixels), pixels.shape[1], _GAP, 3), 255, np.uint8)
    framed = np.concatenate([pixels, gap], axis=2)
    return Image.fromarray(np.concatenate(list(framed), axis=1)[:, :-_GAP])


def _title(found: Landscape) -> str:
    frame, row, column = found.token
    return (
        f"{found.block}, noise level {found.noise_level:.2f}; "
        f"attention of the token in frame {frame}, row {row}, column {column}"
    )


def _png(found: Landscape) -> bytes:
    from PIL import Image, ImageDraw
    from PIL.PngImagePlugin import PngInfo

    placed, width, height = _layout(found)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, 4), _title(found), fill="black")
    for text, x, y, tile in placed:
        pen.text((x, y), text, fill="black")
        if tile is not None:
            sheet.paste(tile, (x, y + _LABEL))
    info = PngInfo()
    info.add_text("comment", MARK)
    file = io.BytesIO()
    sheet.save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def _svg(found: Landscape) -> str:
    placed, width, height = _layout(found)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        'font-family="sans-serif" font-size="11">',
        f'<text x="{_GAP}" y="14">{html.escape(_title(found))}</text>',
    ]
    for text, x, y, tile in placed:
        parts.append(f'<text x="{x}" y="{y + 11}">{html.escape(text)}</text>')
        if tile is None:
            continue
        file = io.BytesIO()
        tile.save(file, format="PNG")
        data = base64.b64encode(file.getvalue()).decode()
        parts.append(
            f'<image x="{x}" y="{y + _LABEL}" width="{tile.width}" height="{tile.height}" '
            f'href="data:image/png;base64,{data}"/>'
        )
    return "\n".join([*parts, "</svg>", f"<!-- {MARK} -->"])


def _layout(found: Landscape) -> tuple[list[tuple[str, int, int, Image.Image | None]], int, int]:
    """(text, left, top, tile below the text or None) of all that is drawn; width and height of the whole."""
    placed: list[tuple[str, int, int, Image.Image | None]] = []
    y, width = _TOP, 0
    for name, maps, low, high in _panels(found):
        placed.append((f"{name}: {low:.3g} (dark) to {high:.3g}", _GAP, y, None))
        y += _LABEL
        for kind, values in maps.items():
            tile = _tile(values, low, high)
            placed.append((kind, _LEFT, y, tile))
            width, y = max(width, _LEFT + tile.width), y + tile.height + _LABEL + _GAP
    return placed, max(width, 640) + _GAP, y + _GAP

"""Line charts as SVG text, for pages."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#b8a800")
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 26, 36
_LINE_HEIGHT = 15


@dataclass(frozen=True)
class Series:
    """Points of one colour, joined by a line unless `joined` is false."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False
    joined: bool = True
    intervals: Sequence[tuple[float, float]] = ()
    """Of y, low and high, one a point, or none at all."""

    @property
    def drawn(self) -> list[tuple[float, float]]:
        """The points that are finite numbers."""
        return [point for point in self.points if all(map(math.isfinite, point))]

    @property
    def bars(self) -> list[tuple[float, float, float]]:
        """The intervals that are finite numbers: x, low and high."""
        pairs = zip(self.points, self.intervals, strict=bool(self.intervals))
        bars = [(x, low, high) for (x, _), (low, high) in pairs]
        return [bar for bar in bars if all(map(math.isfinite, bar))]


def chart(
    series: Sequence[Series],
    *,
    title: str,
    x: str,
    y: str,
    width: int = 420,
    height: int = 260,
) -> str:
    """One `<svg>` element. x, y: names of the axes. Points that are no finite numbers are left out.

    Raises ValueError if no point is left.
    """
    xs = [value for one in series for value, _ in one.drawn]
    ys = [value for one in series for _, value in one.drawn]
    ys += [end for one in series for _, *ends in one.bars for end in ends]
    if not xs:
        raise ValueError("a chart needs at least one point")
    frame = _Frame(_axis(xs), _axis(ys), width, height)
    whole = height + len(series) * _LINE_HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {whole}" '
        f'width="{width}" font-family="sans-serif" font-size="11">',
        f'<text x="{_LEFT}" y="15" font-size="13" font-weight="bold">{html.escape(title)}</text>',
        *frame.grid(x, y),
    ]
    for index, one in enumerate(series):
        parts += frame.series(one, COLOURS[index % len(COLOURS)])
        parts.append(_legend(one, COLOURS[index % len(COLOURS)], height + index * _LINE_HEIGHT))
    return "\n".join([*parts, "</svg>"])


@dataclass(frozen=True)
class _Frame:
    """Axes, and where values lie between them."""

    xs: Sequence[float]
    ys: Sequence[float]
    width: int
    height: int

    def x(self, value: float) -> float:
        share = (value - self.xs[0]) / (self.xs[-1] - self.xs[0])
        return round(_LEFT + share * (self.width - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self.ys[0]) / (self.ys[-1] - self.ys[0])
        return round(self.height - _BOTTOM - share * (self.height - _TOP - _BOTTOM), 1)

    def grid(self, x: str, y: str) -> list[str]:
        bottom, right = self.height - _BOTTOM, self.width - _RIGHT
        parts = []
        for value in self.ys:
            at = self.y(value)
            parts.append(f'<path d="M{_LEFT} {at}H{right}" stroke="#ddd"/>')
            parts.append(f'<text x="{_LEFT - 5}" y="{at + 4}" text-anchor="end">{value:g}</text>')
        for value in self.xs:
            at = self.x(value)
            parts.append(f'<path d="M{at} {bottom}v4" stroke="#888"/>')
            parts.append(f'<text x="{at}" y="{bottom + 15}" text-anchor="middle">{value:g}</text>')
        middle, half = (_LEFT + right) / 2, (_TOP + bottom) / 2
        parts.append(
            f'<text x="{middle}" y="{bottom + 29}" text-anchor="middle" fill="#555">{html.escape(x)}</text>'
        )
        parts.append(
            f'<text transform="translate(12 {half}) rotate(-90)" text-anchor="middle" fill="#555">'
            f"{html.escape(y)}</text>"
        )
        return parts

    def series(self, one: Series, colour: str) -> list[str]:
        parts = []
        if one.joined and len(one.drawn) > 1:
            path = "L".join(f"{self.x(a)} {self.y(b)}" for a, b in one.drawn)
            dash = ' stroke-dasharray="4 3"' if one.dashed else ""
            parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>')
        for a, low, high in one.bars:
            path = f"M{self.x(a)} {self.y(low)}V{self.y(high)}"
            parts.append(f'<path d="{path}" stroke="{colour}" opacity="0.5"/>')
        for a, b in one.drawn:
            said = f"<title>{html.escape(f'{one.name}: {a:g}, {b:.4g}')}</title>"
            place = f'cx="{self.x(a)}" cy="{self.y(b)}" r="2.5" fill="{colour}"'
            parts.append(f"<circle {place}>{said}</circle>")
        return parts


def _legend(one: Series, colour: str, top: float) -> str:
    dash = ' stroke-dasharray="4 3"' if one.dashed else ""
    return (
        f'<path d="M{_LEFT} {top + 4}h18" stroke="{colour}" stroke-width="2"{dash}/>'
        f'<text x="{_LEFT + 24}" y="{top + 8}">{html.escape(one.name)}</text>'
    )


def _axis(values: Sequence[float]) -> list[float]:
    """Round values around all of `values`, 1, 2 or 5 times a power of 10 apart."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # but for rounding the same
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]

"""Every arm's paired difference to the baseline, round by round, as one SVG file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from xml.sax.saxutils import escape

from oseg_video.console import visible
from oseg_video.evaluation.results import Difference, Evaluation
from oseg_video.files import MARK
from oseg_video.tuning.halving import BASELINE
from oseg_video.tuning.plan import Plan

# Pixels.
_TOP, _BOTTOM, _SIDE, _PLOT = 44, 40, 20, 420
_MARK, _GAP = 6, 12
_LETTER, _MOST_LETTERS = 6.6, 60
_STYLE = (
    "text{font:12px sans-serif;fill:#222}.axis{stroke:#999}.zero{stroke:#999;stroke-dasharray:3 3}"
    ".round line{stroke:#4477aa;stroke-width:2}.round circle{fill:#4477aa}"
    ".test line{stroke:#cc6633;stroke-width:2}.test circle{fill:#cc6633}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}}"
)


def arms_plot(plan: Plan, rounds: Sequence[Evaluation], order: Sequence[str], claim: Difference) -> str:
    """The plot: of each arm a mark for each round that it was in, one below the other, and for the test.

    order: of the lines, from above; the baseline is the dashed line at 0. claim: the mark of the test.
    """
    arms = [name for name in order if name != BASELINE]
    marks: dict[str, list[tuple[int, Difference]]] = {name: [] for name in arms}
    for number, one in enumerate(rounds, start=1):
        for difference in one.differences:
            marks[difference.method].append((number, difference))
    every = [difference for found in marks.values() for _, difference in found] + [claim]
    low, high = _ends(every)
    left = _SIDE + _LETTER * max(min(len(name), _MOST_LETTERS) for name in arms)
    line = _GAP + _MARK * (len(rounds) + 1)
    width, height = left + _PLOT + _SIDE, _TOP + line * len(arms) + _BOTTOM
    axis = height - _BOTTOM

    def across(value: float) -> float:
        return left + 10 + (min(max(value, low), high) - low) / (high - low) * (_PLOT - 20)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}">',
        f"<!-- {MARK} -->",
        f"<style>{_STYLE}</style>",
        f'<text x="{_SIDE}" y="18">{_text(plan.value.name)} minus the baseline, paired, '
        f"{plan.value.better} is better</text>",
        f'<text x="{_SIDE}" y="34">blue: rounds of the search, the last one darkest; orange: the test</text>',
        f'<line class="axis" x1="{left:.1f}" x2="{left + _PLOT:.1f}" y1="{axis}" y2="{axis}"/>',
        f'<line class="zero" x1="{across(0):.1f}" x2="{across(0):.1f}" y1="{_TOP}" y2="{axis}"/>',
    ]
    for value, anchor in ((low, "start"), (high, "end")):
        lines.append(
            f'<text x="{across(value):.1f}" y="{axis + 18}" text-anchor="{anchor}">{value:+.3g}</text>'
        )
    lines.append(f'<text x="{across(0):.1f}" y="{axis + 34}" text-anchor="middle">baseline</text>')
    for place, name in enumerate(arms):
        y = _TOP + line * place + _GAP / 2
        label = name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS - 1]}…"
        lines.append(f'<text x="{left - 6:.1f}" y="{y + line / 2}" text-anchor="end">{_text(label)}</text>')
        for number, difference in marks[name]:
            faint = 0.3 + 0.7 * number / len(rounds)
            lines += _mark(
                difference,
                f"round {number}",
                f'class="round" opacity="{faint:.2f}"',
                y + _MARK * (number - 0.5),
                across,
            )
        if name == claim.method:
            lines += _mark(claim, "test", 'class="test"', y + _MARK * (len(rounds) + 0.5), across)
    return "\n".join([*lines, "</svg>", ""])


def _ends(every: Sequence[Difference]) -> tuple[float, float]:
    """Of the axis: all values and 0, and of intervals no more than as much again on each side."""
    values = [0.0, *(one.value for one in every)]
    low, high = min(values), max(values)
    room = (high - low) or 1.0
    ends = [end for one in every for end in one.interval or ()] or [-room, room]
    found = max(min([low, *ends]), low - room), min(max([high, *ends]), high + room)
    return found if found[0] < found[1] else (-room, room)


def _mark(
    difference: Difference, when: str, look: str, y: float, across: Callable[[float], float]
) -> Iterator[str]:
    """A point with its interval; what it says when pointed at."""
    ends = difference.interval
    says = f"{difference.method}, {when}, {difference.pairs} clips: {difference.value:+.4g}"
    if ends:
        says += f" [{ends[0]:+.4g}, {ends[1]:+.4g}]"
    yield f"<g {look}><title>{_text(says)}</title>"
    if ends:
        yield f'<line x1="{across(ends[0]):.1f}" x2="{across(ends[1]):.1f}" y1="{y}" y2="{y}"/>'
    yield f'<circle cx="{across(difference.value):.1f}" cy="{y}" r="3.5"/></g>'


def _text(text: str) -> str:
    return escape(visible(text))

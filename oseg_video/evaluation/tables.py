"""An evaluation as JSON (everything), CSV (a line per metric value), Markdown or LaTeX (a row per method).

Names of files and methods, prompts and reasons come from outside. Each format has one function that makes
them harmless: `_json`, `_csv`, `_markdown`, `_latex`.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from oseg_video.console import visible, visible_json
from oseg_video.evaluation.errors import EvaluationError
from oseg_video.evaluation.results import Difference, Evaluation

SCHEMA = 1
"""Version of the JSON file's layout."""
_COLUMNS = (
    *("method", "metric", "value", "low", "high", "clips"),
    *("baseline", "difference", "difference_low", "difference_high", "pairs", "better"),
    *("details", "protocol", "versions"),
)


def as_json(evaluation: Evaluation) -> str:
    """All of it, values per clip included. Numbers that are not finite are null."""
    plain = {"schema": SCHEMA, "made_by": "oseg-video evaluate", **asdict(evaluation)}
    return _json(plain, indent=1) + "\n"


def as_csv(evaluation: Evaluation) -> str:
    """A line for every metric value of every method, with its difference to the baseline if there is one."""
    differences = {(d.method, d.name): d for d in evaluation.differences}
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for method, results in evaluation.results.items():
        for result in results:
            difference = differences.get((method, result.name))
            low, high = result.interval or (None, None)
            line: dict[str, Any] = {
                "method": _csv(method),
                "metric": _csv(result.name),
                "value": result.value,
                "low": low,
                "high": high,
                "clips": result.clips,
                "better": evaluation.better[result.name],
                "details": _json(result.details),
                "protocol": _json(result.protocol),
                "versions": _json(result.versions),
            }
            if difference is not None:
                line["baseline"], line["difference"] = _csv(difference.baseline), difference.value
                line["difference_low"], line["difference_high"] = difference.interval or (None, None)
                line["pairs"] = difference.pairs
            writer.writerow(line)
    return text.getvalue()


def as_markdown(evaluation: Evaluation) -> str:
    """A row per method: value and 95 % interval, and below the differences to the baseline."""
    arrows = {"higher": " ↑", "lower": " ↓"}
    header, rows = _grid(evaluation, arrows=arrows, dash="-")
    lines = [_pipes(header), _pipes(["---"] * len(header)), *map(_pipes, rows)]
    if evaluation.differences:
        header, rows = _differences(evaluation, arrows=arrows, dash="-")
        lines += ["", _pipes(header), _pipes(["---"] * len(header)), *map(_pipes, rows)]
    lines += ["", *map(_markdown, [*_how(evaluation), *_remarks(evaluation)])]
    return "\n".join(lines) + "\n"


def as_latex(evaluation: Evaluation) -> str:
    """The tables of `as_markdown` for the package booktabs."""
    arrows = {"higher": r" $\uparrow$", "lower": r" $\downarrow$"}
    parts = [_tabular(*_grid(evaluation, arrows=arrows, dash="--", escape=_latex))]
    if evaluation.differences:
        parts.append(_tabular(*_differences(evaluation, arrows=arrows, dash="--", escape=_latex)))
    remarks = [*_how(evaluation), *_remarks(evaluation)]
    return "\n".join([*parts, *(f"% {visible(line)}" for line in remarks if line)]) + "\n"


FORMATS: dict[str, Callable[[Evaluation], str]] = {
    "json": as_json,
    "csv": as_csv,
    "markdown": as_markdown,
    "latex": as_latex,
}
_SUFFIXES = {".json": "json", ".csv": "csv", ".md": "markdown", ".tex": "latex"}


def format_of(path: Path) -> str:
    """The format that a file's suffix stands for. Raises EvaluationError."""
    if path.suffix.lower() not in _SUFFIXES:
        raise EvaluationError(f"results are written as {', '.join(_SUFFIXES)}, not {path}")
    return _SUFFIXES[path.suffix.lower()]


def _json(content: Any, indent: int | None = None) -> str:
    """JSON in which no character is one that a terminal obeys or a file in UTF-8 cannot hold."""
    text = json.dumps(_finite(content), indent=indent, ensure_ascii=False, allow_nan=False)
    return visible_json(text)


def _csv(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    shown = visible(text)
    # Spreadsheets look past blanks, and in some languages take full-width signs for these.
    return f"'{shown}" if shown.lstrip().startswith(tuple("=+-@\uff1d\uff0b\uff0d\uff20")) else shown


def _markdown(text: str) -> str:
    """Text that is neither HTML nor a link, and stays in its cell."""
    shown = visible(text).replace("|", r"\|").replace("`", r"\`").replace("<", "&lt;")
    return shown.replace("](", r"\](")


def _grid(
    evaluation: Evaluation, *, arrows: Mapping[str, str], dash: str, escape: Callable[[str], str] = _markdown
) -> tuple[list[str], list[list[str]]]:
    names = list(evaluation.better)
    header = [
        "method",
        "clips",
        *(escape(name) + arrows.get(evaluation.better[name] or "", "") for name in names),
    ]
    rows = []
    others = evaluation.reported.values if evaluation.reported else {}
    for method, results in evaluation.results.items():
        cells = {result.name: _cell(result.value, result.interval, escape) for result in results}
        count = _range({evaluation.methods[method]["clips"], *(result.clips for result in results)})
        rows.append([escape(method), count, *(cells.get(name, dash) for name in names)])
        if theirs := others.get(method):
            shown = (f"{theirs[name]:g}" if name in theirs else dash for name in names)
            rows.append([escape(f"{method}, reported"), dash, *shown])
    return header, rows


def _differences(
    evaluation: Evaluation, *, arrows: Mapping[str, str], dash: str, escape: Callable[[str], str] = _markdown
) -> tuple[list[str], list[list[str]]]:
    names = list(evaluation.better)
    header = ["difference", "pairs"]
    header += [escape(name) + arrows.get(evaluation.better[name] or "", "") for name in names]
    methods: dict[str, dict[str, Difference]] = {}
    for difference in evaluation.differences:
        methods.setdefault(difference.method, {})[difference.name] = difference
    rows = []
    for method, found in methods.items():
        cells = [
            _cell(found[name].value, found[name].interval, escape, sign="+") if name in found else dash
            for name in names
        ]
        label = escape(f"{method} minus {evaluation.baselines[method]}")
        rows.append([label, _range({one.pairs for one in found.values()}), *cells])
    return header, rows


def _range(counts: Collection[int]) -> str:
    least, most = min(counts), max(counts)
    return str(most) if least == most else f"{least} to {most}"


def _cell(
    value: float, interval: tuple[float, float] | None, escape: Callable[[str], str], sign: str = ""
) -> str:
    digits = _digits(value, interval)
    shown = f"{value:{sign}.{digits}f}"
    if interval is not None:
        low, high = interval
        shown += f" [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
    return escape(shown)


def _digits(value: float, interval: tuple[float, float] | None) -> int:
    """Decimals that show two digits of the interval's width, or four of the value without one; 1 to 6."""
    width = interval[1] - interval[0] if interval is not None else abs(value) / 100
    return min(max(1 - math.floor(math.log10(width)), 1), 6) if width > 0 and math.isfinite(width) else 4


def _how(evaluation: Evaluation) -> list[str]:
    """A line about what the intervals resample, and what is paired; none where there is no interval."""
    ways = {
        f"{about['by']} over {about['units']} {about['over']}": None
        for results in evaluation.results.values()
        for result in results
        if (about := result.details.get("interval"))
    }
    paired = " Differences are paired by prompt and seed, or by file name" if evaluation.differences else ""
    if paired:
        paired += "; of shares by Newcombe's method 10." if any("Wilson" in way for way in ways) else "."
    return [f"In brackets: 95 % intervals, {'; '.join(ways)}.{paired}"] if ways else []


def _of_fewer(evaluation: Evaluation) -> list[str]:
    """A line for each method and difference with values that are not about all of its clips or pairs."""
    lines = {
        f"Of {evaluation.methods[method]['clips']} clips of {method}": {
            result.name: result.clips for result in results
        }
        for method, results in evaluation.results.items()
        if any(result.clips != evaluation.methods[method]["clips"] for result in results)
    }
    for method, base in evaluation.baselines.items():
        pairs = {one.name: one.pairs for one in evaluation.differences if one.method == method}
        if len(set(pairs.values())) > 1:
            lines[f"Pairs of {method} and {base}"] = pairs
    return [
        f"{what}: {', '.join(f'{name} {count}' for name, count in counts.items())}."
        for what, counts in lines.items()
    ]


def _remarks(evaluation: Evaluation) -> list[str]:
    return [
        *_of_fewer(evaluation),
        *([f"Reported: {evaluation.reported.source}"] if evaluation.reported else []),
        *(f"Warning: {line}" for line in evaluation.warnings),
        *(f"No value: {what}: {reason}" for what, reason in evaluation.failed.items()),
        *(f"Skipped: {name}: {reason}" for name, reason in evaluation.skipped.items()),
        *(f"Not measured: {name}: {reason}" for name, reason in evaluation.left_out.items()),
    ]


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _tabular(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    return "\n".join(
        [
            r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}",
            r"\toprule",
            line(header),
            r"\midrule",
            *map(line, rows),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _latex(text: str) -> str:
    """Text without any command."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(
        special.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in visible(text)
    )


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value

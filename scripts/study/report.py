"""What the study found, as tables and a plot; they are read off its stored results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from marked import made_with, markdown, write_readme

from oseg_video.charts import Series, chart
from oseg_video.files import MARK, write_text

Row = Mapping[str, Any]
_UNSAID = ("guidance", "guidance_scale", "blocks", "keep_parallel", "reference", "perturb", "dropped")
_NAMES = {
    "all": "all correct",
    "score": "score",
    "frechet": "Fréchet",
    "flicker": "flicker",
    "diversity": "diversity",
}
_VALUES = {"all": 3, "score": 3, "frechet": 1, "flicker": 2, "diversity": 2}
"""Decimals of each."""
_CHANGES = ("all", "score", "frechet", "flicker", "diversity")
BASELINES = {"none": "no guidance", "cfg": "CFG"}


def tables(results: Mapping[str, Any]) -> Iterator[str]:
    """Markdown, one table for every stage that is there, a line before each."""
    for stage, write in _TABLES.items():
        if stage in results:
            yield from write(results[stage]["found"])


def write_report(results: Mapping[str, Any], folder: Path) -> None:
    """Tables into the folder's README.md, and one plot for each of the two stages that tell passes."""
    write_readme("study", [*tables(results), made_with(results)], folder / "README.md")
    if "test" in results:
        rows = [row for row in results["test"]["found"] if not row["label"].startswith("oseg ")]
        write_text(folder / "methods.svg", pareto(rows, "Two shapes: what methods cost, and what they do"))
    if "reuse" in results:
        said = "Two shapes: what reused branches cost, and what they do"
        write_text(folder / "reuse.svg", pareto(results["reuse"]["found"], said))


def pareto(rows: Sequence[Row], title: str) -> str:
    """All correct against passes, as SVG; rows of one label have one colour."""
    found = {row["label"]: [one for one in rows if one["label"] == row["label"]] for row in rows}
    series = [
        Series(
            name=label,
            points=[(one["values"]["passes"], one["values"]["all"][0]) for one in points],
            intervals=[tuple(one["values"]["all"][1:]) for one in points],
            joined=False,
        )
        for label, points in found.items()
    ]
    drawn = chart(
        series,
        title=title,
        x="passes through the denoiser per step",
        y="share all correct",
        width=640,
        height=380,
    )
    return drawn.replace(">", f"><!-- {MARK} -->", 1)


def _winners(rows: Sequence[Row]) -> Iterator[str]:
    yield _table(
        ("method", "settings", "passes", *(_NAMES[name] for name in _VALUES)),
        [
            (
                *(_label(row), _settings(row["guidance"]), f"{row['values']['passes']:.2f}"),
                *(_interval(row["values"][name], digits) for name, digits in _VALUES.items()),
            )
            for row in rows
        ],
    )
    yield _table(
        (
            "method",
            "minus",
            *(_NAMES[name] for name in _CHANGES),
            "OSEG minus it: all correct",
            "score",
            "Fréchet",
        ),
        [
            (
                *(_label(row), BASELINES[row["minus"]]),
                *_changes(row["differences"]),
                *_changes(row.get("oseg minus it"), ("all", "score", "frechet")),
            )
            for row in rows
            if "differences" in row
        ],
    )


def _inside(found: Mapping[str, Row]) -> Iterator[str]:
    yield _table(
        ("what is perturbed, at OSEG's block", "settings", *(_NAMES[name] for name in _CHANGES)),
        [(label, _settings(row["guidance"]), *_changes(row["differences"])) for label, row in found.items()],
    )


def _regimes(found: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """A column for each regime: shares all correct, and what is more than without the method."""
    labels = {_label(row): None for rows in found.values() for row in rows}

    def table(head: str, cell: Callable[[Row], str]) -> str:
        cells = [{_label(row): cell(row) for row in rows} for rows in found.values()]
        return _table(
            (head, *found), [(label, *(column.get(label, "") for column in cells)) for label in labels]
        )

    yield table("all correct", lambda row: _interval(row["values"]["all"], 3))
    for name in ("all", "score"):
        yield table(
            f"{_NAMES[name]}, minus no guidance (with text: CFG at that text scale)",
            lambda row, name=name: _change(row["differences"][name]) if "differences" in row else "",
        )


def _blocks(found: Mapping[str, Any]) -> Iterator[str]:
    count = len(next(iter(found["gains"].values())))
    yield _table(
        ("score minus no guidance", *(f"block {block}" for block in range(count))),
        [(label, *(_change(one["score"]) for one in gains)) for label, gains in found["gains"].items()],
    )
    yield _table(
        (
            "quantity of the probe",
            "rank correlation with the gain",
            "p",
            "points",
            "best block has most of it",
        ),
        [
            (quantity, f"{one['rho']:+.2f}", f"{one['p']:.2g}", str(one["points"]), _picked(found, quantity))
            for quantity, one in found["spearman over methods and blocks"].items()
        ],
    )


def _blocks_of_others(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, one in found.items():
        yield from chain([f"The same on {name}:"], _blocks(one))


def _winners_on_others(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, one in found.items():
        yield from chain([f"Searched and tested on {name}:"], _winners(one["test"]))


def _picked(found: Mapping[str, Any], quantity: str) -> str:
    """For how many methods the block with the largest gain is the one with the most of a quantity."""
    best = {
        label: max(range(len(gains)), key=lambda block: gains[block]["score"][0])
        for label, gains in found["gains"].items()
    }
    values = {label: found["probe"][label][quantity] for label in best}
    hits = [label for label, block in best.items() if values[label][block] == max(values[label])]
    return f"{len(hits)} of {len(best)} methods"


def _reuse(rows: Sequence[Row]) -> Iterator[str]:
    yield _table(
        (
            "method",
            "reuse",
            "passes",
            "all correct",
            *(f"{_NAMES[name]}, change" for name in _CHANGES),
            "distance",
        ),
        [
            (
                *(row["label"], _reused(row), f"{row['passes']:.2f}"),
                _interval(row["values"]["all"], 3),
                *_changes(row.get("differences")),
                _interval(row["distance"], 2) if "distance" in row else "",
            )
            for row in rows
        ],
    )


def _reused(row: Row) -> str:
    return f"{row['reuse']}; minus {row['minus']}" if "minus" in row else str(row["reuse"])


def _on_one_shape(write: Callable[[Any], Iterator[str]]) -> Callable[[Any], Iterator[str]]:
    return lambda found: chain(["The model of one shape, methods as its recipe has them:"], write(found))


_TABLES: dict[str, Callable[[Any], Iterator[str]]] = {
    "test": _winners,
    "inside": _inside,
    "regimes": _regimes,
    "blocks": _blocks,
    "blocks-other": _blocks_of_others,
    "search-other": _winners_on_others,
    "reuse": _reuse,
    "one-shape": _on_one_shape(_winners),
    "one-shape-reuse": _on_one_shape(_reuse),
}


def _label(row: Row) -> str:
    return f"{row['label']} with text" if row["group"] == "with text" else str(row["label"])


def _settings(guidance: Mapping[str, Any]) -> str:
    scales = [
        f"{value:g}"
        for name, value in guidance.items()
        if name.endswith("_scale") and name != "guidance_scale"
    ]
    said = [f"block {block}" for block in guidance.get("blocks", ())]
    said += [f"scale {one}" for one in scales]
    said += [f"text {guidance['guidance_scale']:g}"] if guidance["guidance_scale"] != 1 else []
    said += [f"sigma {float(guidance['blur_sigma']):g}"] if "blur_sigma" in guidance else []
    rest = {
        k: v for k, v in guidance.items() if k not in (*_UNSAID, "blur_sigma") and not k.endswith("_scale")
    }
    return ", ".join([*said, *(f"{name} {value:g}" for name, value in rest.items())])


def _changes(differences: Row | None, names: Sequence[str] = _CHANGES) -> tuple[str, ...]:
    return tuple(_change(differences[name], _VALUES[name]) if differences else "" for name in names)


def _interval(value: Sequence[float], digits: int) -> str:
    return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*value, d=digits)


def _change(value: Sequence[float], digits: int = 3) -> str:
    """Bold where the whole interval lies on one side of 0."""
    said = "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(*value, d=digits)
    return f"**{said}**" if value[1] > 0 or value[2] < 0 else said


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(markdown(*cells) for cells in (heads, ["---"] * len(heads), *rows))

"""Charts: points stand where their values are, and nothing is drawn that is no number."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from oseg_video.charts import COLOURS, Series, chart

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*series: Series) -> ElementTree.Element:
    return ElementTree.fromstring(chart(series, title="a < b", x="passes", y="share", width=400, height=200))


def circles(root: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(one.get("cx")), float(one.get("cy"))) for one in root.iter(f"{SVG}circle")]


def labels(root: ElementTree.Element, anchor: str) -> dict[float, tuple[float, float]]:
    found = [one for one in root.iter(f"{SVG}text") if one.get("text-anchor") == anchor and one.get("x")]
    return {float(t.text): (float(t.get("x")), float(t.get("y"))) for t in found if _number(t.text)}


def _number(text: str | None) -> bool:
    try:
        float(text or "")
    except ValueError:
        return False
    return True


def test_a_point_stands_beside_the_labels_of_its_values() -> None:
    root = drawn(Series("one", [(1, 0.2), (2, 0.4), (3, 0.8)]))
    xs, ys = labels(root, "middle"), labels(root, "end")
    (left, bottom), _, (right, top) = circles(root)
    assert (left, right) == (xs[1][0], xs[3][0])
    # A label's baseline is 4 pixels below its line.
    assert (bottom, top) == (ys[0.2][1] - 4, ys[0.8][1] - 4) and top < bottom


def test_series_have_a_line_a_colour_and_a_name() -> None:
    root = drawn(Series("one", [(0, 0), (1, 1)]), Series("two", [(0, 1), (1, 0)], joined=False))
    lines = [one.get("stroke") for one in root.iter(f"{SVG}path") if one.get("fill") == "none"]
    assert lines == [COLOURS[0]]
    assert {one.get("fill") for one in root.iter(f"{SVG}circle")} == set(COLOURS[:2])
    assert {"a < b", "one", "two"} <= {one.text for one in root.iter(f"{SVG}text")}


def test_an_interval_is_a_bar_between_its_ends_and_inside_the_axes() -> None:
    root = drawn(Series("one", [(0, 1), (1, 2)], intervals=[(0.5, 3), (1, 4)], joined=False))
    ys = labels(root, "end")
    bars = [one.get("d") for one in root.iter(f"{SVG}path") if one.get("opacity")]
    assert len(bars) == 2 and bars[1].endswith(f" {ys[1][1] - 4}V{ys[4][1] - 4}")


def test_an_interval_for_each_point_or_none() -> None:
    with pytest.raises(ValueError, match="zip"):
        drawn(Series("one", [(0, 1), (1, 2)], intervals=[(0, 1)]))


def test_values_that_only_rounding_tells_apart_have_an_axis() -> None:
    root = drawn(Series(name="a", points=[(1.0, 0.1 + 0.2), (2.0, 0.3)]))
    assert len(circles(root)) == 2 and len(labels(root, "end")) > 1


def test_points_that_are_no_numbers_are_left_out() -> None:
    assert len(circles(drawn(Series("one", [(0, 1), (1, math.nan), (math.inf, 2)])))) == 1
    with pytest.raises(ValueError, match="at least one point"):
        drawn(Series("one", [(0, math.nan)]))

"""The study's tables and plots, of results that look like stored ones."""

from __future__ import annotations

import json
from pathlib import Path

from study.report import tables, write_report

VALUES = {
    "all": [0.5, 0.4, 0.6],
    "score": [0.7, 0.6, 0.8],
    "frechet": [9.0, 8.0, 10.0],
    "flicker": [3.0, 2, 4],
}
VALUES |= {"diversity": [1.0, 0.9, 1.1], "passes": 1.6}
SURE, UNSURE = [0.1, 0.05, 0.15], [0.1, -0.05, 0.25]
CHANGES = {
    "all": SURE,
    "score": UNSURE,
    "frechet": [-1.0, -2.0, -0.5],
    "flicker": UNSURE,
    "diversity": UNSURE,
}
OSEG = {"guidance": "oseg", "oseg_scale": 1, "blocks": [2], "blur_sigma": "inf", "guidance_scale": 1}


def row(group: str, label: str, guidance: dict, **more: object) -> dict:
    return {"group": group, "label": label, "guidance": guidance, "values": VALUES, **more}


def results() -> dict:
    none = row("plain", "none", {"guidance": "cfg", "guidance_scale": 1})
    text = {**OSEG, "guidance_scale": 3, "perturb": "cond"}
    found = {
        "test": [
            none,
            row("alone", "oseg", OSEG, minus="none", differences=CHANGES),
            row("alone", "oseg clip", {**OSEG, "reference": "clip"}, minus="none", differences=CHANGES),
            row("with text", "oseg", text, minus="cfg", differences=CHANGES),
            row(
                "with text",
                "stg",
                {"guidance": "stg", "stg_scale": 0.5, "blocks": [1], "guidance_scale": 3},
                minus="cfg",
                differences=CHANGES,
                **{"oseg minus it": CHANGES},
            ),
        ],
        "inside": {"all smoothed (SEG)": {"guidance": OSEG, "differences": CHANGES}},
        "regimes": {
            "8 steps": [none],
            "25 steps": [none, row("alone", "oseg", OSEG, minus="none", differences=CHANGES)],
        },
        "blocks": {
            "gains": {
                "oseg": [CHANGES, {**CHANGES, "score": [0.2, 0.1, 0.3]}],
                "stg": [CHANGES, {**CHANGES, "score": [-0.2, -0.3, -0.1]}],
            },
            "probe": {"oseg": {"entropy": [1.0, 2.0]}, "stg": {"entropy": [1.0, 2.0]}},
            "spearman over methods and blocks": {"entropy": {"rho": 0.5, "p": 0.25, "points": 10}},
        },
        "blocks-other": {
            "a second network": {
                "gains": {"oseg": [{**CHANGES, "score": [0.2, 0.1, 0.3]}, CHANGES]},
                "probe": {"oseg": {"entropy": [2.0, 1.0]}},
                "spearman over methods and blocks": {"entropy": {"rho": 1.0, "p": 0.01, "points": 2}},
            }
        },
        "search-other": {"a second network": {"search": {}, "test": [none]}},
        "reuse": [
            {"label": "CFG", "reuse": "none", "passes": 2.0, "values": VALUES},
            {
                **{"label": "CFG", "reuse": "uncond=2", "passes": 1.5, "values": VALUES},
                **{"differences": CHANGES, "distance": [0.25, 0.2, 0.3]},
            },
        ],
        "one-shape": [none, row("with text", "oseg", text, minus="cfg", differences=CHANGES)],
    }
    return {"made_by": "x"} | {
        stage: {"found": one, "versions": {"torch": "2.0"}} for stage, one in found.items()
    }


def test_every_stage_has_its_table() -> None:
    *of_two, said, winners_of_one, _ = tables(results())
    assert said.startswith("The model of one shape") and winners_of_one.count("| oseg with text |") == 1
    *of_two, heading, other_gains, other_correlations, searched, other_winners, _, reuse = of_two
    assert searched == "Searched and tested on a second network:" and "| none |" in other_winners
    assert heading == "The same on a second network:"
    assert "| oseg | **+0.200 [+0.100, +0.300]** |" in other_gains
    assert "| entropy | +1.00 | 0.01 | 2 | 1 of 1 methods |" in other_correlations
    winners, differences, inside, regimes, gained, better, gains, correlations = of_two
    assert "| oseg with text | block 2, scale 1, text 3, sigma inf | 1.60 | 0.500 [0.400, 0.600] |" in winners
    assert "| none | " in winners and "| none |" not in differences
    assert "| oseg | no guidance | **+0.100 [+0.050, +0.150]** | +0.100 [-0.050, +0.250] |" in differences
    assert differences.count("| CFG |") == 2
    assert "| all smoothed (SEG) | block 2, scale 1, sigma inf |" in inside
    assert regimes.splitlines()[2:] == [
        "| none | 0.500 [0.400, 0.600] | 0.500 [0.400, 0.600] |",
        "| oseg |  | 0.500 [0.400, 0.600] |",
    ]
    assert gained.splitlines()[2:] == ["| none |  |  |", "| oseg |  | **+0.100 [+0.050, +0.150]** |"]
    assert better.splitlines()[2:] == ["| none |  |  |", "| oseg |  | +0.100 [-0.050, +0.250] |"]
    assert gains.splitlines()[0] == "| score minus no guidance | block 0 | block 1 |"
    assert "| entropy | +0.50 | 0.25 | 10 | 1 of 2 methods |" in correlations
    assert (
        "| CFG | uncond=2 | 1.50 | 0.500 [0.400, 0.600] | **+0.100" in reuse
        and "| 0.25 [0.20, 0.30] |" in reuse
    )
    assert all(
        {line.count("|") for line in one.splitlines()} == {one.splitlines()[0].count("|")}
        for one in (*of_two, other_gains, other_correlations, reuse, winners_of_one)
    )


def test_stages_that_have_not_run_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("<!-- study:begin -->\nold\n<!-- study:end -->\n")
    some = {name: one for name, one in results().items() if name in ("made_by", "test")}
    assert len(list(tables(some))) == 2
    write_report(json.loads(json.dumps(some)), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "methods.svg"}


def test_the_plot_has_a_colour_for_each_method_and_no_variants(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("<!-- study:begin -->\n<!-- study:end -->\n")
    write_report(results(), tmp_path)
    plot = (tmp_path / "methods.svg").read_text()
    assert plot.count("<circle") == 4 and plot.count("oseg:") == 2 and "clip" not in plot
    assert "Made with torch 2.0." in (tmp_path / "README.md").read_text()

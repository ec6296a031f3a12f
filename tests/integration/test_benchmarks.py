"""The benchmarks: their tables are those of their results, and their results those of the code."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import bench_cost
import bench_evaluation
import bench_gpu
import bench_parallel
import marked
import methods_table
import pytest
from study import report

from oseg_video.adapters import adapter_for_class, all_adapters
from oseg_video.jobs.loading.meta import full_size_denoiser


@pytest.mark.parametrize("name", ["bench_cost", "bench_parallel", "bench_evaluation"])
def test_the_readme_has_the_tables_of_the_stored_results(name: str) -> None:
    tables = importlib.import_module(name).stored_tables()
    readme = marked.README.read_text(encoding="utf-8")
    assert len(tables) == {"bench_cost": 4, "bench_parallel": 3, "bench_evaluation": 2}[name] and all(tables)
    assert marked.filled(readme, name, tables) == readme, f"python scripts/{name}.py --write-readme"
    assert marked.filled(readme, name, [*tables, "one more"]) != readme


def test_blocks_in_a_row_are_said_as_a_range() -> None:
    assert bench_cost.ranges([1, 2, 3, 5, 6, 8]) == "1 to 3, 5, 6, 8"
    assert bench_cost.ranges(["dual:0", 1, 2, "all"]) == "dual:0, 1, 2, all"


def test_the_study_has_the_tables_and_plots_of_its_results(tmp_path: Path) -> None:
    study = Path(report.__file__).parent
    for name in ("README.md", "methods.svg", "reuse.svg"):
        if (study / name).exists():
            shutil.copy(study / name, tmp_path)
    report.write_report(json.loads((study / "results.json").read_text()), tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (study / path.name).read_bytes(), "run_study.py --write-readme"


def test_the_projects_readme_quotes_the_study() -> None:
    root = Path(report.__file__).parents[2]
    measured = (root / "README.md").read_text(encoding="utf-8").partition("## What is measured")[2]
    results = json.loads((root / "scripts" / "study" / "results.json").read_text())
    quoted = re.findall(r"[-+]?[\d.]+ \[[^\]]+\]", measured.partition("## ")[0])
    assert len(quoted) >= 5
    assert [one for one in quoted if one not in "\n".join(report.tables(results))] == []


def test_the_older_ways_are_beside_the_streaming_ones(tmp_path: Path) -> None:
    bench_evaluation.draw(tmp_path / "a.mp4", "64x64", 6)
    for metric in bench_evaluation.OLDER:
        older, streaming = (
            bench_evaluation.measured(way, metric, tmp_path / "a.mp4") for way in ("older", "streaming")
        )
        assert older["value"] == pytest.approx(streaming["value"], rel=0.01) and older["value"] > 0
    stored = json.loads(bench_evaluation.STORED.read_text())["measured"]["rows"]
    assert {row["metric"] for row in stored} == {*bench_evaluation.METRICS, "-"}


def test_the_table_of_methods_is_that_of_the_methods() -> None:
    readme = methods_table.README.read_text(encoding="utf-8")
    assert marked.filled(readme, "methods", [methods_table.table()]) == readme, (
        "python scripts/methods_table.py"
    )


def test_only_what_is_between_the_marks_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marked, "README", tmp_path / "README.md")
    for tables in (["| old |"], ["| new \\1 |", "| other |"]):
        around = "<!-- a:begin -->\na\n<!-- a:end -->\nbetween\n<!-- b:begin -->\n{}<!-- b:end -->\nafter\n"
        marked.README.write_text(around.format("old\n"))
        marked.write_readme("b", tables)
        assert marked.README.read_text() == around.format("\n\n".join(tables) + "\n")
    with pytest.raises(AssertionError, match="c has 0 places"):
        marked.write_readme("c", [])


def test_stored_costs_are_those_of_the_code() -> None:
    rows = {
        (row["family"], row["method"]): row
        for row in json.loads(bench_cost.STORED.read_text())["counted"]["rows"]
    }
    families = [adapter.family for adapter in all_adapters()]
    assert rows.keys() == {(family, name) for family in families for name in bench_cost.recipes_of(family)}
    ltx = adapter_for_class("LTXPipeline")
    assert bench_cost.count_recipe(ltx, full_size_denoiser(ltx), "oseg") == rows["ltx", "oseg"]


def test_stored_costs_of_ranks_are_those_of_the_code() -> None:
    rows = {
        (row["family"], row["method"]): row
        for row in json.loads(bench_parallel.STORED.read_text())["counted"]["rows"]
    }
    families = dict.fromkeys(family for family, _ in rows)
    assert families.keys() <= {adapter.family for adapter in all_adapters() if adapter.sequence_parallel}
    assert list(rows) == [(family, method) for family in families for method in bench_parallel.METHODS]
    wan = adapter_for_class("WanPipeline")
    again = bench_parallel.count_recipe(wan, full_size_denoiser(wan).bfloat16(), "cfg", ranks=[2])
    row = rows["wan", "cfg"]
    assert again == {**row, "layouts": {text: row["layouts"][text] for text in again["layouts"]}}


def test_the_benchmark_of_a_gpu_runs_small_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tiny.json"

    def run(*more: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["bench_gpu.py", "--tiny", "--out", str(out), *more])
        bench_gpu.main()
        return json.loads(out.read_text()) if out.exists() else {}

    assert run("--seconds", "-1") == {}
    assert "out of time" in capsys.readouterr().out
    first = run()
    runs = ["stock CFG", "CFG", "STG, whole passes", "OSEG", "OSEG, reuse"]
    assert list(first["results"]) == [*runs, "transform", *(f"{name}, compiled" for name in runs)]
    assert all(one["seconds"] > 0 for one in first["results"].values())
    missing = first["results"].pop("OSEG")
    out.write_text(json.dumps(first))
    again = run()["results"]
    assert again.pop("OSEG") != missing
    assert again == first["results"]
    with pytest.raises(SystemExit):
        run("--family", "wan")
    assert "has other results (mochi on CPU)" in capsys.readouterr().err

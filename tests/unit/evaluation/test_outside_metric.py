"""A metric that is defined here, and registered as documented, is everywhere without another change."""

import json
import subprocess
import sys
from types import MappingProxyType

import pytest
import torch

from oseg_video import plugins
from oseg_video.cli import main
from oseg_video.evaluation.evaluate import evaluate
from oseg_video.evaluation.metrics import base
from oseg_video.evaluation.metrics.base import (
    MetricOptions,
    MetricValue,
    build_metrics,
    check_options,
    known_metrics,
    register_metrics,
)
from oseg_video.evaluation.observe import Look, MeanMetric
from oseg_video.evaluation.tables import FORMATS
from oseg_video.types import OsegVideoError
from tests.drawn import write_frames, write_manifest

NAME = "redness"
SOURCE = f"""
import torch
from oseg_video.evaluation.metrics.base import MetricValue, register_metrics
from oseg_video.evaluation.observe import Look, MeanMetric


class Redness(MeanMetric):
    row_protocol = {{"metric": "{NAME}"}}
    values = (MetricValue(name="{NAME}", better="higher", protocol=row_protocol, least=0.0, most=255.0),)

    def look(self, clip):
        return Reds()


class Reds(Look):
    def __init__(self):
        self.reds = []

    def add(self, frame):
        self.reds.append(float(frame.rgb_HWC[..., 0].mean(dtype="float64")))

    def seen(self):
        return torch.tensor([sum(self.reds) / len(self.reds)], dtype=torch.float64)


register_metrics({{"{NAME}": "mean of the red channel, in 8-bit levels"}}, Redness, compared="always")
"""


@pytest.fixture
def redness(monkeypatch):
    """The metric, registered for one test."""
    known_metrics()
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    exec(compile(SOURCE, "outside.py", "exec"), {})


@pytest.fixture
def clips(tmp_path):
    """Two methods over three prompts; the reds are 10, 20, 30 and 5 more."""
    for method, more in (("cfg", 0), ("oseg", 5)):
        for place in range(3):
            frames = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
            frames[:, 0] = 10 * (place + 1) + more
            path = tmp_path / f"{method}-{place}"
            write_frames(path, frames)
            write_manifest(path, prompts=[f"p{place}"], seeds=[0], guidance=method)
    return tmp_path


def test_it_is_known_and_evaluated_with_interval_difference_and_tables(redness, clips):
    assert known_metrics()[NAME].summary == "mean of the red channel, in 8-bit levels"
    found = evaluate([clips], [NAME], baseline="cfg")
    assert [found.results[method][0].value for method in ("cfg", "oseg")] == [20, 25]
    assert found.results["cfg"][0].interval[0] < 20 < found.results["cfg"][0].interval[1]
    (difference,) = found.differences
    assert (difference.value, difference.pairs) == (5, 3) and found.better == {NAME: "higher"}
    for format, table in FORMATS.items():
        assert NAME in table(found), format


def test_it_is_on_the_command_line(redness, clips, capsys):
    assert main(["evaluate", str(clips), "--metrics", NAME, "--quiet", "--format", "json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert {method: one[0]["value"] for method, one in results.items()} == {"cfg": 20, "oseg": 25}
    with pytest.raises(SystemExit):
        main(["evaluate", "--list-metrics"])
    assert f"{NAME} " in capsys.readouterr().out


def test_it_is_part_of_comparisons(redness, clips):
    from oseg_video.comparison.planned import default_metrics
    from oseg_video.evaluation.clips import find_clips

    planned = {("m", method): group for method, group in find_clips([clips]).methods.items()}
    assert NAME in default_metrics([], planned, MetricOptions())


def test_its_name_is_taken(redness):
    with pytest.raises(RuntimeError, match="two metrics are called 'redness'"):
        exec(compile(SOURCE, "outside.py", "exec"), {})


def test_another_package_brings_it_to_the_command_line(tmp_path, clips):
    package = tmp_path / "site"
    (package / "reds-1.0.dist-info").mkdir(parents=True)
    (package / "reds.py").write_text(SOURCE)
    (package / "reds-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: reds\nVersion: 1.0\n"
    )
    entry = f"[{plugins.GROUP}]\nreds = reds\n"
    (package / "reds-1.0.dist-info" / "entry_points.txt").write_text(entry)
    code = (
        f"import sys; sys.path.insert(0, {str(package)!r}); from oseg_video.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "evaluate", "--list-metrics"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and f"\n{NAME} " in f"\n{done.stdout}", done.stderr


class Distance(MeanMetric):
    """Says that it compares with real clips."""

    row_protocol = MappingProxyType({"metric": "distance"})
    values = (MetricValue(name="distance", better="lower", protocol=row_protocol),)

    def look(self, clip):
        return Look()


def test_what_it_declares_is_asked_for_and_offered(monkeypatch, tmp_path, capsys):
    known_metrics()
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    register_metrics({"distance": "to real clips"}, Distance, reads=("reference",), needs_reference=True)
    with pytest.raises(OsegVideoError, match="distance compares with real clips: give --reference"):
        build_metrics(["distance"], MetricOptions())
    check_options(["distance"], MetricOptions(reference=tmp_path))
    with pytest.raises(OsegVideoError, match="distance reads no --weights"):
        check_options(["distance"], MetricOptions(weights={"distance": "w"}))
    with pytest.raises(SystemExit):
        main(["evaluate", "--list-metrics"])
    assert "to real clips (needs --reference; reads --reference)" in capsys.readouterr().out

"""The bridge to VBench's interpreter, with a stand-in for the package in an interpreter of its own.

`test_vbench_real.py` does the same with the real package.
"""

import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from oseg_video import evaluation as evaluation_package
from oseg_video.cli import main, parse
from oseg_video.evaluation.clips import ClipFile, FoundClips, find_clips
from oseg_video.evaluation.evaluate import evaluate
from oseg_video.evaluation.metrics import vbench
from oseg_video.evaluation.metrics.base import MetricOptions, build_metrics, check_fit, known_metrics
from oseg_video.evaluation.vbench import jobs as vbench_jobs
from oseg_video.evaluation.vbench.environment import find_environment
from oseg_video.evaluation.vbench.jobs import custom_job
from oseg_video.evaluation.vbench.kept import KeptAnswers
from oseg_video.evaluation.vbench.process import ask, run_workers
from oseg_video.evaluation.vbench.scores import DIMENSIONS, normalise, total
from oseg_video.media import write_clip
from oseg_video.types import OsegVideoError
from tests.fake_vbench import FLICKERING, SUITE, build_environment
from tests.said import said

WHOLE = vbench._whole


@pytest.fixture(scope="module")
def data_home(tmp_path_factory):
    home = tmp_path_factory.mktemp("data")
    build_environment(home)
    return home


@pytest.fixture(autouse=True)
def environment(data_home, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(data_home))
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "calls.jsonl"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # The stand-in's clips are files of text.
    monkeypatch.setattr(vbench, "_whole", lambda clips: (list(clips), {}))
    for name in ("FAKE_VBENCH", "FAKE_GPUS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def calls(tmp_path):
    """What the stand-in was called with, one entry per call."""

    def read():
        path = tmp_path / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return read


def make_clip(folder, name, content=None, *, prompt=None, seed=None, method="cfg"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content or f"{method} {name} {seed}")
    frames = path.stat().st_size % 8 + 3  # as the stand-in sees it
    facts = {"height": 64, "width": 64, "fps": 8.0, "frames": frames, "start": prompt or name}
    return ClipFile(path=path, name=name, method=method, prompt=prompt, seed=seed, **facts)


def make_clips(tmp_path, count=7, **options):
    return [make_clip(tmp_path / "clips", f"{n}{'x' * n}.mp4", **options) for n in range(count)]


def score(dimension, clip):
    digest = hashlib.sha256(dimension.encode() + clip.path.read_bytes()).hexdigest()
    return int(digest[:8], 16) / 2**32


def metric_of(*names, **options):
    (metric,) = build_metrics(names, MetricOptions(**options))
    return metric


def values_of(metric, seen):
    every = torch.arange(len(seen.clips))
    return {value.name: metric.compute(value.name, seen.rows, every) for value in metric.values}


def mean(values):
    return sum(values) / len(values)


def test_own_clips_are_averaged_as_vbench_does(tmp_path, calls):
    clips = make_clips(tmp_path)
    metric = metric_of("vbench:imaging_quality", "vbench:subject_consistency", "vbench:dynamic_degree")
    assert check_fit(metric, clips) == []
    seen = metric.observe(clips)
    imaging = [score("imaging_quality", clip) for clip in clips]
    pairs = [clip.frames - 1 for clip in clips]
    weighted = [score("subject_consistency", c) * n for c, n in zip(clips, pairs, strict=True)]
    assert values_of(metric, seen) == pytest.approx(
        {
            "vbench:subject_consistency": sum(weighted) / sum(pairs),
            "vbench:dynamic_degree": mean([score("dynamic_degree", clip) > 0.5 for clip in clips]),
            "vbench:imaging_quality": mean(imaging),
        }
    )
    assert len(set(pairs)) > 1, "the clips must differ in length for the weights to show"
    assert metric.per_clip("vbench:imaging_quality", seen.rows).tolist() == pytest.approx(imaging)
    value = next(f for f in metric.values if f.name == "vbench:imaging_quality")
    assert value.protocol["mode"] == "custom_input" and value.versions["python"] == sys.version.split()[0]
    assert {call["mode"] for call in calls()} == {"custom_input"}
    assert not list(tmp_path.glob("oseg-video-*")), "logs and links are removed"


def test_values_follow_from_any_choice_of_rows(tmp_path):
    clips = make_clips(tmp_path)
    metric = metric_of("vbench:background_consistency")
    seen = metric.observe(clips)
    some = torch.tensor([4, 0, 0])
    weights = [clips[i].frames - 1 for i in some]
    parts = [score("background_consistency", clips[i]) * w for i, w in zip(some, weights, strict=True)]
    value = metric.compute("vbench:background_consistency", seen.rows, some)
    assert value == pytest.approx(sum(parts) / sum(weights))


def test_prompts_reach_vbench_whatever_the_files_are_called(tmp_path, calls):
    prompts = ['a/b: "c" *?<>|\'\n$(touch x)', "é" * 300]
    clips = [make_clip(tmp_path / "clips", f"{n}.mp4", prompt=prompt) for n, prompt in enumerate(prompts)]
    metric_of("vbench:overall_consistency").observe(clips)
    assert sorted(entry["prompt_en"] for call in calls() for entry in call["info"]) == sorted(prompts)


def test_human_action_reads_its_label_from_the_name_that_it_is_given(tmp_path, calls):
    clips = [make_clip(tmp_path / "clips", f"{n}.mp4", prompt="A person is riding a bike") for n in "ab"]
    metric = metric_of("vbench:human_action")
    metric.check(clips)
    metric.observe(clips)
    names = [Path(path).name for call in calls() for entry in call["info"] for path in entry["video_list"]]
    # VBench's own rule, from its source.
    labels = {name.lower().split("-")[0].split("person is ")[-1].split("_")[0] for name in names}
    assert labels == {"riding a bike"} and len(names) == 2
    with pytest.raises(OsegVideoError, match="'A person is thinking'"):
        check_fit(metric, [make_clip(tmp_path / "clips", "c.mp4", prompt="A person is thinking")])


def test_clips_that_are_damaged_past_their_index_are_named(tmp_path, capfd):
    noise = torch.randint(0, 255, (12, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for name in "ab":
        write_clip(tmp_path / f"{name}.mp4", noise, 8.0, format="mp4")
    content = bytearray((tmp_path / "b.mp4").read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    (tmp_path / "b.mp4").write_bytes(content)
    clips = find_clips([tmp_path]).clips
    assert [clip.frames for clip in clips] == [12, 12]  # the index is whole
    whole, damaged = WHOLE(clips)
    assert [clip.name for clip in whole] == ["a.mp4"] and list(damaged) == ["b.mp4"]
    assert "cannot read" in damaged["b.mp4"]


def test_what_is_damaged_is_not_given_to_vbench(tmp_path, calls, monkeypatch):
    clips = make_clips(tmp_path, 3)
    monkeypatch.setattr(vbench, "_whole", lambda clips: (list(clips[1:]), {clips[0].name: "torn"}))
    metric = metric_of("vbench:imaging_quality")
    seen = metric.observe(clips)
    assert seen.clips == tuple(clips[1:]) and seen.skipped == {clips[0].name: "torn"}
    assert sum(len(call["info"]) for call in calls()) == 2
    monkeypatch.setattr(vbench, "_whole", lambda clips: ([], {clip.name: "torn" for clip in clips}))
    assert len(metric.observe(clips).skipped) == 3
    suite = make_suite(tmp_path / "suite")
    assert len(metric_of("vbench_standard:imaging_quality").observe(suite).skipped) == len(suite)


def test_gpus_share_the_clips(tmp_path, calls, monkeypatch):
    monkeypatch.setenv("FAKE_GPUS", "3")
    clips = make_clips(tmp_path)
    names = ("vbench:imaging_quality", "vbench:background_consistency")
    alone = metric_of(*names)
    together = metric_of(*names, device="cuda")
    expected = values_of(alone, alone.observe(clips))
    (tmp_path / "calls.jsonl").unlink()
    assert values_of(together, together.observe(clips)) == pytest.approx(expected)
    trial = calls()[:2]
    assert [len(call["info"]) for call in trial] == [1, 1], "one clip of each dimension comes first"
    shares = [(c["gpu"], len(c["info"])) for c in calls()[2:] if c["dimensions"] == ["imaging_quality"]]
    assert sorted(shares) == [("0", 2), ("1", 2), ("2", 2)], "the clip of the trial is not done again"
    assert {call["device"] for call in calls()} == {"cuda"}


def test_progress_is_told_clip_by_clip(tmp_path):
    job = custom_job("imaging_quality", make_clips(tmp_path, 3)).lay_out(tmp_path / "job")
    events = []
    request = {"task": "evaluate", "device": "cpu", "jobs": [job]}
    run_workers(find_environment(), [request], lambda _, event: events.append(event))
    told = [(event["event"], event.get("done"), event.get("total")) for event in events]
    progress = [("progress", done, 3) for done in range(3)]
    assert told == [("started", None, None), *progress, ("scored", None, None)]


def test_one_gpu_among_those_that_are_visible(tmp_path, calls, monkeypatch):
    monkeypatch.setenv("FAKE_GPUS", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    metric_of("vbench:imaging_quality", device="cuda:1").observe(make_clips(tmp_path))
    assert {call["gpu"] for call in calls()} == {"GPU-7"}


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(OsegVideoError, match=f"not on '{device}'; its interpreter sees no GPU"):
        metric_of("vbench:imaging_quality", device=device)


def test_a_dimension_without_its_package_is_named_with_the_reason(monkeypatch):
    monkeypatch.setenv("FAKE_VBENCH", "import:imaging_quality")
    with pytest.raises(
        OsegVideoError, match=r"run imaging_quality: ModuleNotFoundError: No module .*detectron2"
    ):
        metric_of("vbench:imaging_quality", "vbench:aesthetic_quality")
    metric_of("vbench:aesthetic_quality")


def test_check_says_which_dimensions_can_run(monkeypatch, capsys):
    monkeypatch.setenv("FAKE_VBENCH", "import:color")
    assert main(["vbench", "check"]) == 1
    shown = capsys.readouterr().out
    assert "15 of 16 dimensions can run; GPUs: 0\n  color: ModuleNotFoundError: No module named" in shown
    assert shown.endswith("; `oseg-video vbench setup --detectron2` adds it\n")
    assert main(["vbench", "check", "scene", "object_class"]) == 0
    assert "2 of 2 dimensions" in capsys.readouterr().out
    assert main(["vbench", "check", "colour"]) == 2
    assert "VBench has no dimension 'colour'; it has: subject_consistency, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (
            "broken",
            r"imaging_quality failed: RuntimeError: PytorchStreamReader .*\(a weights file in .*cache may be",
        ),
        ("crash", r"process was ended by signal 9 \(9: often too little memory\)"),
        ("drift", r"imaging_quality is 0\.123, but the values of its clips give"),
    ],
)
def test_failures_are_one_line_with_the_log(tmp_path, monkeypatch, fault, line):
    monkeypatch.setenv("FAKE_VBENCH", f"{fault}:imaging_quality")
    metric = metric_of("vbench:imaging_quality")
    with pytest.raises(OsegVideoError, match=line) as failed:
        metric.observe(make_clips(tmp_path, 2))
    logs = Path(str(failed.value).rsplit("printed: ", 1)[1].rstrip(")"))
    assert "\n" not in str(failed.value) and (logs / "0.txt").exists()
    if fault == "broken":
        assert "Traceback" in (logs / "0.txt").read_text()


def test_weights_that_cannot_be_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_VBENCH", "fetch:imaging_quality")
    monkeypatch.setenv("FAKE_URL", (tmp_path / "nowhere" / "w.pth").as_uri())
    metric = metric_of("vbench:imaging_quality")
    with pytest.raises(OsegVideoError) as failed:
        metric.observe(make_clips(tmp_path, 1))
    path = tmp_path / "cache" / "weights" / "w.pth"
    assert f"put the file at {path}" in str(failed.value) and "fetched from file://" in str(failed.value)
    assert not list(path.parent.iterdir()), "no file that would pass for whole weights"


def test_weights_are_fetched_once_and_whole(tmp_path, monkeypatch):
    source = tmp_path / "w.pth"
    source.write_text("weights")
    monkeypatch.setenv("FAKE_VBENCH", "fetch:imaging_quality")
    monkeypatch.setenv("FAKE_URL", source.as_uri())
    monkeypatch.setenv("FAKE_GPUS", "2")
    with said() as lines:
        metric_of("vbench:imaging_quality", device="cuda").observe(make_clips(tmp_path, 4))
    assert lines.count(f"VBench fetches {source.as_uri()}") == 1
    assert [path.name for path in (tmp_path / "cache" / "weights").iterdir()] == ["w.pth"]
    assert (tmp_path / "cache" / "weights" / "w.pth").read_text() == "weights"


def test_a_run_goes_on_where_it_was_stopped(tmp_path, calls, monkeypatch):
    names = ("vbench:imaging_quality", "vbench:aesthetic_quality")  # aesthetic_quality comes first
    clips = make_clips(tmp_path)
    monkeypatch.setenv("FAKE_VBENCH", "crash:imaging_quality")
    with pytest.raises(OsegVideoError, match="signal 9"):
        metric_of(*names, work=tmp_path / "work").observe(clips)
    with open(tmp_path / "work" / "vbench.jsonl", "a") as file:
        file.write('["half a li')
    monkeypatch.delenv("FAKE_VBENCH")
    done = len(calls())
    clips[2].path.write_text("made anew, just as long"[: clips[2].path.stat().st_size])
    metric = metric_of(*names, work=tmp_path / "work")
    seen = metric.observe(clips)
    again = {tuple(call["dimensions"]): len(call["info"]) for call in calls()[done:]}
    assert again == {("aesthetic_quality",): 1, ("imaging_quality",): 7}, (
        "the clip made anew, and what crashed"
    )
    assert values_of(metric, seen) == pytest.approx(
        {f"vbench:{d}": mean([score(d, c) for c in clips]) for d in ("aesthetic_quality", "imaging_quality")}
    )
    metric_of(*names, work=tmp_path / "work").observe(clips)
    assert len(calls()) == done + 2


def test_what_a_dimension_has_done_is_not_lost_with_the_rest_of_it(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(vbench_jobs, "PIECE", 3)
    clips = make_clips(tmp_path)
    monkeypatch.setenv("FAKE_VBENCH", f"crash {clips[4].path.name}:imaging_quality")
    with pytest.raises(OsegVideoError, match="signal 9"):
        metric_of("vbench:imaging_quality", work=tmp_path / "work").observe(clips)
    monkeypatch.delenv("FAKE_VBENCH")
    metric = metric_of("vbench:imaging_quality", work=tmp_path / "work")
    seen = metric.observe(clips)
    assert [len(call["info"]) for call in calls()] == [3, 3, 1]
    expected = mean([score("imaging_quality", clip) for clip in clips])
    assert values_of(metric, seen) == {"vbench:imaging_quality": pytest.approx(expected)}


def test_a_clip_that_vbench_leaves_out_in_silence_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_VBENCH", "lose:temporal_flickering")
    clips = make_clips(tmp_path)
    lost = {clip.name for clip in clips if score("temporal_flickering", clip) < 0.5}
    metric = metric_of("vbench:temporal_flickering", "vbench:imaging_quality")
    seen = metric.observe(clips)
    assert set(seen.skipped) == lost and 0 < len(lost) < len(clips)
    kept = [score("temporal_flickering", clip) for clip in clips if clip.name not in lost]
    values = values_of(metric, seen)
    assert values["vbench:temporal_flickering"] == pytest.approx(mean(kept))
    assert values["vbench:imaging_quality"] == pytest.approx(
        mean([score("imaging_quality", c) for c in clips])
    )


def make_suite(folder, *, method="cfg", flickering=5, static=()):
    """Five clips of every prompt, named as VBench wants them, and as many as asked of the flickering one."""
    clips = []
    for entry in SUITE:
        prompt = entry["prompt_en"]
        for number in range(flickering if prompt == FLICKERING else 5):
            still = prompt == FLICKERING and number in static
            content = f"{method} {prompt} {number}" + " static" * still
            clips.append(make_clip(folder, f"{prompt}-{number}.mp4", content, method=method))
    return clips


def of(dimension, clips):
    prompts = [entry["prompt_en"] for entry in SUITE if dimension in entry["dimension"]]
    return [clip for clip in clips if clip.path.stem.rsplit("-", 1)[0] in prompts]


def test_the_standard_suite_has_all_dimensions_and_totals(tmp_path, calls):
    clips = make_suite(tmp_path / "suite")
    metric = metric_of("vbench_standard")
    (warning,) = metric.check(clips)
    assert "static filter" in warning
    seen = metric.observe(clips)
    values = values_of(metric, seen)
    assert list(values) == [
        f"vbench_standard:{name}" for name in (*DIMENSIONS, "quality", "semantic", "total")
    ]
    for dimension in ("imaging_quality", "overall_consistency", "temporal_flickering"):
        expected = mean([score(dimension, clip) for clip in of(dimension, clips)])
        assert values[f"vbench_standard:{dimension}"] == pytest.approx(expected)
    found = [value for clip in of("color", clips) if (value := score("color", clip)) >= 0.5]
    assert values["vbench_standard:color"] == pytest.approx(mean(found)) and len(found) < 5
    scores = {dimension: values[f"vbench_standard:{dimension}"] for dimension in DIMENSIONS}
    assert values["vbench_standard:total"] == pytest.approx(total("total", scores))
    details = metric.details("vbench_standard:scene", seen.rows, torch.arange(len(clips)))
    assert details["normalised"] == pytest.approx({"scene": normalise("scene", scores["scene"])})
    assert details["clips"] == {"scene": 5}
    per_clip = metric.per_clip("vbench_standard:imaging_quality", seen.rows)
    assert per_clip.isfinite().sum() == 5, "one of the prompts has this dimension"
    assert {call["mode"] for call in calls()} == {"vbench_standard"}
    # Without manifests a file's name tells the prompt, over which an interval is.
    assert len({metric.group(clip) for clip in clips}) == len({e["prompt_en"] for e in SUITE}) < len(clips)


def test_clips_of_the_suite_by_manifest_and_of_two_methods(tmp_path):
    clips = []
    for method in ("cfg", "oseg"):
        for place, entry in enumerate(SUITE):
            for seed in range(5):
                facts = {"prompt": entry["prompt_en"], "seed": seed, "method": method}
                clips.append(make_clip(tmp_path, f"{method}/p{place}-{seed}.mp4", **facts))
    # One clip too many of a prompt: VBench never looks at a sixth.
    clips.append(make_clip(tmp_path, "late.mp4", prompt="alley", seed=5, method="cfg"))
    metric = metric_of("vbench_standard:background_consistency")
    seen = metric.observe(clips)
    assert len(seen.clips) == 10 and "late.mp4" not in {clip.name for clip in seen.clips}
    for method in ("cfg", "oseg"):
        index = torch.tensor([i for i, clip in enumerate(seen.clips) if clip.method == method])
        mine = [clip for clip in clips if clip.method == method and clip.prompt == "alley"][:5]
        weights = [clip.frames - 1 for clip in mine]
        sums = [score("background_consistency", c) * w for c, w in zip(mine, weights, strict=True)]
        value = metric.compute("vbench_standard:background_consistency", seen.rows, index)
        assert value == pytest.approx(sum(sums) / sum(weights))


def test_the_static_filter_keeps_the_first_five_static_clips(tmp_path, calls, monkeypatch):
    clips = make_suite(tmp_path / "suite", flickering=25, static=(1, 2, 10, 11, 12, 20, 3))
    metric = metric_of("vbench_standard:temporal_flickering")
    assert metric.check(clips) == []
    seen = metric.observe(clips)
    # As text: 1, 10, 11, 12, 2, 20, 3.
    kept = {clip.path.stem.rsplit("-", 1)[1] for clip in seen.clips}
    assert kept == {"1", "10", "11", "12", "2"}
    value = values_of(metric, seen)["vbench_standard:temporal_flickering"]
    assert value == pytest.approx(mean([score("temporal_flickering", clip) for clip in seen.clips]))


def test_what_the_static_filter_leaves_too_few_of_is_said(tmp_path, calls):
    def found(static):
        clips = make_suite(tmp_path / "suite", flickering=25, static=static)
        metric = metric_of("vbench_standard:temporal_flickering", "vbench_standard:scene")
        return metric, metric.observe(clips)

    metric, seen = found((3, 7))
    (line,) = seen.warnings
    assert "cfg: 1 of 1 prompts have fewer than 5 clips that pass the static filter (2 instead of 5)" in line
    assert metric.details(metric.values[0].name, seen.rows, torch.arange(len(seen.clips)))["clips"] == {
        "temporal_flickering": 2
    }
    metric, seen = found(())
    assert "(0 instead of 5)" in seen.warnings[0] and len(seen.clips) == 5
    flickering, scene = (value.name for value in metric.values)
    with pytest.raises(OsegVideoError, match="has no value for any of 5 clips"):
        metric.compute(flickering, seen.rows, torch.arange(5))
    assert metric.compute(scene, seen.rows, torch.arange(5)) > 0
    assert not found((1, 2, 3, 4, 5))[1].warnings


def test_a_damaged_clip_costs_its_method_before_any_work_and_no_other(tmp_path, calls, monkeypatch):
    clips = [
        dataclasses.replace(clip, name=f"{method}/{clip.name}")
        for method in ("cfg", "oseg")
        for clip in make_suite(tmp_path / method, method=method)
    ]
    damaged = next(clip for clip in clips if clip.method == "oseg")
    whole = [clip for clip in clips if clip is not damaged]
    monkeypatch.setattr(vbench, "_whole", lambda clips: (whole, {damaged.name: "torn"}))
    evaluation = evaluate(FoundClips(tuple(clips), {}), ["vbench_standard"], baseline="cfg")
    assert len(evaluation.results["cfg"]) == 19 and not evaluation.results["oseg"]
    assert evaluation.skipped == {damaged.name: "torn"}
    reason = evaluation.failed["oseg: vbench_standard:total"]
    assert "first of 'a fantasy landscape', which has 4" in reason
    assert f"(1 of its clips cannot be looked at, first {damaged.name})" in reason
    looked = [path for call in calls() for entry in call["info"] for path in entry["video_list"]]
    assert len(looked) == sum(5 * len(entry["dimension"]) for entry in SUITE), "those of cfg only"


def test_a_damaged_clip_that_is_not_needed_costs_nothing(tmp_path, monkeypatch):
    clips = make_suite(tmp_path / "suite", flickering=25, static=(3, 7))
    damaged = next(clip for clip in clips if clip.name == f"{FLICKERING}-24.mp4")
    whole = [clip for clip in clips if clip is not damaged]
    monkeypatch.setattr(vbench, "_whole", lambda clips: (whole, {damaged.name: "torn"}))
    names = ["vbench_standard:temporal_flickering", "vbench_standard:scene"]
    evaluation = evaluate(FoundClips(tuple(clips), {}), names)
    assert [result.name for result in evaluation.results["cfg"]] == names and not evaluation.failed
    assert any("2 instead of 5" in line for line in evaluation.warnings)


def test_clips_known_to_be_broken_are_told_before_any_work(tmp_path, calls):
    clips = make_suite(tmp_path / "suite")
    found = FoundClips(tuple(clips[1:]), {clips[0].name: "the file is empty"})
    evaluation = evaluate(found, ["vbench_standard"])
    assert len(evaluation.failed) == 19 and not calls()


def test_yes_or_no_has_the_interval_of_a_share(tmp_path):
    clips = make_clips(tmp_path)
    for clip in clips:
        texts = (f"{number:09d}" for number in range(99))
        next(text for text in texts if clip.path.write_text(text) and score("dynamic_degree", clip) > 0.5)
    evaluation = evaluate(FoundClips(tuple(clips), {}), ["vbench:dynamic_degree"])
    (result,) = evaluation.results["cfg"]
    assert result.value == 1 and result.interval == pytest.approx((1 / (1 + 1.959964**2 / 7), 1))


def test_a_clip_without_a_value_is_named_and_the_others_count(tmp_path, monkeypatch):
    clips = make_clips(tmp_path)
    monkeypatch.setenv("FAKE_VBENCH", f"nan {clips[2].path.name}:subject_consistency")
    metric = metric_of("vbench:subject_consistency")
    seen = metric.observe(clips)
    assert seen.skipped == {clips[2].name: "VBench's subject_consistency gave no value"}
    pairs = {clip.name: clip.frames - 1 for clip in clips if clip is not clips[2]}
    weighted = [score("subject_consistency", c) * pairs[c.name] for c in clips if c.name in pairs]
    value = values_of(metric, seen)["vbench:subject_consistency"]
    assert value == pytest.approx(sum(weighted) / sum(pairs.values()))


def test_a_second_run_leaves_the_answers_of_the_first_alone(tmp_path):
    first = KeptAnswers(tmp_path, {})
    first.add("one", 1)
    with open(tmp_path / "vbench.jsonl", "a") as file:
        file.write('["half of an answer')
        file.flush()
        KeptAnswers(tmp_path, {})  # which is then refused: the folder is in use
        file.write('", 2]\n')
    assert len((tmp_path / "vbench.jsonl").read_text().splitlines()) == 2
    assert KeptAnswers(tmp_path, {}).find("one") == 1


def test_answers_are_found_beside_what_a_power_cut_left(tmp_path):
    KeptAnswers(tmp_path, {}).add("one", 1)
    with open(tmp_path / "vbench.jsonl", "ab") as file:
        file.write(b"\0" * 9 + b"\n")
    after = KeptAnswers(tmp_path, {})
    after.add("two", 2)
    assert [KeptAnswers(tmp_path, {}).find(question) for question in ("one", "two")] == [1, 2]


def test_a_share_of_clips_in_which_no_object_is_found(tmp_path):
    clips = make_suite(tmp_path / "suite")
    for clip in of("color", clips):
        texts = (f"{clip.name} {number}" for number in range(99))
        next(text for text in texts if clip.path.write_text(text) and score("color", clip) < 0.5)
    metric = metric_of("vbench_standard:color", "vbench_standard:scene")
    seen = metric.observe(clips)
    every = torch.arange(len(seen.clips))
    assert not seen.skipped and metric.compute("vbench_standard:scene", seen.rows, every) > 0
    with pytest.raises(OsegVideoError, match="VBench's color has no value for any of 5 clips"):
        metric.compute("vbench_standard:color", seen.rows, every)


def test_an_incomplete_suite_is_refused_before_any_work(tmp_path, calls):
    clips = [clip for clip in make_suite(tmp_path / "suite") if clip.name != "alley-4.mp4"]
    with pytest.raises(OsegVideoError, match=r"1 clips are missing .* first of 'alley', which has 4"):
        metric_of("vbench_standard").check(clips)
    metric_of("vbench_standard:imaging_quality").check(clips)
    assert calls() == []


def test_the_refused_six_of_custom_input():
    with pytest.raises(OsegVideoError, match="only for the prompts of its standard suite"):
        metric_of("vbench:scene")


def test_without_an_environment(monkeypatch, tmp_path, data_home):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(OsegVideoError, match=r"VBench is not set up; `oseg-video vbench setup`"):
        metric_of("vbench:imaging_quality")


# SIGKILL is the hardest way: nothing of ours can clean up.
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_interrupting_ends_vbench_too(tmp_path, data_home, kind):
    write_clip(tmp_path / "a.mp4", torch.zeros(2, 3, 16, 16, dtype=torch.uint8), 8.0, format="mp4")
    code = f"""
from pathlib import Path
from oseg_video.evaluation.metrics.base import MetricOptions, build_metrics
from oseg_video.evaluation.clips import ClipFile
(metric,) = build_metrics(["vbench:imaging_quality"], MetricOptions())
clip = ClipFile(path=Path({str(tmp_path / "a.mp4")!r}), name="a", frames=2, height=16, width=16, fps=8.0,
                method="m", prompt=None, seed=None, start="a")
metric.observe([clip])
"""
    variables = {**os.environ, "FAKE_VBENCH": "hang:imaging_quality"}
    # A test run in the background of a script inherits an ignored SIGINT.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=variables, stderr=subprocess.DEVNULL, preexec_fn=heed
    )
    note = tmp_path / "calls.jsonl"
    try:
        _wait(lambda: note.exists() and note.read_text())
        process.send_signal(kind)
        process.wait(timeout=60)
        _wait(lambda: not Path(f"/proc/{note.read_text()}").exists())
    finally:
        process.kill()


def _wait(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "gave up waiting"
        time.sleep(0.05)


def test_describe_names_the_package_and_its_files(data_home):
    about = ask(find_environment(), {"task": "describe", "dimensions": list(DIMENSIONS)})
    assert about["failures"] == {} and json.loads(Path(about["suite"]).read_text()) == SUITE


_COMMAND = """#!/bin/sh
# The sweep's clips would take minutes: this one makes them from one file. All else is the real command.
if [ "$1" = sweep ]; then exec {python} {sweep} "$2"; fi
exec {python} -m oseg_video "$@"
"""
_SWEEP = """
import json, struct, sys
from pathlib import Path
from oseg_video.sweeps.recipe import read_sweep

recipe = read_sweep(Path(sys.argv[1]))
folder, model = Path(recipe.out), Path(__file__).with_name("model.mp4").read_bytes()
folder.mkdir(exist_ok=True)
for subject in recipe.subjects:
    for seed in recipe.seeds:
        salt = f"{subject.prompt} {seed} static".encode()
        path = folder / f"{len(list(folder.iterdir())):03d}.mp4"
        path.write_bytes(model + struct.pack(">I4s", 8 + len(salt), b"free") + salt)
        parts = dict.fromkeys(("model", "clip", "versions", "machine"), {})
        job = {"prompts": [subject.prompt], "seeds": [seed], **recipe.settings, "guidance": "cfg"}
        manifest = {"schema": 1, "made_by": "oseg-video", "job": job, **parts}
        path.with_suffix(".json").write_text(json.dumps(manifest))
"""


@pytest.fixture
def run_script(tmp_path, monkeypatch):
    """Call the script of the standard suite, on the shipped model."""
    images = torch.zeros(9, 3, 16, 16, dtype=torch.uint8)
    write_clip(tmp_path / "model.mp4", images, 8.0, format="mp4")
    (tmp_path / "sweep.py").write_text(_SWEEP)
    command = tmp_path / "bin" / "oseg-video"
    command.parent.mkdir()
    command.write_text(_COMMAND.format(python=sys.executable, sweep=tmp_path / "sweep.py"))
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)
    call = [Path(__file__).parents[2] / "scripts" / "vbench_standard.sh", tmp_path / "with a space"]
    call += ["embedded", "cfg", "{steps: 2}"]
    return lambda: subprocess.run(call, capture_output=True, text=True, check=False)


def test_the_script_makes_no_clip_for_a_dimension_that_cannot_run(tmp_path, monkeypatch, run_script):
    monkeypatch.setenv("FAKE_VBENCH", "import:color")
    done = run_script()
    assert done.returncode == 1 and "color: ModuleNotFoundError" in done.stderr
    assert not (tmp_path / "with a space").exists()


def test_the_script_of_the_standard_suite(tmp_path, run_script):
    done, out = run_script(), tmp_path / "with a space"
    assert done.returncode == 0, done.stderr
    assert (
        "| cfg | 4 to 50 |" in done.stdout
        and "Of 50 clips of cfg: " in done.stdout
        and (out / "vbench.md").exists()
    )
    results = {r["name"]: r for r in json.loads((out / "vbench.json").read_text())["results"]["cfg"]}
    assert list(results) == [
        f"vbench_standard:{name}" for name in (*DIMENSIONS, "quality", "semantic", "total")
    ]
    scores = {dimension: results[f"vbench_standard:{dimension}"]["value"] for dimension in DIMENSIONS}
    assert results["vbench_standard:total"]["value"] == pytest.approx(total("total", scores))
    scene = results["vbench_standard:scene"]
    assert scene["clips"] == len(scene["per_clip"]) == 5, "of 50 clips"
    assert results["vbench_standard:overall_consistency"]["clips"] == 10
    assert results["vbench_standard:temporal_flickering"]["clips"] == 5, "of 25"
    assert scene["versions"]["vbench"] == "unknown" and scene["protocol"]["mode"] == "vbench_standard"


def test_the_script_without_arguments_says_how():
    script = Path(__file__).parents[2] / "scripts" / "vbench_standard.sh"
    done = subprocess.run([script], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "vbench_standard.sh OUT MODEL METHOD [SETTINGS]" in done.stderr


def test_a_folder_for_links_that_does_not_tell_letter_case_apart(tmp_path, monkeypatch):
    def not_twice(path, target):
        if any(other.name.lower() == path.name.lower() for other in path.parent.iterdir()):
            raise FileExistsError(17, "File exists")
        os.symlink(target, path)

    monkeypatch.setattr(Path, "symlink_to", not_twice)
    with pytest.raises(OsegVideoError, match=r"cannot link 'A fantasy .*File exists\); set TMPDIR"):
        metric_of("vbench_standard:overall_consistency").observe(make_suite(tmp_path / "suite"))


def test_the_commands_of_the_readme():
    readme = (Path(evaluation_package.__file__).with_name("README.md")).read_text(encoding="utf-8")
    section = readme.split("\n## VBench\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    setup, evaluate = [parse(line.split()[1:]) for line in block.splitlines()]
    assert setup.action == "setup" and set(evaluate.metrics) <= set(known_metrics())

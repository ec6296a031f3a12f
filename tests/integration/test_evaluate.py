"""`oseg-video evaluate` and its library call: values, intervals, differences, files, and what goes wrong."""

import csv
import dataclasses
import io
import json
import math
import re
import shutil
from itertools import pairwise

import cv2
import pytest
import torch
from scipy.stats import t as student

from oseg_video.cli import main
from oseg_video.evaluation import evaluate as module
from oseg_video.evaluation import observe
from oseg_video.evaluation.alone import alone_in
from oseg_video.evaluation.clips import find_clips
from oseg_video.evaluation.errors import EvaluationError
from oseg_video.evaluation.evaluate import evaluate
from oseg_video.evaluation.metrics import fvd
from oseg_video.evaluation.metrics.base import MetricOptions, MetricValue, known_metrics
from oseg_video.evaluation.observe import Look, MeanMetric
from oseg_video.evaluation.tables import FORMATS, as_csv, as_json, as_latex, as_markdown
from oseg_video.media.writing import run_ffmpeg
from oseg_video.types import OsegVideoError
from tests.drawn import write_drawn, write_frames, write_manifest
from tests.said import said


def levels(step, frames=2):
    """Frames whose neighbours differ by `step` everywhere."""
    return (
        torch.arange(0, frames * step + 1, step)[:frames]
        .to(torch.uint8)[:, None, None, None]
        .expand(-1, 3, 8, 8)
    )


def write_levels(folder, method, steps_by_request):
    """One clip per (prompt, seed) with the given frame difference."""
    for (prompt, seed), step in steps_by_request.items():
        path = folder / f"{method}-{prompt}-{seed}"
        write_frames(path, levels(step))
        write_manifest(path, prompts=[prompt], seeds=[seed], guidance=method)


def difference_of(evaluation, method, name="frame_difference"):
    (found,) = [d for d in evaluation.differences if (d.method, d.name) == (method, name)]
    return found


def result_of(evaluation, method, name="frame_difference"):
    (found,) = [r for r in evaluation.results[method] if r.name == name]
    return found


@pytest.fixture
def pairs(tmp_path):
    """Two methods over 30 prompts, alike within a prompt: 20 to 79 against 5 to 8 more."""
    generator = torch.Generator().manual_seed(0)
    easy = torch.randint(20, 80, (30,), generator=generator).tolist()
    more = torch.randint(5, 9, (30,), generator=generator).tolist()
    write_levels(tmp_path, "cfg", {(f"p{n:02d}", 0): easy[n] for n in range(30)})
    write_levels(tmp_path, "oseg", {(f"p{n:02d}", 0): easy[n] + more[n] for n in range(30)})
    return tmp_path, torch.tensor(easy).double(), torch.tensor(more).double()


def half_width(values):
    """Of Student's interval of a mean."""
    return student.ppf(0.975, len(values) - 1) * float(values.std()) / math.sqrt(len(values))


def test_values_and_paired_differences_have_the_intervals_of_their_means(pairs):
    folder, easy, more = pairs
    evaluation = evaluate([folder], ["frame_difference"], baseline="cfg")
    cfg = result_of(evaluation, "cfg")
    assert cfg.value == pytest.approx(float(easy.mean())) and cfg.clips == 30
    assert cfg.interval[1] - cfg.interval[0] == pytest.approx(2 * half_width(easy), rel=0.1)
    assert cfg.per_clip["cfg-p07-0"] == pytest.approx(float(easy[7]))
    assert cfg.details["interval"] == {
        **{"by": "centred, t-widened bootstrap", "over": "prompts", "units": 30, "resamples": 1000}
    }
    difference = difference_of(evaluation, "oseg")
    assert difference.value == pytest.approx(float(more.mean())) and difference.pairs == 30
    low, high = difference.interval
    assert high - low == pytest.approx(2 * half_width(more), rel=0.1)
    assert high - low < (cfg.interval[1] - cfg.interval[0]) / 5  # what is shared cancels
    assert evaluation.complete and [d.method for d in evaluation.differences] == ["oseg"]


def test_pairs_are_what_both_methods_have_and_names_do_not_matter(pairs):
    folder, _, more = pairs
    for n in range(30):
        (clip, manifest), new = (folder / f"oseg-p{n:02d}-0{end}" for end in ("", ".json")), f"{30 - n}-x"
        if n in (3, 4):
            shutil.rmtree(clip)
        else:
            clip.rename(folder / new)
            manifest.rename(folder / f"{new}.json")
    evaluation = evaluate([folder], ["frame_difference"], baseline="cfg")
    kept = [n for n in range(30) if n not in (3, 4)]
    difference = difference_of(evaluation, "oseg")
    assert difference.pairs == 28 and difference.value == pytest.approx(float(more[kept].mean()))
    assert result_of(evaluation, "cfg").clips == 30


def test_clips_of_one_prompt_are_not_independent(tmp_path):
    steps = {(f"p{p}", seed): 10 + 20 * p for p in range(6) for seed in range(4)}
    write_levels(tmp_path, "cfg", steps)
    result = result_of(evaluate([tmp_path], ["frame_difference"]), "cfg")
    per_prompt = torch.tensor([10.0 + 20 * p for p in range(6)])
    assert result.interval[1] - result.interval[0] == pytest.approx(2 * half_width(per_prompt), rel=0.15)
    assert result.details["interval"]["units"] == 6
    one = {("p", seed): 10 + seed for seed in range(8)}
    write_levels(tmp_path / "one", "cfg", one)
    result = result_of(evaluate([tmp_path / "one"], ["frame_difference"]), "cfg")
    assert result.details["interval"]["over"] == "clips of one prompt"
    assert result.details["interval"]["units"] == 8


def test_one_clip_has_no_interval(tmp_path):
    write_levels(tmp_path, "cfg", {("p", 0): 7})
    result = result_of(evaluate([tmp_path], ["frame_difference"]), "cfg")
    assert result.value == pytest.approx(7) and result.interval is None


def test_shares_have_wilson_intervals_also_where_every_clip_is_right(tmp_path):
    write_drawn(tmp_path, 4)
    result = result_of(evaluate([tmp_path], ["alignment:embedded"]), "cfg", "alignment:embedded:all")
    assert result.value == 1 and result.interval == pytest.approx((1 / (1 + 1.959964**2 / 4), 1))
    write_drawn(tmp_path, 4, guidance="oseg")
    evaluation = evaluate([tmp_path], ["alignment:embedded"], baseline="cfg")
    difference = difference_of(evaluation, "oseg", "alignment:embedded:all")
    low, high = difference.interval
    assert difference.value == 0 and low == pytest.approx(-high) and high > 0.4
    assert "of shares by Newcombe's method 10." in as_markdown(evaluation)


def test_folders_are_methods_and_pair_by_file_name(tmp_path):
    for folder, steps in (("old", (4, 9, 30)), ("new", (6, 10, 33))):
        for index, step in enumerate(steps):
            write_frames(tmp_path / folder / f"clip{index}", levels(step))
    evaluation = evaluate([tmp_path / "old", tmp_path / "new"], ["frame_difference"], baseline="old")
    assert list(evaluation.results) == ["old", "new"]
    difference = difference_of(evaluation, "new")
    assert difference.pairs == 3 and difference.value == pytest.approx(2)


def test_pairs_need_not_be_what_a_metric_asks_of_whole_methods(tmp_path, monkeypatch):
    """VBench's suite is one: a dimension is about some of its clips, and so is its difference."""

    def whole(self, clips):
        if len(clips) != 3:
            raise EvaluationError("not the whole suite")
        return ()

    write_levels(tmp_path, "cfg", {("p", 0): 1, ("q", 0): 2, ("r", 0): 3})
    write_levels(tmp_path, "oseg", {("p", 0): 4, ("q", 0): 5, ("s", 0): 6})
    monkeypatch.setattr(MeanMetric, "check", whole)
    evaluation = evaluate([tmp_path], ["frame_difference"], baseline="cfg")
    difference = difference_of(evaluation, "oseg")
    assert (difference.pairs, difference.value) == (2, 3) and not evaluation.failed


def test_a_difference_of_distances_uses_the_resamples_of_both(tmp_path, monkeypatch):
    for guidance, seed in (("cfg", 0), ("oseg", 5)):
        write_drawn(tmp_path, 6, guidance=guidance, seed=seed)
    few = dataclasses.replace(fvd.PROTOCOLS["fvd:embedded"], resamples=20)
    monkeypatch.setitem(fvd.PROTOCOLS, "fvd:embedded", few)
    computed, distance = [], fvd.frechet_distance
    monkeypatch.setattr(fvd, "frechet_distance", lambda *a, **b: computed.append(1) or distance(*a, **b))
    with said() as lines:
        evaluation = evaluate([tmp_path], ["fvd:embedded"], baseline="cfg")
    cfg, oseg = (result_of(evaluation, method, "fvd:embedded") for method in ("cfg", "oseg"))
    difference = difference_of(evaluation, "oseg", "fvd:embedded")
    assert difference.value == pytest.approx(oseg.value - cfg.value)
    for result in (cfg, oseg, difference):
        assert result.interval[0] < result.value < result.interval[1]
    assert len(computed) == 2 * (1 + 20 + 1) + 2  # value, resamples, half; the difference
    assert len([line for line in lines if "6 clips of" in line and "raise the distance" in line]) == 2


# What is refused before any work


def test_comparisons_that_cannot_be_paired_are_refused(tmp_path):
    write_levels(tmp_path, "cfg", {("p", 0): 1, ("q", 0): 2})
    for baseline, message in (("stg", "no clips of the baseline 'stg'; there are: cfg"), ("cfg", "no other")):
        with pytest.raises(OsegVideoError, match=message):
            evaluate([tmp_path], ["frame_difference"], baseline=baseline)
    write_levels(tmp_path, "oseg", {("r", 0): 1})
    with pytest.raises(OsegVideoError, match=r"oseg and cfg have no prompt and seed .* in common"):
        evaluate([tmp_path], ["frame_difference"], baseline="cfg")
    write_levels(tmp_path / "again", "oseg", {("p", 0): 1})
    write_levels(tmp_path / "more", "oseg", {("p", 0): 2})  # the same once more would be a copy
    with pytest.raises(
        OsegVideoError, match=r"oseg has 2 clips of the same prompt and seed, .*: again/oseg-p-0"
    ):
        evaluate([tmp_path], ["frame_difference"], baseline="cfg")


def test_unknown_metrics_are_refused_with_the_nearest(tmp_path):
    write_levels(tmp_path, "cfg", {("p", 0): 1})
    for name, hint in (("frame_diference", "did you mean 'frame_difference'"), ("zzz", "--list-metrics")):
        with pytest.raises(OsegVideoError, match=hint):
            evaluate([tmp_path], [name])
    with pytest.raises(OsegVideoError, match="no metric"):
        evaluate([tmp_path], [])


def test_no_metric_has_the_name_of_another():
    assert {"fvd:fvd2048_16f", "fvd:videomae_16f", "is:c3d", "temporal_flickering"} <= set(known_metrics())
    assert not {"fvd", "is", "motion_smoothness", "dynamic_degree"} & set(known_metrics())


def test_clips_of_different_lengths_and_sizes_are_told(tmp_path):
    write_frames(tmp_path / "a", levels(3, frames=2))
    write_frames(tmp_path / "b", levels(3, frames=4)[:, :, :4])
    evaluation = evaluate([tmp_path], ["frame_difference"])
    assert evaluation.warnings == (
        "the clips have different numbers of frames: 2, 4",
        "the clips have different sizes: 4 x 8, 8 x 8",
    )


def test_clips_of_one_row_that_were_made_differently_are_told(tmp_path, capsys):
    changed = []
    for seed, steps in ((0, 2), (1, 12)):
        write_drawn(tmp_path / "mixed", 1, guidance="cfg", steps=steps, scale=2.0)
        path = tmp_path / "mixed" / f"cfg-000-{steps}-2.0.json"
        manifest = json.loads(path.read_text())
        manifest["job"]["seeds"] = [seed]
        path.write_text(json.dumps(manifest))
        changed.append(path)
    write_drawn(tmp_path / "mixed", 2, guidance="oseg", steps=2)
    evaluation = evaluate([tmp_path / "mixed"], ["frame_difference"])
    assert evaluation.warnings == ("cfg mixes clips of different steps: 12, 2",)
    for weights, path in zip(("a" * 64, "b" * 64), changed, strict=True):
        manifest = json.loads(path.read_text())
        manifest["model"]["sha256"] = weights
        manifest["job"]["steps"] = 2
        path.write_text(json.dumps(manifest))
    evaluation = evaluate([tmp_path / "mixed"], ["frame_difference"])
    assert evaluation.warnings == (f"cfg mixes clips of different weights: {'a' * 12}, {'b' * 12}",)
    manifest["job"]["seeds"] = [0]  # the same request to both: two rows
    path.write_text(json.dumps(manifest))
    evaluation = evaluate([tmp_path / "mixed"], ["frame_difference"])
    assert {f"cfg (weights={one * 12})" for one in "ab"} <= {*evaluation.methods} and not evaluation.warnings


# Clips and values that have to be left out


def test_broken_clips_are_named_and_never_part_of_a_mean(tmp_path, capsys):
    write_levels(tmp_path, "cfg", {("p", 0): 10, ("q", 0): 20, ("r", 0): 60})
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "cfg-r-0" / "00001.png").write_bytes(b"junk")
    assert (
        main(["evaluate", str(tmp_path), "--metrics", "frame_difference", "--quiet", "--format", "json"]) == 1
    )
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert found["results"]["cfg"][0]["value"] == pytest.approx(15)
    assert found["results"]["cfg"][0]["clips"] == 2
    assert set(found["skipped"]) == {"empty.mp4", "cfg-r-0"}
    for name in ("empty.mp4", "cfg-r-0"):
        assert re.search(rf"^oseg-video: skipped {name}: cannot read [^\n]+$", output.err, re.MULTILINE)


def test_files_whose_names_are_no_text_are_named_and_left_out(tmp_path, capsys):
    write_levels(tmp_path / "clips", "cfg", {("p", 0): 10, ("q", 0): 20})
    (tmp_path / "clips" / "a\udcff.mp4").write_bytes(b"")
    command = ["evaluate", str(tmp_path / "clips"), "--metrics", "frame_difference", "--quiet", "--out"]
    assert main([*command, str(tmp_path / "r.json")]) == 1
    assert "skipped a\\udcff.mp4: the name of the file is not UTF-8" in capsys.readouterr().err
    assert json.loads((tmp_path / "r.json").read_text())["results"]["cfg"][0]["clips"] == 2


def test_clips_that_do_not_fit_a_metric_are_skipped_like_others(tmp_path):
    write_levels(tmp_path, "cfg", {("p", 0): 10, ("q", 0): 20})
    write_levels(tmp_path, "oseg", {("p", 0): 12, ("q", 0): 22})
    for name in ("cfg-r-0", "oseg-r-0"):
        write_frames(tmp_path / name, levels(3, frames=1))
        write_manifest(tmp_path / name, prompts=["r"], seeds=[0], guidance=name.split("-")[0])
    (tmp_path / "broken.mp4").write_bytes(b"")
    evaluation = evaluate([tmp_path], ["frame_difference"], baseline="cfg")
    assert [result_of(evaluation, method).value for method in ("cfg", "oseg")] == [15, 17]
    assert difference_of(evaluation, "oseg").value == 2 and not evaluation.failed
    short = "frame_difference needs clips of at least 2 frames; {0} has 1"
    assert evaluation.skipped == {
        **{name: short.format(name) for name in ("cfg-r-0", "oseg-r-0")},
        "broken.mp4": f"cannot read {tmp_path / 'broken.mp4'}: the file is empty",
    }


def test_a_method_without_any_fit_clip_costs_its_values_only(tmp_path):
    write_levels(tmp_path / "old", "cfg", {("p", 0): 10, ("q", 0): 20})
    write_frames(tmp_path / "new" / "a", levels(3, frames=1))
    evaluation = evaluate([tmp_path / "old", tmp_path / "new"], ["frame_difference"])
    assert result_of(evaluation, "old").value == 15 and not evaluation.results["new"]
    reason = "frame_difference needs clips of at least 2 frames; new/a has 1"
    assert evaluation.failed == {"new: frame_difference": reason}
    with pytest.raises(OsegVideoError, match="at least 2 frames; a has 1"):
        evaluate([tmp_path / "new"], ["frame_difference"])


def test_all_metrics_of_a_row_speak_of_the_frames_that_can_be_shown(tmp_path):
    whole, clips = tmp_path / "whole.mp4", tmp_path / "clips"
    clips.mkdir()
    make = ["-f", "lavfi", "-i", "testsrc2=size=96x64:rate=10:duration=4", "-g", "12", "-pix_fmt", "yuv420p"]
    assert run_ffmpeg(*make, str(whole)).returncode == 0
    assert run_ffmpeg("-ss", "1.3", "-i", str(whole), "-c", "copy", str(clips / "a.mp4")).returncode == 0
    video, frames = cv2.VideoCapture(str(clips / "a.mp4")), []  # another reader, by OpenCV's own ffmpeg
    while (read := video.read())[0]:
        frames.append(read[1].astype(int))
    mean = sum(float(abs(b - a).mean()) for a, b in pairwise(frames)) / (len(frames) - 1)
    evaluation = evaluate([clips], ["frame_difference", "temporal_flickering"])
    assert evaluation.methods["clips"]["frames"] == [len(frames)] and len(frames) < 40
    assert result_of(evaluation, "clips").value == pytest.approx(mean, abs=0.05)  # another colour matrix
    flickering = result_of(evaluation, "clips", "temporal_flickering").value
    assert flickering == pytest.approx((255 - mean) / 255, abs=1e-6)


def test_a_file_with_other_frames_than_its_index_says_is_skipped(tmp_path):
    write_levels(tmp_path, "cfg", {("p", 0): 7, ("q", 0): 9})
    found = find_clips([tmp_path])
    first, second = found.clips
    lying = dataclasses.replace(found, clips=(first, dataclasses.replace(second, frames=second.frames + 1)))
    evaluation = evaluate(lying, ["frame_difference"])
    assert result_of(evaluation, "cfg").value == 7
    (reason,) = evaluation.skipped.values()
    assert f"it has {second.frames} frames, and its index says {second.frames + 1}" in reason


def test_a_method_that_broken_clips_make_unfit_costs_its_value_only(tmp_path):
    for method in ("cfg", "oseg"):
        write_drawn(tmp_path, 10, guidance=method)
    (tmp_path / "oseg-003" / "00000.png").write_bytes(b"")
    evaluation = evaluate([tmp_path], ["is:embedded", "frame_difference"], baseline="cfg")
    assert list(evaluation.skipped) == ["oseg-003"] and not evaluation.complete
    assert evaluation.failed == {"oseg: is:embedded": "is:embedded has 10 splits; oseg has 9 clips"}
    assert [r.name for r in evaluation.results["cfg"]] == ["is:embedded", "frame_difference"]
    assert [r.name for r in evaluation.results["oseg"]] == ["frame_difference"]
    assert difference_of(evaluation, "oseg").pairs == 9
    assert "| oseg | 9 | - |" in as_markdown(evaluation)


def test_tables_tell_of_values_that_are_about_fewer_clips(tmp_path):
    for guidance in ("cfg", "oseg"):
        write_drawn(tmp_path, 5, guidance=guidance)
    for frame in range(8, 19):
        (tmp_path / "oseg-003" / f"{frame:05d}.png").unlink()
    evaluation = evaluate([tmp_path], ["frame_difference", "fvd:embedded"], baseline="cfg")
    for table in (as_markdown(evaluation), as_latex(evaluation)):
        rows = [" ".join(line.replace("|", " ").replace("&", " ").split()) for line in table.splitlines()]
        assert any(row.startswith("cfg 5 ") for row in rows)
        assert any(row.startswith("oseg 4 to 5 ") for row in rows)
        assert any(row.startswith("oseg minus cfg 4 to 5 ") for row in rows)
        for line in ("Of 5 clips of oseg", "Pairs of oseg and cfg"):
            counts = f"{line}: frame_difference 5, fvd:embedded 4."
            assert any(row in (counts, f"% {counts}") for row in rows), rows


def test_methods_that_broken_clips_leave_without_pairs_are_not_compared(tmp_path):
    write_levels(tmp_path, "cfg", {("p", 0): 7, ("q", 0): 8})
    write_levels(tmp_path, "oseg", {("q", 0): 9, ("r", 0): 9})
    (tmp_path / "cfg-q-0" / "00000.png").write_bytes(b"")
    evaluation = evaluate([tmp_path], ["frame_difference"], baseline="cfg")
    assert list(evaluation.failed) == ["oseg minus cfg"] and not evaluation.differences
    assert result_of(evaluation, "cfg").value == 7


def test_one_evaluation_at_a_time_in_a_folder(pairs, tmp_path):
    with (
        alone_in(tmp_path / "work", "evaluation"),
        pytest.raises(OsegVideoError, match="another evaluation is at work in"),
    ):
        evaluate([pairs[0]], ["frame_difference"], work=tmp_path / "work")
    assert evaluate([pairs[0]], ["frame_difference"], work=tmp_path / "work").complete


class Fragile(MeanMetric):
    """Needs three clips; sees none of the method "bad"."""

    def __init__(self):
        self.values = [MetricValue(name="fragile", better="higher", protocol={})]
        self.row_protocol = {"metric": "fragile"}

    def check(self, clips):
        if len(clips) < 3:
            raise EvaluationError(f"three clips are needed, not {len(clips)}")
        return ()

    def look(self, clip):
        return Picky(clip)


class Picky(Look):
    def __init__(self, clip):
        self.clip = clip

    def add(self, frame):
        if self.clip.prompt == "q" and self.clip.method == "oseg":
            raise OsegVideoError("not this one")

    def seen(self):
        return torch.ones(1)


def test_a_value_that_misses_a_clip_it_needs_has_no_value(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "build_metrics", lambda names, options: [Fragile()])
    monkeypatch.setattr(module, "check_options", lambda names, options: None)
    for method in ("cfg", "oseg"):
        write_levels(tmp_path, method, {("p", 0): 1, ("q", 0): 2, ("r", 0): 3})
    evaluation = evaluate([tmp_path], ["fragile"], baseline="cfg")
    lost = "(1 of its clips cannot be looked at, first oseg-q-0)"
    assert evaluation.failed == {"oseg: fragile": f"three clips are needed, not 2 {lost}"}
    assert evaluation.skipped == {"oseg-q-0": "not this one"}
    assert not evaluation.results["oseg"] and len(evaluation.results["cfg"]) == 1
    assert not evaluation.differences and not evaluation.complete
    assert "No value: oseg: fragile: three clips" in as_markdown(evaluation)


# Files


@pytest.fixture
def evaluation(pairs):
    return evaluate([pairs[0]], ["frame_difference"], baseline="cfg")


def test_json_holds_everything(evaluation):
    found = json.loads(as_json(evaluation))
    assert found["schema"] == 1 and set(found["methods"]) == {"cfg", "oseg"}
    assert found["methods"]["cfg"] == {
        **{"clips": 30, "prompts": 30, "frames": [2], "sizes": ["8 x 8"], "fps": []},
        **{"kinds": {"png": 30}, "read_by": {"pillow": 30}},
    }
    result = found["results"]["oseg"][0]
    assert len(result["per_clip"]) == 30 and result["interval"][0] < result["value"] < result["interval"][1]
    assert result["versions"]["torch"] == torch.__version__
    assert found["differences"][0]["baseline"] == "cfg"


def test_csv_has_a_line_per_value(evaluation):
    cfg, oseg = csv.DictReader(io.StringIO(as_csv(evaluation)))
    assert (cfg["method"], cfg["metric"], cfg["clips"], cfg["difference"]) == (
        "cfg",
        "frame_difference",
        "30",
        "",
    )
    assert float(oseg["difference"]) == pytest.approx(float(oseg["value"]) - float(cfg["value"]))
    assert (oseg["baseline"], oseg["pairs"]) == ("cfg", "30")
    assert "definition" in json.loads(oseg["protocol"]) and json.loads(oseg["versions"])["torch"]


def test_markdown_and_latex_show_values_with_intervals(evaluation):
    oseg = result_of(evaluation, "oseg")
    cell = rf"{oseg.value:.1f} [{oseg.interval[0]:.1f}, {oseg.interval[1]:.1f}]"
    text = as_markdown(evaluation)
    assert f"| oseg | 30 | {cell} |" in text and "| difference | pairs | frame_difference |" in text
    assert re.search(
        r"^\| oseg minus cfg \| 30 \| \+\d\.\d+ \[\+\d\.\d+, \+\d\.\d+\] \|$", text, re.MULTILINE
    )
    assert "centred, t-widened bootstrap over 30 prompts" in text
    tex = as_latex(evaluation)
    assert rf"oseg & 30 & {cell} \\" in tex and r"frame\_difference" in tex
    assert tex.count(r"\begin{tabular}{lrr}") == tex.count(r"\end{tabular}") == 2


def test_names_that_mean_something_to_a_format_are_escaped(tmp_path):
    name = "a_b&c|d% $x$"
    write_frames(tmp_path / name / "clip", levels(3))
    evaluation = evaluate([tmp_path / name], ["frame_difference"])
    assert r"a_b&c\|d% $x$" in as_markdown(evaluation)
    assert r"a\_b\&c|d\% \$x\$" in as_latex(evaluation)
    assert next(csv.DictReader(io.StringIO(as_csv(evaluation))))["method"] == name


EVIL = "=1+1|<img src=x>\x1b[31m\x9b2J\r\n\\\\end{tabular}\\\\input{x}\u202e[x](http://y)`~^"


@pytest.fixture
def evil(tmp_path):
    """Results in which every word from outside is hostile."""
    write_levels(tmp_path, "cfg", {("p", 0): 7})
    evaluation = evaluate([tmp_path], ["frame_difference"])
    results = [dataclasses.replace(one, per_clip={EVIL: 1.0}) for one in evaluation.results["cfg"]]
    return dataclasses.replace(
        evaluation,
        results={EVIL: tuple(results)},
        methods={EVIL: evaluation.methods["cfg"]},
        differences=(),
        skipped={EVIL: EVIL},
        failed={EVIL: EVIL},
        left_out={EVIL: EVIL},
        warnings=(EVIL + "\ud800",),
    )


@pytest.mark.parametrize("form", FORMATS)
def test_words_from_outside_are_harmless_in_every_format(evil, form):
    text = FORMATS[form](evil)
    text.encode()  # no lone surrogate
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]", text)
    if form == "json":
        assert json.loads(text)["skipped"] == {EVIL: EVIL}
    if form == "csv":
        (row,) = csv.DictReader(io.StringIO(text))
        assert row["method"].startswith("'=1+1") and "\\x1b[31m" in row["method"]
        for formula in ("\t=1", " +1", "\uff1d1", "@x"):
            named = dataclasses.replace(evil, results={formula: evil.results[EVIL]}, methods={})
            (row,) = csv.DictReader(io.StringIO(as_csv(named)))
            assert row["method"].startswith("'")
    if form == "markdown":
        assert "<img" not in text and "[x](" not in text
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}
    if form == "latex":
        body, comments = text.split("\\end{tabular}\n")
        assert r"\end" not in body and r"\input" not in body
        assert all(line.startswith("% ") for line in comments.splitlines())


def refused(capsys, *arguments):
    assert main(["evaluate", *map(str, arguments)]) == 2
    output = capsys.readouterr()
    assert output.out == "" and re.fullmatch(r"oseg-video: error: [^\n]+\n", output.err), output.err
    return output.err


def test_the_command_writes_every_format_and_overwrites_only_if_told(tmp_path, capsys):
    write_levels(tmp_path / "clips", "cfg", {("p", 0): 10, ("q", 0): 20})
    outs = [tmp_path / f"r.{suffix}" for suffix in ("json", "csv", "md", "tex")]
    command = ["evaluate", str(tmp_path / "clips"), "--metrics", "frame_difference", "--quiet"]
    assert main([*command, "--out", *map(str, outs)]) == 0
    printed, written = capsys.readouterr().out, outs[2].read_text()
    assert "| cfg | 2 |" in printed and written.startswith(printed.rstrip("\n"))
    assert json.loads(outs[0].read_text())["results"]["cfg"][0]["value"] == pytest.approx(15)
    assert {path.name for path in tmp_path.iterdir()} == {"clips", *(out.name for out in outs)}
    before = [out.read_bytes() for out in outs]
    message = refused(capsys, tmp_path / "clips", "--metrics", "frame_difference", "--out", outs[1])
    assert "r.csv exists already; --overwrite replaces it" in message
    assert [out.read_bytes() for out in outs] == before
    assert main([*command, "--out", str(outs[1]), "--overwrite", "--format", "csv"]) == 0


def test_mistakes_are_one_line(tmp_path, capsys):
    write_levels(tmp_path, "cfg", {("p", 0): 10})
    fine = [tmp_path, "--metrics", "frame_difference", "--quiet"]
    for extra, message in (
        (["--out", "a.xls"], "results are written as .json, .csv, .md, .tex, not a.xls"),
        (["--out", tmp_path / "missing" / "a.json"], "there is no folder"),
        (["--out", "/proc/a.json"], "cannot write to /proc: No such file or directory"),
        (["--format", "xml"], "--format must be one of json, csv, markdown, latex, got 'xml'"),
        (["--batch", "0"], "--batch: must be a whole number of at least 1, got 0"),
        (["--weights", "is:c3d"], "--weights must be METRIC=PATH, got 'is:c3d'"),
        (["--weights", "is:c3d=x"], "--weights are for a metric that is asked for; 'is:c3d' is none of them"),
        (
            ["--reference", tmp_path],
            "--reference is about real clips, which none of the metrics compares with; these do: fid:",
        ),
        (["--save-reference", "r.safetensors"], "--save-reference is about real clips, which none"),
        (["--device", "warp"], "--device 'warp' cannot be used"),
        (["--baseline", "oseg"], "no clips of the baseline 'oseg'"),
    ):
        assert message in refused(capsys, *fine, *extra)
    assert "no such folder" in refused(capsys, tmp_path / "no", "--metrics", "frame_difference")
    drawn = [tmp_path, "--metrics", "fvd:two", "--quiet"]
    assert "fvd:two reads no --weights" in refused(capsys, *drawn, "--weights", "fvd:two=x")
    assert "cannot write to /proc: " in refused(capsys, *drawn, "--save-reference", "/proc/a.safetensors")


def test_metrics_are_listed_with_what_they_are(capsys):
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "--list-metrics"])
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(known_metrics()) and any(line.startswith("fvd:fvd2048_16f  ") for line in lines)


def test_an_interrupted_command_leaves_no_results_and_goes_on(tmp_path, capsys, monkeypatch):
    write_levels(tmp_path / "clips", "cfg", {(f"p{n}", 0): 10 + n for n in range(5)})
    out = tmp_path / "r.json"
    command = [
        "evaluate",
        str(tmp_path / "clips"),
        "--metrics",
        "frame_difference",
        "--out",
        str(out),
        "--quiet",
    ]
    reads, read = [], observe.stream_clip

    def interrupted(path):
        reads.append(path.name)
        if len(reads) == 3:
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(observe, "stream_clip", interrupted)
    assert main(command) == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err and not out.exists()
    assert main(command) == 0
    assert reads == [f"cfg-p{n}-0" for n in (0, 1, 2, 2, 3, 4)]
    assert json.loads(out.read_text())["results"]["cfg"][0]["value"] == pytest.approx(12)
    assert {path.name for path in tmp_path.iterdir()} == {"clips", "r.json"}


def test_what_was_looked_at_is_kept_until_everything_was(tmp_path, capsys, monkeypatch):
    write_levels(tmp_path / "clips", "cfg", {("p", 0): 10, ("q", 0): 20})
    (tmp_path / "clips" / "r.mp4").write_bytes(b"")
    reads, read = [], observe.stream_clip
    monkeypatch.setattr(observe, "stream_clip", lambda path: reads.append(path.name) or read(path))
    command = ["evaluate", str(tmp_path / "clips"), "--metrics", "frame_difference", "--quiet"]
    command += ["--overwrite", "--out", str(tmp_path / "r.json")]
    assert main(command) == 1 and len(reads) == 2
    (tmp_path / "clips" / "r.mp4").unlink()
    write_levels(tmp_path / "clips", "cfg", {("r", 0): 30})
    assert main(command) == 0 and reads[2:] == ["cfg-r-0"]
    assert {path.name for path in tmp_path.iterdir()} == {"clips", "r.json"}


def test_an_interrupted_command_that_has_saved_its_reference_goes_on(tmp_path, capsys, monkeypatch):
    write_drawn(tmp_path / "clips", 3)
    write_drawn(tmp_path / "real", 4, seed=9)
    saved, out = tmp_path / "real.safetensors", ["--out", str(tmp_path / "r.json")]
    command = ["evaluate", str(tmp_path / "clips"), "--metrics", "fvd:embedded", "--quiet"]
    command += ["--reference", str(tmp_path / "real"), "--save-reference", str(saved)]
    with monkeypatch.context() as patch:
        patch.setattr(fvd.FrechetVideoDistance, "look", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main([*command, *out]) == 130 and saved.exists()
    assert main([*command, *out]) == 0
    capsys.readouterr()
    assert main(command) == 2, "another run must not replace them untold"
    assert "has statistics of fvd:embedded already; --overwrite replaces them" in capsys.readouterr().err


def test_a_distance_of_a_number_of_clips_has_no_difference_over_fewer(tmp_path, monkeypatch):
    write_drawn(tmp_path / "one", 4, seed=2)
    *_, last = write_drawn(tmp_path / "other", 4, seed=2)
    write_manifest(last, prompts=["another one"], seeds=[3], guidance="cfg")
    changed = dataclasses.replace(fvd.PROTOCOLS["fvd:embedded"], clips=4)
    monkeypatch.setitem(fvd.PROTOCOLS, "fvd:embedded", changed)
    write_drawn(tmp_path / "real", 4, seed=9)
    options = MetricOptions(reference=tmp_path / "real")
    folders = [tmp_path / "one", tmp_path / "other"]
    evaluation = evaluate(folders, ["fvd:embedded"], baseline="one", options=options)
    assert len(evaluation.results["other"]) == 1 and not evaluation.differences
    reason = "fvd:embedded is defined for 4 clips; 3 have a pair"
    assert evaluation.failed == {"other minus one: fvd:embedded": reason}


def test_intervals_end_where_values_do(tmp_path):
    write_levels(tmp_path, "cfg", {("p", 0): 1, ("q", 0): 90})
    write_levels(tmp_path, "oseg", {("p", 0): 1, ("q", 0): 80})
    evaluation = evaluate([tmp_path], ["temporal_flickering", "frame_difference"], baseline="cfg")
    assert result_of(evaluation, "cfg", "temporal_flickering").interval[1] == 1
    assert result_of(evaluation, "cfg").interval[0] == 0
    assert difference_of(evaluation, "oseg").interval[0] < -10


def test_where_there_is_no_interval_none_is_explained(tmp_path):
    write_levels(tmp_path, "cfg", {("p", 0): 7})
    text = as_markdown(evaluate([tmp_path], ["frame_difference"]))
    assert "| cfg | 1 | 7.0" in text and "brackets" not in text


def test_options_reach_the_metrics(tmp_path, capsys):
    write_drawn(tmp_path / "clips", 3)
    write_drawn(tmp_path / "real", 4, seed=9)
    saved = tmp_path / "real.safetensors"
    command = [
        "evaluate",
        str(tmp_path / "clips"),
        "--metrics",
        "fvd:embedded",
        "--quiet",
        "--format",
        "json",
    ]
    values = []
    for extra in (
        ["--reference", str(tmp_path / "real"), "--save-reference", str(saved), "--batch", "2"],
        ["--reference", str(saved), "--device", "cpu"],
    ):
        assert main([*command, *extra]) == 0
        values.append(json.loads(capsys.readouterr().out)["results"]["cfg"][0]["value"])
    assert values[0] == pytest.approx(values[1]) and values[0] > 1
    assert main([*command, "--save-reference", str(saved)]) == 2
    assert "has statistics of fvd:embedded already" in capsys.readouterr().err

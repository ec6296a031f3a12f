"""The driver of a sweep: what it hands out, what it records, and what it does when things go wrong."""

import errno
import json
import os
import sys
from collections import deque
from pathlib import Path

import fsspec
import pytest

from oseg_video.cli import main
from oseg_video.files import atomic_path
from oseg_video.jobs.loading.memory import NotEnoughMemoryError
from oseg_video.parallel.group import ParallelError
from oseg_video.sweeps.engines.local import InProcess
from oseg_video.sweeps.records import record
from oseg_video.sweeps.run import run_sweep, survey
from oseg_video.sweeps.stores import StoreError, open_store
from oseg_video.sweeps.stores.folder import Folder
from oseg_video.sweeps.table import SweepError
from oseg_video.sweeps.validity import is_whole
from oseg_video.sweeps.worker import Outcome, Task, Worker
from oseg_video.types import OsegVideoError
from tests.sweeps import GIF, table, write_recipe


class Scripted:
    """Two workers that do for each task what a script says: a state to report, or None to make it."""

    size = 2

    def __init__(self, store, script):
        self.worker = Worker(store)
        self.script = script
        self.tasks = deque()
        self.given = []

    @property
    def busy(self):
        return len(self.tasks)

    def start(self, task):
        assert self.busy < self.size
        self.tasks.append(task)
        self.given.append(task)

    def finished(self, timeout):
        task = self.tasks.popleft()
        state = self.script(task, len([one for one in self.given if one.item == task.item]))
        made = {"done": self.worker.make(task).results} if state in (None, "done") else {}
        return [Outcome(task.item.key, state or "done", made.get("done", {"reason": f"scripted: {state}"}))]

    def close(self):
        self.tasks.clear()


def scripted(items, location, script, **options):
    store = open_store(location)
    engine = Scripted(store, script)
    return run_sweep(items, store, engine, **options), engine


def in_process(items, location, **options):
    store = open_store(location)
    return run_sweep(items, store, InProcess(store), **options)


@pytest.fixture
def location(tmp_path):
    return str(tmp_path / "clips")


def test_every_item_is_made_once(tmp_path, location, painter):
    items = table(tmp_path)
    seen = []
    summary = in_process(items, location, on_record=seen.append)
    assert (summary.total, summary.done, summary.made, summary.failed) == (8, 8, 8, ())
    assert [one.item for one in seen] == [item.key for item in items]
    assert painter.painted == [(item.prompt, item.seed, item.job.guidance.name) for item in items]
    assert painter.loaded == 1
    assert all(is_whole(open_store(location), item) for item in items)

    again = in_process(items, location, on_record=seen.append)
    assert (again.done, again.made, len(seen), len(painter.painted)) == (8, 0, 8, 8)
    more = in_process(table(tmp_path, seeds=[0, 1, 2]), location)
    assert (more.total, more.done, more.made) == (12, 12, 4)
    assert len(painter.painted) == 12


@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
@pytest.mark.parametrize("part", ["clip", "manifest", "clip became a folder"])
def test_what_no_longer_says_who_made_it_is_kept_elsewhere_and_the_clip_made_again(
    tmp_path, painter, part, scheme
):
    (item, *_) = items = table(tmp_path)[:1]
    location = f"{scheme}{tmp_path}/clips"
    in_process(items, location)
    files, root = fsspec.core.url_to_fs(location)
    name = f"{Path(item.file).stem}.json" if part == "manifest" else item.file
    spoilt = f"{root}/{name}"
    if part == "clip became a folder":
        files.rm(spoilt)
        files.makedirs(spoilt)
        spoilt += "/mine.txt"
    files.pipe_file(spoilt, bytes(5000))

    summary = in_process(items, location)
    assert (summary.made, summary.done) == (1, 1)
    (kept,) = files.find(f"{root}/.damaged")
    assert files.cat_file(kept) == bytes(5000)
    assert kept.endswith(f"-{name}/mine.txt" if part == "clip became a folder" else f"-{name}")
    assert summary.records[0].notes == (
        f"in the place of {name} was something else, which is in .damaged now",
    )
    assert in_process(items, location).made == 0
    files.rm(root, recursive=True)


def test_a_changed_setting_makes_new_items_and_keeps_the_old_clips(tmp_path, location, painter):
    in_process(table(tmp_path), location)
    changed = in_process(table(tmp_path, settings={**GIF, "steps": 3}), location)
    assert changed.made == 8
    assert in_process(table(tmp_path), location).made == 0


def test_the_index_names_every_item_from_the_start(tmp_path, location, painter):
    items = table(tmp_path)

    def look(task, tries):
        lines = [json.loads(line) for line in open(f"{location}/index.jsonl")]
        assert [line["item"] for line in lines[:8]] == [item.key for item in items]
        assert {line["state"] for line in lines[:8]} == {"pending"}

    scripted(items, location, look)
    last = {json.loads(line)["item"]: json.loads(line) for line in open(f"{location}/index.jsonl")}
    for item in items:
        line = last[item.key]
        assert (line["state"], line["file"], line["seconds"]) == ("done", item.file, 0.5)
        assert (line["prompt"], line["seed"], line["method"]) == (item.prompt, item.seed, item.method)


def test_a_failed_item_is_recorded_and_the_rest_goes_on(tmp_path, location, painter, monkeypatch):
    paint = painter.make_clip

    def fail(self, job, plan, image):
        if plan.seed == 1 and job.guidance.name == "cfg":
            raise ValueError("two\nlines") if "red" in plan.prompt else OsegVideoError("refused")
        return paint(self, job, plan, image)

    monkeypatch.setattr(painter, "make_clip", fail)
    items = table(tmp_path)
    summary = in_process(items, location)
    assert (summary.done, summary.made) == (6, 6)
    assert [one.reason for one in summary.failed] == ["ValueError: two lines", "refused"]

    tries = len(painter.painted)
    again = in_process(items, location)
    assert (again.done, again.made, len(again.failed), len(painter.painted)) == (6, 0, 2, tries)
    monkeypatch.setattr(painter, "make_clip", paint)
    retried = in_process(items, location, retry_failed=True)
    assert (retried.done, retried.made, retried.failed) == (8, 2, ())


@pytest.mark.parametrize("fault", ["disk", "store"])
def test_clips_that_cannot_be_written_end_the_sweep_and_stay_pending(
    tmp_path, location, painter, monkeypatch, fault
):
    paint, publish = painter.make_clip, Folder.publish

    def full(self, job, plan, image):
        if len(painter.painted) >= 2:
            painter.painted.append(plan)
            with atomic_path(plan.path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return paint(self, job, plan, image)

    def out_of_reach(self, key, clip):
        if len(painter.painted) > 2:
            raise StoreError("cannot write to s3://clips: no route")
        return publish(self, key, clip)

    if fault == "disk":
        monkeypatch.setattr(painter, "make_clip", full)
    else:
        monkeypatch.setattr(Folder, "publish", out_of_reach)
    items = table(tmp_path)
    said = "No space left on device" if fault == "disk" else "no route"
    with pytest.raises(SweepError, match=f"{said}; finished clips are kept, and the same command goes on"):
        in_process(items, location)
    assert len(painter.painted) == 4, "it went on for nothing"  # two that count, and two more
    monkeypatch.setattr(painter, "make_clip", paint)
    monkeypatch.setattr(Folder, "publish", publish)
    again = in_process(items, location)
    assert (again.done, again.made, again.failed) == (8, 6, ())


def test_a_clip_that_could_not_be_written_once_costs_nothing(tmp_path, location, painter):
    summary, _ = scripted(
        table(tmp_path),
        location,
        lambda task, tries: "not written" if tries == 1 and task.item.seed else None,
    )
    assert summary.done == summary.made == 8


def test_a_clip_that_could_not_be_written_comes_again_after_the_others(tmp_path, location, painter):
    items = table(tmp_path)
    summary, engine = scripted(
        items, location, lambda task, tries: "not written" if tries == 1 and task.item == items[2] else None
    )
    assert summary.done == summary.made == 8
    assert engine.given[-1].item == items[2]


def test_a_clip_that_alone_cannot_be_written_fails_and_the_rest_goes_on(tmp_path, location, painter):
    items = table(tmp_path)
    summary, engine = scripted(
        items, location, lambda task, tries: "not written" if task.item == items[0] else None
    )
    assert [one.item for one in summary.failed] == [items[0].key] and summary.done == 7
    assert [task.item for task in engine.given].count(items[0]) == 2


def test_a_clip_that_was_written_before_something_failed_is_one_of_this_run(
    tmp_path, location, painter, monkeypatch
):
    publish, failed = Folder.publish, []

    def out_of_reach_afterwards(self, key, clip):
        kept = publish(self, key, clip)
        if not failed:
            failed.append(key)
            raise StoreError("cannot read s3://clips: no route")
        return kept

    monkeypatch.setattr(Folder, "publish", out_of_reach_afterwards)
    seen = []
    summary = in_process(table(tmp_path), location, on_record=seen.append)
    assert failed and summary.done == summary.made == len(seen) == 8 == len(painter.painted)


def test_an_item_that_kills_its_workers_fails_and_the_rest_goes_on(tmp_path, location, painter):
    items = table(tmp_path)
    poison = items[2]
    summary, engine = scripted(items, location, lambda task, tries: "lost" if task.item == poison else None)
    assert [one.item for one in summary.failed] == [poison.key] and summary.done == 7
    assert "scripted: lost" in summary.failed[0].reason
    assert [task.item for task in engine.given].count(poison) == 3


def test_a_worker_lost_once_costs_nothing(tmp_path, location, painter):
    summary, _ = scripted(
        table(tmp_path), location, lambda task, tries: "lost" if tries == 1 and task.item.seed else None
    )
    assert summary.done == summary.made == 8


def test_a_worker_lost_after_it_had_published_its_clip_is_not_repeated(tmp_path, location, painter):
    other = Worker(open_store(location))

    def publish_and_die(task, tries):
        assert tries == 1
        other.make(task)
        return "lost"

    items, seen = table(tmp_path), []
    summary, _ = scripted(items, location, publish_and_die, on_record=seen.append)
    assert summary.done == summary.made == 8 == len(painter.painted)
    assert [(one.item, one.state) for one in seen] == [(item.key, "done") for item in items]


def test_workers_that_keep_dying_end_the_sweep(tmp_path, location, painter):
    with pytest.raises(SweepError, match="workers keep dying, the last 10 in a row: scripted: lost"):
        scripted(table(tmp_path), location, lambda task, tries: "lost")


def test_out_of_memory_is_tried_once_more_with_offload(tmp_path, location, painter):
    settings = {**GIF, "device": "auto"}

    def too_big(task, tries):
        return "out of memory" if task.offload is None else "done"

    items = table(tmp_path, settings=settings)
    store = open_store(location)
    engine = Scripted(store, too_big)
    make = engine.worker.make
    engine.worker.make = lambda task: make(Task(task.item))  # there may be no GPU here to offload from
    summary = run_sweep(items, store, engine)
    assert summary.done == 8
    # Both workers ran out of memory; from then on all clips of this model and size were offloaded.
    assert [task.offload for task in engine.given].count(None) == 2
    assert all("offload" in one.notes[0] for one in survey(items, open_store(location))[0])

    summary, engine = scripted(table(tmp_path, seeds=[7]), location, lambda *_: "out of memory")
    assert len(summary.failed) == 4 and len(engine.given) == 6


def test_lack_of_memory_on_the_cpu_is_a_failure(tmp_path, location, painter, monkeypatch):
    def fail(*_):
        raise NotEnoughMemoryError("out of memory")

    monkeypatch.setattr(painter, "make_clip", fail)
    summary = in_process(table(tmp_path)[:1], location)
    assert summary.failed[0].reason == "out of memory"


def test_a_sweep_in_this_process_ends_with_its_worker(capsys, tmp_path, painter, monkeypatch):
    paint = painter.make_clip

    def break_down(self, job, plan, image):
        if len(painter.painted) == 3:
            raise ParallelError("all-gather failed")
        return paint(self, job, plan, image)

    monkeypatch.setattr(painter, "make_clip", break_down)
    path = str(write_recipe(tmp_path))
    assert main(["sweep", path, "--quiet"]) == 2
    assert capsys.readouterr().err == (
        "oseg-video: error: this process cannot make any more clips: all-gather failed; finished clips are "
        "kept, and the same command goes on\n"
    )
    monkeypatch.setattr(painter, "make_clip", paint)
    assert main(["sweep", path, "--quiet"]) == 0
    assert "8 of 8" in (out := capsys.readouterr().out) and "5 of them made now" in out


def test_items_of_another_run_are_left_to_it(tmp_path, location, painter, monkeypatch):
    """Another process holds an item; when it is let go it is done, or not."""
    items = table(tmp_path)
    held = {items[0].key: 2, items[1].key: 3}  # looks until it is free
    store = open_store(location)
    take = store.claim

    def claim(key):
        if held.get(key, 0) > 0:
            held[key] -= 1
            if held[key] == 0 and key == items[0].key:
                other = open_store(location)
                other.add_records([record(items[0], "done", **Worker(other).make(Task(items[0])).results)])
            return False
        return take(key)

    monkeypatch.setattr(store, "claim", claim)
    monkeypatch.setattr("oseg_video.sweeps.run._LOOK_SECONDS", 0.01)
    summary = run_sweep(items, store, InProcess(store))
    assert (summary.done, summary.made) == (8, 7)
    assert len(painter.painted) == 8


def test_a_model_that_changes_under_the_sweep_fails_its_items(tmp_path, location, painter, monkeypatch):
    (item, *_) = table(tmp_path)
    monkeypatch.setattr("oseg_video.jobs.loading.pipeline.fingerprint", lambda _: "another")
    summary = in_process([item], location)
    assert "changed while the sweep ran" in summary.failed[0].reason
    assert not is_whole(open_store(location), item)


def test_prompts_that_are_cut_are_noted(tmp_path, location, painter):
    items = table(tmp_path, prompts=["word " * 20])
    in_process(items, location)
    assert {one.notes for one in survey(items, open_store(location))[0]} == {("cut",)}


def test_an_interrupted_run_lets_go_of_its_item(tmp_path, location, painter, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(painter, "make_clip", stop)
    items = table(tmp_path)
    store = open_store(location)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(items, store, InProcess(store))
    left = sorted(path.name for path in (tmp_path / "clips").rglob("*"))
    assert left == [".work", "claims", "index.jsonl"]


def test_the_command(capsys, tmp_path, painter, monkeypatch):
    path = str(write_recipe(tmp_path))
    assert main(["sweep", path]) == 0
    output = capsys.readouterr()
    assert output == (f"8 of 8 clips are in {tmp_path}/out, 8 of them made now\n", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["sweep", path, "--seeds", "0", "1", "2"]) == 0
    assert "sweep: 100%" in (error := capsys.readouterr().err) and "clip/s" in error
    assert main(["sweep", path, "--json", "--quiet", "--out", str(tmp_path / "b")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 8 and {line["state"] for line in lines} == {"done"}


def test_the_command_with_failures(capsys, tmp_path, painter, monkeypatch):
    monkeypatch.setattr(painter, "make_clip", lambda *_: 1 / 0)
    path = str(write_recipe(tmp_path))
    assert main(["sweep", path]) == 1
    output = capsys.readouterr()
    assert "failed: a-red-circle-cfg-seed0-" in output.err and "ZeroDivisionError: division" in output.err
    assert output.err.endswith("oseg-video: 8 clips failed; --retry-failed tries them again\n")
    assert main(["sweep", path, "--quiet"]) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers", "0"], "--workers: must be a whole number of at least 1, got 0"),
        (["--workers", "two"], "--workers: invalid whole_number value: 'two'"),
        (["--dry-run", "--seconds-per-pass", "-1"], "--seconds-per-pass: must be a number above 0, got -1"),
        (["--dry-run", "--seconds-per-pass", "inf"], "--seconds-per-pass: must be a number above 0, got inf"),
        (["--seconds-per-pass", "3"], "--seconds-per-pass has no effect without --dry-run"),
        (["--tflops", "3"], "unknown argument '--tflops' of sweep"),
        (["--guidance", "osge"], "--guidance: unknown method 'osge'; did you mean 'oseg'?"),
        (["--seeds", "x"], "must be an integer, got 'x'"),
        (["--address", "auto"], "--address has no effect without --engine ray"),
        (["--engine", "ray"], "device cpu: on a cluster it must be auto"),
        (["--engine", "slurm"], "invalid choice: 'slurm'"),
        (["--out", "nothing://x"], "cannot use nothing://x"),
    ],
)
def test_a_mistake_is_one_line(capsys, tmp_path, flags, message):
    assert main(["sweep", str(write_recipe(tmp_path)), *flags]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1 and message in output.err


def test_nowhere_to_go_is_one_line(capsys, tmp_path):
    assert main(["sweep", str(write_recipe(tmp_path, out=None))]) == 2
    assert "nothing says where the clips go: give --out, or out in the recipe" in capsys.readouterr().err
    assert main(["sweep", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: No such file" in capsys.readouterr().err

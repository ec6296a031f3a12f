"""Where a sweep keeps its clips: folders and URLs, the index, claims, and which clips count as whole."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from oseg_video.files import FileError
from oseg_video.media import read_clip
from oseg_video.sweeps.records import from_lines, record, to_lines
from oseg_video.sweeps.run import survey
from oseg_video.sweeps.stores import WORK, StoreError, leases, open_store
from oseg_video.sweeps.validity import is_whole, item_stat, names_of
from oseg_video.sweeps.worker import Task, Worker
from tests.sweeps import GIF, SMALL, table

KEY = "0123456789abcdef"


@pytest.fixture(params=["folder", "file", "memory"])
def location(request, tmp_path):
    """A place that does not exist yet: a path, or a URL of storage without locks."""
    if request.param == "memory":
        import fsspec

        yield f"memory://{tmp_path}/clips"
        fsspec.filesystem("memory").store.clear()
    else:
        yield f"{'file://' * (request.param == 'file')}{tmp_path}/clips"


def states(items, store):
    return [one.state for one in survey(items, store)[0]]


def test_records_survive_as_lines_and_torn_ones_are_left_out(tmp_path):
    items = table(tmp_path, prompts=["two\u2028lines", "ünïcode 🎈"])
    records = [record(item, "done", seconds=1.5, size=3, notes=("cut",)) for item in items]
    text = to_lines(records)
    assert from_lines(text) == records
    assert from_lines(text[:-10]) == records[:-1]
    assert from_lines(text[10:]) == records[1:]
    assert from_lines("\n3\n[]\nnull\n{}\n" + text) == records


def test_the_index_goes_on_after_a_torn_line(tmp_path):
    first, second, third = (record(item, "pending") for item in table(tmp_path)[:3])
    store = open_store(str(tmp_path / "clips"))
    store.add_records([first, second])
    index = tmp_path / "clips" / "index.jsonl"
    index.write_bytes(index.read_bytes()[:-20])  # as if the process had died while writing
    assert store.read_records() == [first]
    store.add_records([third])
    assert store.read_records() == [third]  # what is new
    assert open_store(str(tmp_path / "clips")).read_records() == [first, third]


def test_every_run_sees_the_lines_of_all_others(tmp_path, location):
    lines = [record(item, "pending") for item in table(tmp_path)]
    one, other = open_store(location), open_store(location)
    one.add_records(lines[:2])
    other.add_records(lines[2:3])
    one.add_records(lines[3:4])
    assert open_store(location).read_records() == lines[:4]
    assert set(lines[:2]) <= set(other.read_records())
    one.add_records(lines[4:5])
    assert other.read_records() == lines[4:5]


def test_a_clip_is_published_with_its_manifest_and_nothing_else(tmp_path, location, painter):
    for settings in (SMALL, {**SMALL, "format": "png"}, GIF):
        item = table(tmp_path, settings=settings)[0]
        store = open_store(location)
        assert states([item], store) == ["pending"]
        outcome = Worker(store).make(Task(item))
        assert outcome.state == "done", outcome
        assert is_whole(store, item) and states([item], store) == ["done"]
        assert outcome.results["size"] == item_stat(item.file, store.listing()).size > 0
        with store.fetched([item.file]) as folder:
            assert read_clip(folder / item.file).frames.shape[2:] == (32, 32)
        Worker(store).make(Task(item))  # again, over what is there
        assert is_whole(store, item)
        store.close()
    clips = [name for name in store.listing() if name != WORK]
    assert len(clips) == 6 and len([name for name in clips if name.endswith(".json")]) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda clip, manifest: clip.unlink(),
        lambda clip, manifest: manifest.unlink(),
        lambda clip, manifest: os.truncate(clip, clip.stat().st_size // 2),
        lambda clip, manifest: os.truncate(clip, clip.stat().st_size - 1),
        lambda clip, manifest: clip.write_bytes(b"\0" * clip.stat().st_size),
        lambda clip, manifest: manifest.write_text(manifest.read_text()[:-30]),
    ],
    ids=["no clip", "no manifest", "half a clip", "a byte less", "zeros", "half a manifest"],
)
@pytest.mark.parametrize("settings", [SMALL, GIF], ids=["mp4", "gif"])
def test_a_damaged_clip_is_not_whole(tmp_path, painter, settings, damage):
    (item, *_) = table(tmp_path, settings=settings)
    store = open_store(str(tmp_path / "clips"))
    results = Worker(store).make(Task(item)).results
    store.add_records([record(item, "done", **results)])
    assert states([item], store) == ["done"]
    clip = tmp_path / "clips" / item.file
    damage(clip, clip.with_name(names_of(item.file)[1]))
    assert not is_whole(store, item)
    assert states([item], open_store(store.location)) == ["pending"]


def test_a_clip_of_other_settings_is_not_this_item(tmp_path, painter):
    (item, *_) = table(tmp_path)
    (other, *_) = table(tmp_path, settings={**GIF, "steps": 9})
    store = open_store(str(tmp_path / "clips"))
    Worker(store).make(Task(other))
    for name in names_of(other.file):
        shutil.copy(tmp_path / "clips" / name, tmp_path / "clips" / name.replace(other.key, item.key))
    assert is_whole(store, other) and not is_whole(store, item)


def test_a_lost_index_is_found_again_from_the_clips(tmp_path, location, painter):
    items = table(tmp_path)[:2]
    store = open_store(location)
    Worker(store).make(Task(items[0]))
    assert store.read_records() == []
    assert states(items, store) == ["done", "pending"]


# Not through the store: importing that takes seconds.
HOLD = """
import sys, time
from pathlib import Path
from oseg_video.sweeps.stores.claims import FileClaims
print(FileClaims(Path(sys.argv[1])).take(sys.argv[2]), flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def holder(location):
    """Another process that claims the item, and whether it got it."""
    folder = Path(location, WORK)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", HOLD, str(folder / "claims"), KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, process.stdout.readline() == "True\n"
        finally:
            process.kill()


def test_a_claim_excludes_other_processes_and_ends_with_its_own(tmp_path):
    location = str(tmp_path / "clips")
    store = open_store(location)
    with holder(location) as (_, got):
        assert got and not store.claim(KEY)
        assert store.claim(KEY[::-1])  # another item
    assert store.claim(KEY)
    with holder(location) as (_, got):
        assert not got
    store.release(KEY)
    with holder(location) as (_, got):
        assert got


@pytest.mark.parametrize("location", ["file", "memory"], indirect=True)
def test_a_lease_excludes_other_runs_until_it_ends(location, monkeypatch):
    one, other, third = (open_store(location) for _ in range(3))
    assert one.claim(KEY) and not other.claim(KEY)
    one.release(KEY)
    assert other.claim(KEY) and not one.claim(KEY)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 2 * leases._LEASE_SECONDS)  # `other` is dead
    assert one.claim(KEY) and not third.claim(KEY)
    other.release(KEY)  # it wakes up after all, and takes nothing away
    assert not third.claim(KEY)
    one.close()
    assert third.claim(KEY)
    third.close()


def test_a_lease_is_renewed_while_its_run_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "_RENEW_SECONDS", 0.01)
    clock = [time.time()]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    one, other = (open_store(f"file://{tmp_path}/clips") for _ in range(2))
    assert one.claim(KEY)
    (lease,) = (tmp_path / "clips" / WORK / "claims").iterdir()
    for _ in range(3):
        clock[0] += 0.9 * leases._LEASE_SECONDS
        while f'"until": {clock[0] + leases._LEASE_SECONDS}' not in lease.read_text():  # the thread's turn
            time.sleep(0.01)
        assert not other.claim(KEY)
    one.close()
    assert other.claim(KEY)
    other.close()


def test_storage_that_fails_for_once_does_not_end_the_renewal(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "_RENEW_SECONDS", 0.01)
    store = open_store(f"file://{tmp_path}/clips")
    assert store.claim(KEY)
    (lease,) = (tmp_path / "clips" / WORK / "claims").iterdir()
    filesystem = type(store._files)
    pipe_file, asked = filesystem.pipe_file, threading.Event()

    def fail(*_, **__):
        asked.set()
        raise RuntimeError("429 Too Many Requests")  # gcsfs has an error class of its own

    monkeypatch.setattr(filesystem, "pipe_file", fail)
    assert asked.wait(60)
    monkeypatch.setattr(filesystem, "pipe_file", pipe_file)
    before = lease.read_text()
    deadline = time.monotonic() + 20
    while lease.read_text() in (before, ""):
        assert time.monotonic() < deadline, "the lease is no longer renewed"
        time.sleep(0.01)
    store.close()


@pytest.mark.parametrize("dead", [True, False])
def test_what_a_dead_run_left_is_removed_and_a_living_ones_is_not(tmp_path, dead):
    location = str(tmp_path / "clips")
    with holder(location) as (process, got):
        assert got
        left = tmp_path / "clips" / WORK / f"{KEY}-abc"
        left.mkdir()
        (left / "half.mp4").write_text("x")
        if dead:
            process.kill()
            process.wait()
        open_store(location).discard_unfinished()
        assert left.exists() is not dead


def test_what_is_no_work_of_ours_is_left_alone(tmp_path, location):
    """An index that another run is about to move, and what a program that copies folders has left."""
    store = open_store(location)
    store.add_records([record(table(tmp_path)[0], "pending")])
    if "://" not in location:
        for name in ("claims.sync-conflict-20240101", "index-20260101T000000-ab.jsonl"):
            (tmp_path / "clips" / WORK / name).write_text("x")
        store.discard_unfinished()
        assert len({*(tmp_path / "clips" / WORK).glob("*-*")}) == 2
        return
    ours = store._path(f"{WORK}/{store._index}")
    store._files.pipe_file(ours, b"x")  # between its writing and its move
    other = open_store(location)
    other.discard_unfinished()
    assert store._files.exists(ours)


def test_a_folder_of_others_that_cannot_be_looked_into_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "a.txt").write_text("x")
    look = Path.iterdir

    def refused(self):
        if self.name == "lost+found":
            raise PermissionError(13, "Permission denied")
        return look(self)

    monkeypatch.setattr(Path, "iterdir", refused)
    assert list(open_store(str(tmp_path)).listing()) == ["a.txt"]


def test_a_place_that_cannot_be_used_is_one_line(tmp_path):
    for url in ("github://x/y", "dbfs://x", "reference://x"):
        with pytest.raises(StoreError, match=f"cannot use {url}"):
            open_store(url)
    for place in ("a\0b", "a\ud800b"):
        with pytest.raises(FileError, match="no file's name can have"):
            open_store(place)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is a file; a sweep needs a folder"):
        open_store(str(tmp_path / "file"))
    with pytest.raises(StoreError, match="cannot use nothing://x"):
        open_store("nothing://x")
    with pytest.raises(StoreError, match=r"cannot lock .*clips"):
        open_store(str(tmp_path / "file" / "clips")).claim(KEY)

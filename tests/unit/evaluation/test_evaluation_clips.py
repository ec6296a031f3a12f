"""Clips in folders: which there are, whose they are, and rows about them that outlive an interruption."""

import contextlib
import dataclasses
import os
import random
import shutil
import sys

import pytest
import torch

from oseg_video import media
from oseg_video.evaluation import rows
from oseg_video.evaluation.clips import find_clips
from oseg_video.evaluation.metrics import observe
from oseg_video.evaluation.metrics.base import Figure
from oseg_video.evaluation.metrics.observe import MeanMetric, observe_together
from oseg_video.evaluation.rows import RowStore, file_state
from oseg_video.media import MediaError, read_clip, write_clip
from oseg_video.types import OsegVideoError
from tests.drawn import write_drawn, write_manifest


def noise(frames=3, height=16, width=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, 3, height, width), dtype=torch.uint8, generator=generator)


def write(path, format="png", **shape):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path, noise(**shape), 8, format=format)
    return path


def test_every_kind_of_clip_is_found_with_what_the_file_says(tmp_path):
    write(tmp_path / "a.gif", "gif", frames=4)
    write(tmp_path / "inner" / "deep" / "b.mp4", "mp4", frames=5)
    write(tmp_path / "c", frames=6, height=10, width=12)
    write(tmp_path / ".hidden" / "d.gif", "gif")
    (tmp_path / "notes.txt").write_text("no clip")
    found = find_clips([tmp_path])
    shapes = {clip.name: (clip.frames, clip.height, clip.width, clip.fps, clip.kind) for clip in found.clips}
    assert shapes == {
        "a.gif": (4, 16, 24, pytest.approx(8, rel=0.05), "gif"),
        "inner/deep/b.mp4": (5, 16, 24, pytest.approx(8), "mp4"),
        "c": (6, 10, 12, None, "png"),
    }
    assert not found.broken
    assert {clip.method for clip in found.clips} == {tmp_path.name}
    assert {clip.prompt for clip in found.clips} == {None}


def test_a_folder_or_file_may_be_one_clip(tmp_path):
    (clip,) = find_clips([write(tmp_path / "frames", frames=4)]).clips
    assert clip.frames == 4 and clip.name == "frames"
    (clip,) = find_clips([write(tmp_path / "a.gif", "gif")]).clips
    assert clip.name == "a.gif"


def test_pictures_with_manifests_are_not_frames_of_a_clip(tmp_path):
    frames = write(tmp_path / "pictures")
    write_manifest(frames / "00000.png", prompts=["a"], seeds=[0], guidance="cfg")
    with pytest.raises(OsegVideoError, match="no clip"):
        find_clips([tmp_path])


def test_methods_of_one_folder_come_from_the_manifests(tmp_path):
    for guidance in ("oseg", "cfg"):
        write_drawn(tmp_path, 2, guidance=guidance)
    methods = find_clips([tmp_path]).methods
    assert list(methods) == ["cfg", "oseg"]
    assert [c.key for c in methods["cfg"]] == [c.key for c in methods["oseg"]]
    assert methods["cfg"][0].prompt and {c.seed for c in methods["cfg"]} == {0, 1}


def test_settings_that_vary_tell_clips_of_one_guidance_apart(tmp_path):
    for scale, blocks in ((1.0, [2]), (2.0, [2, 3])):
        write_drawn(tmp_path, 2, guidance="oseg", scale=scale, blocks=blocks, steps=20)
    write_drawn(tmp_path, 2, guidance="cfg", steps=20)
    assert list(find_clips([tmp_path]).methods) == [
        "cfg",
        "oseg (scale=1.0, blocks=2)",
        "oseg (scale=2.0, blocks=2,3)",
    ]


def test_several_folders_are_a_method_each_and_pair_by_file_name(tmp_path):
    for folder in ("one", "other"):
        write(tmp_path / folder / "inner" / "a.gif", "gif")
    found = find_clips([tmp_path / "one", tmp_path / "other"])
    assert {c.name: c.method for c in found.clips} == {
        "one/inner/a.gif": "one",
        "other/inner/a.gif": "other",
    }
    assert len({clip.key for clip in found.clips}) == 1
    for folder in ("x", "y"):
        write(tmp_path / folder / "same" / "a.gif", "gif")
    found = find_clips([tmp_path / "x" / "same", tmp_path / "y" / "same"])
    assert sorted(found.methods) == [(tmp_path / f / "same").as_posix() for f in "xy"]


def test_foreign_and_damaged_manifests_are_no_manifests(tmp_path):
    write(tmp_path / "a.gif", "gif")
    for text in ("{", "[1]", '{"made_by": "others", "job": {"prompts": ["x"]}}', '{"made_by": "oseg-video"}'):
        (tmp_path / "a.json").write_text(text)
        (clip,) = find_clips([tmp_path]).clips
        assert clip.prompt is None and clip.key == ("a", -1)
    write_manifest(tmp_path / "a.gif", prompts=7, seeds=["x"], guidance="cfg")
    assert find_clips([tmp_path]).clips[0].prompt is None


def test_what_cannot_be_read_is_named(tmp_path):
    write(tmp_path / "good.gif", "gif")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "junk.gif").write_bytes(b"junk")
    found = find_clips([tmp_path])
    assert [clip.name for clip in found.clips] == ["good.gif"]
    assert set(found.broken) == {"empty.mp4", "junk.gif"} and "empty" in found.broken["empty.mp4"]


def test_a_stray_picture_hides_no_clip(tmp_path):
    write(tmp_path / "clips" / "a")
    (tmp_path / "sheet.png").write_bytes((tmp_path / "clips" / "a" / "00000.png").read_bytes())
    assert [clip.name for clip in find_clips([tmp_path]).clips] == ["clips/a"]


@pytest.mark.parametrize("format", ["gif", "png"])
def test_however_pictures_are_damaged_they_are_named(tmp_path, format):
    write(tmp_path / f"bad.{format}" if format == "gif" else tmp_path / "bad", format=format, frames=6)
    write(tmp_path / "good")
    (path,) = [tmp_path / "bad.gif"] if format == "gif" else sorted((tmp_path / "bad").iterdir())[:1]
    whole = path.read_bytes()
    chance = random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(6, len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged[: chance.choice([len(damaged), chance.randrange(20, len(damaged))])])
        found = find_clips([tmp_path])
        assert "good" in {clip.name for clip in found.clips}
        for clip in found.clips:
            with contextlib.suppress(MediaError):
                read_clip(clip.path)


def test_nothing_to_look_at_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    for folders, message in (
        ([tmp_path / "missing"], "no such folder"),
        ([tmp_path], r"no clip that can be read in .* \(1 cannot be: .*empty\)"),
        ([tmp_path, tmp_path], "given twice"),
    ):
        with pytest.raises(OsegVideoError, match=message):
            find_clips(folders)


class Brightness(MeanMetric):
    """Mean of the frames, for clips of at least three; what it was asked to look at is recorded."""

    def __init__(self, name="brightness", batch=1):
        self.figures = [Figure(name=name, better=None, protocol={})]
        self.row_protocol = {"name": name}
        self.batch = batch
        self.looks, self.batches = [], []

    def see(self, clip):
        self.looks.append(clip.file.name)
        if clip.file.name == "stop.gif":
            raise KeyboardInterrupt
        if len(clip.frames_FCHW) < 3:
            raise OsegVideoError("too short")
        return clip.frames_FCHW.double()

    def rows(self, seen):
        self.batches.append(len(seen))
        return seen.flatten(1).mean(dim=1, keepdim=True)


def clips_of(folder):
    return find_clips([folder]).clips


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_rows_follow_the_clips_whatever_the_batch(tmp_path, batch):
    for index in range(5):
        write(
            tmp_path / f"{index}.gif", "gif", seed=index, height=16 + 8 * (index // 3), frames=2 + index % 4
        )
    metric = Brightness(batch=batch)
    seen = metric.observe(clips_of(tmp_path), quiet=True)
    assert [clip.name for clip in seen.clips] == ["1.gif", "2.gif", "3.gif"]
    assert seen.skipped == {"0.gif": "too short", "4.gif": "too short"}
    expected = [media.read_clip(clip.path).frames.double().mean() for clip in seen.clips]
    torch.testing.assert_close(seen.rows[:, 0], torch.stack(expected))
    assert max(metric.batches) <= batch and seen.read_by == dict.fromkeys(
        ["1.gif", "2.gif", "3.gif"], "pillow"
    )


def test_a_clip_is_read_once_for_all_metrics(tmp_path, monkeypatch):
    for index in range(3):
        write(tmp_path / f"{index}.gif", "gif")
    reads = []
    monkeypatch.setattr(observe, "read_clip", lambda path: reads.append(path) or media.read_clip(path))
    metrics = [Brightness("a"), Brightness("b", batch=8)]
    one, other = observe_together([(one, clips_of(tmp_path)) for one in metrics], work=None, quiet=True)
    assert len(reads) == 3
    torch.testing.assert_close(one.rows, other.rows)


def test_an_interrupted_run_goes_on_and_a_changed_clip_is_looked_at_anew(tmp_path):
    for name in ("a", "b", "stop", "z"):
        write(tmp_path / "clips" / f"{name}.gif", "gif", seed=ord(name[0]))
    clips = clips_of(tmp_path / "clips")
    first = Brightness()
    with pytest.raises(KeyboardInterrupt):
        observe_together([(first, clips)], work=tmp_path / "work", quiet=True)
    write_clip(tmp_path / "clips" / "b.gif", noise(seed=99, frames=4), 8, format="gif")
    again = Brightness()
    again.see = lambda clip: again.looks.append(clip.file.name) or clip.frames_FCHW.double()
    (seen,) = observe_together([(again, clips)], work=tmp_path / "work", quiet=True)
    assert again.looks == ["b.gif", "stop.gif", "z.gif"]
    expected = [media.read_clip(clip.path).frames.double().mean() for clip in clips]
    torch.testing.assert_close(seen.rows[:, 0], torch.stack(expected))


def test_rows_of_another_protocol_or_version_are_not_used(tmp_path, monkeypatch):
    store = RowStore(tmp_path, {"a": 1})
    store.append(["x"], ["decord"], torch.ones(1, 3))
    assert "x" in RowStore(tmp_path, {"a": 1}) and "x" not in RowStore(tmp_path, {"a": 2})
    monkeypatch.setattr(rows, "evaluation_versions", lambda: {"oseg-video": "99.0"})
    assert "x" not in RowStore(tmp_path, {"a": 1})


@pytest.mark.parametrize("cut", ["numbers", "names", "nothing", "both"])
def test_a_stop_in_the_middle_of_a_row_costs_that_row_only(tmp_path, cut):
    store = RowStore(tmp_path, {})
    store.append(["x", "y"], ["", ""], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    (numbers,), (names,) = list(tmp_path.glob("*.f64")), list(tmp_path.glob("*.jsonl"))
    if cut == "names":  # killed between the numbers and the end of the name
        names.write_bytes(names.read_bytes()[:-3])
    if cut == "both":  # a power cut: what is in a file first need not be on the disk first
        numbers.write_bytes(numbers.read_bytes()[:-9])
    if cut == "numbers":  # killed while it wrote a third row
        numbers.write_bytes(numbers.read_bytes() + b"\0" * 7)
    again = RowStore(tmp_path, {})
    assert ("x" in again, "y" in again) == (True, cut not in ("names", "both"))
    again.append(["z"], ["pillow"], torch.tensor([[5.0, 6.0]]))
    assert RowStore(tmp_path, {}).take(["z", "x"]).tolist() == [[5.0, 6.0], [1.0, 2.0]]
    assert again.read_by("z") == "pillow"


def test_the_state_of_a_folder_is_that_of_all_files_below_it(tmp_path):
    inner = tmp_path / "class" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "newest").write_text("x")
    states = [file_state(tmp_path)]
    for change in (
        lambda: (inner / "a.mp4").write_bytes(b"one"),
        lambda: (inner / "a.mp4").write_bytes(b"four"),
        lambda: os.utime(inner / "a.mp4", ns=(1, 1)),
        lambda: os.utime(inner / "a.mp4", ns=(2, 2)),
    ):
        change()
        states.append(file_state(tmp_path))
    assert len(set(states)) == 5 and file_state(tmp_path) == states[-1]


def test_a_clip_whose_prompt_is_mended_is_looked_at_anew(tmp_path):
    write(tmp_path / "clips" / "a.gif", "gif")
    looks = []
    for prompt in ("one", "one", "two"):
        metric = Brightness()
        clips = [dataclasses.replace(clip, prompt=prompt) for clip in clips_of(tmp_path / "clips")]
        observe_together([(metric, clips)], work=tmp_path / "work", quiet=True)
        looks.append(metric.looks)
    assert looks == [["a.gif"], [], ["a.gif"]]


def test_rows_in_the_order_of_the_clips_are_not_copied(tmp_path):
    store = RowStore(tmp_path, {})
    store.append(list("abc"), [""] * 3, torch.arange(6.0).view(3, 2))
    rows = store.take(["b", "c"])
    assert rows.storage_offset() == 2 and rows.tolist() == [[2, 3], [4, 5]]
    shutil.rmtree(tmp_path)
    assert rows.sum() == 14  # the mapping outlives the file


def test_clips_that_decord_cannot_read_are_told(tmp_path, monkeypatch):
    write(tmp_path / "a.mp4", "mp4", frames=3)
    monkeypatch.setitem(sys.modules, "decord", None)
    seen = Brightness().observe(clips_of(tmp_path), quiet=True)
    assert seen.read_by == {"a.mp4": "imageio-ffmpeg"}

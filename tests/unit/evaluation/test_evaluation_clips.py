"""Clips in folders: which there are, whose they are, and rows about them that outlive an interruption."""

import contextlib
import dataclasses
import json
import os
import random
import shutil

import pytest
import torch
from PIL import Image

from oseg_video import media
from oseg_video.comparison.page import Gap, page_data
from oseg_video.evaluation import observe, rows
from oseg_video.evaluation.clips import find_clips
from oseg_video.evaluation.metrics.base import MetricValue
from oseg_video.evaluation.observe import Look, MeanMetric, observe_together
from oseg_video.evaluation.rows import RowStore, file_state
from oseg_video.media import MediaError, read_clip, write_clip
from oseg_video.media.writing import run_ffmpeg
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


def test_an_image_with_a_manifest_is_a_clip_of_one_frame_and_no_frame_of_another(tmp_path):
    frames = write(tmp_path / "images")
    write_manifest(frames / "00000.png", prompts=["a"], seeds=[0], guidance="cfg")
    found = find_clips([tmp_path])
    (clip,) = found.clips
    assert (clip.name, clip.frames, clip.fps, clip.kind) == ("images/00000.png", 1, None, "png")
    assert (clip.prompt, clip.method, clip.reader) == ("a", "cfg", "pillow")
    assert read_clip(clip.path).frames.shape == (1, 3, clip.height, clip.width)
    assert found.left_out["images/00001.png"] == "a single image, no clip"


def test_an_image_of_a_clip_beside_it_is_none_of_its_own(tmp_path):
    frames = write(tmp_path / "frames")
    (clip,) = write_drawn(tmp_path / "clips", 1, format="mp4")
    shutil.copy(frames / "00000.png", clip.with_suffix(".png"))
    found = find_clips([tmp_path / "clips"])
    assert [one.path for one in found.clips] == [clip]
    assert found.left_out == {clip.with_suffix(".png").name: "a single image, no clip"}


def test_methods_of_one_folder_come_from_the_manifests(tmp_path):
    for guidance in ("oseg", "cfg"):
        write_drawn(tmp_path, 2, guidance=guidance)
    methods = find_clips([tmp_path]).methods
    assert list(methods) == ["cfg", "oseg"]
    assert [c.key for c in methods["cfg"]] == [c.key for c in methods["oseg"]]
    assert methods["cfg"][0].prompt and {c.seed for c in methods["cfg"]} == {0, 1}


def test_what_a_clip_says_of_itself_counts_before_what_lies_beside_it(tmp_path):
    inside, other = tmp_path / "a.mp4", tmp_path / "text"
    write_manifest(other, prompts=["a red circle"], seeds=[1], guidance="cfg")
    text = (tmp_path / "text.json").read_text()
    write_clip(inside, noise(), 8, format="mp4", comment=text)
    write_clip(tmp_path / "b.mp4", noise(seed=1), 8, format="mp4", comment="of another program")
    for name in ("a", "b"):  # as a GIF of that name leaves it
        write_manifest(tmp_path / f"{name}.mp4", prompts=["a blue square"], seeds=[2], guidance="oseg")
    found = {clip.name: (clip.method, clip.prompt, clip.seed) for clip in find_clips([tmp_path]).clips}
    assert found == {"a.mp4": ("cfg", "a red circle", 1), "b.mp4": ("oseg", "a blue square", 2)}
    (tmp_path / "a.json").unlink()
    assert find_clips([inside]).clips[0].prompt == "a red circle"


def test_the_content_of_an_image_and_not_its_name_makes_a_pair(tmp_path):
    for index, (guidance, image, digest) in enumerate(
        [("cfg", "start.png", "aa"), ("stg", "../start.png", "aa"), ("oseg", "start.png", "bb")]
    ):
        clip = write(tmp_path / f"{index}.gif", "gif", seed=index)
        write_manifest(clip, prompts=[], seeds=[0], guidance=guidance, image=image)
        manifest = json.loads(clip.with_suffix(".json").read_text())
        manifest["image"] = {"file": image, "sha256": digest}
        clip.with_suffix(".json").write_text(json.dumps(manifest))
    clips = find_clips([tmp_path]).clips
    key = {clip.method: clip.key for clip in clips}
    assert key["cfg"] == key["stg"] != key["oseg"]
    gaps = [Gap(None, "../start.png", 0, "pag", "why"), Gap(None, "other.png", 0, "pag", "why")]
    rows = page_data(tmp_path, clips, [*key, "pag"], gaps)["rows"]
    assert [sorted(row["clips"]) for row in rows] == [["cfg", "pag", "stg"], ["oseg"], ["pag"]]
    assert [row["text"] for row in rows] == ["start.png", "start.png", "other.png"]


def test_equal_images_of_two_names_are_two_requests_in_the_order_of_their_names(tmp_path):
    for guidance, seed in (("cfg", 0), ("oseg", 10)):
        for index, digest in enumerate(("cc", "aa", "aa")):
            clip = write(tmp_path / f"{guidance}-{index}.gif", "gif", seed=seed + index)
            write_manifest(clip, prompts=[], seeds=[0], guidance=guidance, image=f"{index}.png")
            manifest = json.loads(clip.with_suffix(".json").read_text())
            manifest["image"] = {"file": f"{index}.png", "sha256": digest}
            clip.with_suffix(".json").write_text(json.dumps(manifest))
    methods = find_clips([tmp_path]).methods
    assert [clip.settings["image"] for clip in methods["cfg"]] == ["0.png", "1.png", "2.png"]
    assert [clip.key for clip in methods["cfg"]] == [clip.key for clip in methods["oseg"]]
    assert len({clip.key for clip in methods["cfg"]}) == 3


def test_settings_that_vary_tell_clips_of_one_guidance_apart(tmp_path):
    for scale, blocks in ((1.0, [2]), (2.0, [2, 3])):
        write_drawn(tmp_path, 2, guidance="oseg", scale=scale, blocks=blocks, steps=20)
    write_drawn(tmp_path, 2, guidance="cfg", steps=20)
    assert list(find_clips([tmp_path]).methods) == [
        "cfg",
        "oseg (scale=1.0, blocks=2)",
        "oseg (scale=2.0, blocks=2,3)",
    ]


def test_the_manifest_tells_of_sound_and_the_page_of_it(tmp_path):
    for format in ("mp4", "gif"):
        (clip,) = write_drawn(tmp_path / format, 1, format=format)
        beside = clip.with_suffix(".json")
        manifest = json.loads(beside.read_text())
        manifest["clip"] = {**manifest.get("clip", {}), "sound": {"rate": 24000}}
        beside.write_text(json.dumps(manifest))
    write_drawn(tmp_path / "silent", 1, format="mp4")
    found = {folder: find_clips([tmp_path / folder]).clips[0] for folder in ("mp4", "gif", "silent")}
    assert {folder: clip.sound for folder, clip in found.items()} == {
        "mp4": True,
        "gif": False,  # which holds none
        "silent": False,
    }
    for clip in found.values():
        (row,) = page_data(tmp_path, [clip], [clip.method])["rows"]
        assert row["clips"][clip.method]["sound"] is clip.sound


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


def test_a_stray_image_hides_no_clip(tmp_path):
    write(tmp_path / "clips" / "a")
    (tmp_path / "sheet.png").write_bytes((tmp_path / "clips" / "a" / "00000.png").read_bytes())
    assert [clip.name for clip in find_clips([tmp_path]).clips] == ["clips/a"]


def test_what_is_no_clip_is_named_with_the_reason(tmp_path):
    write(tmp_path / "a.mp4", "mp4")
    (tmp_path / "sheet.png").write_bytes((write(tmp_path / "b") / "00000.png").read_bytes())
    (tmp_path / "notes.docx").write_text("no clip")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "results.json").write_text("{}")
    found = find_clips([tmp_path])
    assert {clip.name for clip in found.clips} == {"a.mp4", "b"} and not found.broken
    assert found.left_out == {
        "gone.mp4": "a link to nothing",
        "notes.docx": "no kind of clip that is known (.docx)",
        "pipe.mp4": "not a file",
        "sheet.png": "a single image, no clip",
    }


@pytest.mark.parametrize("suffix", ["mpg", "ts", "avi", "mkv", "webm", "flv", "wmv"])
def test_every_kind_of_video_is_found_beside_others(tmp_path, suffix):
    write(tmp_path / "a.mp4", "mp4", frames=9)
    codec = ["-c:v", "libvpx"] if suffix == "webm" else []
    path = tmp_path / f"b.{suffix}"
    done = run_ffmpeg("-v", "error", "-i", str(tmp_path / "a.mp4"), *codec, "-r", "25", str(path))
    assert done.returncode == 0, done.stderr
    found = find_clips([tmp_path])
    assert [clip.name for clip in found.clips] == ["a.mp4", path.name] and not found.broken
    assert found.clips[1].frames == len(read_clip(path).frames) >= 9


def test_animations_and_folders_of_any_images_are_clips(tmp_path):
    images = [Image.new("RGB", (16, 16), (level, 0, 0)) for level in (9, 90, 200)]
    for name, format in (("a.webp", "WEBP"), ("b.png", "PNG"), ("c.apng", "PNG")):
        more, times = images[1:], ord(name[0])  # three files, not one file three times
        images[0].save(tmp_path / name, format=format, save_all=True, append_images=more, duration=times)
    for name, extra in (("jpgs", ".jpg"), ("pngs", ".png")):
        (tmp_path / name).mkdir()
        for place, image in enumerate(images):
            image.save(tmp_path / name / f"{place}{extra}")
    (tmp_path / "pngs" / "meta.json").write_text("{}")
    found = find_clips([tmp_path])
    kinds = {clip.name: (clip.kind, clip.frames) for clip in found.clips}
    assert kinds == {
        **{"a.webp": ("webp", 3), "b.png": ("png", 3), "c.apng": ("apng", 3)},
        **{"jpgs": ("jpg", 3), "pngs": ("png", 3)},
    }
    assert not found.left_out and not found.broken


def test_a_clip_is_counted_once_whatever_leads_to_it(tmp_path):
    write(tmp_path / "in" / "a.mp4", "mp4", seed=1)
    write(tmp_path / "in" / "b", seed=2)
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "other").symlink_to(tmp_path / "in")
    os.link(tmp_path / "in" / "a.mp4", tmp_path / "in" / "hard.mp4")
    (tmp_path / "in" / "soft.mp4").symlink_to(tmp_path / "in" / "a.mp4")
    shutil.copy(tmp_path / "in" / "a.mp4", tmp_path / "copy.mp4")
    shutil.copytree(tmp_path / "in" / "b", tmp_path / "copied")
    found = find_clips([tmp_path])
    assert len(found.clips) == 2 and not found.broken
    assert len(found.left_out) == 6 and {"in/loop", "other"} <= {*found.left_out}
    assert all(why.startswith("the same ") for why in found.left_out.values())


def test_links_to_a_clip_with_its_manifest_are_one_clip(tmp_path):
    write_manifest(write(tmp_path / "a.gif", "gif"), prompts=["a"], seeds=[0], guidance="cfg")
    for link, name in ((os.link, "hard"), (os.symlink, "soft")):
        for suffix in (".gif", ".json"):
            link(tmp_path / f"a{suffix}", tmp_path / f"{name}{suffix}")
    found = find_clips([tmp_path])
    assert [clip.name for clip in found.clips] == ["a.gif"]
    assert found.left_out == dict.fromkeys(("hard.gif", "soft.gif"), "the same clip as a.gif")


def test_copies_with_their_manifests_are_one_clip(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        write_manifest(write(tmp_path / f"{name}.gif", "gif", seed=seed), prompts=["a"], seeds=[seed])
    shutil.copytree(tmp_path, tmp_path / "copy")
    found = find_clips([tmp_path])
    assert [clip.name for clip in found.clips] == ["a.gif", "b.gif"]
    assert found.left_out == {f"copy/{name}.gif": f"the same clip as {name}.gif" for name in "ab"}


def test_equal_clips_of_different_requests_or_methods_are_not_copies(tmp_path):
    for method in ("cfg", "oseg"):
        path = write(tmp_path / f"{method}.gif", "gif")
        write_manifest(path, prompts=["a"], seeds=[0], guidance=method)
    write_manifest(write(tmp_path / "other.gif", "gif"), prompts=["b"], seeds=[0], guidance="cfg")
    assert len(find_clips([tmp_path]).clips) == 3
    for name in ("x", "y"):
        write(tmp_path / name / "a.gif", "gif")
    assert len(find_clips([tmp_path / "x", tmp_path / "y"]).clips) == 2


def test_files_that_differ_in_suffix_only_are_two_requests(tmp_path):
    write(tmp_path / "one" / "b.mp4", "mp4")
    write(tmp_path / "one" / "b.avi.gif", "gif")
    write(tmp_path / "one" / "c.mp4", "mp4", seed=1)
    write(tmp_path / "one" / "b.gif", "gif", seed=2)
    write(tmp_path / "two" / "b.mp4", "mp4", seed=3)
    write(tmp_path / "two" / "c.gif", "gif", seed=4)
    methods = find_clips([tmp_path / "one", tmp_path / "two"]).methods
    assert [clip.start for clip in methods["one"]] == ["b.avi", "b.gif", "b.mp4", "c"]
    assert [clip.start for clip in methods["two"]] == ["b.mp4", "c"]


def test_a_folder_that_cannot_be_entered_is_named(tmp_path, monkeypatch):
    write(tmp_path / "a.gif", "gif")
    (tmp_path / "locked").mkdir()
    iterdir = type(tmp_path).iterdir

    def locked(path):
        if path.name == "locked":  # the tests may run as root, whom no permission keeps out
            raise PermissionError(13, "Permission denied")
        return iterdir(path)

    monkeypatch.setattr(type(tmp_path), "iterdir", locked)
    assert "Permission denied" in find_clips([tmp_path]).broken["locked"]


@pytest.mark.parametrize("format", ["gif", "png"])
def test_however_images_are_damaged_they_are_named(tmp_path, format):
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

    stop = "stop.gif"

    def __init__(self, name="brightness", batch=1):
        self.values = [MetricValue(name=name, better=None, protocol={})]
        self.row_protocol = {"name": name}
        self.batch = batch
        self.looks, self.batches = [], []

    def look(self, clip):
        self.looks.append(clip.name)
        if clip.name == self.stop:
            raise KeyboardInterrupt
        return Means()

    def rows(self, seen):
        self.batches.append(len(seen))
        return seen.mean(dim=1, keepdim=True)


class Means(Look):
    """The mean of every frame."""

    def __init__(self):
        self.means = []

    def add(self, frame):
        self.means.append(float(frame.rgb_HWC.mean(dtype="float64")))

    def seen(self):
        if len(self.means) < 3:
            raise OsegVideoError("too short")
        return torch.tensor(self.means, dtype=torch.float64)


def clips_of(folder):
    return find_clips([folder]).clips


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_rows_follow_the_clips_whatever_the_batch(tmp_path, batch):
    for index in range(5):
        write(
            tmp_path / f"{index}.gif", "gif", seed=index, height=16 + 8 * (index // 3), frames=2 + index % 4
        )
    metric = Brightness(batch=batch)
    seen = metric.observe(clips_of(tmp_path))
    assert [clip.name for clip in seen.clips] == ["1.gif", "2.gif", "3.gif"]
    assert seen.skipped == {"0.gif": "too short", "4.gif": "too short"}
    expected = [media.read_clip(clip.path).frames.double().mean() for clip in seen.clips]
    torch.testing.assert_close(seen.rows[:, 0], torch.stack(expected))
    assert max(metric.batches) <= batch and {clip.reader for clip in seen.clips} == {"pillow"}


def test_a_clip_is_read_once_for_all_metrics(tmp_path, monkeypatch):
    for index in range(3):
        write(tmp_path / f"{index}.gif", "gif", seed=index)
    reads = []
    stream = observe.stream_clip
    monkeypatch.setattr(observe, "stream_clip", lambda path: reads.append(path) or stream(path))
    metrics = [Brightness("a"), Brightness("b", batch=8)]
    one, other = observe_together([(one, clips_of(tmp_path)) for one in metrics], work=None)
    assert len(reads) == 3
    torch.testing.assert_close(one.rows, other.rows)


def test_an_interrupted_run_goes_on_and_a_changed_clip_is_looked_at_anew(tmp_path):
    for name in ("a", "b", "stop", "z"):
        write(tmp_path / "clips" / f"{name}.gif", "gif", seed=ord(name[0]))
    clips = clips_of(tmp_path / "clips")
    first = Brightness()
    with pytest.raises(KeyboardInterrupt):
        observe_together([(first, clips)], work=tmp_path / "work")
    write_clip(tmp_path / "clips" / "b.gif", noise(seed=99, frames=4), 8, format="gif")
    again, clips = Brightness(), clips_of(tmp_path / "clips")
    again.stop = None
    (seen,) = observe_together([(again, clips)], work=tmp_path / "work")
    assert again.looks == ["b.gif", "stop.gif", "z.gif"]
    expected = [media.read_clip(clip.path).frames.double().mean() for clip in clips]
    torch.testing.assert_close(seen.rows[:, 0], torch.stack(expected))


def test_rows_of_another_protocol_or_version_are_not_used(tmp_path, monkeypatch):
    store = RowStore(tmp_path, {"a": 1})
    store.append(["x"], torch.ones(1, 3))
    assert "x" in RowStore(tmp_path, {"a": 1}) and "x" not in RowStore(tmp_path, {"a": 2})
    monkeypatch.setattr(rows, "evaluation_versions", lambda: {"oseg-video": "99.0"})
    assert "x" not in RowStore(tmp_path, {"a": 1})


@pytest.mark.parametrize("cut", ["numbers", "names", "nothing", "both", "zeros"])
def test_a_stop_in_the_middle_of_a_row_costs_that_row_only(tmp_path, cut):
    store = RowStore(tmp_path, {})
    store.append(["x", "y"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    (numbers,), (names,) = list(tmp_path.glob("*.f64")), list(tmp_path.glob("*.jsonl"))
    if cut == "names":  # killed between the numbers and the end of the name
        names.write_bytes(names.read_bytes()[:-3])
    if cut == "both":  # a power cut: what is in a file first need not be on the disk first
        numbers.write_bytes(numbers.read_bytes()[:-9])
    if cut == "zeros":  # a power cut: the file has its length, and not yet its content
        names.write_bytes(names.read_bytes()[:-6] + b"\0" * 5 + b"\n")
    if cut == "numbers":  # killed while it wrote a third row
        numbers.write_bytes(numbers.read_bytes() + b"\0" * 7)
    again = RowStore(tmp_path, {})
    assert ("x" in again, "y" in again) == (True, cut not in ("names", "both", "zeros"))
    again.append(["z"], torch.tensor([[5.0, 6.0]]))
    assert RowStore(tmp_path, {}).take(["z", "x"]).tolist() == [[5.0, 6.0], [1.0, 2.0]]


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


def test_a_clip_whose_prompt_is_fixed_is_looked_at_anew(tmp_path):
    write(tmp_path / "clips" / "a.gif", "gif")
    looks = []
    for prompt in ("one", "one", "two"):
        metric = Brightness()
        clips = [dataclasses.replace(clip, prompt=prompt) for clip in clips_of(tmp_path / "clips")]
        observe_together([(metric, clips)], work=tmp_path / "work")
        looks.append(metric.looks)
    assert looks == [["a.gif"], [], ["a.gif"]]


def test_rows_in_the_order_of_the_clips_are_not_copied(tmp_path):
    store = RowStore(tmp_path, {})
    store.append(list("abc"), torch.arange(6.0).view(3, 2))
    rows = store.take(["b", "c"])
    assert rows.storage_offset() == 2 and rows.tolist() == [[2, 3], [4, 5]]
    shutil.rmtree(tmp_path)
    assert rows.sum() == 14  # the mapping outlives the file

"""File names from prompts, and where clips may go."""

import os
import unicodedata

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from oseg_video.config import GenerateJob
from oseg_video.files import FileError, write_text
from oseg_video.guidance.methods import OSEG
from oseg_video.jobs.outputs import (
    OutputError,
    check_outputs,
    clip_names,
    manifest_path,
    plan_clips,
    prompt_stem,
)
from oseg_video.media import write_clip

prompts = st.text(max_size=300)


def make_job(out, prompts=("a red circle",), seeds=(0,), **settings):
    return GenerateJob(
        prompts=prompts,
        seeds=seeds,
        out=str(out),
        steps=1,
        frames=1,
        height=16,
        width=16,
        fps=8.0,
        guidance=OSEG(blocks=(1,)),
        **settings,
    )


@given(prompts)
@example("../../etc/passwd")
@example("-rf /")
@example("..")
@example("CON")
@example("🎈🎈🎈")
@example("a\0b\nc")
@example("ǅ" * 300)
@example("﷽" * 100)
def test_a_stem_is_safe(prompt):
    stem = prompt_stem(prompt)
    assert 1 <= len(stem) <= 60 and len(stem.encode()) <= 150
    assert not set(stem) & set('/\\:*?"<>|. \0\n\r\t')
    assert not stem.startswith(("-", ".", "_")) and not stem.endswith("-")
    assert stem.isprintable()


@given(st.lists(st.tuples(prompts, st.integers(0, 3)), max_size=12))
@example([("A", 0), ("a", 0), ("a!", 0), ("a-oseg-seed0", 0)])
@example([("straße", 0), ("STRASSE", 0)])
def test_names_are_unique_whatever_the_case(clips):
    names = [unicodedata.normalize("NFKC", name).casefold() for name in clip_names(clips, "oseg")]
    assert len(set(names)) == len(clips)
    assert all(len(f".{name}.json".encode()) < 255 for name in names)


def test_a_name_says_prompt_method_and_seed():
    assert clip_names([("A red circle, moving!", 7)], "cfg") == ["a-red-circle-moving-cfg-seed7"]
    assert prompt_stem("赤い円が動く") == "赤い円が動く"
    assert prompt_stem("हिन्दी") == "हिन्दी"


@pytest.mark.parametrize(
    ("out", "path", "format"),
    [
        ("a.mp4", "a.mp4", "mp4"),
        ("b.c/a.GIF", "b.c/a.GIF", "gif"),
        ("a.png", "a", "png"),
        ("clips", "clips/a-red-circle-oseg-seed0.mp4", "mp4"),
        ("clips.mp4/", "clips.mp4/a-red-circle-oseg-seed0.mp4", "mp4"),
        ("run.1", "run.1/a-red-circle-oseg-seed0.mp4", "mp4"),
    ],
)
def test_out_is_a_file_or_a_folder(tmp_path, monkeypatch, out, path, format):
    monkeypatch.chdir(tmp_path)
    (plan,) = plan_clips(make_job(out))
    assert (plan.path.as_posix(), plan.format) == (path, format)


def test_a_folder_that_exists_is_a_folder(tmp_path):
    (tmp_path / "clips.mp4").mkdir()
    (plan,) = plan_clips(make_job(tmp_path / "clips.mp4", format="gif"))
    assert plan.path == tmp_path / "clips.mp4" / "a-red-circle-oseg-seed0.gif"


def test_a_format_that_is_not_the_files_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"--format gif does not fit .*a\.mp4; leave one of them out"):
        plan_clips(make_job(tmp_path / "a.mp4", format="gif"))
    (plan,) = plan_clips(make_job(tmp_path / "a.gif", format="gif"))
    (image,) = plan_clips(make_job(tmp_path / "a.png", format="png"), images=True)
    assert (plan.format, image.format, image.path.name) == ("gif", "image", "a.png")


def test_prompts_times_seeds(tmp_path):
    plans = plan_clips(make_job(tmp_path, prompts=("a", "b"), seeds=(3, 1)))
    assert [(plan.prompt, plan.seed) for plan in plans] == [("a", 3), ("a", 1), ("b", 3), ("b", 1)]
    with pytest.raises(OutputError, match=r"2 clips do not fit into .*a\.mp4; give --out a folder"):
        plan_clips(make_job(tmp_path / "a.mp4", seeds=(1, 2)))
    with pytest.raises(OutputError, match=r"cannot write \.webm files; use \.mp4"):
        plan_clips(make_job(tmp_path / "a.webm"))


def test_a_clip_without_a_prompt_is_named_after_its_image(tmp_path):
    (plan,) = plan_clips(make_job(tmp_path, prompts=(), image="/home/me/My Cat.jpeg"))
    assert plan.prompt is None and plan.path.name == "my-cat-oseg-seed0.mp4"
    (plan,) = plan_clips(make_job(tmp_path, prompts=("a dog",), image="cat.png"))
    assert plan.path.name == "a-dog-oseg-seed0.mp4"


def test_a_model_of_images_writes_png_files(tmp_path):
    (plan,) = plan_clips(make_job(tmp_path / "a.PNG"), images=True)
    assert (plan.path.name, plan.format) == ("a.PNG", "image")
    assert plan.manifest == tmp_path / "a.json"
    (plan,) = plan_clips(make_job(tmp_path), images=True)
    assert plan.path.name == "a-red-circle-oseg-seed0.png"
    for suffix in (".mp4", ".gif", ".jpg"):
        with pytest.raises(OutputError, match=rf"cannot write \{suffix} files of images; use \.png or a f"):
            plan_clips(make_job(tmp_path / f"a{suffix}"), images=True)
    with pytest.raises(OutputError, match="2 images do not fit"):
        plan_clips(make_job(tmp_path / "a.png", seeds=(1, 2)), images=True)
    (tmp_path / "b.png").mkdir()
    check_outputs(plan_clips(make_job(tmp_path / "b.png"), images=True), overwrite=False)  # a folder


def test_what_exists_is_refused(tmp_path):
    plans = plan_clips(make_job(tmp_path / "a.mp4"))
    check_outputs(plans, overwrite=False)
    assert list(tmp_path.iterdir()) == []  # the check leaves nothing behind
    write_text(plans[0].manifest, '{"made_by": "oseg-video"}')
    with pytest.raises(OutputError, match=r"a\.json exists already; --overwrite"):
        check_outputs(plans, overwrite=False)
    check_outputs(plans, overwrite=True)


def test_overwrite_never_replaces_a_folder_of_something_else(tmp_path):
    frames = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    write_clip(tmp_path / "holiday", frames, 8, format="png")
    plans = plan_clips(make_job(tmp_path / "holiday.png"))
    check_outputs(plans, overwrite=True)
    (tmp_path / "holiday" / "beach.png").write_text("theirs")
    with pytest.raises(FileError, match="not made by oseg-video"):
        check_outputs(plans, overwrite=True)


def test_overwrite_never_replaces_a_manifest_of_something_else(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    with pytest.raises(FileError, match=r"a\.json is in the way and was not made by oseg-video"):
        check_outputs(plan_clips(make_job(tmp_path / "a.mp4")), overwrite=True)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        check_outputs(plan_clips(make_job(tmp_path / "file" / "a.mp4")), overwrite=False)
    with pytest.raises(OutputError, match="cannot write"):
        check_outputs(plan_clips(make_job(tmp_path / ("x" * 300) / "a.mp4")), overwrite=False)
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(FileError, match="Permission denied"):
            check_outputs(plan_clips(make_job(tmp_path / "a.mp4")), overwrite=False)


def test_the_manifest_is_beside_the_clip(tmp_path):
    assert manifest_path(tmp_path / "a.mp4") == tmp_path / "a.json"
    assert manifest_path(tmp_path / "a.b") == tmp_path / "a.b.json"

"""Clips in and out of files."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from oseg_video.media import (
    MediaError,
    Sound,
    frames_sha256,
    has_sound,
    probe_clip,
    read_clip,
    read_comment,
    read_sound,
    stream_frames,
    to_uint8,
    write_clip,
)
from oseg_video.media.writing import run_ffmpeg

FPS = 12


def smooth_clip(frames=7, height=64, width=80):
    """Colours that change slowly in space, so that chroma subsampling costs little."""
    t = torch.linspace(0, 1, frames)[:, None, None]
    y = torch.linspace(0, 1, height)[None, :, None]
    x = torch.linspace(0, 1, width)[None, None, :]
    video = torch.stack([(x + 0 * t * y), (y + 0 * t * x), (t + 0 * x * y)], dim=1)
    return to_uint8(video)


def test_to_uint8_rounds_and_clamps():
    video = torch.tensor([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 0.5, 1.0, 2.0])
    assert to_uint8(video).tolist() == [0, 0, 0, 1, 128, 255, 255]
    assert to_uint8(video.bfloat16()).tolist()[-2:] == [255, 255]
    with pytest.raises(MediaError, match="finite"):
        to_uint8(torch.tensor([0.0, float("nan")]))


def test_mp4_keeps_colours_size_length_and_rate(tmp_path):
    clip = smooth_clip()
    write_clip(tmp_path / "a.mp4", clip, FPS, format="mp4")
    back = read_clip(tmp_path / "a.mp4")
    assert back.reader == "decord" and back.fps == pytest.approx(FPS)
    assert back.frames.shape == clip.shape and back.frames.dtype == torch.uint8
    # x264 at CRF 12 and 4:2:0 subsampling; a wrong colour matrix costs ten times more.
    assert (back.frames.float() - clip.float()).abs().mean() < 2


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (30, 60, 220), (255, 255, 255)])
def test_mp4_shows_a_plain_colour_as_it_is(tmp_path, colour):
    clip = torch.tensor(colour, dtype=torch.uint8)[None, :, None, None].expand(2, 3, 64, 64).contiguous()
    write_clip(tmp_path / "a.mp4", clip, FPS, format="mp4")
    assert read_clip(tmp_path / "a.mp4").reader == "decord"
    assert (read_clip(tmp_path / "a.mp4").frames.int() - clip.int()).abs().max() <= 2
    streamed = torch.from_numpy(np.stack(list(stream_frames(tmp_path / "a.mp4")))).permute(0, 3, 1, 2)
    assert (streamed.int() - clip.int()).abs().max() <= 2


def test_mp4_plays_in_a_browser(tmp_path):
    write_clip(tmp_path / "a.mp4", smooth_clip(), FPS, format="mp4")
    log = run_ffmpeg("-i", str(tmp_path / "a.mp4")).stderr.decode()
    assert "h264" in log and "yuv420p(tv, bt709" in log
    data = (tmp_path / "a.mp4").read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")  # the index comes first: playback starts at once


def test_the_fallback_reads_the_same_frames(tmp_path, monkeypatch):
    write_clip(tmp_path / "a.mp4", smooth_clip(), FPS, format="mp4")
    first = read_clip(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "decord", None)
    second = read_clip(tmp_path / "a.mp4")
    assert (first.reader, second.reader) == ("decord", "pyav")
    assert torch.equal(first.frames, second.frames) and second.fps == pytest.approx(FPS)


def test_a_size_that_decord_fails_on_is_read_by_the_fallback(tmp_path):
    # decord 0.6.0 returns frames of 48 x 32 pixels with 4 channels.
    clip = smooth_clip(height=32, width=48)
    write_clip(tmp_path / "a.mp4", clip, FPS, format="mp4")
    back = read_clip(tmp_path / "a.mp4")
    assert back.frames.shape == clip.shape
    # Chroma at half resolution weighs more in a small image.
    assert (back.frames.float() - clip.float()).abs().mean() < 4


@pytest.mark.parametrize(
    "comment",
    [
        "",
        json.dumps({"prompt": "a=b;c#d\\e\nf", "nested": {"list": [1, 2.5, None]}}),
        "=;#\\\n\\\n==",
        "é 赤い円 🎈 \u2028 tab\tquote\"'",
        "x" * 400_000,  # longer than one argument of a Linux process may be
    ],
)
def test_mp4_metadata_gives_the_comment_back(tmp_path, comment):
    write_clip(tmp_path / "a.mp4", smooth_clip(frames=2), FPS, format="mp4", comment=comment)
    assert read_comment(tmp_path / "a.mp4") == comment


def test_png_folder_is_lossless_and_gif_is_close(tmp_path):
    clip = smooth_clip()
    write_clip(tmp_path / "a", clip, FPS, format="png")
    assert sorted(p.name for p in (tmp_path / "a").iterdir())[0] == "00000.png"
    assert torch.equal(read_clip(tmp_path / "a").frames, clip)
    write_clip(tmp_path / "a.gif", clip, 10, format="gif")
    gif = read_clip(tmp_path / "a.gif")
    assert gif.frames.shape == clip.shape and gif.fps == pytest.approx(10)
    assert (gif.frames.float() - clip.float()).abs().mean() < 8  # 256 colours a frame


def test_odd_sizes_are_refused_for_mp4_only(tmp_path):
    clip = torch.zeros(2, 3, 15, 16, dtype=torch.uint8)
    with pytest.raises(MediaError, match="even height and width, got 15 x 16"):
        write_clip(tmp_path / "a.mp4", clip, FPS, format="mp4")
    assert list(tmp_path.iterdir()) == []
    write_clip(tmp_path / "a.gif", clip, FPS, format="gif")


@pytest.mark.parametrize("clip", [torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)])
def test_what_is_no_clip_is_refused(tmp_path, clip):
    with pytest.raises(MediaError, match="a clip is uint8"):
        write_clip(tmp_path / "a.gif", clip, FPS, format="gif")


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    write_clip(tmp_path / "a", smooth_clip(frames=5), FPS, format="png")
    write_clip(tmp_path / "a", smooth_clip(frames=3), FPS, format="png")
    assert len(list((tmp_path / "a").iterdir())) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(MediaError, match="no such file"):
        read_clip(tmp_path / "nothing.mp4")
    for name in ("a.mp4", "a.gif"):
        (tmp_path / name).write_bytes(b"not a video")
        with pytest.raises(MediaError, match="cannot read") as refused:
            read_clip(tmp_path / name)
        assert "\n" not in str(refused.value)
    with pytest.raises(MediaError, match="cannot read"):
        read_comment(tmp_path / "a.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MediaError, match="no images"):
        read_clip(tmp_path / "empty")


def test_the_hash_tells_clips_apart():
    clip = smooth_clip()
    other = clip.clone()
    other[3, 1, 5, 5] += 1
    turned = clip.reshape(clip.shape[0], 3, clip.shape[3], clip.shape[2])
    assert frames_sha256(clip) == frames_sha256(clip.clone())
    assert len({frames_sha256(c) for c in (clip, other, turned)}) == 3
    strided = clip.transpose(2, 3).contiguous().transpose(2, 3)
    assert frames_sha256(strided) == frames_sha256(clip)


def test_a_path_that_looks_like_an_option_or_a_protocol_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(Path("-y.mp4"), smooth_clip(frames=2), FPS, format="mp4", comment="c")
    write_clip(Path("data:x.mp4"), smooth_clip(frames=2), FPS, format="mp4", comment="d")
    assert read_comment(Path("-y.mp4")) == "c" and read_comment(Path("data:x.mp4")) == "d"


def damaged(path):
    """The file without its last third; the index in front says that all frames are there."""
    clip = torch.randint(
        0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    write_clip(path, clip, FPS, format="mp4")
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    return path


@pytest.mark.parametrize("without_decord", [False, True])
def test_a_damaged_file_is_refused_and_not_filled_with_copies_of_a_frame(
    tmp_path, monkeypatch, without_decord
):
    if without_decord:
        monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(MediaError, match=r"cannot read \S+a.mp4: \w[^\n]+$"):
        read_clip(damaged(tmp_path / "a.mp4"))


def test_frames_at_uneven_times_are_read_once_each(tmp_path, monkeypatch):
    write_clip(tmp_path / "a.mp4", smooth_clip(frames=9), FPS, format="mp4")
    uneven = ["-vf", "select=not(between(n\\,3\\,5))", "-fps_mode", "vfr", str(tmp_path / "b.mp4")]
    assert run_ffmpeg("-i", str(tmp_path / "a.mp4"), *uneven).returncode == 0
    first = read_clip(tmp_path / "b.mp4")
    monkeypatch.setitem(sys.modules, "decord", None)
    second = read_clip(tmp_path / "b.mp4")
    assert len(first.frames) == 6 and torch.equal(first.frames, second.frames)


@pytest.mark.parametrize("size", [(64, 80), (32, 48)])  # decord cannot read the second
@pytest.mark.parametrize("suffix", ["mp4", "gif", "png"])
def test_a_probe_says_what_reading_finds(tmp_path, suffix, size):
    path = tmp_path / ("a" if suffix == "png" else f"a.{suffix}")
    write_clip(path, smooth_clip(5, *size), FPS, format=suffix)
    clip, shape = read_clip(path), probe_clip(path)
    assert (shape.frames, shape.height, shape.width) == (5, *size)
    assert shape.fps == (None if clip.fps is None else pytest.approx(clip.fps))


def test_what_cannot_be_probed_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    for name in ("empty", "a.mp4", "a.gif", "missing.mp4"):
        with pytest.raises(MediaError) as refused:
            probe_clip(tmp_path / name)
        assert name in str(refused.value) and "\n" not in str(refused.value)


# -- sound


def tones(rate=24000, seconds=0.5, channels=2):
    """A tone for each channel, 440 Hz and its octave, at half of full scale."""
    t = torch.arange(int(rate * seconds)) / rate
    return Sound(
        torch.stack([0.5 * torch.sin(2 * torch.pi * 440 * (i + 1) * t) for i in range(channels)]), rate
    )


@pytest.mark.parametrize(("rate", "channels"), [(24000, 2), (16000, 2), (48000, 1)])
def test_mp4_holds_sound_from_its_first_sample_to_its_last(tmp_path, rate, channels):
    clip, sound = smooth_clip(), tones(rate, channels=channels)
    write_clip(tmp_path / "a.mp4", clip, FPS, format="mp4", comment="made", sound=sound)
    back = read_sound(tmp_path / "a.mp4")
    assert back.rate == rate and back.samples.shape == sound.samples.shape
    # AAC at 192 kb/s: a shift by one sample costs more than twice as much, exchanged channels far more.
    error = (back.samples - sound.samples).square().mean().sqrt()
    assert error < 0.02 < (sound.samples[:, 1:] - sound.samples[:, :-1]).square().mean().sqrt() * 2
    assert has_sound(tmp_path / "a.mp4") and read_comment(tmp_path / "a.mp4") == "made"
    plain = tmp_path / "plain.mp4"
    write_clip(plain, clip, FPS, format="mp4")
    assert torch.equal(read_clip(tmp_path / "a.mp4").frames, read_clip(plain).frames)
    assert probe_clip(tmp_path / "a.mp4") == probe_clip(plain)
    assert read_sound(plain) is None and not has_sound(plain)


def test_the_digest_of_a_sound_is_of_its_samples_rate_and_shape():
    sound = tones()
    same = Sound(sound.samples.clone(), sound.rate)
    assert same.sha256 == sound.sha256 and len(sound.sha256) == 64
    changed = sound.samples.clone()
    changed[1, 7] += 1e-7
    others = [
        Sound(changed, sound.rate),
        Sound(sound.samples, 16000),
        Sound(sound.samples.reshape(1, -1), sound.rate),
        Sound(sound.samples.flip(0), sound.rate),
    ]
    assert len({sound.sha256, *(other.sha256 for other in others)}) == 5


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (torch.zeros(3, 10), r"1 or 2 channels, samples\], got torch.float32 \[3, 10\]"),
        (torch.zeros(10), "got torch.float32"),
        (torch.zeros(2, 0), "got torch.float32"),
        (torch.zeros(2, 10, dtype=torch.float64), "got torch.float64"),
        (torch.tensor([[0.0, float("inf")]]), "not finite"),
    ],
)
def test_what_is_no_sound_is_refused(samples, reason):
    with pytest.raises(MediaError, match=reason):
        Sound(samples, 24000)


def test_other_formats_leave_sound_out(tmp_path):
    for name, kind in (("a.gif", "gif"), ("a", "png")):
        write_clip(tmp_path / name, smooth_clip(), FPS, format=kind, sound=tones())
        assert len(read_clip(tmp_path / name).frames) == 7

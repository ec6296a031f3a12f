"""Real files: what can be shown of them is what is read, each frame once. Values by ffmpeg itself."""

import resource
import subprocess
import sys
import weakref
from itertools import pairwise
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from oseg_video.media import (
    MediaError,
    frame_files,
    natural_order,
    probe_clip,
    read_clip,
    read_comment,
    stream_clip,
    write_clip,
)

FFMPEG = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-y", "-v", "error"]
HEIGHT, WIDTH = 48, 64
CASES = ("whole", "trimmed", "trimmed at both ends", "transport stream", "cut stream")


def ffmpeg(*arguments):
    subprocess.run([*FFMPEG, *map(str, arguments)], check=True, capture_output=True)


def shown(path):
    """The frames that ffmpeg shows, [F, H, W, 3]."""
    command = [*FFMPEG, "-i", str(path), "-map", "0:v:0", "-fps_mode", "passthrough"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True)
    if done.returncode < 0:  # 7.0, of imageio-ffmpeg 0.6, on streams that begin between key frames
        pytest.skip(f"this ffmpeg dies of signal {-done.returncode} on {path.name}")
    done.check_returncode()
    raw = done.stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)


def streamed(path):
    return np.stack([frame.rgb_HWC for frame in stream_clip(path)])


def difference(frames):
    """Mean absolute difference of neighbours."""
    return float(np.mean([np.abs(b.astype(int) - a).mean() for a, b in pairwise(frames)]))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """40 frames, ten a second, a key frame every 12, with B frames."""
    path = tmp_path_factory.mktemp("source") / "in.mp4"
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=size={WIDTH}x{HEIGHT}:rate=10:duration=4", "-g", 12, "-bf", 2,
           "-pix_fmt", "yuv420p", path)  # fmt: skip
    return path


def cut(source, path, *more, start=1.3):
    ffmpeg("-ss", start, "-i", source, "-c", "copy", *more, path)
    return path


@pytest.mark.parametrize("case", CASES)
def test_what_is_read_is_what_ffmpeg_shows(tmp_path, source, case):
    path = {
        "whole": lambda: source,
        "trimmed": lambda: cut(source, tmp_path / "a.mp4"),
        "trimmed at both ends": lambda: cut(source, tmp_path / "a.mp4", "-t", 1.0),
        "transport stream": lambda: cut(source, tmp_path / "a.mp4", "-f", "mpegts", start=0),
        "cut stream": lambda: cut(source, tmp_path / "a.mp4", "-f", "mpegts"),
    }[case]()
    expected = shown(path)
    clip, shape = read_clip(path), probe_clip(path)
    assert np.array_equal(streamed(path), expected)
    assert np.array_equal(clip.frames.permute(0, 2, 3, 1).numpy(), expected)
    assert (shape.frames, shape.height, shape.width) == expected.shape[:3]
    assert (len(expected) < 40) == (
        case not in ("whole", "transport stream")
    ) and clip.fps == shape.fps == pytest.approx(10)
    assert clip.reader == ("decord" if case == "whole" else "pyav")


def test_decord_fills_a_trimmed_file_with_copies(tmp_path, source):
    # Why it is not asked there: this is the fault that the count of packets keeps out.
    import decord

    path = cut(source, tmp_path / "a.mp4")
    assert len(decord.VideoReader(str(path))) > len(shown(path)) == probe_clip(path).frames


def test_a_stream_that_begins_between_key_frames_begins_with_the_next(tmp_path, source):
    ffmpeg("-i", source, "-c", "copy", "-f", "mpegts", tmp_path / "whole.ts")
    whole = (tmp_path / "whole.ts").read_bytes()
    (tmp_path / "a.ts").write_bytes(whole[188 * 12 :])
    assert np.array_equal(streamed(tmp_path / "a.ts"), shown(tmp_path / "a.ts"))
    assert 0 < probe_clip(tmp_path / "a.ts").frames < 40
    # VP8's decoder refuses what comes before a key frame, others leave it out.
    ffmpeg("-i", source, "-c:v", "libvpx", "-g", 12, tmp_path / "whole.webm")
    ffmpeg("-i", tmp_path / "whole.webm", "-c", "copy", "-bsf:v", "noise=drop=lt(n\\,1)", tmp_path / "a.webm")
    assert np.array_equal(streamed(tmp_path / "a.webm"), streamed(tmp_path / "whole.webm")[12:])
    assert probe_clip(tmp_path / "a.webm").frames == 28


def test_ten_bits_are_read_as_ffmpeg_does(tmp_path, source):
    ffmpeg("-i", source, "-pix_fmt", "yuv420p10le", tmp_path / "ten.mp4")
    assert np.array_equal(streamed(tmp_path / "ten.mp4"), shown(tmp_path / "ten.mp4"))
    assert read_clip(tmp_path / "ten.mp4").reader == "pyav"  # decord's colours are others


@pytest.mark.parametrize("mirrored", [(), ("-display_hflip",), ("-display_vflip",)])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_turned_and_mirrored_videos_are_read_as_ffmpeg_shows_them(tmp_path, source, degrees, mirrored):
    path = tmp_path / "turned.mp4"
    ffmpeg("-display_rotation", degrees, *mirrored, "-i", source, "-c", "copy", path)
    height, width = (WIDTH, HEIGHT) if degrees % 180 else (HEIGHT, WIDTH)
    expected = shown(path).reshape(-1, height, width, 3)
    assert np.array_equal(streamed(path), expected)
    clip, shape = read_clip(path), probe_clip(path)
    assert (shape.height, shape.width) == tuple(clip.frames.shape[2:]) == (height, width)
    assert np.abs(clip.frames.permute(0, 2, 3, 1).numpy().astype(int) - expected).mean() < 2
    if degrees or mirrored:
        assert not np.array_equal(expected.reshape(-1), shown(source).reshape(-1))


@pytest.mark.parametrize(("suffix", "kept"), [("mkv", 0.76), ("mkv", 0.99), ("avi", 0.8), ("mp4", 0.9)])
def test_a_file_that_was_cut_off_is_refused(tmp_path, source, suffix, kept):
    path = tmp_path / f"a.{suffix}"
    ffmpeg("-i", source, "-c", "copy", "-movflags" if suffix == "mp4" else "-copyts",
           *(["+faststart"] if suffix == "mp4" else []), path)  # fmt: skip
    whole = path.read_bytes()
    assert probe_clip(path).frames == 40
    path.write_bytes(whole[: int(kept * len(whole))])
    for read in (probe_clip, read_clip, streamed):
        with pytest.raises(MediaError, match=rf"a\.{suffix}: the file is cut off, \d+ of {len(whole)} bytes"):
            read(path)


def test_damage_inside_a_file_is_refused_and_not_concealed(tmp_path, source):
    whole = bytearray(source.read_bytes())
    path, refused = tmp_path / "a.mp4", 0
    begin = whole.find(b"mdat") + 2000
    for place in range(begin, begin + 1500, 100):
        damaged = bytearray(whole)
        damaged[place] ^= 255
        path.write_bytes(damaged)
        strict = [*FFMPEG, "-xerror", "-i", str(path), "-f", "null", "-"]
        sound = subprocess.run(strict, capture_output=True, check=False).returncode == 0
        try:
            streamed(path)
        except MediaError as error:
            refused += 1
            assert "a.mp4" in str(error) and "\n" not in str(error)
        else:
            assert sound, place
    assert refused > 3


def test_a_video_opens_nothing_but_itself(tmp_path, source):
    ffmpeg("-i", source, "-c", "copy", tmp_path / "in.ts")
    (tmp_path / "a.mp4").write_text("ffconcat version 1.0\nfile in.ts\n")
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{}\n#EXT-X-ENDLIST\n"
    (tmp_path / "b.m3u8").write_text(playlist.format("in.ts"))
    (tmp_path / "c.mp4").write_text(playlist.format("http://127.0.0.1:9/a.ts"))
    for name in ("a.mp4", "b.m3u8", "c.mp4"):
        for read in (read_clip, read_comment):
            with pytest.raises(MediaError, match=f"cannot read {tmp_path / name}: "):
                read(tmp_path / name)
    with pytest.raises(MediaError, match="it is no video, or a list of other files"):
        read_clip(tmp_path / "a.mp4")


def test_a_file_without_video_says_so(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", tmp_path / "a.mp4")
    with pytest.raises(MediaError, match=r"a\.mp4: it has no video"):
        probe_clip(tmp_path / "a.mp4")


@pytest.mark.parametrize("format", ["mp4", "gif", "png"])
def test_frames_that_were_looked_at_are_let_go(tmp_path, format):
    clip = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8)
    write_clip(tmp_path / f"a.{format}", clip, 8, format=format)
    seen = []
    for frame in stream_clip(tmp_path / f"a.{format}"):
        frame.rgb_HWC.sum()
        seen.append(weakref.ref(frame))
        assert sum(one() is not None for one in seen) <= 2
    assert len(seen) == 24


# Folders of images


def levels(count):
    """Grey levels whose neighbours differ by a number that depends on their order."""
    return [(7 * place * place) % 200 for place in range(count)]


def write_grey(path, level, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), level).save(path, **options)


def expected_difference(values):
    return float(np.mean([abs(b - a) for a, b in pairwise(values)]))


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    for place, level in enumerate(levels(12)):
        write_grey(tmp_path / f"frame_{place}.png", level)
    assert difference(streamed(tmp_path)) == pytest.approx(expected_difference(levels(12)))
    assert [file.name for file in frame_files(tmp_path)][9:] == [f"frame_{n}.png" for n in (9, 10, 11)]
    assert natural_order("v2_frame10") > natural_order("v2_frame9") > natural_order("v1_frame11")
    strange = ["1²2", "①", "a", "9", "٣", "²"]  # digits of Unicode are no numbers
    assert sorted(strange, key=natural_order)[:2] == ["1²2", "9"]


def test_every_kind_of_image_is_a_frame(tmp_path):
    for place, level in enumerate(levels(6)):
        write_grey(
            tmp_path / f"{place:02d}{('.png', '.PNG', '.jpg', '.JPEG', '.bmp', '.tiff')[place]}", level
        )
    (tmp_path / "._00.png").write_bytes(b"\0\5\x16\7 a resource fork")
    (tmp_path / ".DS_Store").write_bytes(b"junk")
    (tmp_path / "meta.json").write_text("{}")
    assert streamed(tmp_path)[:, 0, 0, 0].tolist() == levels(6) and probe_clip(tmp_path).frames == 6


def test_a_frame_that_is_there_twice_is_refused(tmp_path):
    write_grey(tmp_path / "0.png", 0)
    write_grey(tmp_path / "0.jpg", 0)
    with pytest.raises(MediaError, match=r"0\.jpg and 0\.png are one frame twice"):
        read_clip(tmp_path)


AS_EXIF_SAYS = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda stored: np.rot90(stored),
}
"""Where the first row and the first column of the stored pixels are shown, Exif 2.32, 4.6.4, Orientation."""


@pytest.mark.parametrize("orientation", AS_EXIF_SAYS)
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_images_are_upright_as_exif_says(tmp_path, orientation, suffix):
    stored = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for place in range(2):
        Image.fromarray(stored).save(tmp_path / f"{place}.{suffix}", exif=exif, quality=95)
    with Image.open(tmp_path / f"0.{suffix}") as image:
        # Of a lossy file the pixels are others; a TIFF is lossless, and Pillow turns it.
        decoded = stored if suffix == "tif" else np.asarray(image.convert("RGB"))
    expected = AS_EXIF_SAYS[orientation](decoded)
    shape = probe_clip(tmp_path)
    assert (shape.height, shape.width) == expected.shape[:2]
    assert np.array_equal(streamed(tmp_path), np.stack([expected, expected]))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage!", b"Exif\0\0II*\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"]
)
def test_a_damaged_exif_is_taken_for_none(tmp_path, suffix, exif):
    Image.new("RGB", (12, 8), "white").save(tmp_path / f"0.{suffix}", exif=b"Exif\0\0" + exif)
    assert probe_clip(tmp_path).height == 8 and (streamed(tmp_path) == 255).all()


def test_sixteen_bits_of_grey_are_not_white(tmp_path):
    for place, level in enumerate(levels(5)):
        Image.fromarray(np.full((8, 8), 257 * level + place, np.uint16)).save(tmp_path / f"{place}.png")
    assert difference(streamed(tmp_path)) == pytest.approx(expected_difference(levels(5)))
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "5.tiff")
    with pytest.raises(MediaError, match=r"5\.tiff: its levels are floating-point numbers"):
        read_clip(tmp_path)


def test_colours_that_nobody_sees_do_not_count(tmp_path):
    for place, level in enumerate(levels(5)):
        pixels = np.full((8, 8, 4), (level, 0, 0, 0), np.uint8)
        pixels[:4] = (10 * place, 10 * place, 10 * place, 255)
        Image.fromarray(pixels).save(tmp_path / f"{place}.png")
    assert difference(streamed(tmp_path)) == pytest.approx(10 / 2)
    assert (streamed(tmp_path)[:, 6] == 255).all()


def test_images_of_different_sizes_are_refused(tmp_path):
    write_grey(tmp_path / "0.png", 0)
    Image.new("L", (8, 9)).save(tmp_path / "1.png")
    with pytest.raises(MediaError, match="images of different sizes"):
        read_clip(tmp_path)


# Animations


def animated(path, values, durations, **options):
    frames = [Image.new("RGB", (8, 8), (level,) * 3) for level in values]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, **options)
    return path


@pytest.mark.parametrize("suffix", ["gif", "webp", "apng"])
def test_a_pause_is_as_many_frames_as_it_lasts(tmp_path, suffix):
    values, pauses = [10, 60, 200, 90], [1, 4, 1, 3]
    options = {"lossless": True} if suffix == "webp" else {"format": "PNG"} if suffix == "apng" else {}
    path = animated(tmp_path / f"a.{suffix}", values, [80 * pause for pause in pauses], **options)
    expected = [value for value, pause in zip(values, pauses, strict=True) for _ in range(pause)]
    assert streamed(path)[:, 0, 0, 0].tolist() == expected
    clip, shape = read_clip(path), probe_clip(path)
    assert clip.fps == shape.fps == 12.5 and len(clip.frames) == shape.frames == 9
    repeats = [frame.repeats for frame in stream_clip(path)]
    assert repeats == [repeat > 0 for pause in pauses for repeat in range(pause)]


def test_rounded_frame_times_are_no_pauses(tmp_path):
    path = animated(tmp_path / "a.gif", [0, 50, 100, 150, 200, 250], [30, 30, 40, 30, 30, 40])
    assert probe_clip(path).frames == 6 and probe_clip(path).fps == pytest.approx(30)


@pytest.mark.parametrize("rate", range(15, 51))
def test_a_gif_of_any_rate_has_its_frames(tmp_path, rate):
    """Hundredths of a second between frames, rounded as encoders do."""
    times = [round(100 * frame / rate) for frame in range(rate + 1)]
    durations = [10 * (later - earlier) for earlier, later in pairwise(times)]
    path = animated(tmp_path / "a.gif", [5 * frame for frame in range(rate)], durations)
    shape = probe_clip(path)
    assert shape.frames == rate and shape.fps == pytest.approx(rate, rel=0.01)


def test_what_we_write_as_a_gif_comes_back_with_its_still_parts(tmp_path):
    clip = torch.tensor([10, 10, 10, 90, 90, 30, 30, 30], dtype=torch.uint8)[:, None, None, None]
    clip = clip.expand(-1, 3, 16, 16).contiguous()
    write_clip(tmp_path / "a.gif", clip, 12, format="gif")
    assert torch.equal(read_clip(tmp_path / "a.gif").frames, clip)


# Writing


@pytest.mark.parametrize("place", ["-d/c.mp4", "x:y/c.mp4", "concat:a|b.mp4", "-i.gif", "-d/frames"])
def test_any_name_of_an_output_is_a_name(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    clip = torch.tensor([99, 98, 97], dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16)
    format = {"": "png", ".gif": "gif", ".mp4": "mp4"}[Path(place).suffix]
    write_clip(Path(place), clip, 8, format=format)
    back = read_clip(Path(place)).frames
    assert back.shape == clip.shape and (back.int() - clip.int()).abs().max() <= 2


@pytest.mark.parametrize("format", ["mp4", "gif", "png"])
def test_a_limit_of_the_size_of_files_is_named(tmp_path, format):
    code = f"""
import resource, torch
from pathlib import Path
from oseg_video.files import FileError
from oseg_video.media import write_clip
noise = torch.randint(0, 256, (30, 3, 128, 128), dtype=torch.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    write_clip(Path({str(tmp_path / "a")!r} + "." + {format!r}), noise, 8, format={format!r})
except FileError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == f"cannot write {tmp_path}/a.{format}: File too large\n", done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20_000

"""Video clips in and out of files. A clip in memory is uint8, [F, C, H, W], RGB."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oseg_video.files import MARK, atomic_path
from oseg_video.types import OsegVideoError

# Visually lossless for x264 (0 is lossless, 51 the worst); small clips stay small.
_CRF = "12"


class MediaError(OsegVideoError):
    """A clip or picture that cannot be read or written; the message names the file."""


@dataclass(frozen=True)
class Clip:
    """A clip read from a file."""

    frames: torch.Tensor
    """uint8 [F, 3, H, W]."""
    fps: float | None
    """Frames per second, or None where the file does not say (a folder of pictures)."""
    reader: str
    """What read it: "decord", "imageio-ffmpeg" or "pillow"."""


@dataclass(frozen=True)
class ClipShape:
    """What a file says about its clip, without decoding all of it."""

    frames: int
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    fps: float | None
    """As in `Clip`."""


def to_uint8(video: torch.Tensor) -> torch.Tensor:
    """Pixels in [0, 1], any float type and any shape -> uint8 of the same shape, rounded to nearest."""
    if not torch.isfinite(video).all():
        raise MediaError("the model returned pixels that are not finite numbers; try --dtype float32")
    return (video.float() * 255).round_().clamp_(0, 255).to(torch.uint8)


def frames_sha256(frames: torch.Tensor) -> str:
    """SHA-256 over shape and pixels of a uint8 clip: equal exactly when the clips are equal."""
    _require_clip(frames)
    digest = hashlib.sha256(",".join(map(str, frames.shape)).encode() + b":")
    digest.update(frames.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def write_clip(path: Path, frames: torch.Tensor, fps: float, *, format: str, comment: str = "") -> None:
    """Write a clip as H.264 "mp4", as "gif", or as "png", a folder of pictures 00000.png, 00001.png, ...

    `frames` is uint8 [F, 3, H, W]. mp4 is yuv420p with the index in front, so that it plays in a browser,
    and holds `comment` as metadata; the other formats ignore it. GIF stores durations in hundredths of a
    second, and shows equal neighbouring frames as one longer one. Raises MediaError, and FileError for what
    cannot be written or must not be replaced.
    """
    _require_clip(frames)
    path = Path(path)
    write = {"mp4": _write_mp4, "gif": _write_gif, "png": _write_folder}[format]
    with atomic_path(path) as temporary:
        write(temporary, frames, fps, comment)


def read_clip(path: Path) -> Clip:
    """Read a video file, a GIF or a folder of PNG pictures. Raises MediaError naming the file.

    Video files are read by decord, and by imageio-ffmpeg where decord is missing or fails.
    """
    path = _existing(path)
    if path.is_dir() or path.suffix.lower() == ".gif":
        return _read_pictures(path)
    try:
        return _read_decord(path)
    except Exception:  # decord has no wheel on some platforms, and errors of many types
        return _read_ffmpeg(path)


def probe_clip(path: Path) -> ClipShape:
    """Number of frames, size and rate of what `read_clip` reads. Raises MediaError naming the file.

    It reads the file's index and no more where decord can; a file that is damaged further on passes.
    """
    path = _existing(path)
    if path.is_dir() or path.suffix.lower() == ".gif":
        return _probe_pictures(path)
    try:
        reader = _decord_reader(path)
        height, width, channels = reader[0].shape
        if channels == 3:
            return ClipShape(len(reader), height, width, float(reader.get_avg_fps()))
    except Exception:  # as in read_clip
        pass
    clip = _read_ffmpeg(path)
    return ClipShape(clip.frames.shape[0], clip.frames.shape[2], clip.frames.shape[3], clip.fps)


def stream_frames(path: Path, *, filters: str | None = None) -> Generator[np.ndarray, None, None]:
    """Frames of a video file one by one, uint8 [H, W, 3], RGB, decoded by ffmpeg.

    Every frame of the file once, whatever its time stamp. A damaged file raises MediaError, at the latest
    after the frames before the damage; ffmpeg left to itself would fill the gaps with copies.
    filters: ffmpeg's filter graph to apply, e.g. for another colour conversion.
    """
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-xerror", "-i", f"file:{path}"]
    command += ["-map", "0:v:0", "-fps_mode", "passthrough", *(["-vf", filters] if filters else [])]
    # PPM pictures carry their size.
    command += ["-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "-"]
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages)
        assert process.stdout is not None
        try:
            while process.stdout.readline() == b"P6\n":
                width, height = map(int, process.stdout.readline().split())
                process.stdout.readline()  # the largest value, 255
                data = process.stdout.read(height * width * 3)
                if len(data) == height * width * 3:
                    yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
            if process.wait():
                messages.seek(0)
                raise MediaError(f"cannot read {path}: {_first_message(messages.read())}")
        finally:
            process.kill()
            process.stdout.close()
            process.wait()


def read_comment(path: Path) -> str:
    """The `comment` that `write_clip` stored in an mp4; "" if there is none. Raises MediaError."""
    if not Path(path).is_file():
        raise MediaError(f"no such file: {path}")
    done = _ffmpeg("-v", "error", "-i", f"file:{path}", "-f", "ffmetadata", "-")
    if done.returncode:
        raise MediaError(f"cannot read {path}: {_one_line(done.stderr.decode(errors='replace'))}")
    return _parse_metadata(done.stdout.decode("utf-8", errors="replace")).get("comment", "")


def _require_clip(frames: torch.Tensor) -> None:
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or not frames.numel():
        raise MediaError(f"a clip is uint8 [F, 3, H, W], got {frames.dtype} {list(frames.shape)}")


def _one_line(error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _pictures(frames: torch.Tensor) -> np.ndarray:
    """[F, 3, H, W] -> [F, H, W, 3], contiguous."""
    return np.ascontiguousarray(frames.permute(0, 2, 3, 1).cpu().numpy())


def _ffmpeg(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", *arguments]
    return subprocess.run(command, capture_output=True, check=False)


def _write_mp4(path: Path, frames: torch.Tensor, fps: float, comment: str) -> None:
    import imageio.v2 as imageio

    height, width = frames.shape[2:]
    if height % 2 or width % 2:
        raise MediaError(
            f"mp4 (yuv420p) needs an even height and width, got {height} x {width}; use .gif or .png"
        )
    bare = path.with_name("bare.mp4")
    # Untagged files are shown with different colours by different players: convert to BT.709 and say so.
    colours = (
        "scale=in_range=pc:out_range=tv:out_color_matrix=bt709:flags=accurate_rnd+full_chroma_int,"
        "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
    )
    get_writer: Any = imageio.get_writer  # typed as a reader or a writer of any kind
    with get_writer(
        bare,
        format="FFMPEG",
        mode="I",
        fps=fps,
        codec="libx264",
        quality=None,
        macro_block_size=1,
        pixelformat="yuv420p",
        ffmpeg_log_level="error",
        output_params=["-vf", colours, "-crf", _CRF, "-preset", "medium"],
    ) as writer:
        for picture in _pictures(frames):
            writer.append_data(picture)
    if not bare.is_file() or not bare.stat().st_size:
        raise OSError(None, "ffmpeg wrote nothing")
    # A second pass without encoding: metadata from a file, since an argument holds at most 128 KiB on Linux.
    notes = path.with_name("notes.txt")
    notes.write_text(f";FFMETADATA1\ncomment={_escape(comment)}\n", encoding="utf-8")
    done = _ffmpeg(
        *(
            "-v",
            "error",
            "-i",
            str(bare),
            "-f",
            "ffmetadata",
            "-i",
            str(notes),
            "-map",
            "0",
            "-map_metadata",
            "1",
        ),
        *("-c", "copy", "-movflags", "+faststart", "-y", str(path)),
    )
    if done.returncode:
        raise OSError(None, _one_line(done.stderr.decode(errors="replace")))


def _escape(text: str) -> str:
    """Escape for ffmpeg's metadata file format."""
    return "".join(f"\\{letter}" if letter in "=;#\\\n" else letter for letter in text)


def _parse_metadata(text: str) -> dict[str, str]:
    """Entries of an ffmpeg metadata file: `key=value`, with backslash escapes, also of the line end."""
    entries: dict[str, str] = {}
    key, word, letters = "", "", iter(text)
    for letter in letters:
        if letter == "\\":
            word += next(letters, "")
        elif letter == "=" and not key:
            key, word = word, ""
        elif letter == "\n":
            if key:
                entries[key] = word
            key, word = "", ""
        else:
            word += letter
    return entries


def _write_gif(path: Path, frames: torch.Tensor, fps: float, comment: str) -> None:
    from PIL import Image

    pictures = [Image.fromarray(picture) for picture in _pictures(frames)]
    duration = max(20, round(100 / fps) * 10)  # browsers slow down anything below 20 ms
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=duration, loop=0, comment=MARK)


def _write_folder(path: Path, frames: torch.Tensor, fps: float, comment: str) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    path.mkdir()
    info = PngInfo()
    info.add_text("Software", MARK)
    for index, picture in enumerate(_pictures(frames)):
        Image.fromarray(picture).save(path / f"{index:05d}.png", pnginfo=info)


def _read_pictures(path: Path) -> Clip:
    from PIL import Image, ImageSequence

    try:
        if path.is_dir():
            pictures = [np.asarray(Image.open(file).convert("RGB")) for file in sorted(path.glob("*.png"))]
            fps = None
        else:
            with Image.open(path) as gif:
                pictures = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]
                fps = 1000 / gif.info["duration"] if gif.info.get("duration") else None
    except Exception as error:  # of damaged files Pillow raises errors of many types
        raise MediaError(f"cannot read {path}: {_one_line(error)}") from error
    if not pictures or len({picture.shape for picture in pictures}) > 1:
        raise MediaError(f"cannot read {path}: no pictures, or pictures of different sizes")
    return Clip(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), fps, "pillow")


def _existing(path: Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise MediaError(f"no such file: {path}")
    if path.is_file() and not path.stat().st_size:
        raise MediaError(f"cannot read {path}: the file is empty")
    return path


def _decord_reader(path: Path) -> Any:
    import decord

    decord.logging.set_level(decord.logging.QUIET)  # ffmpeg's messages; an error says enough
    return decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)


def _read_decord(path: Path) -> Clip:
    reader = _decord_reader(path)
    pictures = reader.get_batch(range(len(reader))).asnumpy()
    frames = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    _require_clip(frames)
    return Clip(frames, float(reader.get_avg_fps()), "decord")


def _read_ffmpeg(path: Path) -> Clip:
    import imageio_ffmpeg

    pictures = list(stream_frames(path))
    if not pictures or len({picture.shape for picture in pictures}) > 1:
        raise MediaError(f"cannot read {path}: no frames, or frames of different sizes")
    frames = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    probe = imageio_ffmpeg.read_frames(f"file:{path}")
    fps = float(next(probe)["fps"])
    probe.close()
    return Clip(frames, fps, "imageio-ffmpeg")


def _probe_pictures(path: Path) -> ClipShape:
    from PIL import Image

    files = sorted(path.glob("*.png")) if path.is_dir() else [path]
    if not files:
        raise MediaError(f"cannot read {path}: no pictures")
    try:
        with Image.open(files[0]) as picture:
            frames = len(files) if path.is_dir() else getattr(picture, "n_frames", 1)
            duration = picture.info.get("duration")
            fps = 1000 / duration if duration and not path.is_dir() else None
            return ClipShape(frames, picture.height, picture.width, fps)
    except Exception as error:  # as in _read_pictures
        raise MediaError(f"cannot read {path}: {_one_line(error)}") from error


def _first_message(output: bytes) -> str:
    """ffmpeg's first message without the address of what says it, as in `[h264 @ 0x5653ebde6080] ...`."""
    return re.sub(r"^(\[[^]]*\] )+", "", _one_line(output.decode(errors="replace")))

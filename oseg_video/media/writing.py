"""Clips into files: H.264 in MP4, GIF, folders of PNG images."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from oseg_video.files import DISK_ERRORS, MARK, atomic_path
from oseg_video.media.clip import MediaError, Sound, first_line, require_clip

# Visually lossless for x264 (0 is lossless, 51 the worst); small clips stay small.
_CRF = "12"
_SOUND_RATE = "192k"  # bits a second: AAC that few can tell from the original
# Untagged files are shown with different colours by different players: convert to BT.709 and say so.
_COLOURS = (
    "scale=in_range=pc:out_range=tv:out_color_matrix=bt709:flags=accurate_rnd+full_chroma_int,"
    "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
)


def write_clip(
    path: Path,
    frames: torch.Tensor,
    fps: float,
    *,
    format: str,
    comment: str = "",
    sound: Sound | None = None,
) -> None:
    """Write a clip as H.264 "mp4", as "gif", or as "png", a folder of images 00000.png, 00001.png, ...

    `frames` is uint8 [F, 3, H, W]. mp4 is yuv420p with the index in front, so that it plays in a browser,
    and holds `comment` as metadata and `sound` as AAC; the other formats ignore both. GIF stores durations in
    hundredths of a second, and shows equal neighbouring frames as one longer one. Raises MediaError, and
    FileError for what cannot be written or must not be replaced.
    """
    require_clip(frames)
    path = Path(path)
    with atomic_path(path) as temporary:
        # Absolute, so that ffmpeg takes no beginning of a path for an option or a protocol.
        temporary = temporary.absolute()
        if format == "mp4":
            _write_mp4(temporary, frames, fps, comment, sound)
        else:
            {"gif": _write_gif, "png": _write_folder}[format](temporary, frames, fps)


def run_ffmpeg(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run the ffmpeg of imageio-ffmpeg and keep what it prints."""
    return subprocess.run(_command(arguments), capture_output=True, check=False)


def _command(arguments: Sequence[str]) -> list[str]:
    import imageio_ffmpeg

    return [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", *arguments]


def _images(frames: torch.Tensor) -> NDArray[np.uint8]:
    """[F, 3, H, W] -> [F, H, W, 3], contiguous."""
    return np.ascontiguousarray(frames.permute(0, 2, 3, 1).cpu().numpy())


def _write_mp4(path: Path, frames: torch.Tensor, fps: float, comment: str, sound: Sound | None) -> None:
    height, width = frames.shape[2:]
    if height % 2 or width % 2:
        raise MediaError(
            f"mp4 (yuv420p) needs an even height and width, got {height} x {width}; use .gif or .png"
        )
    # Metadata from a file, since an argument holds at most 128 KiB on Linux.
    notes = path.with_name("notes.txt")
    notes.write_text(f";FFMETADATA1\ncomment={_escape(comment)}\n", encoding="utf-8")
    track: list[str] = []
    if sound is not None:
        raw = path.with_name("sound.f32")
        raw.write_bytes(sound.samples.T.contiguous().cpu().numpy().astype("<f4").tobytes())
        track = ["-f", "f32le", "-ar", str(sound.rate), "-ac", str(len(sound.samples)), "-i", str(raw)]
    command = _command(
        [
            *("-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"),
            *("-s", f"{width}x{height}", "-r", f"{fps:.02f}", "-i", "-"),
            *("-f", "ffmetadata", "-i", str(notes), *track, "-map", "0", "-map_metadata", "1"),
            *(("-map", "2", "-c:a", "aac", "-b:a", _SOUND_RATE) if track else ()),
            *("-c:v", "libx264", "-pix_fmt", "yuv420p", "-vf", _COLOURS, "-crf", _CRF, "-preset", "medium"),
            *("-movflags", "+faststart", "-y", str(path)),
        ]
    )
    with tempfile.TemporaryFile() as messages:
        # With its signals ignored as Python ignores them, ffmpeg names a file-size limit instead of dying.
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=messages, restore_signals=False
        ) as process:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # an ffmpeg that ended early: its message says why
                for image in _images(frames):
                    process.stdin.write(image.data)
                process.stdin.close()
        if process.returncode or not path.is_file():
            messages.seek(0)
            raise _error(messages.read().decode(errors="replace"))


def _error(output: str) -> OSError:
    """Why ffmpeg failed: the system's reason where it has one, else the first message without its address."""
    for code in DISK_ERRORS:
        if os.strerror(code) in output:
            return OSError(code, os.strerror(code))
    said = re.sub(r"^(\[[^]]*\] )+", "", first_line(output)) if output.strip() else "ffmpeg wrote nothing"
    return OSError(None, said)


def _escape(text: str) -> str:
    """Escape for ffmpeg's metadata file format."""
    return "".join(f"\\{letter}" if letter in "=;#\\\n" else letter for letter in text)


def _write_gif(path: Path, frames: torch.Tensor, fps: float) -> None:
    from PIL import Image

    images = [Image.fromarray(image) for image in _images(frames)]
    duration = max(20, round(100 / fps) * 10)  # browsers slow down anything below 20 ms
    images[0].save(path, save_all=True, append_images=images[1:], duration=duration, loop=0, comment=MARK)


def _write_folder(path: Path, frames: torch.Tensor, fps: float) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    path.mkdir()
    info = PngInfo()
    info.add_text("Software", MARK)
    for index, image in enumerate(_images(frames)):
        Image.fromarray(image).save(path / f"{index:05d}.png", pnginfo=info)

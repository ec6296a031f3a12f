"""Clips out of files: one reader and one number of frames for everybody."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import numpy as np
import torch

from oseg_video.media.clip import Clip, ClipShape, Frame, MediaError, Pixels
from oseg_video.media.images import FRAME_SUFFIXES, is_animated, probe_images, stream_images
from oseg_video.media.video import probe_video, read_video, stream_video


def read_clip(path: Path) -> Clip:
    """Read a video file, an image (animated or not) or a folder of images whole.

    Raises MediaError naming the file.
    """
    path = _existing(path)
    if not _of_images(path):
        return read_video(path)
    shape = probe_images(path)
    frames = np.stack([frame.rgb_HWC for frame in stream_images(path)])
    return Clip(torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous(), shape.fps, shape.reader)


def probe_clip(path: Path) -> ClipShape:
    """Number of frames, size and rate of what `read_clip` reads. Raises MediaError naming the file.

    It decodes the clip only where the file's index does not tell; a file that is damaged further on passes.
    """
    path = _existing(path)
    return probe_images(path) if _of_images(path) else probe_video(path)


def stream_clip(path: Path) -> Generator[Frame, None, None]:
    """The frames of `read_clip` one by one: memory does not depend on their number.

    A damaged file raises MediaError, at the latest after the frames before the damage.
    """
    path = _existing(path)
    yield from stream_images(path) if _of_images(path) else stream_video(path)


def stream_frames(path: Path) -> Generator[Pixels, None, None]:
    """As `stream_clip`, RGB pixels [H, W, 3] alone."""
    for frame in stream_clip(path):
        yield frame.rgb_HWC


def _of_images(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in FRAME_SUFFIXES or is_animated(path)


def _existing(path: Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise MediaError(f"no such file: {path}")
    if path.is_file() and not path.stat().st_size:
        raise MediaError(f"cannot read {path}: the file is empty")
    return path

"""What a clip is: in memory (uint8 [F, 3, H, W], RGB), as its file describes it, and frame by frame."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from oseg_video.types import OsegVideoError

Pixels: TypeAlias = NDArray[np.uint8]
"""uint8 [H, W, 3]."""


class MediaError(OsegVideoError):
    """A clip or image that cannot be read or written; the message names the file."""


@dataclass(frozen=True)
class Clip:
    """A clip read from a file."""

    frames: torch.Tensor
    """uint8 [F, 3, H, W]."""
    fps: float | None
    """Frames per second, or None where the file does not say (a folder of images)."""
    reader: str
    """What read it: "decord", "pyav" or "pillow"."""


@dataclass(frozen=True)
class Sound:
    """The sound of a clip. Raises MediaError for anything but finite float32 [channels, samples]."""

    samples: torch.Tensor
    """float32 [channels, samples], full scale from -1 to 1."""
    rate: int
    """Samples a second."""

    def __post_init__(self) -> None:
        x = self.samples
        if x.dtype != torch.float32 or x.ndim != 2 or not 1 <= len(x) <= 2 or not x.numel():
            raise MediaError(f"a sound is float32 [1 or 2 channels, samples], got {x.dtype} {list(x.shape)}")
        if not torch.isfinite(x).all():
            raise MediaError("the model returned sound that is not finite numbers; try --dtype float32")

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.samples.shape[1] / self.rate

    @property
    def sha256(self) -> str:
        """SHA-256 over rate, shape and samples: equal exactly when the sounds are equal."""
        head = ",".join(map(str, (self.rate, *self.samples.shape)))
        digest = hashlib.sha256(head.encode() + b":")
        digest.update(self.samples.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class ClipShape:
    """What can be shown of a file: as many frames as `stream_clip` gives."""

    frames: int
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    fps: float | None
    """As in `Clip`."""
    reader: str
    """What reads it frame by frame: "pyav" or "pillow"."""


class Frame:
    """One frame of a clip that is read frame by frame; colours are converted when asked for."""

    def __init__(
        self, index: int, rgb: Callable[[], Pixels], opencv: Callable[[], Pixels], repeats: bool = False
    ) -> None:
        self.index = index
        """Place in the clip, from 0."""
        self.repeats = repeats
        """Whether it is the frame before, shown for longer (a pause of a GIF)."""
        self._rgb = rgb
        self._opencv = opencv

    @cached_property
    def rgb_HWC(self) -> Pixels:
        """Red, green, blue, by the colour matrix that the file names."""
        return self._rgb()

    @cached_property
    def opencv_HWC(self) -> Pixels:
        """Blue, green, red, as OpenCV 4.11 reads the file: by BT.601, whatever the file names."""
        return self._opencv()


def to_uint8(video: torch.Tensor) -> torch.Tensor:
    """Pixels in [0, 1], any float dtype and any shape -> uint8 of the same shape, rounded to nearest."""
    if not torch.isfinite(video).all():
        raise MediaError("the model returned pixels that are not finite numbers; try --dtype float32")
    return (video.float() * 255).round_().clamp_(0, 255).to(torch.uint8)


def frames_sha256(frames: torch.Tensor) -> str:
    """SHA-256 over shape and pixels of a uint8 clip: equal exactly when the clips are equal."""
    require_clip(frames)
    digest = hashlib.sha256(",".join(map(str, frames.shape)).encode() + b":")
    digest.update(frames.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def require_clip(frames: torch.Tensor) -> None:
    """Raise MediaError for anything but uint8 [F, 3, H, W] with at least one pixel."""
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or not frames.numel():
        raise MediaError(f"a clip is uint8 [F, 3, H, W], got {frames.dtype} {list(frames.shape)}")


def first_line(error: Any) -> str:
    """The first line of a message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

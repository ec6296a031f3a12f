"""Clips of images: folders of frames, and animated GIF, PNG and WebP files, read by Pillow."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path
from statistics import fmean

import numpy as np
from PIL import ExifTags, Image, ImageOps, ImageSequence

from oseg_video.media.clip import ClipShape, Frame, MediaError, Pixels, first_line

FRAME_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
"""Of the images that are frames of a folder."""
_ANIMATED = frozenset({".gif", ".apng", ".png", ".webp"})
_SHORTEST_MS, _USUAL_MS = 20, 100
"""Browsers and FFmpeg show frames of less than 20 ms for 100 ms."""
_TICK_MS = 10
"""GIF counts time in hundredths of a second."""
_UPRIGHT, _ON_ITS_SIDE = 1, range(5, 9)
"""Orientations of EXIF: pixels as they are shown, and those that swap height and width."""


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Sorts frame_2 before frame_10, whether or not numbers are padded with zeros."""
    split = re.split(r"([0-9]+)", name)  # numbers at odd places
    parts: list[str | int] = [int(part) if place % 2 else part for place, part in enumerate(split)]
    return parts, name


def frame_files(folder: Path) -> list[Path]:
    """The images of a folder in natural order; hidden files, such as `._00000.png` of a Mac, are none.

    Raises MediaError if two of them have one name but for the suffix.
    """
    files = [path for path in folder.iterdir() if path.suffix.lower() in FRAME_SUFFIXES]
    files = [path for path in files if not path.name.startswith(".") and path.is_file()]
    files.sort(key=lambda path: natural_order(path.name))
    named: dict[str, Path] = {}
    for path in files:
        if path.stem in named:
            raise MediaError(
                f"cannot read {folder}: {named[path.stem].name} and {path.name} are one frame twice"
            )
        named[path.stem] = path
    return files


def is_animated(path: Path) -> bool:
    """Whether a file is an image of several frames; a GIF counts as one, whatever their number."""
    suffix = path.suffix.lower()
    if suffix not in _ANIMATED or suffix == ".gif":
        return suffix == ".gif"
    try:
        with Image.open(path) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # of damaged files Pillow raises errors of many types
        return suffix == ".apng"


def stream_images(path: Path) -> Generator[Frame, None, None]:
    """The frames of a folder of images or of an animated image, one by one. Raises MediaError.

    A frame that is shown for longer than others comes as often as it lasts.
    """
    index = 0
    size = None
    for pixels, times in _shown(path):
        if size not in (None, pixels.shape):
            raise MediaError(f"cannot read {path}: it has images of different sizes")
        size = pixels.shape
        for repeat in range(times):
            yield _frame(index, pixels, repeats=repeat > 0)
            index += 1
    if not index:
        raise MediaError(f"cannot read {path}: no images")


def probe_images(path: Path) -> ClipShape:
    """Number of frames, size and rate. Of a folder only the first image is read. Raises MediaError."""
    if path.is_dir():
        with _reading(path):
            files = frame_files(path)
            if not files:
                raise MediaError(f"cannot read {path}: no images")
            with Image.open(files[0]) as image:
                return ClipShape(len(files), *_size(image), None, "pillow")
    if not is_animated(path):
        with _reading(path), Image.open(path) as image:
            return ClipShape(1, *_size(image), None, "pillow")
    with _reading(path):
        unit = _unit(_durations(path))
        (last,) = deque(stream_images(path), maxlen=1)
        height, width, _ = last.rgb_HWC.shape
        return ClipShape(last.index + 1, height, width, 1000 / unit if unit else None, "pillow")


def _size(image: Image.Image) -> tuple[int, int]:
    """Height and width, upright as EXIF says."""
    # Pillow turns a TIFF by itself.
    turned = image.format != "TIFF" and _orientation(image) in _ON_ITS_SIDE
    return (image.width, image.height) if turned else (image.height, image.width)


def _orientation(image: Image.Image) -> int:
    """What EXIF says; 1, upright, where it says nothing or is damaged: the pixels may be whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return int(image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT))
        except Exception:  # of many types
            return _UPRIGHT


def rgb_of(image: Image.Image) -> Pixels:
    """Pixels of an image of any kind, upright as EXIF says; what is transparent is white, as on a page.

    Of 16 bits a channel the upper eight count, as in Pillow's own reading of colours. Raises MediaError for
    images of other numbers.
    """
    if _orientation(image) != _UPRIGHT:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 0xFFFF:
            raise MediaError("its levels are not of 16 bits")
        return np.repeat((levels >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise MediaError("its levels are floating-point numbers")
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(page, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _frame(index: int, rgb_HWC: Pixels, *, repeats: bool) -> Frame:
    return Frame(index, lambda: rgb_HWC, lambda: rgb_HWC[:, :, ::-1], repeats)


def _shown(path: Path) -> Iterator[tuple[Pixels, int]]:
    """Images in order, and how many frames each is shown for."""
    if path.is_dir():
        with _reading(path):
            files = frame_files(path)
        for file in files:
            with _reading(file), Image.open(file) as image:
                pixels = rgb_of(image)
            yield pixels, 1
        return
    with _reading(path):
        durations = _durations(path)
        unit = _unit(durations)
        with Image.open(path) as image:
            for frame, milliseconds in zip(_animation(image), durations, strict=True):
                yield rgb_of(frame), max(1, round(_displayed(milliseconds) / unit)) if unit else 1


def _animation(image: Image.Image) -> Iterator[Image.Image]:
    """The frames of an animation; an animated PNG may begin with an image for those who cannot play it."""
    frames = iter(ImageSequence.Iterator(image))
    if image.info.get("default_image"):
        next(frames)
    return frames


def _durations(path: Path) -> list[float]:
    """How long each frame is to be shown, in milliseconds; 0 where the file does not say."""
    with Image.open(path) as image:
        durations = []
        for frame in _animation(image):
            frame.load()  # WebP knows it only then
            durations.append(float(frame.info.get("duration", 0)))
        return durations


def _displayed(milliseconds: float) -> float:
    return milliseconds if milliseconds >= _SHORTEST_MS else _USUAL_MS


def _unit(durations: list[float]) -> float | None:
    """How long one frame of the clip is, in milliseconds; None where the file says nothing.

    The greatest common divisor, so that pauses are whole frames. Rates such as 30 frames a second, rounded to
    hundredths of a second, have no divisor but one of those: then the mean of the shortest frames, which
    differ by one at most.
    """
    if not any(durations):
        return None
    shown = [round(_displayed(one)) for one in durations]
    common = math.gcd(*shown)
    if common > _TICK_MS:
        return float(common)
    shortest = min(shown)
    return fmean(one for one in shown if one - shortest <= _TICK_MS)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn Pillow's errors into one line that names the file; of damaged files they have many types."""
    try:
        yield
    except MediaError as error:
        raise error if str(path) in str(error) else MediaError(f"cannot read {path}: {error}") from None
    except Exception as error:
        raise MediaError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or first_line(error)}"
        ) from error

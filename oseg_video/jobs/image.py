"""Images: the one that an image-to-video clip starts from, and the one that an image model makes."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from oseg_video.files import atomic_path, expanded
from oseg_video.types import OsegVideoError

if TYPE_CHECKING:
    from PIL import Image

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_COMMENT = "comment"


class ImageError(OsegVideoError):
    """An image that cannot be used; the message names the file."""


@dataclass(frozen=True)
class StartImage:
    """An image of the clip's size."""

    image: Image.Image
    """RGB."""
    sha256: str
    """Of the file's bytes."""
    fitted: str
    """What was done to make it fit, for the reader."""


def load_image(path: Path, height: int, width: int) -> StartImage:
    """Read an image upright, on white where it is transparent, resized and centre-cropped to the size.

    `height` and `width` in pixels. The content says what a file is, not its suffix. The EXIF orientation is
    respected. Raises ImageError for a file that is missing, empty, no image, damaged, animated, or larger
    than Pillow's limit against decompression bombs.
    """
    from PIL import Image, ImageOps

    path = expanded(path)
    upright, turned = _read(path)
    done = ["turned upright"] if turned else []
    if upright.mode == "F":
        raise ImageError(f"{path} has floating-point pixels; give an image of 8 or 16 bits")
    if upright.has_transparency_data and any(upright.convert("RGBA").getchannel("A").histogram()[:255]):
        done.append("put on white")
    rgb = _on_white(upright)
    scale = max(width / rgb.width, height / rgb.height)
    resized = round(rgb.width * scale), round(rgb.height * scale)
    if resized != rgb.size:
        done.append(f"resized to {resized[0]} x {resized[1]}")
    if resized != (width, height):
        done.append(f"centre-cropped to {width} x {height}")
    fitted = ImageOps.fit(rgb, (width, height), method=Image.Resampling.LANCZOS)
    said = f"{rgb.width} x {rgb.height} {', '.join(done) or 'taken as it is'}"
    return StartImage(fitted, image_sha256(path), said)


def image_sha256(path: Path) -> str:
    """Of a file's bytes, as a manifest has it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_image(path: Path, frames: torch.Tensor, comment: str) -> None:
    """Write a clip of one frame, uint8 [1, 3, H, W], as a PNG file with `comment`. Raises FileError."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(_COMMENT, comment)
    with atomic_path(path) as temporary:
        pixels_HWC = frames[0].permute(1, 2, 0).contiguous().cpu().numpy()
        Image.fromarray(pixels_HWC).save(temporary, format="PNG", pnginfo=info)


def _read(path: Path) -> tuple[Image.Image, bool]:
    """(image upright with its pixels read, whether it had to be turned)."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        if path.exists() and not path.is_file():  # a folder, or a device that never ends
            raise ImageError(f"{path} is not a file")
        if not path.stat().st_size:
            raise ImageError(f"{path} is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                count = getattr(opened, "n_frames", 1)
                # The further images of a camera's MPO are previews, or the other eye's.
                if count > 1 and opened.format != "MPO":
                    raise ImageError(f"{path} is animated or has pages ({count} images); give one image")
                turned = opened.getexif().get(_ORIENTATION, 1) != 1
                upright = ImageOps.exif_transpose(opened)  # a copy, also where it is upright
                return upright, turned
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{path} is not an image that can be read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{path} is too large: more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror or error}") from None
    except MemoryError:
        raise ImageError(f"{path} is too large for the memory of this machine") from None
    except Exception as error:  # what Pillow's plugins raise on damaged files is of a dozen types
        raise ImageError(f"{path} is damaged: {error}") from None


def _on_white(image: Image.Image) -> Image.Image:
    """Any mode -> RGB; what is transparent becomes white. 16-bit grey is scaled to 8 bits."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":
        return image.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")

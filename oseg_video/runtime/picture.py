"""The picture that an image-to-video clip starts from."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oseg_video.types import OsegVideoError


class PictureError(OsegVideoError):
    """A picture that cannot be used; the message names the file."""


@dataclass(frozen=True)
class Picture:
    """A picture of the clip's size."""

    image: Any
    """PIL image, RGB."""
    sha256: str
    """Of the file's bytes."""
    fitted: str
    """What was done to make it fit, for the reader."""


def load_picture(path: Path, height: int, width: int) -> Picture:
    """Read a picture upright, on white where it is transparent, resized and centre-cropped to the size.

    `height` and `width` in pixels. The EXIF orientation is respected. Raises PictureError for a file that is
    missing, no picture, damaged, animated, or larger than Pillow's limit against decompression bombs.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        data = Path(path).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                if getattr(opened, "is_animated", False):
                    raise PictureError(
                        f"{path} is animated ({getattr(opened, 'n_frames', '?')} frames); give one picture"
                    )
                upright = ImageOps.exif_transpose(opened)
                upright.load()
    except UnidentifiedImageError:
        raise PictureError(f"{path} is not a picture that can be read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureError(f"{path} is too large: more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except OSError as error:
        raise PictureError(f"cannot read {path}: {error.strerror or error}") from None
    except (SyntaxError, ValueError, EOFError) as error:  # what Pillow's plugins raise on damaged files
        if isinstance(error, PictureError):
            raise
        raise PictureError(f"{path} is damaged: {error}") from None
    rgb = _on_white(upright)
    fitted = ImageOps.fit(rgb, (width, height), method=Image.Resampling.LANCZOS)
    scale = max(width / rgb.width, height / rgb.height)
    resized = f"{round(rgb.width * scale)} x {round(rgb.height * scale)}"
    done = f"{rgb.width} x {rgb.height} resized to {resized}, centre-cropped to {width} x {height}"
    return Picture(fitted, hashlib.sha256(data).hexdigest(), done)


def _on_white(image: Any) -> Any:
    """Any mode -> RGB; what is transparent becomes white. 16-bit grey is scaled to 8 bits."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":
        return image.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")

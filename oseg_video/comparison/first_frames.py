"""Images to start from: the first frames of real clips."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from oseg_video import console
from oseg_video.config import ConfigError
from oseg_video.files import MARK, atomic_path
from oseg_video.media import MediaError, stream_frames


def first_frames(folder: Path, names: Sequence[str], out: Path) -> list[Path]:
    """Write the first frame of every named clip of a folder as a PNG file into `out`, and return the files.

    names: paths below `folder`. Raises ConfigError for a name that is not there, before anything is written,
    and MediaError for a clip that cannot be read.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"{folder} lacks {len(missing)} of {len(names)} clips that the recipe lists, first {missing[0]}"
        )
    files = [out / Path(name).with_suffix(".png") for name in names]
    info = PngInfo()
    info.add_text("Software", MARK)
    pairs = list(zip(names, files, strict=True))
    for name, file in console.bar(pairs, "first frames"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as partial:
            _first_frame(folder / name).save(partial, format="PNG", pnginfo=info)
    return files


def _first_frame(path: Path) -> Image.Image:
    with closing(stream_frames(path)) as frames:
        for frame in frames:
            return Image.fromarray(frame)
    raise MediaError(f"cannot read {path}: it has no frame")

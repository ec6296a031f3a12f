"""Files appear whole or not at all: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from oseg_video.media.clip import MediaError, one_line

_TEMPORARY_PREFIX = ".oseg-video-"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it on success and removed on failure.

    What the body writes there may be a file or a folder; an existing file or folder at `path` is replaced
    only after the body succeeded. The temporary path is absolute, so that no program takes its beginning for
    an option or a protocol.
    """
    path = Path(path).absolute()
    # mkdtemp, so that the name is free; the item inside keeps the suffix, which tells ffmpeg the format.
    folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX, dir=path.parent))
    item = folder / f"new{path.suffix}"
    try:
        yield item
        _flush(item)
        if path.is_dir():
            path.rename(folder / "old")
        os.replace(item, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all. Raises MediaError."""
    path = Path(path)
    with naming(path), atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what writers raise into one line that names the file."""
    try:
        yield
    except MediaError:
        raise
    except OSError as error:
        raise MediaError(f"cannot write {path}: {error.strerror or one_line(error)}") from error


def _flush(item: Path) -> None:
    """Have the bytes on the disk before the rename, so that a power cut leaves no empty file."""
    for file in [item] if item.is_file() else sorted(item.iterdir()):
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())

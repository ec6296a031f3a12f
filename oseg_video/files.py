"""What this program writes: whole or not at all, and in the place of nothing but what it has written itself.

Everything is written under a temporary name in the same folder and then renamed. What is in its place has to
be of the same kind, a file or a folder of frames, and to say that this program made it; it stays until the
new one stands. Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from oseg_video.types import OsegVideoError

MARK = "made by oseg-video"
"""Stands in every file that this program writes, but for formats that have no place for it."""

# JSON has it as a key and its value; a table of values separated by commas has its columns instead.
_MARKS = re.compile(rb"made[_ ]by\W{1,6}oseg-video|\Amethod,metric,value,low,high,clips,")
_LOOKED_AT = 1 << 20
_FRAME = re.compile(r"\d{5}\.png")
_SIGNED = {".md": f"<!-- {MARK} -->\n", ".html": f"<!-- {MARK} -->\n", ".tex": f"% {MARK}\n"}
_TEMPORARY_PREFIX = ".oseg-video-"


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""Of a disk that takes nothing more, whatever is written there."""


class FileError(OsegVideoError):
    """A file or folder that cannot or must not be written; the message names it."""


def is_disk_error(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is one of `DISK_ERRORS`."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return True
        error = error.__cause__
    return False


def expanded(path: Path | str) -> Path:
    """The path, with a home folder in the place of `~`. Raises FileError where there is none, and for a path
    that no file can have."""
    try:
        if b"\0" in os.fsencode(path):
            raise FileError(f"{str(path)!r} has a NUL, which no file's name can have")
        return Path(path).expanduser()
    except UnicodeEncodeError:
        raise FileError(f"{str(path)!r} has a letter that no file's name can have") from None
    except RuntimeError:
        raise FileError(f"{path}: there is no home folder of that name") from None


def check_place(path: Path, *, folder: bool = False, overwrite: bool = True) -> None:
    """Refuse, before any work, a place in which something is that must stay. Raises FileError.

    folder: whether a folder of frames is to be written there, and not a file. overwrite: whether what this
    program made there may be replaced.
    """
    path = Path(path)
    with _naming(path):
        if not os.path.lexists(path):
            return
        if not overwrite:
            raise FileError(f"{path} exists already; --overwrite replaces it")
        if path.is_dir() != folder:
            there, new = ("file", "folder of frames") if folder else ("folder", "file")
            raise FileError(f"{path} is a {there} and is not replaced by a {new}; choose another name")
        if not is_ours(path):
            raise FileError(
                f"{path} is in the way and was not made by oseg-video; choose another name, or delete it"
            )


def check_file(path: Path, *, overwrite: bool) -> None:
    """`check_place` of a file, whose folder must be there and take it. Raises FileError."""
    path = Path(path)
    check_place(path, overwrite=overwrite)
    if not path.absolute().parent.is_dir():
        raise FileError(f"cannot write {path}: there is no folder {path.parent}")
    check_writable(path.absolute().parent)


def check_writable(folder: Path) -> None:
    """Try a folder, or the nearest above it that exists. Raises FileError.

    Permissions alone do not tell (root, read-only mounts).
    """
    nearest = folder.absolute()
    while not nearest.exists() and nearest.parent != nearest:
        nearest = nearest.parent
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise FileError(f"cannot write to {folder}: {error.strerror}") from None


def is_ours(path: Path) -> bool:
    """Whether this program has made a file, or a folder of frames with nothing else in it.

    What holds nothing can be replaced by anyone.
    """
    if path.is_dir():
        return all(_FRAME.fullmatch(f.name) and f.is_file() and is_ours(f) for f in path.iterdir())
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        found = _MARKS.search(file.read(_LOOKED_AT))
        if found is None and size > _LOOKED_AT:
            file.seek(max(_LOOKED_AT, size - _LOOKED_AT))
            found = _MARKS.search(file.read())
    return not size or found is not None


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved to it on success as by `put`, and removed on failure.

    What the body writes there may be a file or a folder. Raises FileError, also for an OSError of the body.
    """
    path = Path(path)
    with _naming(path):
        # mkdtemp, so that the name is free; the item inside keeps the suffix, which tells ffmpeg the format.
        folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX, dir=path.parent))
        item = folder / f"new{path.suffix}"
        try:
            yield item
            _flush(item)
            put(item, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all, with the mark where its kind has comments. Raises FileError."""
    with atomic_path(path) as temporary:
        temporary.write_text(text + _SIGNED.get(Path(path).suffix.lower(), ""), encoding="utf-8")


def read_text(path: Path) -> str:
    """The text that `write_text` was given. Raises OSError, and UnicodeDecodeError for other files."""
    return Path(path).read_text(encoding="utf-8").removesuffix(_SIGNED.get(Path(path).suffix.lower(), ""))


def put(new: Path, path: Path) -> None:
    """Move a file or folder to its place, on the same disk. Raises FileError as `check_place`, and OSError.

    A folder that is replaced is left where the new one was.
    """
    check_place(path, folder=new.is_dir())
    if not path.is_dir():
        os.replace(new, path)
    elif not _exchange(new, path):
        before = new.with_name(f"{new.name}-before")
        try:
            path.rename(before)
            new.rename(path)
        finally:
            if before.exists() and not path.exists():
                before.rename(path)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names at once, so that an interruption leaves both; not all file systems can."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of Linux
    return rename is not None and not rename(here, os.fsencode(one), here, os.fsencode(other), exchange)


def _flush(item: Path) -> None:
    """Have the bytes on the disk before the rename, so that a power cut leaves no empty file."""
    for file in [item] if item.is_file() else sorted(item.iterdir()):
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error

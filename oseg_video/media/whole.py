"""Whether a video file is as long as it says: a file that was cut off often reads well to its new end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from oseg_video.media.clip import MediaError

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def require_whole(path: Path) -> None:
    """Raise MediaError if the file ends before its container does (MP4 and kin, Matroska, AVI).

    Other containers, such as MPEG-TS, do not say how long they are.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        stated = _stated_size(file, size)
    if stated > size:
        raise MediaError(f"cannot read {path}: the file is cut off, {size} of {stated} bytes are there")


def _stated_size(file: BinaryIO, size: int) -> int:
    """How long the container says that it is; 0 where it does not say."""
    head = file.read(12)
    if head.startswith(_EBML):
        return _matroska_size(file)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return 8 + int.from_bytes(head[4:8], "little")
    if head[4:8] == b"ftyp":
        return _boxes_size(file, size)
    return 0


def _matroska_size(file: BinaryIO) -> int:
    """End of the segment that follows the EBML header; 0 where it is of unknown size (a live stream)."""
    file.seek(4)
    header = _ebml_number(file)
    if header is None:
        return 0
    file.seek(header, os.SEEK_CUR)
    if file.read(4) != _SEGMENT:
        return 0
    segment = _ebml_number(file)
    return 0 if segment is None else file.tell() + segment


def _ebml_number(file: BinaryIO) -> int | None:
    """A number of EBML (RFC 8794, section 4): leading zeros say how many bytes follow; None for "unknown"."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    number = int.from_bytes(bytes([first[0] & ((1 << (7 - more)) - 1)]) + file.read(more), "big")
    return None if number == (1 << (7 * (more + 1))) - 1 else number


def _boxes_size(file: BinaryIO, size: int) -> int:
    """End of the last top-level box that begins in the file (ISO 14496-12, section 4.2)."""
    place = 0
    while place + 8 <= size:
        file.seek(place)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8 or not header[4:8].isalnum():  # "to the end of the file", or what is no box
            return 0
        place += length
    return place

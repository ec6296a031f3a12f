"""What in a folder is a clip: videos, animations, folders of frames, images with a manifest; what is not."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from oseg_video.evaluation.errors import EvaluationError
from oseg_video.media import FRAME_SUFFIXES, VIDEO_SUFFIXES, is_animated, natural_order

_ANIMATIONS = frozenset({".gif", ".apng"})
_BESIDE_CLIPS = frozenset(
    f".{name}"
    for name in "json jsonl yaml yml txt md csv tsv tex html log lock pdf safetensors pt srt vtt".split()
)
"""Files that one expects beside clips and that nobody takes for clips: they are not named."""


@dataclass
class Found:
    """What a walk through a folder has found."""

    clips: list[Path] = field(default_factory=list)
    """In natural order."""
    left_out: dict[Path, str] = field(default_factory=dict)
    """What is not looked at: path -> why."""
    unreadable: dict[Path, str] = field(default_factory=dict)
    """What cannot be looked into: path -> why."""


def find_paths(folder: Path) -> Found:
    """Clips in a folder and below it, or the file itself; hidden files and folders are not looked at.

    A folder is entered once, whatever links lead to it. Images are the frames of a clip if their folder holds
    no folders, no videos and no manifests of single images; one with a manifest of its own is a clip of one
    frame. Raises EvaluationError for what is neither file nor folder.
    """
    found = Found()
    if folder.is_file():
        found.clips.append(folder)
    elif folder.is_dir():
        _walk(folder, found, {})
    else:
        raise EvaluationError(f"{folder} is neither a file nor a folder")
    return found


def find_image_paths(folder: Path) -> Found:
    """Every image in a folder and below it; a folder and a file count once, whatever links lead to them."""
    found = Found()
    _walk_images(folder, found, {})
    return found


_Entered = dict[tuple[int, int], Path]
"""What was seen, by device and inode."""


def _walk_images(folder: Path, found: Found, entered: _Entered) -> None:
    for path in _inside(folder, found, entered):
        if path.is_dir():
            _walk_images(path, found, entered)
        elif path.suffix.lower() in FRAME_SUFFIXES and path.is_file():
            at = path.stat()
            before = entered.setdefault((at.st_dev, at.st_ino), path)
            if before is path:
                found.clips.append(path)
            else:
                found.left_out[path] = f"the same image as {before.name}"


def _inside(folder: Path, found: Found, entered: _Entered) -> list[Path]:
    """What a folder holds, in natural order; nothing if it cannot be read or was entered before."""
    try:
        at = folder.stat()
        inside = sorted(folder.iterdir(), key=lambda path: natural_order(path.name))
    except OSError as error:
        found.unreadable[folder] = f"cannot read {folder}: {error.strerror}"
        return []
    if before := entered.get((at.st_dev, at.st_ino)):
        found.left_out[folder] = f"the same folder as {before.name}"
        return []
    entered[at.st_dev, at.st_ino] = folder
    return [path for path in inside if not path.name.startswith(".")]


def _walk(folder: Path, found: Found, entered: _Entered) -> None:
    inside = _inside(folder, found, entered)
    folders = [path for path in inside if path.is_dir()]
    files = [path for path in inside if path.is_file()]
    images = [path for path in files if path.suffix.lower() in FRAME_SUFFIXES]
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES | _ANIMATIONS]
    if images and not folders and not videos and not is_animated(images[0]) and not _with_manifests(images):
        found.clips.append(folder)
        images = []
    for path in inside:
        if path.is_dir():
            _walk(path, found, entered)
        elif path in videos or (path in images and is_animated(path)):
            found.clips.append(path)
        elif path in images:
            of_its_own = _with_manifests([path]) and path.stem not in {video.stem for video in videos}
            if of_its_own:
                found.clips.append(path)
            else:
                found.left_out[path] = "a single image, no clip"
        elif not path.is_file():
            found.left_out[path] = "a link to nothing" if path.is_symlink() else "not a file"
        elif path.suffix.lower() not in _BESIDE_CLIPS | FRAME_SUFFIXES:
            found.left_out[path] = f"no kind of clip that is known ({path.suffix or 'no suffix'})"


def _with_manifests(images: list[Path]) -> list[Path]:
    """The images that are results of their own: beside them lies what made them."""
    return [path for path in images if path.with_suffix(".json").exists()]

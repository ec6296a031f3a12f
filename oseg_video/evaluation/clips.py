"""Clips on disk, with what their manifests say about them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from oseg_video.config.manifest import manifest_path, parse_manifest
from oseg_video.evaluation.metrics.base import EvaluationError, Metric
from oseg_video.media import MediaError, probe_clip

VIDEO_SUFFIXES = frozenset({".mp4", ".gif", ".webm", ".mkv", ".mov", ".avi", ".m4v"})


@dataclass(frozen=True, kw_only=True)
class ClipFile:
    """A clip that can be read. Frames, size and fps are what the file says, never assumed."""

    path: Path
    """A video file, a GIF or a folder of PNG pictures."""
    name: str
    """Its path relative to the folder that was asked for, with that folder's label in front if there are
    several; unique in an evaluation."""
    frames: int
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    fps: float | None
    """Frames per second, or None where the file does not say (a folder of pictures)."""
    method: str
    """The row of the table that it belongs to."""
    prompt: str | None
    """From the manifest; None without one, or where the model takes no text."""
    seed: int | None
    """From the manifest; None without one."""
    start: str
    """What clips of different methods have in common when they answer the same request: prompt and picture
    of the manifest; without a manifest its path in the folder, without suffix."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The job in the manifest; empty without one."""

    @property
    def key(self) -> tuple[str, int]:
        """Equal for clips of different methods made from the same prompt, picture and seed."""
        return self.start, -1 if self.seed is None else self.seed

    @property
    def kind(self) -> str:
        """ "png" for a folder of pictures, otherwise the file's suffix."""
        return self.path.suffix.lower().lstrip(".") if self.path.is_file() else "png"


@dataclass(frozen=True)
class FoundClips:
    """What is in the folders."""

    clips: tuple[ClipFile, ...]
    """Sorted by method (in the order of the folders), then by key and name."""
    broken: Mapping[str, str]
    """Files that look like clips and cannot be read: name -> why."""

    @property
    def methods(self) -> dict[str, list[ClipFile]]:
        """The clips of every method."""
        return by_method(self.clips)


def by_method(clips: Sequence[ClipFile]) -> dict[str, list[ClipFile]]:
    """The clips of every method, in the order in which they come."""
    groups: dict[str, list[ClipFile]] = {}
    for clip in clips:
        groups.setdefault(clip.method, []).append(clip)
    return groups


def unfit_methods(metric: Metric, clips: Sequence[ClipFile], skipped: Mapping[str, str]) -> dict[str, str]:
    """For `Observations.unfit`: the methods whose clips are not enough without those that were skipped."""
    unfit = {}
    for method, group in by_method(clips).items():
        kept = [clip for clip in group if clip.name not in skipped]
        lost = [clip.name for clip in group if clip.name in skipped]
        if not kept:
            unfit[method] = "none of the clips can be looked at"
        elif lost:
            try:
                metric.check(kept)
            except EvaluationError as error:
                unfit[method] = f"{error} ({len(lost)} of its clips cannot be looked at, first {lost[0]})"
    return unfit


def find_clips(folders: Sequence[Path], *, quiet: bool = True) -> FoundClips:
    """Clips in folders, also nested ones: video files, GIFs, and folders that hold PNG pictures.

    One folder is one or several methods, as the manifests' `guidance` says; the settings in which clips of
    the same guidance, prompt and seed differ join the label. Several folders are one method each. A file may
    stand for a folder. Raises EvaluationError if there is no clip.
    """
    labels = _labels(folders)
    places = [
        (folder, label, path)
        for folder, label in zip(folders, labels, strict=True)
        for path in _clip_paths(folder)
    ]
    clips, broken = [], {}
    for folder, label, path in tqdm(
        places, desc="finding clips", unit="clip", disable=quiet, file=sys.stderr
    ):
        inner = path.relative_to(folder).as_posix() if path != folder else path.name
        name = f"{label}/{inner}" if len(folders) > 1 else inner
        if not _is_text(name):
            broken[name.encode(errors="backslashreplace").decode()] = "the name of the file is not UTF-8"
            continue
        try:
            clip = _clip_file(path, name, inner, label)
            clips.append(clip if len(folders) > 1 else replace(clip, method=_guidance(clip)))
        except MediaError as error:
            broken[name] = str(error)
    if not clips:
        raise EvaluationError(
            f"no clip that can be read in {', '.join(map(str, folders))}"
            + (f" ({len(broken)} cannot be: {next(iter(broken.values()))})" if broken else "")
        )
    clips = _told_apart(clips)
    order = {method: position for position, method in enumerate(dict.fromkeys(c.method for c in clips))}
    clips.sort(key=lambda clip: (order[clip.method], clip.key, clip.name))
    return FoundClips(tuple(clips), broken)


def _is_text(name: str) -> bool:
    """Whether a name can be written; the bytes of a file's name need not be UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _labels(folders: Sequence[Path]) -> list[str]:
    """The folders' names, or their paths as given where two have the same name."""
    for folder in folders:
        if not folder.exists():
            raise EvaluationError(f"no such folder: {folder}")
    names = [folder.resolve().name for folder in folders]
    labels = names if len(set(names)) == len(names) else [folder.as_posix() for folder in folders]
    if len(set(labels)) < len(labels):
        raise EvaluationError("the same folder is given twice")
    return labels


def _clip_paths(folder: Path) -> Iterator[Path]:
    """Clips in a folder in the order of their names; hidden files and folders are not looked at.

    A folder of PNG pictures is a clip if it holds neither folders, videos nor manifests.
    """
    if folder.is_file():
        yield folder
        return
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if any(path.suffix.lower() == ".png" for path in inside) and not any(
        path.is_dir() or path.suffix.lower() in {*VIDEO_SUFFIXES, ".json"} for path in inside
    ):
        yield folder  # frames of one clip; pictures that are results of their own have manifests
        return
    for path in inside:
        if path.is_dir():
            yield from _clip_paths(path)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            yield path


def _clip_file(path: Path, name: str, inner: str, method: str) -> ClipFile:
    shape = probe_clip(path)
    job = _job_beside(path)
    prompt, seed = _first(job, "prompts", str), _first(job, "seeds", int)
    bare = Path(inner).with_suffix("").as_posix() if path.is_file() else inner
    known = [str(part) for part in (prompt, job.get("image")) if part is not None]
    return ClipFile(
        path=path,
        name=name,
        frames=shape.frames,
        height=shape.height,
        width=shape.width,
        fps=shape.fps,
        method=method,
        prompt=prompt,
        seed=seed,
        start="\n".join(known) or bare,
        settings=job,
    )


def _guidance(clip: ClipFile) -> str:
    return str(clip.settings.get("guidance", clip.method))


def _first(job: Mapping[str, Any], name: str, kind: type) -> Any:
    values = job.get(name)
    return values[0] if isinstance(values, list) and values and isinstance(values[0], kind) else None


def _job_beside(path: Path) -> dict[str, Any]:
    """The settings in the manifest beside a clip; empty if there is none of ours."""
    try:
        return parse_manifest(manifest_path(path).read_text(encoding="utf-8"), "").settings
    except (OSError, ValueError):
        return {}


def _told_apart(clips: list[ClipFile]) -> list[ClipFile]:
    """Add to the method's label the settings in which clips of the same method, prompt and seed differ."""
    return [clip for group in by_method(clips).values() for clip in _labelled(group)]


def _labelled(group: list[ClipFile]) -> list[ClipFile]:
    if len({clip.key for clip in group}) == len(group) or not all(clip.settings for clip in group):
        return group
    names = dict.fromkeys(name for clip in group for name in clip.settings)
    varying = [
        name
        for name in names
        if name not in ("prompts", "seeds", "image", "guidance")
        and len({json.dumps(clip.settings.get(name)) for clip in group}) > 1
    ]
    if not varying:
        return group
    return [replace(clip, method=f"{clip.method} ({_shown(clip.settings, varying)})") for clip in group]


def _shown(settings: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name}={_plain(settings.get(name))}" for name in names)


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)

"""Clips on disk, with what their manifests say about them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from oseg_video import console
from oseg_video.config.manifest import find_manifest
from oseg_video.evaluation.errors import EvaluationError
from oseg_video.evaluation.folders import find_image_paths, find_paths
from oseg_video.media import MediaError, frame_files, probe_clip

SHOWN_NOWHERE = ("out", "format", "device", "offload", "vae_tiling")
"""Settings that say nothing of what a clip shows."""


@dataclass(frozen=True, kw_only=True)
class ClipFile:
    """A clip that can be read. Frames, size and fps are what the file says, never assumed."""

    path: Path
    """A video file, an animated image or a folder of images."""
    name: str
    """Its path relative to the folder that was asked for, with that folder's label in front if there are
    several; unique in an evaluation."""
    frames: int
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    fps: float | None
    """Frames per second, or None where the file does not say (a folder of images)."""
    method: str
    """The row of the table that it belongs to."""
    prompt: str | None
    """From the manifest; None without one, or where the model takes no text."""
    seed: int | None
    """From the manifest; None without one."""
    start: str
    """What clips of different methods have in common when they answer the same request: prompt, and SHA-256
    of the image, of the manifest; without one its path in the folder, without suffix where that is enough."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The job in the manifest; empty without one."""
    weights: str | None = None
    """What tells the model's weights from others of its name: commit or fingerprint, from the manifest."""
    sound: bool = False
    """Whether the file has sound, as its manifest says."""
    reader: str = ""
    """What reads it: "pyav" or "pillow"; "" of a clip that is not made yet."""

    @property
    def key(self) -> tuple[str, int]:
        """Equal for clips of different methods made from the same prompt, image and seed."""
        return self.start, -1 if self.seed is None else self.seed

    @property
    def guidance(self) -> str:
        """The method of the manifest, or else the row."""
        return str(self.settings.get("guidance", self.method))

    @property
    def made_with(self) -> Mapping[str, Any]:
        """All that the manifest says the clip was made with; empty without one."""
        return {**self.settings, "weights": self.weights} if self.settings else {}

    @property
    def kind(self) -> str:
        """The suffix of the file, or of a folder's first image."""
        file = frame_files(self.path)[0] if self.path.is_dir() else self.path
        return file.suffix.lower().lstrip(".")


@dataclass(frozen=True)
class FoundClips:
    """What is in the folders."""

    clips: tuple[ClipFile, ...]
    """Sorted by method (in the order of the folders), then by key and name."""
    broken: Mapping[str, str]
    """Files that look like clips and cannot be read: name -> why."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """What is not measured because it is no clip, or the same clip again: name -> why."""

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


def find_clips(folders: Sequence[Path]) -> FoundClips:
    """Clips in folders, also nested ones: videos, animated images, and folders that hold images.

    One folder is one or several methods, as the manifests' `guidance` says; the settings in which clips of
    the same guidance, prompt and seed differ join the label. Several folders are one method each. A file may
    stand for a folder. Raises EvaluationError if there is no clip.
    """
    clips: list[ClipFile] = []
    broken: dict[str, str] = {}
    left_out: dict[str, str] = {}
    places = []
    for folder, label in zip(folders, _labels(folders), strict=True):
        prefix = f"{label}/" if len(folders) > 1 else ""
        found = find_paths(folder)
        places += [(folder, prefix, label, path) for path in found.clips]
        broken |= {_shown_name(prefix + _inner(path, folder)): why for path, why in found.unreadable.items()}
        left_out |= {_shown_name(prefix + _inner(path, folder)): why for path, why in found.left_out.items()}
    for folder, prefix, label, path in console.bar(places, "finding clips"):
        inner = _inner(path, folder)
        name = prefix + inner
        if _shown_name(name) != name:
            broken[_shown_name(name)] = "the name of the file is not UTF-8"
            continue
        try:
            clip = _clip_file(path, name, inner, label)
            clips.append(clip if len(folders) > 1 else replace(clip, method=clip.guidance))
        except MediaError as error:
            broken[name] = str(error)
    clips, copies = _without_copies(_told_apart(clips))
    left_out |= copies
    if not clips:
        bad = {**broken, **left_out}
        raise EvaluationError(
            f"no clip that can be read in {', '.join(map(str, folders))}"
            + (f" ({len(bad)} cannot be: {next(iter(bad.values()))})" if bad else "")
        )
    clips = _named_apart(_images_apart(clips))
    order = {method: position for position, method in enumerate(dict.fromkeys(c.method for c in clips))}
    # By the names of images, not by what they hold.
    clips.sort(key=lambda clip: (order[clip.method], _asked(clip) or clip.start, clip.key, clip.name))
    return FoundClips(tuple(clips), broken, left_out)


def find_images(folder: Path) -> FoundClips:
    """Every image in a folder and below it, as a clip of one frame. Raises EvaluationError for none."""
    clips: list[ClipFile] = []
    found = find_image_paths(folder)
    broken, left_out = (
        {_shown_name(_inner(path, folder)): why for path, why in some.items()}
        for some in (found.unreadable, found.left_out)
    )
    for path in console.bar(found.clips, "finding images"):
        name = _shown_name(_inner(path, folder))
        try:
            clips.append(_clip_file(path, name, name, folder.name))
        except MediaError as error:
            broken[name] = str(error)
    if not clips:
        raise EvaluationError(f"no image that can be read in {folder}")
    return FoundClips(tuple(clips), broken, left_out)


def _inner(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path != folder else path.name


def _shown_name(name: str) -> str:
    """A name that can be written; the bytes of a file's name need not be UTF-8."""
    return name.encode(errors="backslashreplace").decode()


def _without_copies(clips: Sequence[ClipFile]) -> tuple[list[ClipFile], dict[str, str]]:
    """The clips of every method, each once, and the names of those that are the same clip again.

    Links to one file are one clip, and so are equal files whose manifests, if they have any, say the same:
    counted twice they would pass for independent.
    """
    kept: list[ClipFile] = []
    copies: dict[str, str] = {}
    for group in by_method(clips).values():
        said = {clip.name: json.dumps(clip.settings, sort_keys=True) for clip in group}
        sizes = Counter((_size(clip.path), said[clip.name]) for clip in group)
        first: dict[Any, ClipFile] = {}
        for clip in group:
            at = clip.path.stat()
            keys: list[Any] = [(at.st_dev, at.st_ino, said[clip.name])]
            if sizes[_size(clip.path), said[clip.name]] > 1:
                keys.append((_content(clip.path), said[clip.name]))
            same = next((first[key] for key in keys if key in first), None)
            if same is None:
                kept.append(clip)
                first |= dict.fromkeys(keys, clip)
            else:
                copies[clip.name] = f"the same clip as {same.name}"
    return kept, copies


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]


def _size(path: Path) -> tuple[int, ...]:
    return tuple(file.stat().st_size for file in _files(path))


def _content(path: Path) -> str:
    digest = hashlib.sha256()
    for file in _files(path):
        with open(file, "rb") as data:
            digest.update(hashlib.file_digest(data, "sha256").digest())
    return digest.hexdigest()


def _images_apart(clips: Sequence[ClipFile]) -> list[ClipFile]:
    """Files of equal images are two requests, and go by their names, where one method has clips of both."""
    named: dict[tuple[str, tuple[str, int]], set[str]] = {}
    for clip in clips:
        named.setdefault((clip.method, clip.key), set()).add(_asked(clip))
    twice = {start for (_, (start, _)), images in named.items() if len(images) > 1}
    return [replace(clip, start=_asked(clip)) if clip.start in twice else clip for clip in clips]


def _asked(clip: ClipFile) -> str:
    """Prompt and name of the image, as the manifest has them; empty without one."""
    return "\n".join(str(one) for one in (clip.prompt, clip.settings.get("image")) if one is not None)


def _named_apart(clips: Sequence[ClipFile]) -> list[ClipFile]:
    """b.mp4 and b.avi of one method are two requests, so their suffixes count, in the other methods too."""
    counts = Counter((clip.method, clip.start) for clip in clips if not clip.settings)
    twice = {start for (_, start), count in counts.items() if count > 1}
    return [
        replace(clip, start=clip.start + clip.path.suffix)
        if not clip.settings and clip.start in twice and not clip.path.is_dir()
        else clip
        for clip in clips
    ]


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


def _clip_file(path: Path, name: str, inner: str, method: str) -> ClipFile:
    shape = probe_clip(path)
    manifest = find_manifest(path)
    job = manifest.settings if manifest else {}
    prompt, seed = _first(job, "prompts", str), _first(job, "seeds", int)
    bare = Path(inner).with_suffix("").as_posix() if path.is_file() else inner
    image = ((manifest and manifest.image) or {}).get("sha256", job.get("image"))
    known = [str(part) for part in (prompt, image) if part is not None]
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
        start="\n".join(known) if known else bare,  # an empty prompt is one
        settings=job,
        weights=_weights(manifest.model if manifest else {}),
        sound=manifest is not None and "sound" in manifest.clip and path.suffix.lower() == ".mp4",
        reader=shape.reader,
    )


def _weights(model: Mapping[str, Any]) -> str | None:
    said = model.get("commit") or model.get("sha256")
    return said[:12] if isinstance(said, str) else None


def _first(job: Mapping[str, Any], name: str, kind: type) -> Any:
    values = job.get(name)
    return values[0] if isinstance(values, list) and values and isinstance(values[0], kind) else None


def _told_apart(clips: list[ClipFile]) -> list[ClipFile]:
    """Add to the method's label the settings in which clips of the same method, prompt and seed differ."""
    return [clip for group in by_method(clips).values() for clip in _labelled(group)]


def varying_settings(clips: Sequence[ClipFile]) -> dict[str, list[str]]:
    """The settings in which clips differ, and their values; none where a clip has no manifest."""
    if not all(clip.settings for clip in clips):
        return {}
    names = dict.fromkeys(name for clip in clips for name in clip.made_with)
    values = {name: sorted({_plain(clip.made_with.get(name)) for clip in clips}) for name in names}
    return {name: found for name, found in values.items() if len(found) > 1}


def _labelled(group: list[ClipFile]) -> list[ClipFile]:
    if len({clip.key for clip in group}) == len(group):
        return group
    request = ("prompts", "seeds", "image", "guidance")
    varying = [name for name in varying_settings(group) if name not in request]
    # Each clip may have a file of its own in `out`.
    varying = [name for name in varying if name not in SHOWN_NOWHERE] or varying
    if not varying:
        return group
    return [replace(clip, method=f"{clip.method} ({_shown(clip.made_with, varying)})") for clip in group]


def _shown(settings: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name}={_plain(settings.get(name))}" for name in names)


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)

"""Make a clip again from its manifest, and say whether the frames are the same."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from oseg_video.adapters import adapter_for_class
from oseg_video.config.manifest import Manifest, read_manifest
from oseg_video.jobs.generate import generate
from oseg_video.jobs.image import image_sha256
from oseg_video.jobs.model import ClipResult


@dataclass(frozen=True)
class Reproduction:
    """A clip made again."""

    result: ClipResult
    identical: bool
    """Whether every generated frame, and every sample of the sound, equals the original's, before lossy
    encoding."""
    differences: tuple[str, ...]
    """What else differs between then and now: versions, machine, model files, image."""


def reproduce(
    file: Path,
    *,
    out: str | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> Reproduction:
    """Make the clip of `file` (an mp4, a manifest, or a clip beside its manifest) again and compare.

    out: where to write it; default: beside the file, with "-reproduced" in its name.
    device: run there instead of where the manifest says. Raises OsegVideoError as `generate` does.
    """
    file = Path(file)
    manifest = read_manifest(file)
    job = manifest.read_job()
    image = adapter_for_class(str(manifest.model.get("pipeline"))).makes_images
    out = out or str(reproduced_path(file, image=image))
    job = dataclasses.replace(
        job, out=out, device=device or job.device, image=_image(manifest, job.image, file.absolute().parent)
    )
    with _threads(manifest.machine.get("threads")):
        (result,) = generate(job, overwrite=overwrite)
    return Reproduction(
        result,
        identical=all(
            then.get("sha256") == now.get("sha256")
            for then, now in (
                (manifest.clip, result.manifest.clip),
                (_sound(manifest), _sound(result.manifest)),
            )
        ),
        differences=tuple(describe_differences(manifest, result.manifest)),
    )


def _image(manifest: Manifest, image: str | None, folder: Path) -> str | None:
    """Where the image is, which was named from the folder of its time: it may lie beside the clip as well.

    Of several files the one with the content that the manifest names, or else the first.
    """
    if image is None:
        return None
    there = [one for one in (Path(image), folder / image, folder / Path(image).name) if one.is_file()]
    known = (manifest.image or {}).get("sha256")
    same = (one for one in there if image_sha256(one) == known)
    return str(next(same, there[0] if there else image))


def _sound(manifest: Manifest) -> Mapping[str, Any]:
    sound = manifest.clip.get("sound")
    return sound if isinstance(sound, Mapping) else {}


def reproduced_path(file: Path, *, image: bool = False) -> Path:
    """`a.mp4` -> `a-reproduced.mp4`; a folder of images gives another folder, a manifest an mp4, or a PNG
    where the clip is one `image`."""
    if file.is_dir():
        return file.with_name(f"{file.name}-reproduced.png")
    made = ".png" if image else ".mp4"
    suffix = made if file.suffix.lower() == ".json" else file.suffix
    return file.with_name(f"{file.stem}-reproduced{suffix}")


def describe_differences(then: Manifest, now: Manifest) -> Iterator[str]:
    """What of a clip's surroundings changed, one short text each."""
    for name in sorted({*then.versions, *now.versions}):
        before, after = then.versions.get(name), now.versions.get(name)
        if before != after:
            yield f"{name} {before} -> {after}"
    for name in ("device", "name", "system", "threads", "parallel"):
        before, after = then.machine.get(name), now.machine.get(name)
        if before != after:
            yield f"{name} {before} -> {after}"
    files = {"model": (then.model, now.model), "image": (then.image or {}, now.image or {})}
    for part, (old, new) in files.items():
        if old.get("sha256") != new.get("sha256"):
            yield f"the files of the {part}"


_MOST_THREADS = 1024
"""A manifest that names more was not made on any machine."""


@contextlib.contextmanager
def _threads(count: Any) -> Iterator[None]:
    """Run with as many threads as the original: sums on a CPU depend on how they are split."""
    before = torch.get_num_threads()
    if isinstance(count, int) and 0 < count <= _MOST_THREADS:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""What a clip knows about how it was made: a JSON file beside it, and the same inside an mp4."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from oseg_video.config import GenerateJob, job_from_plain, job_to_plain
from oseg_video.jobs.image import PictureError, read_picture_comment
from oseg_video.media import MediaError, read_comment
from oseg_video.types import OsegVideoError

SCHEMA = 1
"""Version of the manifest's layout; a reader refuses a newer one."""

# Where a clip is written does not determine what it shows.
_NOT_RECORDED = ("out", "format")
_PACKAGES = (
    "oseg-video",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "sentencepiece",
    "numpy",
    "pillow",
    "imageio-ffmpeg",
)


class ManifestError(OsegVideoError):
    """A file without a manifest that can be used; the message names it."""


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a clip's pixels may depend on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "unknown"
    return versions


def machine(device: torch.device) -> dict[str, Any]:
    """The device that ran the model, and what else floating-point results depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "device": str(device),
        "name": name or platform.machine(),
        "system": platform.system(),
        # Sums are split over the threads, so their number changes the last bits.
        "threads": torch.get_num_threads(),
    }


def build_manifest(
    job: GenerateJob,
    *,
    model: Mapping[str, Any],
    clip: Mapping[str, Any],
    passes: Mapping[str, Any],
    seconds: Mapping[str, float | None],
    device: torch.device,
    image: Mapping[str, Any] | None,
    parallel: str,
) -> dict[str, Any]:
    """The manifest of one clip; `job` is resolved and has the clip's one prompt and one seed."""
    settings = {k: v for k, v in job_to_plain(job).items() if k not in _NOT_RECORDED}
    return {
        "schema": SCHEMA,
        "made_by": "oseg-video",
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "job": settings,
        "model": dict(model),
        "clip": dict(clip),
        "image": dict(image) if image else None,
        "passes": dict(passes),
        "seconds": dict(seconds),
        "machine": {**machine(device), "parallel": parallel},
        "versions": package_versions(),
    }


def manifest_job(manifest: Mapping[str, Any]) -> GenerateJob:
    """The job that makes the clip again. Raises SettingError if this version does not know a setting."""
    return job_from_plain(manifest["job"])


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """The manifest as it stands in the JSON file."""
    return json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def manifest_comment(manifest: Mapping[str, Any]) -> str:
    """The manifest as it stands in an mp4's or a PNG's metadata: one line."""
    return json.dumps(manifest, allow_nan=False)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a clip: from a .json file, from inside an mp4 or PNG, or from the .json beside a clip.

    Raises ManifestError if there is none or if it is from a newer version.
    """
    path = Path(path)
    if not path.exists():
        raise ManifestError(f"no such file: {path}")
    text, source = _find_text(path)
    try:
        manifest = json.loads(text)
    except ValueError:
        raise ManifestError(f"{source} holds no manifest of oseg-video") from None
    if not isinstance(manifest, dict) or manifest.get("made_by") != "oseg-video":
        raise ManifestError(f"{source} holds no manifest of oseg-video")
    schema = manifest.get("schema")
    if schema != SCHEMA:
        raise ManifestError(f"{source} has a manifest of schema {schema!r}; this version reads {SCHEMA}")
    if not all(
        isinstance(manifest.get(key), dict) for key in ("job", "clip", "versions", "machine", "model")
    ):
        raise ManifestError(f"{source} has an incomplete manifest")
    return manifest


def _find_text(path: Path) -> tuple[str, Path]:
    try:
        if path.suffix.lower() == ".json":
            return path.read_text(encoding="utf-8"), path
        if path.suffix.lower() == ".mp4" and (comment := read_comment(path)):
            return comment, path
        if path.suffix.lower() == ".png" and path.is_file() and (comment := read_picture_comment(path)):
            return comment, path
        stem = path.stem if path.is_file() else path.name
        beside = path.with_name(f"{stem}.json")
        if not beside.is_file():
            raise ManifestError(
                f"{path} holds no manifest of oseg-video, and there is no {beside.name} beside it"
            )
        return beside.read_text(encoding="utf-8"), beside
    except OSError as error:
        raise ManifestError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, MediaError, PictureError) as error:
        raise ManifestError(f"cannot read {path}: {error}") from None

"""What a clip knows about how it was made: a JSON file beside it, and the same inside an mp4 or a PNG.

One dataclass, read by one function. Manifests of schema 1 (before methods declared their settings) are read
as if they had been written today.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import math
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from oseg_video.config.job import GenerateJob
from oseg_video.config.keys import job_from_nested, job_from_plain, job_to_nested, job_to_plain
from oseg_video.settings.kinds import LARGEST
from oseg_video.types import OsegVideoError, SettingError

SCHEMA = 2
"""Version of the layout; a reader refuses a newer one."""
MADE_BY = "oseg-video"
_DEEPEST = 50

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


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """How one clip was made. The mappings hold plain JSON types."""

    job: Mapping[str, Any]
    """The resolved job, as `job_to_nested` writes it, with the clip's one prompt (or none) and one seed."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Its name, pipeline class, repository, commit, and the SHA-256 of its files."""
    clip: Mapping[str, Any] = field(default_factory=dict)
    """Frames, height, width, fps, and the SHA-256 of the frames before any lossy encoding; of a sound its
    channels, samples, rate and SHA-256."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of Python and of the packages that pixels may depend on."""
    machine: Mapping[str, Any] = field(default_factory=dict)
    """The device, and what else floating-point results depend on."""
    passes: Mapping[str, Any] = field(default_factory=dict)
    """What really ran, see `engine.report`."""
    seconds: Mapping[str, float | None] = field(default_factory=dict)
    """Wall clock."""
    image: Mapping[str, Any] | None = None
    """File and SHA-256 of the image that the clip starts from."""
    created: str = ""
    """UTC, ISO 8601."""

    @property
    def method(self) -> str:
        """Name of the guidance method."""
        guidance = self.job.get("guidance")
        return str(guidance.get("method", "") if isinstance(guidance, Mapping) else guidance or "")

    @property
    def prompt(self) -> str | None:
        """None where the model takes no text."""
        prompt: str | None = _first(self.job.get("prompts"), str)
        return prompt

    @property
    def seed(self) -> int | None:
        """The clip's seed."""
        seed: int | None = _first(self.job.get("seeds"), int)
        return seed

    @property
    def settings(self) -> dict[str, Any]:
        """All settings by their flat keys, as plain JSON types; as far as this version knows the method."""
        try:
            return job_to_plain(self.read_job())
        except SettingError:
            own = self.job.get("own")
            flat = {**self.job, **(own if isinstance(own, Mapping) else {})}
            return {**{k: v for k, v in flat.items() if k != "own"}, "guidance": self.method}

    def read_job(self) -> GenerateJob:
        """The job that makes the clip again. Raises SettingError if this version does not know a setting."""
        if not isinstance(self.job.get("guidance"), Mapping):
            return job_from_nested(_upgraded(self.job))
        return job_from_nested(self.job)

    def plain(self) -> dict[str, Any]:
        """As plain JSON types."""
        fields = {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self)}
        return {"schema": SCHEMA, "made_by": MADE_BY, **fields}

    @property
    def text(self) -> str:
        """As it stands in the JSON file."""
        return json.dumps(self.plain(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @property
    def comment(self) -> str:
        """As it stands in an mp4's or a PNG's metadata: one line."""
        return json.dumps(self.plain(), allow_nan=False)


def new_manifest(job: GenerateJob, **parts: Any) -> Manifest:
    """The manifest of a clip that was made now; `parts` are the fields of `Manifest` besides the job's."""
    recorded = {k: v for k, v in job_to_nested(job).items() if k not in _NOT_RECORDED}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Manifest(job=recorded, versions=package_versions(), created=now, **parts)


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a clip's pixels may depend on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "unknown"
    return versions


def read_manifest(path: Path) -> Manifest:
    """The manifest of a clip: from a .json file, from inside an mp4 or PNG, or from the .json beside a clip.

    Raises ManifestError if there is none or if it is from a newer version.
    """
    path = Path(path)
    if not path.exists():
        raise ManifestError(f"no such file: {path}")
    beside = path.with_name(f"{path.stem if path.is_file() else path.name}.json")
    found = _text_inside(path) or _text_of(beside)
    if found is None:
        raise ManifestError(
            f"{path} holds no manifest of oseg-video, and there is no {beside.name} beside it"
        )
    text, source = found
    manifest = parse_manifest(text, source)
    if not all((manifest.clip, manifest.versions, manifest.machine, manifest.model)):
        raise ManifestError(f"{source} has an incomplete manifest")
    return manifest


def find_manifest(path: Path) -> Manifest | None:
    """The manifest inside a clip, or else beside it, of which all but the job may be missing.

    None if there is none of ours, or none that can be read.
    """
    with contextlib.suppress(ManifestError):
        if found := _text_inside(path):
            return parse_manifest(*found)
    with contextlib.suppress(ManifestError):
        if found := _text_of(manifest_path(path)):
            return parse_manifest(*found)
    return None


def parse_manifest(text: str, source: str) -> Manifest:
    """The manifest in a text, of which all but the job may be missing; `source` names it in errors.

    Raises ManifestError.
    """
    plain = _plain_json(text)
    if not isinstance(plain, dict) or plain.get("made_by") != MADE_BY:
        raise ManifestError(f"{source} holds no manifest of oseg-video")
    schema = plain.get("schema")
    if schema not in (1, SCHEMA):
        raise ManifestError(
            f"{source} has a manifest of schema {schema!r}; this version reads 1 and {SCHEMA}"
        )
    mappings = ("clip", "versions", "machine", "model", "passes", "seconds")
    kinds: dict[str, Any] = {**dict.fromkeys(mappings, dict), "image": dict | None, "created": str}
    if not isinstance(plain.get("job"), dict) or not all(
        isinstance(plain[key], kind) for key, kind in kinds.items() if key in plain
    ):
        raise ManifestError(f"{source} has an incomplete manifest")
    if schema == 1:
        with contextlib.suppress(SettingError):  # `read_job` says what is wrong
            plain["job"] = _upgraded(plain["job"])
    elif isinstance(guidance := plain["job"].get("guidance"), dict):
        plain["job"]["guidance"] = _with_perturb(guidance)
    known = {spec.name for spec in dataclasses.fields(Manifest)}
    return Manifest(**{name: value for name, value in plain.items() if name in known})


def _plain_json(text: str) -> Any:
    """What a JSON text says; None for one that this program cannot have written.

    It writes finite numbers below `LARGEST`, text that is Unicode, and no deep nesting.
    """

    def number(kind: type, digits: str) -> Any:
        value = kind(digits) if len(digits) < 400 else math.inf
        if not abs(value) < LARGEST:
            raise ValueError(digits)
        return value

    def depth(value: Any) -> int:
        below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return 1 + max(map(depth, below), default=0)

    try:
        plain = json.loads(
            text, parse_int=partial(number, int), parse_float=partial(number, float), parse_constant=float
        )
        json.dumps(plain, ensure_ascii=False, allow_nan=False).encode()
        return plain if depth(plain) <= _DEEPEST else None
    except (ValueError, RecursionError):
        return None


def manifest_path(clip: Path) -> Path:
    """Place of a clip's manifest: `a.mp4` has `a.json`, the folder of images `a` has `a.json` too."""
    stem = clip.stem if clip.suffix.lower() in (".mp4", ".gif", ".png") else clip.name
    return clip.with_name(f"{stem}.json")


def _upgraded(job: Mapping[str, Any]) -> dict[str, Any]:
    """The job of a manifest of schema 1, where all settings stood side by side, null where not set."""
    flat = _with_perturb({name: value for name, value in job.items() if value is not None})
    released = flat.pop("rule", None) == "published"
    skip = flat.pop("published_skip", None)
    if released:
        flat["guidance"] = "oseg-released"
        flat["skip_conditional"] = skip
        flat["oseg_released_scale"] = flat.pop("oseg_scale", None)
    return {k: v for k, v in job_to_nested(job_from_plain(flat)).items() if k not in _NOT_RECORDED}


def _with_perturb(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which OSEG's `perturb` was called `perturb_unconditional`, true or false."""
    renamed = dict(settings)
    before = renamed.pop("perturb_unconditional", None)
    return renamed if before is None else {**renamed, "perturb": "both" if before else "cond"}


def _first(values: Any, kind: type) -> Any:
    return values[0] if isinstance(values, list) and values and isinstance(values[0], kind) else None


def _png_comment(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as image:
        return str(image.info.get("comment", ""))


def _text_inside(path: Path) -> tuple[str, str] | None:
    """What a .json file says, or an mp4 or a PNG in its metadata, and the file. Raises ManifestError."""
    from oseg_video.media import read_comment

    suffix = path.suffix.lower()
    with _reading(path):
        if suffix == ".json":
            return path.read_text(encoding="utf-8"), str(path)
        if suffix not in (".mp4", ".png") or not path.is_file():
            return None
        comment = read_comment(path) if suffix == ".mp4" else _png_comment(path)
        return (comment, str(path)) if comment else None


def _text_of(file: Path) -> tuple[str, str] | None:
    """What a file beside a clip says, if it is there, and its name. Raises ManifestError."""
    with _reading(file):
        return (file.read_text(encoding="utf-8"), str(file)) if file.is_file() else None


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    from oseg_video.media import MediaError

    try:
        yield
    except OSError as error:
        raise ManifestError(f"cannot read {path}: {error.strerror or 'it is damaged'}") from None
    except MediaError as error:
        raise ManifestError(str(error)) from None
    except Exception as error:  # what Pillow raises on damaged files is of a dozen types
        said = error if isinstance(error, UnicodeDecodeError) else "it is damaged"
        raise ManifestError(f"cannot read {path}: {said}") from None

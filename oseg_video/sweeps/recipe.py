"""The YAML file of a sweep, read strictly.

```yaml
prompts: [a red circle, a blue square]  # or {file: LINES.txt}, {images: FOLDER}, {vbench: FULL_INFO.json}
seeds: [0, 1]                           # or {first: 0, count: 2048}
methods: [cfg, oseg]                    # or a mapping from your names to settings
models: [embedded]                      # likewise
settings: {steps: 8}                    # of every clip
out: outputs/sweep
```

Paths in it are relative to the file, `out` to the working directory. Later ones win: the recipes of model and
method, `settings`, the model's settings, the method's. More keys: `oseg_video.comparison.recipe`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from oseg_video.config import ConfigError, read_setting
from oseg_video.config.job import MOST_CLIPS
from oseg_video.config.keys import JOB
from oseg_video.config.prompts import read_prompts, read_vbench_prompts
from oseg_video.config.recipes import SECTIONS, WEIGHTS, settings_of
from oseg_video.config.strict_yaml import load_yaml
from oseg_video.guidance.methods import METHODS
from oseg_video.settings.suggest import known_or_nearest
from oseg_video.types import SettingError

_KEYS = ("about", "prompts", "seeds", "methods", "models", "settings", "out")
OF_COMPARE = ("metrics", "baseline", "reported")
"""Keys that only `oseg-video compare` reads, so that one file serves both."""
# What the axes of the table set.
_AXES = ("prompts", "image", "seeds", "out")
_MODEL = JOB["model"].default
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What a clip shows: a prompt, an image to start from, or both."""

    prompt: str | None = None
    image: str | None = None
    """Path of the image."""

    @property
    def kind(self) -> tuple[bool, bool, bool]:
        """Subjects of one kind have the settings of a job in common: those with words, with an image."""
        return self.prompt is None, not (self.prompt or "").strip(), self.image is None


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepRecipe:
    """The axes of a sweep. Settings are plain values, as in a recipe of `generate`."""

    subjects: tuple[Subject, ...]
    seeds: tuple[int, ...] = (0,)
    methods: Mapping[str, Mapping[str, Any]]
    """Name of each method for the reader -> its settings, `guidance` among them."""
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {_MODEL: {}})
    """Name of each model for the reader -> its settings, `model` among them."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of every clip."""
    out: str | None = None
    """Folder or URL of the clips."""

    def __post_init__(self) -> None:
        for name in ("subjects", "seeds", "methods", "models"):
            if not getattr(self, name):
                raise SettingError(f"a sweep needs {name}, got none")
        counts = [len(axis) for axis in (self.subjects, self.seeds, self.methods, self.models)]
        if math.prod(counts) > MOST_CLIPS:
            prompts, seeds, methods, models = counts
            raise SettingError(
                f"a sweep has at most {MOST_CLIPS} clips, got {prompts} prompts x {seeds} seeds x {methods} "
                f"methods x {models} models"
            )

    def changed(
        self,
        *,
        settings: Mapping[str, Any] = MappingProxyType({}),
        methods: Mapping[str, Mapping[str, Any]] | None = None,
        models: Mapping[str, Mapping[str, Any]] | None = None,
        limit: int | None = None,
        **axes: Any,
    ) -> SweepRecipe:
        """The recipe with other axes, and with `settings` that win over all of its own.

        Methods and models that it has under the same name keep their settings. limit: of the subjects only
        the first so many; of a single one, of the seeds.
        """
        chosen = {name: self.methods.get(name, own) for name, own in (methods or self.methods).items()}
        changed = dataclasses.replace(
            self,
            methods={name: {**own, **settings} for name, own in chosen.items()},
            models={name: self.models.get(name, own) for name, own in (models or self.models).items()},
            **axes,
        )
        if len(changed.subjects) == 1:
            return dataclasses.replace(changed, seeds=changed.seeds[:limit])
        return dataclasses.replace(changed, subjects=changed.subjects[:limit])


def read_sweep(path: Path) -> SweepRecipe:
    """The sweep of a YAML file. Raises ConfigError naming the file and the key."""
    path = Path(path)
    return sweep_of(load_yaml(path), path)


def sweep_of(content: Mapping[Any, Any], path: Path) -> SweepRecipe:
    """The sweep of what a YAML file says. Raises as `read_sweep` does."""
    known = (*_KEYS, *OF_COMPARE)
    for key in content:
        if key == "published":
            raise ConfigError(
                f"{path.name}: published is called reported now, and its figures are its values"
            )
        if key not in known:
            raise ConfigError(f"{path.name}: unknown key {key!r}; {known_or_nearest(str(key), known)}")
    for key in ("prompts", "methods"):
        if not content.get(key):
            raise ConfigError(f"{path.name}: a sweep needs {key}")
    out = content.get("out")
    if out is not None and (not isinstance(out, str) or not out):
        raise ConfigError(f"{path.name}: out must be a folder or a URL, got {out!r}")
    try:
        return SweepRecipe(
            subjects=_subjects(content["prompts"], path),
            seeds=_seeds(content.get("seeds", [0])),
            methods=_named(content["methods"], "methods", _method_settings, path),
            models=_named(content.get("models", [_MODEL]), "models", _model_settings, path),
            settings=_settings(content.get("settings", {}), path, (*_AXES, "model", "guidance"), "settings"),
            out=out,
        )
    except SettingError as error:
        raise ConfigError(f"{path.name}: {error}") from None


def _subjects(value: Any, path: Path) -> tuple[Subject, ...]:
    if isinstance(value, list):
        return tuple(_subject(entry, path) for entry in value)
    if isinstance(value, dict) and len(value) == 1 and isinstance(value.get("file"), str):
        return tuple(Subject(prompt=line) for line in read_prompts(path.parent / value["file"]))
    if isinstance(value, dict) and len(value) == 1 and isinstance(value.get("images"), str):
        return _images(path.parent / value["images"])
    if (
        isinstance(value, dict)
        and {*value} <= {"vbench", "dimensions"}
        and isinstance(value.get("vbench"), str)
    ):
        dimensions = value.get("dimensions", [])
        if not isinstance(dimensions, list):
            raise SettingError(f"dimensions must be a list of names, got {dimensions!r}")
        prompts = read_vbench_prompts(path.parent / value["vbench"], dimensions)
        return tuple(Subject(prompt=prompt) for prompt in prompts)
    raise SettingError(
        "prompts must be a list, or one of {file: PATH}, {images: FOLDER}, {vbench: PATH, dimensions: [..]}, "
        f"got {value!r}"
    )


def _subject(entry: Any, path: Path) -> Subject:
    if isinstance(entry, str):
        return Subject(prompt=entry)
    if (
        not isinstance(entry, dict)
        or not entry
        or not {*entry} <= {"prompt", "image"}
        or not all(isinstance(value, str) for value in entry.values())
    ):
        raise SettingError(f"a prompt must be text, or a mapping of prompt and image, got {entry!r}")
    image = entry.get("image")
    return Subject(prompt=entry.get("prompt"), image=None if image is None else str(path.parent / image))


def _images(folder: Path) -> tuple[Subject, ...]:
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _IMAGE_SUFFIXES)
    except OSError as error:
        raise ConfigError(f"cannot read {folder}: {error.strerror}") from None
    except ValueError:  # a NUL or a lone surrogate in the name
        raise ConfigError(f"cannot read {str(folder)!r}: no such folder") from None
    if not files:
        raise ConfigError(f"{folder} has no images ({', '.join(sorted(_IMAGE_SUFFIXES))})")
    return tuple(Subject(image=str(file)) for file in files)


def _seeds(value: Any) -> tuple[int, ...]:
    if isinstance(value, dict):
        first, count = value.get("first", 0), value.get("count", 0)
        whole = type(first) is int and type(count) is int
        if not {*value} <= {"first", "count"} or not whole or not 1 <= count <= MOST_CLIPS:
            raise SettingError(
                f"seeds must be a list, or first and count (up to {MOST_CLIPS}), got {value!r}"
            )
        value = list(range(first, first + count))
    return tuple(read_setting("seeds", value))


def _named(
    value: Any, what: str, read: Callable[[str, Any, Path], dict[str, Any]], path: Path
) -> dict[str, dict[str, Any]]:
    """Names -> settings, from a list of names or from a mapping."""
    entries = (
        dict.fromkeys(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else value
    )
    if not isinstance(entries, dict) or not entries or len(entries) != len(value):
        raise SettingError(
            f"{what} must be a list of different names or a mapping of names to settings, got {value!r}"
        )
    return {str(name): read(str(name), settings or {}, path) for name, settings in entries.items()}


def _method_settings(name: str, settings: Any, path: Path) -> dict[str, Any]:
    given = _settings(settings, path, (*_AXES, "model"), f"methods: {name}", method=name)
    if "guidance" not in given and name not in METHODS:
        raise SettingError(f"unknown method {name!r}; {known_or_nearest(name, METHODS)}")
    return {"guidance": name, **given}


def _model_settings(name: str, settings: Any, path: Path) -> dict[str, Any]:
    return {"model": name, **_settings(settings, path, (*_AXES, "guidance"), f"models: {name}")}


def _settings(
    settings: Any, path: Path, elsewhere: tuple[str, ...], where: str, method: str | None = None
) -> dict[str, Any]:
    if not isinstance(settings, dict):
        raise SettingError(f"{where} must be a mapping of settings, got {settings!r}")
    given = settings_of(settings, path, settings.get("guidance", method))
    for name in (SECTIONS, WEIGHTS):
        if name in settings:
            raise SettingError(
                f"{where}: {name} are sections of a recipe of generate, and cannot be set here"
            )
    for name in given:
        if name in elsewhere:
            raise SettingError(f"{where}: {name} is an axis of the sweep and cannot be set here")
    return given

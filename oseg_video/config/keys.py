"""The flat keys of a job: what flags, YAML recipes and sweeps call its settings, and back to the job.

Derived from what is declared elsewhere: the fields of `GenerateJob`, the settings of every guidance method,
those of every model family, and those of `Reuse`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from functools import lru_cache
from typing import Any

from oseg_video.adapters import all_adapters, family_settings
from oseg_video.config.job import GenerateJob
from oseg_video.guidance.flat import (
    METHOD,
    RENAMED,
    FlatSetting,
    flat_settings,
    guidance_from_flat,
    guidance_from_nested,
    guidance_to_flat,
    guidance_to_nested,
)
from oseg_video.guidance.methods import METHODS
from oseg_video.guidance.reuse import Reuse
from oseg_video.settings import Setting, settings_of
from oseg_video.settings.kinds import TEXT
from oseg_video.settings.suggest import known_or_nearest
from oseg_video.types import SettingError

JOB = settings_of(GenerateJob)
"""The settings that every job has, by name."""
REUSE = settings_of(Reuse)
"""Those of what a step takes over from the steps before it."""
DEFAULT_METHOD = "oseg"


@dataclass(frozen=True)
class Key:
    """A flat key."""

    setting: Setting
    help: str
    group: str
    """Heading in `--help`: "clip", "model", "output", "method", "guidance", "reuse" or "family"."""

    @property
    def optional(self) -> bool:
        """Whether null is allowed: left to the default."""
        return self.group in ("guidance", "family") or self.setting.default is None


def known_keys() -> dict[str, Key]:
    """Every flat key, in the order of the documentation."""
    return _known_keys(tuple(METHODS), tuple(adapter.family for adapter in all_adapters()))


@lru_cache(maxsize=8)
def _known_keys(methods: tuple[str, ...], families: tuple[str, ...]) -> dict[str, Key]:
    groups: dict[str, dict[str, Key]] = {name: {} for name in ("clip", "family", "model")}
    groups["method"] = {
        METHOD: _key(
            Setting(
                kind=TEXT, help="guidance method", default=DEFAULT_METHOD, choices=methods, group="method"
            )
        )
    }
    groups["guidance"] = {
        name: Key(flat.setting, flat.help, "guidance") for name, flat in flat_settings().items()
    }
    groups["family"] = {
        name: Key(own.setting, f"{', '.join(own.families)}: {own.setting.help}", "family")
        for name, own in family_settings().items()
    }
    for name, setting in {**REUSE, **JOB}.items():
        groups.setdefault(setting.group, {})[name] = _key(setting)
    found: dict[str, Key] = {}
    for keys in groups.values():
        for name, key in keys.items():
            if name in found:
                raise RuntimeError(f"two settings are called {name!r}")
            found[name] = key
    return found


def _key(setting: Setting) -> Key:
    return Key(setting, setting.help, setting.group)


def key_named(name: str) -> Key:
    """The flat key of that name. Raises SettingError with the nearest one, or with what has replaced it."""
    keys = known_keys()
    if name not in keys:
        if name in RENAMED:
            raise SettingError(f"{name} is no setting any more: {RENAMED[name]}")
        raise SettingError(f"unknown setting {name!r}; {known_or_nearest(name, keys)}")
    return keys[name]


def read_setting(name: str, value: Any) -> Any:
    """A setting's value from its plain (YAML or JSON) form. Raises `SettingError` naming the setting."""
    key = key_named(name)
    if value is None:
        if not key.optional:
            raise SettingError(f"{name} must be {key.setting.kind.what}, got null")
        return None
    return key.setting.read(name, value)


def job_from_plain(keys: Mapping[str, Any]) -> GenerateJob:
    """The job of flat keys, plain or read. Raises `SettingError` on an unknown, missing or wrong one."""
    values = {name: read_setting(name, value) for name, value in keys.items()}
    missing = [name for name, setting in JOB.items() if setting.default is MISSING and name not in values]
    if missing:
        raise SettingError(f"nothing sets {', '.join(missing)}")
    by_group: dict[str, dict[str, Any]] = {"guidance": {}, "family": {}, "reuse": {}}
    known = known_keys()
    for name, value in values.items():
        by_group.setdefault(known[name].group, {})[name] = value
    method = by_group.pop("method", {}).get(METHOD) or DEFAULT_METHOD
    guidance = guidance_from_flat(method, by_group.pop("guidance"))
    own = {name: value for name, value in by_group.pop("family").items() if value is not None}
    reuse = Reuse(**by_group.pop("reuse"))
    job = {name: value for group in by_group.values() for name, value in group.items()}
    return GenerateJob(guidance=guidance, reuse=reuse, own=own, **job)


def job_to_plain(job: GenerateJob, *, defaults: bool = True) -> dict[str, Any]:
    """Every setting by its flat key, as plain JSON types; `job_from_plain` gives the job back.

    defaults: also those of the guidance and of reuse that have their default, so that they hold in later
    versions.
    """
    guidance, reuse = guidance_to_flat(job.guidance), _reuse(job)
    if not defaults:
        known = flat_settings()
        guidance = {
            name: value
            for name, value in guidance.items()
            if name == METHOD or value != _plain_default(known[name], job.guidance.name)
        }
        reuse = {
            name: value for name, value in reuse.items() if getattr(job.reuse, name) != REUSE[name].default
        }
    return {**_common(job), **guidance, **reuse, **_own(job)}


def job_to_nested(job: GenerateJob) -> dict[str, Any]:
    """The job as plain JSON types; guidance, reuse and what only the family has are mappings of their own."""
    guidance = guidance_to_nested(job.guidance)
    return {**_common(job), METHOD: guidance, "reuse": _reuse(job), "own": _own(job)}


def job_from_nested(nested: Mapping[str, Any]) -> GenerateJob:
    """The job of `job_to_nested`. Raises SettingError on an unknown, missing or wrong setting."""
    common = {name: value for name, value in nested.items() if name not in (METHOD, "reuse", "own")}
    for name in common:
        if name not in JOB:
            raise SettingError(f"unknown setting {name!r}; {known_or_nearest(name, JOB)}")
    missing = [name for name, setting in JOB.items() if setting.default is MISSING and name not in common]
    if missing:
        raise SettingError(f"nothing sets {', '.join(missing)}")
    own, reuse = nested.get("own", {}), nested.get("reuse", {})
    for group, settings in (("own", own), ("reuse", reuse)):
        if not isinstance(settings, Mapping):
            raise SettingError(f"{group} must be a mapping of settings, got {settings!r}")
    for name in reuse:
        if name not in REUSE:
            raise SettingError(f"reuse has no setting {name!r}; {known_or_nearest(name, REUSE)}")
    guidance = guidance_from_nested(nested.get(METHOD))
    return GenerateJob(guidance=guidance, reuse=Reuse(**reuse), own=own, **common)


def _common(job: GenerateJob) -> dict[str, Any]:
    return {name: setting.plain(getattr(job, name)) for name, setting in JOB.items()}


def _reuse(job: GenerateJob) -> dict[str, Any]:
    return {name: setting.plain(getattr(job.reuse, name)) for name, setting in REUSE.items()}


def _own(job: GenerateJob) -> dict[str, Any]:
    known = family_settings()
    return {name: known[name].setting.plain(value) for name, value in job.own.items()}


def _plain_default(flat: FlatSetting, method: str) -> Any:
    default = flat.defaults.get(method)
    if method not in flat.defaults:  # a setting of the text guidance
        default = next(iter(flat.defaults.values()))
    return flat.setting.plain(default)

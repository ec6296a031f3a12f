"""Guidance in its two written forms: flat keys (flags, YAML, sweep axes) and one nested mapping (manifests).

Both are read off the settings that methods declare. Flat: `{guidance: oseg, oseg_scale: 1, blocks: [34],
text: apg, eta: 0.5}`; nested: `{method: oseg, scale: 1, blocks: [34], text: {method: apg, eta: 0.5, ...}}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from oseg_video.guidance.methods import METHODS, Guidance, TextGuidance
from oseg_video.guidance.methods.base import TEXT_GUIDANCE, ScaledGuidance, text_methods
from oseg_video.settings import Setting, settings_of
from oseg_video.settings.kinds import TEXT
from oseg_video.settings.suggest import known_or_nearest
from oseg_video.types import SettingError

METHOD = "guidance"
"""The flat key that names the method."""
RENAMED = {
    "rule": "guidance oseg has the slides' rule; that of the released code is guidance oseg-released",
    "published_skip": "it is skip_conditional of guidance oseg-released now",
    "perturb_unconditional": "it is perturb now, both in place of true and cond in place of false",
}
"""Settings of earlier versions, and what to write in their place."""


@dataclass(frozen=True)
class FlatSetting:
    """A flat key of guidance."""

    setting: Setting
    defaults: Mapping[str, Any]
    """Its default by the name of every method that has it."""
    through_text: tuple[str, ...] = ()
    """Methods that take it as part of their text guidance."""

    @property
    def owners(self) -> tuple[str, ...]:
        """All methods that take it."""
        return (*self.defaults, *self.through_text)

    @property
    def help(self) -> str:
        """What it does, for whom, and its default."""
        shown = {name: _shown(value) for name, value in self.defaults.items()}
        everywhere = len(set(shown.values())) == 1
        default = (
            next(iter(shown.values())) if everywhere else ", ".join(f"{n} {v}" for n, v in shown.items())
        )
        common = len(self.defaults) > 5
        whose = "" if common else f"{', '.join(self.defaults)}: "
        return f"{whose}{self.setting.help}" + (f" (default: {default})" if default else "")


def flat_settings() -> dict[str, FlatSetting]:
    """Every flat key but `guidance`, in the order of declaration."""
    declared: dict[str, Setting] = {}
    defaults: dict[str, dict[str, Any]] = {}
    for method, name, setting in _declarations():
        key = flat_name(method, name, setting)
        if declared.setdefault(key, setting).kind is not setting.kind:
            raise RuntimeError(f"{key} of {method} is another kind of setting than in {list(defaults[key])}")
        default = "cfg" if setting.kind is TEXT_GUIDANCE else setting.default
        defaults.setdefault(key, {})[method] = default
    with_text = tuple(name for name, method in METHODS.items() if "text" in settings_of(method))
    through = _text_keys()
    for name in with_text:
        if twice := through & settings_of(METHODS[name]).keys():
            raise RuntimeError(f"{name} has a setting of the name of a text guidance's: {min(twice)}")
    return {
        key: FlatSetting(
            _as_names(setting),
            defaults[key],
            tuple(name for name in with_text if name not in defaults[key]) if key in through else (),
        )
        for key, setting in declared.items()
    }


def flat_name(method: str, name: str, setting: Setting) -> str:
    """The flat key of a method's setting."""
    return f"{method.replace('-', '_')}_{name}" if setting.per_method else name


def own_text_settings(text: type[TextGuidance]) -> dict[str, Setting]:
    """The settings that a text guidance has besides those of every method with a scale."""
    shared = settings_of(ScaledGuidance)
    return {name: setting for name, setting in settings_of(text).items() if name not in shared}


def guidance_keys(method: type[Guidance]) -> set[str]:
    """The flat keys that a method takes, those of any text guidance among them."""
    own = {flat_name(method.name, name, setting) for name, setting in settings_of(method).items()}
    return own | _text_keys() if "text" in own else own


def method_named(name: str) -> type[Guidance]:
    """The method of that name. Raises SettingError."""
    if name not in list(METHODS):
        raise SettingError(
            f"guidance must be one of {', '.join(METHODS)}, got {name!r}; "
            f"{known_or_nearest(str(name), METHODS)}"
        )
    return METHODS[name]


def guidance_from_flat(method: str, keys: Mapping[str, Any]) -> Guidance:
    """The method of that name with flat keys, plain or read; None is left to the default.

    Raises SettingError for an unknown name, a key without effect, or a value out of range, by its flat name.
    """
    chosen = method_named(method)
    given = {key: value for key, value in keys.items() if value is not None}
    mine = {flat_name(method, name, s): name for name, s in settings_of(chosen).items()}
    arguments = {mine[key]: value for key, value in given.items() if key in mine}
    rest = {key: value for key, value in given.items() if key not in mine}
    if "text" in mine.values():
        text = arguments.pop("text", "cfg")
        arguments["text"] = _text_of(text, {k: rest.pop(k) for k in list(rest) if k in _text_keys()})
    if rest:
        key = next(iter(rest))
        raise SettingError(f"{key} has no effect with guidance {method}; {_owners(key)}")
    try:
        return chosen(**arguments)
    except SettingError as error:
        raise SettingError(_flat_message(str(error), chosen)) from None


def guidance_to_flat(guidance: Guidance) -> dict[str, Any]:
    """The flat keys, as plain JSON types; `guidance_from_flat` gives the guidance back."""
    keys: dict[str, Any] = {METHOD: guidance.name}
    for name, setting in settings_of(guidance).items():
        value = getattr(guidance, name)
        if isinstance(value, TextGuidance):
            own = own_text_settings(type(value))
            keys["text"] = value.name
            keys |= {key: declared.plain(getattr(value, key)) for key, declared in own.items()}
        else:
            keys[flat_name(guidance.name, name, setting)] = setting.plain(value)
    return keys


def guidance_to_nested(guidance: Guidance) -> dict[str, Any]:
    """The nested mapping, as plain JSON types; `guidance_from_nested` gives the guidance back."""
    nested: dict[str, Any] = {"method": guidance.name}
    for name, setting in settings_of(guidance).items():
        value = getattr(guidance, name)
        if isinstance(value, TextGuidance):
            own = own_text_settings(type(value))
            nested[name] = {"method": value.name, **{k: s.plain(getattr(value, k)) for k, s in own.items()}}
        else:
            nested[name] = setting.plain(value)
    return nested


def guidance_from_nested(nested: Any) -> Guidance:
    """The guidance of a nested mapping. Raises SettingError."""
    if not isinstance(nested, Mapping) or not isinstance(nested.get("method"), str):
        raise SettingError(f"guidance must be a mapping with a method, got {nested!r}")
    method = method_named(nested["method"])
    known = settings_of(method)
    arguments: dict[str, Any] = {}
    for name, value in nested.items():
        if name == "method":
            continue
        if name not in known:
            raise SettingError(
                f"guidance {method.name} has no setting {name!r}; {known_or_nearest(name, known)}"
            )
        arguments[name] = guidance_from_nested(value) if known[name].kind is TEXT_GUIDANCE else value
    return method(**arguments)


def _declarations() -> Iterator[tuple[str, str, Setting]]:
    for method, declaring in METHODS.items():
        for name, setting in settings_of(declaring).items():
            yield method, name, setting


def _as_names(setting: Setting) -> Setting:
    """The flat form of a text guidance is its name."""
    if setting.kind is not TEXT_GUIDANCE:
        return setting
    return Setting(
        kind=TEXT, help=setting.help, default="cfg", choices=tuple(text_methods()), source=setting.source
    )


def _text_of(text: Any, keys: Mapping[str, Any]) -> TextGuidance:
    known = text_methods()
    if text not in list(known):
        raise SettingError(f"text must be one of {', '.join(known)}, got {text!r}")
    for key in keys:
        if key not in own_text_settings(known[text]):
            raise SettingError(f"{key} has no effect with text {text}; {_owners(key)}")
    return known[text](**keys)


def _text_keys() -> set[str]:
    return {name for text in text_methods().values() for name in own_text_settings(text)}


def _owners(key: str) -> str:
    if key in RENAMED:
        return RENAMED[key]
    setting = flat_settings().get(key)
    return f"it belongs to {', '.join(setting.owners)}" if setting else "no method has it"


def _flat_message(message: str, method: type[Guidance]) -> str:
    """An error about a setting begins with its name, which here is the flat one."""
    name, _, rest = message.partition(" ")
    declared = settings_of(method).get(name)
    return message if declared is None else f"{flat_name(method.name, name, declared)} {rest}"


def _shown(value: Any) -> str:
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)

"""Settings declared once: what one is, its default, bounds and help stand at its field, and nowhere else.

A dataclass declares its settings with `setting` and checks them with `check_settings` in `__post_init__`.
Flags, YAML keys, manifests, sweep axes, `--help` and tables are read off the declarations. Standard library
only, so that `--help` stays instant.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import MISSING, dataclass
from typing import Any

from oseg_video.settings.kinds import Kind
from oseg_video.types import SettingError

_KEY = "oseg_video.setting"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a setting is."""

    kind: Kind
    """How its values are read and written."""
    help: str
    """What it does, with its unit and the value that switches it off; for `--help` and for tables."""
    default: Any = MISSING
    """Value where nothing sets it; `MISSING` where something must. Only a default of None allows None."""
    choices: tuple[str, ...] = ()
    """The allowed texts; empty where all are allowed."""
    low: float = -math.inf
    """Smallest number."""
    high: float = math.inf
    """Largest number."""
    exclusive: bool = False
    """Whether `low` and `high` themselves are out."""
    source: str = ""
    """Paper, equation or file that it is taken from."""
    flag: str = ""
    """Name on the command line; made from the setting's name where it is empty."""
    aliases: tuple[str, ...] = ()
    """Other flags for it, such as diffusers' names."""
    group: str = ""
    """Heading in `--help`."""
    sound: bool = False
    """Whether it only means something to models that make sound with the video."""
    per_method: bool = False
    """Whether its flat name (flags, YAML keys) starts with the name of the method: `scale` -> `stg_scale`."""

    def read(self, name: str, value: Any) -> Any:
        """The value, in the type that it is kept in, of a value or of its plain (YAML, JSON) form.

        Raises SettingError, beginning with `name`, for a value of the wrong kind or out of bounds.
        """
        if value is None and self.default is None:
            return None
        if self.choices and value not in list(self.choices):
            raise SettingError(f"{name} must be one of {', '.join(self.choices)}, got {value!r}")
        try:
            read = self.kind.from_plain(value)
        except SettingError as error:
            raise SettingError(f"{name} must be {error}") from None
        self._check_bounds(name, read)
        return read

    def read_text(self, name: str, text: str) -> Any:
        """The value of a flag's text. Raises as `read`."""
        try:
            value = self.kind.from_text(text)
        except SettingError as error:
            raise SettingError(f"{name} must be {error}") from None
        return self.read(name, value)

    def plain(self, value: Any) -> Any:
        """The value as plain JSON types; `read` gives it back."""
        return None if value is None else self.kind.to_plain(value)

    def flag_of(self, name: str) -> str:
        """The flag of the setting called `name`."""
        return self.flag or "--" + name.replace("_", "-")

    def _check_bounds(self, name: str, value: Any) -> None:
        for number in _numbers(value):
            inside = self.low < number < self.high if self.exclusive else self.low <= number <= self.high
            if not inside:
                raise SettingError(f"{name} must be {self.bounds}, got {number}")

    @property
    def bounds(self) -> str:
        """The allowed range in words; empty where there is none."""
        if math.isinf(self.low) and math.isinf(self.high):
            return ""
        if math.isinf(self.high):
            return f"above {self.low:g}" if self.exclusive else f"at least {_shown(self.low)}"
        between = "between {} and {}" if self.exclusive else "from {} to {}"
        return between.format(_shown(self.low), _shown(self.high))


def setting(kind: Kind, help: str, *, default: Any = MISSING, **options: Any) -> Any:
    """A field of a dataclass that is a setting; `options` are the fields of `Setting`."""
    declared = Setting(kind=kind, help=help, default=default, **options)
    return dataclasses.field(default=default, metadata={_KEY: declared})


def settings_of(owner: Any) -> dict[str, Setting]:
    """The settings that a dataclass (or an instance of one) declares, by name, in order of declaration."""
    return {spec.name: spec.metadata[_KEY] for spec in dataclasses.fields(owner) if _KEY in spec.metadata}


def check_settings(owner: Any) -> None:
    """For `__post_init__`: every setting read anew, so that its type and bounds hold. Raises SettingError."""
    for name, declared in settings_of(owner).items():
        object.__setattr__(owner, name, declared.read(name, getattr(owner, name)))


def _numbers(value: Any) -> list[float]:
    """All numbers in a value: of a pair, and of a schedule at every noise level."""
    from oseg_video.settings.schedule import values_of

    found = []
    for one in values_of(value):
        for part in one if isinstance(one, tuple) else (one,):
            if isinstance(part, int | float) and not isinstance(part, bool):
                found.append(part)
    return found


def _shown(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"

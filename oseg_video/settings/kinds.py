"""Kinds of setting: how a value is read from YAML or from a flag, and written back.

Every reader raises `SettingError` with the end of a sentence, such as "an integer, got 'ten'"; whoever calls
it knows the name of the setting and puts "steps must be" in front.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from oseg_video.settings.schedule import (
    Interval,
    Schedule,
    schedule_from_plain,
    schedule_of,
    schedule_to_plain,
)
from oseg_video.types import SettingError

Blocks = tuple[int | str, ...]
"""Blocks by running index or by the adapter's names for them, such as "dual:2" or "mid"; indices first."""

LARGEST = 2**64
"""Numbers of settings and manifests are smaller: a clip that can be made has a manifest that can be read."""

_SELECTOR = re.compile(r"[a-z0-9_.:-]+")


@dataclass(frozen=True)
class Kind:
    """One kind of setting."""

    what: str
    """What a value must be, after "must be"."""
    metavar: str
    """Placeholder in the command line's help."""
    from_plain: Callable[[Any], Any]
    """Reads what YAML or JSON gave, or a value that was read before; strict: it converts no types."""
    from_text: Callable[[str], Any]
    """Reads the text of a flag."""
    to_plain: Callable[[Any], Any] = lambda value: value
    """Writes a value as plain JSON types; `from_plain` reads it back."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        hint = "; put it in quotes" if isinstance(value, bool | int | float) else ""
        raise SettingError(f"text, got {value!r}{hint}")
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise SettingError(f"text that can be written as UTF-8 and has no NUL character, got {value!r}")
    return value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise SettingError(f"an integer, got {value!r}")
    _require_small(value)
    return value


def _require_small(value: float) -> None:
    if LARGEST <= abs(value) < math.inf:
        raise SettingError("smaller than 2^64")  # which may be too large to be written here


def _integer_text(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SettingError(f"an integer, got {text!r}") from None


def _number(value: Any) -> float:
    # JSON has no infinity: the plain form of it is the text "inf".
    if value in ("inf", ".inf"):
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        # YAML 1.1 reads 1e3 as text; a decimal point makes it a number.
        raise SettingError(f"a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        raise SettingError(f"a number, got {value}, which is too large for one") from None
    _require_small(number)
    return number


def _number_text(text: str) -> float:
    try:
        return _number(float(text))
    except ValueError:
        raise SettingError(f"a number, got {text!r}") from None


def _plain_number(value: float) -> float | str:
    return "inf" if value == math.inf else value


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise SettingError(f"true or false, got {value!r}")
    return value


def _switch_text(text: str) -> bool:
    if text not in ("true", "false"):
        raise SettingError(f"true or false, got {text!r}")
    return text == "true"


def _several(read: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    return lambda value: tuple(map(read, value)) if isinstance(value, list | tuple) else (read(value),)


def _comma_separated(read: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: tuple(read(part.strip()) for part in text.split(","))


def _finite(value: Any) -> float:
    number = _number(value)
    if math.isinf(number):
        raise SettingError(f"a finite number, got {number}")
    return number


def _pair(value: Any) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise SettingError(f"two numbers, got {value!r}")
    return _number(value[0]), _number(value[1])


def _pair_text(text: str) -> tuple[float, float]:
    return _pair(_comma_separated(_number_text)(text))


def _interval(value: Any) -> tuple[float, float]:
    start, stop = _pair(value)
    try:
        Interval(start, stop)
    except SettingError:
        raise SettingError(f"two numbers with 0 <= start < stop <= 1, got ({start}, {stop})") from None
    return start, stop


def _sigma(value: Any) -> float | tuple[float, float]:
    return _pair(value) if isinstance(value, list | tuple) else _number(value)


def _sigma_text(text: str) -> float | tuple[float, float]:
    return _pair_text(text) if "," in text else _number_text(text)


def _plain_sigma(value: float | tuple[float, float]) -> Any:
    return [_plain_number(v) for v in value] if isinstance(value, tuple) else _plain_number(value)


def _scale(value: Any) -> float | Schedule[float]:
    return schedule_from_plain(value, _finite) if isinstance(value, dict | Schedule) else _finite(value)


def _scale_text(text: str) -> float | Schedule[float]:
    if ":" not in text:
        return _number_text(text)
    pairs = [part.strip().split(":") for part in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise SettingError(f"a number, or noise levels with numbers such as 1.0:4,0.5:2, got {text!r}")
    return schedule_of(((level, value) for level, value in pairs), _number_text)


def _plain_scale(value: float | Schedule[float]) -> Any:
    return schedule_to_plain(value, _plain_number) if isinstance(value, Schedule) else value


def _block(value: Any) -> int | str:
    named = isinstance(value, str) and _SELECTOR.fullmatch(value)
    indexed = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST
    if not (named or indexed):
        raise SettingError(f"block indices (integers >= 0) or names (a-z, 0-9 and _ . : -), got {value!r}")
    return value  # type: ignore[no-any-return]


def _blocks(value: Any) -> Blocks:
    blocks = _several(_block)(value)
    if len(set(blocks)) != len(blocks):
        raise SettingError(f"blocks that are each named once, got {list(blocks)}")
    return tuple(sorted(blocks, key=lambda block: (isinstance(block, str), block)))


def _scheduled_blocks(value: Any) -> Blocks | Schedule[Blocks]:
    return schedule_from_plain(value, _blocks) if isinstance(value, dict | Schedule) else _blocks(value)


def _block_text(text: str) -> int | str:
    if re.match(r"\d*\.?\d+:", text):
        raise SettingError(f"block indices or names (blocks by noise level go in a YAML file), got {text!r}")
    return _block(_integer_text(text) if text.isdecimal() else text)


def _plain_blocks(value: Blocks | Schedule[Blocks]) -> Any:
    return schedule_to_plain(value, list) if isinstance(value, Schedule) else list(value)


TEXT = Kind("text", "TEXT", _text, _text)
INTEGER = Kind("an integer", "N", _integer, _integer_text)
NUMBER = Kind("a number", "X", _number, _number_text, _plain_number)
FINITE = Kind("a finite number", "X", _finite, _number_text)
SWITCH = Kind("true or false", "", _switch, _switch_text)
TEXTS = Kind("one or several texts", "TEXT", _several(_text), lambda text: (_text(text),), list)
INTEGERS = Kind("integers", "N,N", _several(_integer), _comma_separated(_integer_text), list)
NUMBERS = Kind("finite numbers", "X,X", _several(_finite), _comma_separated(_number_text), list)
INTERVAL = Kind(
    "two numbers with 0 <= start < stop <= 1",
    "X,Y",
    _interval,
    _pair_text,
    lambda pair: [_plain_number(v) for v in pair],
)
SIGMA = Kind("a number or a pair (frames, space)", "X[,Y]", _sigma, _sigma_text, _plain_sigma)
SCALE = Kind(
    "a finite number, or numbers by noise level such as {breakpoints: {1.0: 4, 0.5: 2}}",
    "X|L:X,L:X",
    _scale,
    _scale_text,
    _plain_scale,
)
BLOCKS = Kind(
    "block indices or names", "N|NAME,..", _scheduled_blocks, _comma_separated(_block_text), _plain_blocks
)

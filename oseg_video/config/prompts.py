"""Lists of prompts in files: one a line, or VBench's own list."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oseg_video.config.strict_yaml import ConfigError
from oseg_video.settings.suggest import known_or_nearest

_MOST_BYTES = 64 << 20


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file but blank ones and comments (`# ...`). Raises ConfigError if none is left."""
    lines = (line.strip() for line in _read_text(path).splitlines())
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ConfigError(f"{path} has no prompts")
    return prompts


def read_vbench_prompts(path: Path, dimensions: Sequence[str] = ()) -> list[str]:
    """The prompts of VBench's VBench_full_info.json, in its order, each once.

    dimensions: only the prompts by which one of these is judged; all where it is empty. Raises ConfigError
    for another kind of file and for a dimension that it does not name.
    """
    try:
        entries = json.loads(_read_text(path))
    except (ValueError, RecursionError):
        raise ConfigError(f"{path} is not valid JSON") from None
    if not isinstance(entries, list) or not entries or not all(map(_is_vbench_entry, entries)):
        raise ConfigError(f"{path} is not VBench's list: entries with prompt_en and dimension")
    known = list(dict.fromkeys(name for entry in entries for name in entry["dimension"]))
    for name in dimensions:
        if name not in known:
            raise ConfigError(f"{path} has no dimension {name!r}; {known_or_nearest(str(name), known)}")
    wanted = set(dimensions or known)
    return list(dict.fromkeys(e["prompt_en"] for e in entries if wanted.intersection(e["dimension"])))


def _is_vbench_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("prompt_en"), str)
        and isinstance(entry.get("dimension"), list)
    )


def _read_text(path: Path) -> str:
    try:
        if path.is_file() and path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{path} is no list of prompts: it has more than {_MOST_BYTES >> 20} MiB")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    except ValueError:  # a NUL or a lone surrogate in the name
        raise ConfigError(f"cannot read {str(path)!r}: no such file") from None

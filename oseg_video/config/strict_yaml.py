"""YAML that others wrote: every failure is one line, and no small file takes long or much memory."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oseg_video.settings.kinds import LARGEST
from oseg_video.types import OsegVideoError

if TYPE_CHECKING:
    from yaml import Node

_MOST_BYTES = 4 << 20
_MOST_NODES = 100_000
"""Values of a file, those that aliases repeat counted every time."""
_DEEPEST = 20
"""Values inside values."""


class ConfigError(OsegVideoError):
    """A recipe or configuration file that cannot be read; the message names file and key."""


def load_yaml(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file, with anchors and merge keys (`<<`) followed; {} where the file is empty.

    Raises ConfigError if it cannot be read, is no mapping, gives a key twice, or is too large or deep.
    """
    content = _load(_read(path), path.name)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name}: must be a mapping of settings, got {type(content).__name__}")
    return content


def _read(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:  # a NUL in the name
        raise ConfigError(f"cannot read {str(path)!r}: no such file") from None
    if len(data) > _MOST_BYTES:
        raise ConfigError(f"{path.name}: has more than {_MOST_BYTES >> 20} MiB, which no settings need")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path.name}: is not UTF-8 text") from None


def _load(text: str, name: str) -> Any:
    import yaml

    try:
        loader = _strict_loader()(text)
        loader.file = name
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _size(node, name, {}) > _MOST_NODES:
                raise _too_many(name)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
        raise ConfigError(f"{name}{place}: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{name}: values are nested more than {_DEEPEST} deep") from None


@cache
def _strict_loader() -> Any:
    import yaml

    merge = "tag:yaml.org,2002:merge"

    class StrictLoader(yaml.SafeLoader):
        """PyYAML's keeps the last of two equal keys without a word, and raises whatever Python does."""

        file: str
        nodes = 0

        def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
            self.nodes += 1
            if self.nodes > _MOST_NODES:
                raise _too_many(self.file)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
            seen = set()
            for key, _ in node.value:
                value = merge if key.tag == merge else self.construct_object(key, deep=True)
                if not isinstance(value, Hashable):
                    raise ConfigError(f"{_place(key, self.file)}: a key must be text, got {value!r}")
                if value in seen:
                    shown = "<<" if value == merge else value
                    raise ConfigError(f"{self.file}: key {shown!r} is given twice")
                seen.add(value)
            return super().construct_mapping(node, deep)

        def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
            try:
                value = super().construct_object(node, deep)
            except (yaml.YAMLError, ConfigError, RecursionError):
                raise
            except Exception as error:  # of Python's own readers: int(), float(), datetime, a dict's lookup
                place = _place(node, self.file)
                raise ConfigError(f"{place}: cannot read {node.value!r} ({error})") from None
            if isinstance(value, int) and abs(value) >= LARGEST:
                raise ConfigError(f"{_place(node, self.file)}: the number is larger than any setting can be")
            return value

    return StrictLoader


def _size(node: Node, name: str, sizes: dict[int, int], depth: int = 0) -> int:
    """Values in a node. sizes: those of nodes, by id; 0 is one that is being counted: it contains itself."""
    if depth > _DEEPEST:
        raise ConfigError(f"{_place(node, name)}: values are nested more than {_DEEPEST} deep")
    if id(node) not in sizes:
        sizes[id(node)] = 0
        below = node.value if isinstance(node.value, list) else ()
        parts = [part for one in below for part in (one if isinstance(one, tuple) else (one,))]
        sizes[id(node)] = 1 + sum(_size(part, name, sizes, depth + 1) for part in parts)
    elif not sizes[id(node)]:
        raise ConfigError(f"{_place(node, name)}: a value contains itself")
    return sizes[id(node)]


def _place(node: Node, name: str) -> str:
    return f"{name} line {node.start_mark.line + 1}"


def _too_many(name: str) -> ConfigError:
    return ConfigError(f"{name}: holds more than {_MOST_NODES} values")

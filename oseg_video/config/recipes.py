"""YAML recipes: strict reading, inheritance, and the layers that make a job.

A recipe is a YAML mapping from settings of `GenerateJob` to values, and besides
`extends: other.yaml` (its settings come first; a path beside the file, or a shipped recipe),
`about: ...` and `tested: ...` (text for `oseg-video models`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

from oseg_video.config.job import FIELDS, GenerateJob, job_from_plain, job_to_plain, read_setting
from oseg_video.config.suggest import known_or_nearest
from oseg_video.types import OsegVideoError, SettingError

NOTES = ("about", "tested")
"""Keys of a recipe that are text for the reader."""


class ConfigError(OsegVideoError):
    """A recipe or configuration file that cannot be read; the message names file and key."""


def recipe_folder() -> Path:
    """Folder of the shipped recipes: inside an installed package, beside it in a source checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def recipe_names() -> list[str]:
    """Names of the shipped recipes, `model` or `model-method`."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def recipe_path(name: str) -> Path | None:
    """File of a shipped recipe, or None if there is none of this name."""
    path = recipe_folder() / f"{name}.yaml"
    return path if name in recipe_names() else None


def find_recipe(name: str, *folders: str) -> Path:
    """The file of a recipe, which may be a path, or the name of one that ships with the package.

    folders: those below `configs/` where a command's recipes are, the first one first; by default `configs/`
    itself, with those of `generate`. Raises ConfigError for a name that none of them has.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped: dict[str, Path] = {}
    for folder in folders or ("",):
        for file in sorted((recipe_folder() / folder).glob("*.yaml")):
            shipped.setdefault(file.stem, file)
    stem = name.removesuffix(".yaml")
    if stem in shipped:
        return shipped[stem]
    if stem != name or len(path.parts) > 1:
        return path  # which reading it will refuse
    raise ConfigError(f"no recipe is called {name!r}; {known_or_nearest(name, shipped)}")


def read_recipe(path: Path) -> dict[str, Any]:
    """Settings of a recipe file as plain values, with those of the recipes it extends.

    Raises ConfigError for a file that is missing, is not YAML, extends itself, or has an unknown key or a
    value of the wrong type.
    """
    return _read(Path(path), ())


def read_notes(path: Path) -> dict[str, str]:
    """The texts `about` and `tested` of a recipe file."""
    content = load_yaml(path)
    return {key: str(content[key]) for key in NOTES if key in content}


def resolve_job(
    flags: Mapping[str, Any],
    config: Path | None = None,
    *,
    family_of: Callable[[str, str | None], str],
) -> GenerateJob:
    """The job of flags and a configuration file, over the recipes of its model and method.

    Layers, later ones win: defaults of `GenerateJob`, recipe of the model, recipe of model and method,
    `config`, `flags`. `family_of(model, revision)` names the recipe of a model. Raises ConfigError or
    SettingError.
    """
    mine = {**(read_recipe(config) if config else {}), **flags}
    for name, value in mine.items():
        read_setting(name, value)
    family = family_of(mine.get("model", FIELDS["model"].default), mine.get("revision"))
    model_path = recipe_path(family)
    settings = read_recipe(model_path) if model_path else {}
    guidance = mine.get("guidance", settings.get("guidance", FIELDS["guidance"].default))
    method_path = recipe_path(f"{family}-{guidance}")
    if method_path:
        settings |= read_recipe(method_path)
    return job_from_plain({**settings, **mine})


def dump_yaml(job: GenerateJob) -> str:
    """The job as a YAML text that `read_recipe` reads back to the same job."""
    return _dump(job_to_plain(job))


def _dump(settings: Mapping[str, Any]) -> str:
    import yaml

    text = yaml.safe_dump(dict(settings), allow_unicode=True, sort_keys=False, width=100)
    # YAML counts these as line ends, and PyYAML writes them unescaped: a round trip would change them.
    if any(letter in text for letter in "\x85\u2028\u2029"):
        text = yaml.safe_dump(dict(settings), sort_keys=False, width=100)
    return text


def settings_of(content: Mapping[Any, Any], path: Path, chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Plain settings of a mapping in the file `path`, with those of the recipe that it extends.

    chain: the files that extend this one, whose return would be a circle. Raises ConfigError naming the file
    and the key.
    """
    settings: dict[str, Any] = {}
    if "extends" in content:
        settings = _read(_parent(path, content["extends"]), chain)
    for key, value in content.items():
        if key in (*NOTES, "extends"):
            continue
        if key not in FIELDS:
            known = (*FIELDS, "extends", *NOTES)
            raise ConfigError(f"{path.name}: unknown key {key!r}; {known_or_nearest(str(key), known)}")
        try:
            read_setting(key, value)
        except SettingError as error:
            raise ConfigError(f"{path.name}: {error}") from None
        settings[key] = value
    return settings


def _read(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in chain:
        raise ConfigError(f"{path.name}: extends itself through {' -> '.join(p.name for p in chain)}")
    return settings_of(load_yaml(path), path, (*chain, path))


def _parent(path: Path, name: Any) -> Path:
    if not isinstance(name, str):
        raise ConfigError(f"{path.name}: extends must be the name of a YAML file, got {name!r}")
    beside = path.parent / name
    return beside if beside.is_file() else recipe_path(name.removesuffix(".yaml")) or beside


def load_yaml(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file. Raises ConfigError if it cannot be read, is none, or gives a key twice."""
    import yaml

    class StrictLoader(yaml.SafeLoader):
        """PyYAML keeps the last of two equal keys without a word; this one refuses them."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise ConfigError(f"{path.name}: key {key!r} is given twice")
            return super().construct_mapping(node, deep)

    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=StrictLoader)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path.name}: is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path.name}{where}: {getattr(error, 'problem', None) or 'not YAML'}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name}: must be a mapping of settings, got {type(content).__name__}")
    return content

"""YAML recipes: strict reading, inheritance, and the layers that make a job.

A recipe is a YAML mapping from the flat keys of a job (`config.keys`) to values, and besides
`extends: other.yaml` (its settings come first; a path beside the file, or a shipped recipe),
`about: ...` and `tested: ...` (text for `oseg-video models`), `methods: {stg: {...}, ...}`, what single
methods need: the recipe `mochi-stg` is that of `mochi` with what stands under `methods: stg`, and
`weights: {Wan2.2-TI2V-5B-Diffusers: {...}, ...}`, what single weights of the family need, by the last part of
their hub repository's name, or of their folder's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oseg_video.adapters import all_adapters
from oseg_video.config.job import GenerateJob
from oseg_video.config.keys import (
    DEFAULT_METHOD,
    JOB,
    job_from_plain,
    job_to_plain,
    key_named,
    known_keys,
    read_setting,
)
from oseg_video.config.strict_yaml import ConfigError, load_yaml
from oseg_video.console import UNSAFE
from oseg_video.guidance.flat import (
    METHOD,
    RENAMED,
    guidance_from_flat,
    guidance_keys,
    method_named,
    own_text_settings,
)
from oseg_video.guidance.methods import METHODS, Guidance
from oseg_video.guidance.methods.base import text_methods
from oseg_video.settings import settings_of as declared_settings
from oseg_video.settings.schedule import Schedule
from oseg_video.settings.suggest import known_or_nearest
from oseg_video.types import SettingError

NOTES = ("about", "tested")
"""Keys of a recipe that are text for the reader."""
SECTIONS = "methods"
"""Key of a recipe under which stands what single methods need."""
WEIGHTS = "weights"
"""Key of a recipe under which stands what single weights need."""
RENAMED_RECIPES = {f"{family}-oseg-published": f"{family}-oseg-released" for family in ("mochi", "hunyuan")}


@dataclass(frozen=True)
class Recipe:
    """A recipe file, as plain values."""

    own: Mapping[str, Any]
    """What holds for every method."""
    methods: Mapping[str, Mapping[str, Any]]
    """What single methods need besides, by their names. What stands under `cfg` holds for all others, too,
    as far as they have such a setting and say nothing else."""
    weights: Mapping[str, Recipe] = dataclasses.field(default_factory=dict)
    """What single weights need besides, by their names."""
    extended: Recipe | None = None
    """The recipe that this one goes over, with all of it."""

    @property
    def settings(self) -> dict[str, Any]:
        """What holds for every method, with what is extended."""
        return {**(self.extended.settings if self.extended else {}), **self.own}

    def of(self, method: str | None, weights: str = "", text: str | None = None) -> dict[str, Any]:
        """The settings with a method, with weights, and with a text guidance in the method.

        None of them need have a section. The text guidance's says what is that guidance's alone.
        """
        below = self.extended.of(method, weights, text) if self.extended else {}
        return {**below, **self.said(method, weights, text)}

    def said(self, method: str | None, weights: str = "", text: str | None = None) -> dict[str, Any]:
        """Those of them that the file itself says."""
        taken = guidance_keys(METHODS[method]) if method in METHODS else set()
        shared = {key: value for key, value in self.methods.get("cfg", {}).items() if key in taken}
        if text in text_methods() and "text" in taken:
            own = own_text_settings(text_methods()[text])
            shared |= {key: value for key, value in self.methods.get(text, {}).items() if key in own}
        special = self.weights[weights].of(method, text=text) if weights in self.weights else {}
        return {**self.own, **shared, **self.methods.get(method or "", {}), **special}


def recipe_folder() -> Path:
    """Folder of the shipped recipes: inside an installed package, beside it in a source checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def recipe_names() -> list[str]:
    """Names of the shipped recipes: `model`, `model-method`, and those of files of their own."""
    names = set()
    for path in recipe_folder().glob("*.yaml"):
        names.add(path.stem)
        names |= {f"{path.stem}-{method}" for method in load_yaml(path).get(SECTIONS, {})}
    return sorted(names)


def shipped_files() -> list[dict[str, Any]]:
    """Every shipped recipe file: name, the command that takes it, what it is, methods, weights, path."""
    found = []
    for folder, command in (("", "generate"), ("sweeps", "sweep"), ("tables", "compare"), ("tune", "tune")):
        for path in sorted((recipe_folder() / folder).glob("*.yaml")):
            content = load_yaml(path)
            found.append(
                {
                    "name": path.stem,
                    "command": command,
                    "about": str(content.get("about", "")),
                    "methods": list(content.get(SECTIONS, {})) if command == "generate" else [],
                    "weights": list(content.get(WEIGHTS, {})),
                    "path": str(path),
                }
            )
    return found


def recipe_path(name: str) -> Path | None:
    """File of a shipped recipe that has one of its own, or None."""
    path = recipe_folder() / f"{name}.yaml"
    return path if "/" not in name and path.is_file() else None


def shipped_recipe(name: str) -> dict[str, Any] | None:
    """Settings of a shipped recipe by its name, or None. `mochi-stg` names the method as well."""
    path = recipe_path(name)
    if path is not None:
        return read_recipe(path)
    _, found = _of_family(name)
    return {**found.of(found.own[METHOD]), **found.own} if found else None


def find_recipe(name: str, *folders: str) -> Path:
    """The file of a recipe, which may be a path, or the name of one that ships with the package.

    folders: those below `configs/` where a command's recipes are, the first one first. Raises ConfigError for
    a name that none of them has.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped: dict[str, Path] = {}
    for folder in folders:
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

    Where the file names a method, what stands for it under `methods` is among them, and what stands for its
    model under `weights`. Raises ConfigError for a file that is missing, is not YAML, extends itself, or has
    an unknown key or a value of the wrong type.
    """
    recipe = _read(Path(path), ())
    settings = recipe.settings
    return recipe.of(settings.get(METHOD), weights_name(settings.get("model", "")))


def read_notes(path: Path) -> dict[str, str]:
    """The texts `about` and `tested` of a recipe file."""
    content = load_yaml(path)
    return {key: str(content[key]) for key in NOTES if key in content}


def resolve_job(
    flags: Mapping[str, Any],
    config: Path | str | None = None,
    *,
    family_of: Callable[[str, str | None], str],
) -> GenerateJob:
    """The job of flags and a configuration file, over the recipes of its model and method.

    Layers, later ones win: defaults of `GenerateJob`, recipe of the model with its sections of the method and
    of the weights, `config` (a file, or the name of a shipped recipe) with its own, `flags`. Empty prompts
    without a negative one turn the guidance scale off that neither `config` nor `flags` say themselves, and
    what a recipe says of text guidance or of an image is left out of a job without. `family_of(model,
    revision)` names the recipe of a model. Raises ConfigError or SettingError.
    """
    mine = _named(config) if config is not None else Recipe({}, {})
    given = {**mine.settings, **flags}
    for name, value in given.items():
        read_setting(name, value)
    weights = weights_name(given.get("model", JOB["model"].default), image=given.get("image") is not None)
    family = family_of(given.get("model", JOB["model"].default), given.get("revision"))
    path = recipe_path(family)
    recipe = _read(path, ()) if path else Recipe({}, {})
    method = given.get(METHOD) or recipe.settings.get(METHOD) or DEFAULT_METHOD
    text = flags.get("text") or {**recipe.of(method, weights), **mine.of(method, weights)}.get("text")
    below = {**recipe.of(method, weights, text), **mine.of(method, weights, text)}
    said = {**mine.said(method, weights, text), **flags}
    keys = {**below, **flags, **_without_text({**below, **flags}, said, method), METHOD: method}
    return _without_the_useless(job_from_plain(keys), {*said})


def weights_name(model: str, *, image: bool = False) -> str:
    """What a recipe calls the weights of `--model`: the last part of a repository's or a folder's name.

    image: whether a family's weights for image to video are wanted.
    """
    for adapter in all_adapters():
        if model == adapter.family:
            model = (image and adapter.image_repository) or adapter.hub_repository
    return Path(model).name


def _without_text(given: Mapping[str, Any], said: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Without a word to guide by, the guidance scale of a recipe is off: `U + lambda (U - U~)` is left.

    said: the user's own words, which stay.
    """
    prompts = given.get("prompts") or []
    worded = any(prompt.strip() for prompt in prompts) or said.get("negative_prompt") is not None
    if not prompts or worded:
        return {}
    taken = guidance_keys(method_named(method))
    # Left out, the audio's is that of the video.
    scales = ["guidance_scale", *(["audio_guidance_scale"] if "audio_guidance_scale" in given else [])]
    return {key: 1.0 for key in scales if key in taken and key not in said}


def _without_the_useless(job: GenerateJob, written: set[str]) -> GenerateJob:
    """The job without what a recipe says and it has no use for; `written` is what the user says."""
    dropped = {name for adapter in all_adapters() for name in adapter.image_settings if job.image is None}
    by_schedule = isinstance(getattr(job.guidance, "guidance_scale", None), Schedule)
    by_text = job.guidance.guides_by_text
    if by_schedule or not by_text or not job.guidance.follows_pipeline:
        dropped |= {name for adapter in all_adapters() for name in adapter.own_scales}
    if not by_text:
        dropped.add("negative_prompt")
    dropped -= written
    own = {name: value for name, value in job.own.items() if name not in dropped}
    negative = None if "negative_prompt" in dropped else job.negative_prompt
    return dataclasses.replace(job, own=own, negative_prompt=negative)


def _named(config: Path | str) -> Recipe:
    """A recipe file, or a shipped recipe by its name."""
    path, name = Path(config), str(config).removesuffix(".yaml")
    if path.is_file() or len(path.parts) > 1:
        return _read(path, ())
    if name in RENAMED_RECIPES:
        raise ConfigError(f"{name} is called {RENAMED_RECIPES[name]} now")
    file = recipe_path(name)
    if file is not None and name not in _families():
        return _read(file, ())
    family, found = _of_family(name)
    if found is not None:
        return dataclasses.replace(found, own={"model": found.settings.get("model", family), **found.own})
    hint = known_or_nearest(name, recipe_names()) if name == str(config) else "and no recipe of that name"
    raise ConfigError(f"cannot read {config}: No such file or directory; {hint}")


def _of_family(name: str) -> tuple[str, Recipe | None]:
    """What `mochi` and `mochi-stg` name: the family, and its recipe, with the method if one is named."""
    for family in _families():
        recipe, method = _read(recipe_folder() / f"{family}.yaml", ()), name.removeprefix(f"{family}-")
        if name == family or method in recipe.methods:
            return family, Recipe({} if name == family else {METHOD: method}, {}, extended=recipe)
    return "", None


def _families() -> list[str]:
    """Names of the shipped recipes that are a family's, the longest first."""
    names = [path.stem for path in recipe_folder().glob("*.yaml") if load_yaml(path).get(SECTIONS)]
    return sorted(names, key=len, reverse=True)


def recipe(family: str, method: str = DEFAULT_METHOD, weights: str = "", **settings: Any) -> Guidance:
    """The guidance of a family's recipe: `recipe("mochi", "oseg", scale=2.0)`; `settings` go over it.

    weights: repository or folder of the model, for which the recipe may say more.
    Raises SettingError for an unknown family or method, or a setting that the method does not have.
    """
    path = recipe_path(family)
    if path is None or not load_yaml(path).get(SECTIONS):
        raise SettingError(f"no recipe for a family {family!r}; {known_or_nearest(family, _families())}")
    shipped, named = _read(path, ()), weights_name(weights)
    keys = shipped.of(method, named, shipped.of(method, named).get("text"))
    guidance = {key: value for key, value in keys.items() if known_keys()[key].group == "guidance"}
    found = guidance_from_flat(method, guidance)
    known_settings = declared_settings(found)
    for name in settings:
        if name not in known_settings:
            raise SettingError(f"{method} has no setting {name!r}; {known_or_nearest(name, known_settings)}")
    return dataclasses.replace(found, **settings)


def dump_yaml(job: GenerateJob) -> str:
    """The job as a YAML text that `read_recipe` reads back to the same job."""
    return dump_settings(job_to_plain(job))


def dump_settings(settings: Mapping[str, Any]) -> str:
    """Plain settings as a YAML text that `read_recipe` reads back to the same settings."""
    import yaml

    text = yaml.safe_dump(dict(settings), allow_unicode=True, sort_keys=False, width=100)
    # PyYAML leaves some as they are that a terminal obeys, or that YAML counts as line ends and would change.
    if UNSAFE.search(text.replace("\n", "")):
        text = yaml.safe_dump(dict(settings), sort_keys=False, width=100)
    return text


def settings_of(content: Mapping[Any, Any], path: Path, method: str | None = None) -> dict[str, Any]:
    """Plain settings of a mapping in the file `path`, with those of the recipe that it extends.

    method: whose sections count. Raises ConfigError naming the file and the key.
    """
    return _recipe_of(content, path, ()).of(method)


def _recipe_of(content: Mapping[Any, Any], path: Path, chain: tuple[Path, ...]) -> Recipe:
    extended = _extended(path, content["extends"], chain) if "extends" in content else None
    apart = (*NOTES, "extends", SECTIONS, WEIGHTS)
    own = {_known(path, key, value): value for key, value in content.items() if key not in apart}
    weights = {
        name: _recipe_of(_of_weights(section, path), path, chain)
        for name, section in _sections(path, WEIGHTS, content.get(WEIGHTS, {})).items()
    }
    return Recipe(own, _methods(path, content.get(SECTIONS, {})), weights, extended)


def _of_weights(section: dict[str, Any], path: Path) -> dict[str, Any]:
    """A section, which says nothing that decides which sections count."""
    for key in section:
        if key in (METHOD, "model", "image", "extends", WEIGHTS):
            raise ConfigError(f"{path.name}: {key} cannot stand under {WEIGHTS}, which it decides about")
    return section


def _known(path: Path, key: Any, value: Any) -> str:
    """The key, when it and its value are right."""
    known = (*known_keys(), "extends", SECTIONS, WEIGHTS, *NOTES)
    if key not in known and key not in RENAMED:
        raise ConfigError(f"{path.name}: unknown key {key!r}; {known_or_nearest(str(key), known)}")
    try:
        read_setting(key, value)
    except SettingError as error:
        raise ConfigError(f"{path.name}: {error}") from None
    return str(key)


def _sections(path: Path, key: str, value: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(own, dict) for own in value.values()):
        by = {SECTIONS: "method", WEIGHTS: "name"}[key]
        raise ConfigError(f"{path.name}: {key} must be mappings of settings by {by}, got {value!r}")
    return value


def _methods(path: Path, value: Any) -> dict[str, dict[str, Any]]:
    sections = _sections(path, SECTIONS, value)
    for name, own in sections.items():
        if name not in METHODS:
            raise ConfigError(f"{path.name}: unknown method {name!r}; {known_or_nearest(str(name), METHODS)}")
        for key, one in own.items():
            _known(path, key, one)
            if key_named(key).group != "guidance":
                raise ConfigError(f"{path.name}: {key} under {SECTIONS} is no setting of a method")
    return sections


def _read(path: Path, chain: tuple[Path, ...]) -> Recipe:
    path = path.resolve()
    if path in chain:
        raise ConfigError(f"{path.name}: extends itself through {' -> '.join(p.name for p in chain)}")
    return _recipe_of(load_yaml(path), path, (*chain, path))


def _extended(path: Path, name: Any, chain: tuple[Path, ...]) -> Recipe:
    if not isinstance(name, str):
        raise ConfigError(f"{path.name}: extends must be the name of a YAML file, got {name!r}")
    beside, shipped = path.parent / name, name.removesuffix(".yaml")
    if beside.is_file():
        return _read(beside, chain)
    file = recipe_path(shipped)
    if file is not None:
        return _read(file, chain)
    if shipped in RENAMED_RECIPES:
        raise ConfigError(f"{path.name}: {name} is called {RENAMED_RECIPES[shipped]}.yaml now")
    return _of_family(shipped)[1] or _read(beside, chain)

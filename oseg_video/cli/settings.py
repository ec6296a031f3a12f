"""The settings of a job as flags, made from the fields of `GenerateJob`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oseg_video.config import FIELDS, GenerateJob, resolve_job
from oseg_video.config.kinds import SWITCH, TEXTS
from oseg_video.config.prompts import read_prompts
from oseg_video.types import SettingError

_GROUPS = {
    "clip": "what to make",
    "family": "what only some models have (default: the pipeline's)",
    "model": "model and machine",
    "method": "guidance",
    "guidance": "guidance settings (default: the recipe of model and method)",
    "output": "output",
}


def add_setting_flags(parser: argparse.ArgumentParser, names: Sequence[str] = tuple(FIELDS)) -> None:
    """One flag per setting of GenerateJob, or for some of them, and `--prompts`.

    Their values stay text until `flag_settings` reads them.
    """
    groups = {name: parser.add_argument_group(title) for name, title in _GROUPS.items()}
    for name in names:
        spec = FIELDS[name]
        meta = spec.metadata
        flag = meta["flag"] or "--" + name.replace("_", "-")
        text = _help(meta["help"], spec.default, meta["choices"])
        options: dict[str, Any] = {"dest": f"setting_{name}", "help": text, "default": argparse.SUPPRESS}
        if meta["kind"] is SWITCH:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = (
                f"{{{','.join(meta['choices'])}}}" if meta["choices"] else meta["kind"].metavar
            )
            if meta["kind"] is TEXTS:
                options["action"] = "append"
            elif name == "seeds":
                options["nargs"] = "+"
                options["metavar"] = "N"
        groups[meta["group"]].add_argument(flag, **options)
    groups["clip"].add_argument("--prompts", metavar="FILE", help="a text file with one prompt a line")


def _help(text: str, default: Any, choices: Sequence[str] | None) -> str:
    # A percent sign would be a placeholder of argparse.
    text = text.replace("%", "%%")
    shown = isinstance(default, str | tuple) and default and not isinstance(default, bool)
    value = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{text} (default: {value})" if shown else text


def flag_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings given by flags, as plain values. Raises SettingError naming the flag."""
    given: dict[str, Any] = {}
    for name, spec in FIELDS.items():
        text = getattr(options, f"setting_{name}", None)
        if text is None:
            continue
        kind = spec.metadata["kind"]
        flag = spec.metadata["flag"] or "--" + name.replace("_", "-")
        try:
            if kind is SWITCH:
                given[name] = text
            elif isinstance(text, list):
                given[name] = [value for part in text for value in kind.to_plain(kind.from_text(part))]
            else:
                given[name] = kind.to_plain(kind.from_text(text))
        except SettingError as error:
            raise SettingError(f"{flag} must be {error}") from None
    if options.prompts is not None:
        given["prompts"] = given.get("prompts", []) + read_prompts(Path(options.prompts))
    return given


def job_of(options: argparse.Namespace) -> GenerateJob:
    """The resolved job of flags, configuration file and recipes. Raises OsegVideoError."""

    def family_of(model: str, revision: str | None) -> str:
        if model == GenerateJob.__dataclass_fields__["model"].default:
            return model
        from oseg_video.jobs.loading.pipeline import recipe_of

        return recipe_of(model, revision)

    settings = flag_settings(options)
    config = Path(options.config) if options.config is not None else None
    return resolve_job(settings, config, family_of=family_of)

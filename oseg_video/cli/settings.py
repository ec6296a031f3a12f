"""The settings of a job as flags, derived from the flat keys of `config`."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

from oseg_video.adapters import all_adapters
from oseg_video.cli.output import announce_loading
from oseg_video.config import GenerateJob, known_keys, resolve_job
from oseg_video.config.keys import JOB
from oseg_video.config.prompts import read_prompts
from oseg_video.files import expanded
from oseg_video.settings.kinds import SWITCH, TEXTS

_GROUPS = {
    "clip": "what to make",
    "family": "what only some models have (default: the pipeline's)",
    "model": "model and machine",
    "method": "guidance",
    "guidance": "guidance settings (default: the recipe of model and method)",
    "reuse": "fewer passes by estimates from the steps before (default: exact)",
    "output": "output",
}


def add_setting_flags(parser: argparse.ArgumentParser, names: Collection[str] | None = None) -> None:
    """One flag per flat key, or for some of them, and `--prompts`.

    Their values stay text until `flag_settings` reads them.
    """
    groups = {name: parser.add_argument_group(title) for name, title in _GROUPS.items()}
    for name, key in known_keys().items():
        if names is not None and name not in names:
            continue
        setting = key.setting
        text = _help(key.help, None if key.group == "guidance" else setting.default)
        options: dict[str, Any] = {"dest": f"setting_{name}", "help": text, "default": argparse.SUPPRESS}
        if setting.kind is SWITCH:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = (
                f"{{{','.join(setting.choices)}}}" if setting.choices else setting.kind.metavar
            )
            if setting.kind is TEXTS:
                options["action"] = "append"
            elif name == "seeds":
                options["action"], options["nargs"], options["metavar"] = "extend", "+", "N"
        groups[key.group].add_argument(setting.flag_of(name), *setting.aliases, **options)
    groups["clip"].add_argument("--prompts", metavar="FILE", help="one prompt a line; # begins a comment")


def add_config_flag(parser: argparse.ArgumentParser) -> None:
    """`--config`, of which `job_of` takes the settings that no flag gives."""
    parser.add_argument(
        "--config",
        metavar="RECIPE",
        help="settings in a YAML file, or the name of a shipped one (oseg-video recipes); flags win over it",
    )


def _help(text: str, default: Any) -> str:
    # A percent sign would be a placeholder of argparse.
    text = text.replace("%", "%%")
    shown = isinstance(default, str | tuple) and default
    value = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{text} (default: {value})" if shown else text


def flag_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings given by flags, as plain values. Raises SettingError naming the flag."""
    given: dict[str, Any] = {}
    for name, key in known_keys().items():
        text = getattr(options, f"setting_{name}", None)
        if text is None:
            continue
        setting = key.setting
        flag = setting.flag_of(name)
        if setting.kind is SWITCH:
            given[name] = text
        elif isinstance(text, list):
            given[name] = [v for part in text for v in setting.plain(setting.read_text(flag, part))]
        else:
            given[name] = setting.plain(setting.read_text(flag, text))
    if options.prompts is not None:
        given["prompts"] = given.get("prompts", []) + read_prompts(expanded(options.prompts))
    return given


def job_of(options: argparse.Namespace) -> GenerateJob:
    """The resolved job of flags, configuration file and recipes. Raises OsegVideoError."""

    def family_of(model: str, revision: str | None) -> str:
        if model == JOB["model"].default:
            return model
        if any(model == adapter.family for adapter in all_adapters()):  # without torch
            return model
        announce_loading()
        from oseg_video.jobs.loading.pipeline import recipe_of

        return recipe_of(model, revision)

    settings = flag_settings(options)
    return resolve_job(settings, options.config, family_of=family_of)

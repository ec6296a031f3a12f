"""Typed jobs, their flat keys, and the YAML recipes behind them. Imports nothing heavy."""

from oseg_video.config.job import GenerateJob
from oseg_video.config.keys import (
    job_from_nested,
    job_from_plain,
    job_to_nested,
    job_to_plain,
    known_keys,
    read_setting,
)
from oseg_video.config.recipes import (
    dump_yaml,
    find_recipe,
    read_notes,
    read_recipe,
    recipe,
    recipe_names,
    recipe_path,
    resolve_job,
    shipped_recipe,
)
from oseg_video.config.strict_yaml import ConfigError

__all__ = [
    "ConfigError",
    "GenerateJob",
    "dump_yaml",
    "find_recipe",
    "job_from_nested",
    "job_from_plain",
    "job_to_nested",
    "job_to_plain",
    "known_keys",
    "read_notes",
    "read_recipe",
    "read_setting",
    "recipe",
    "recipe_names",
    "recipe_path",
    "resolve_job",
    "shipped_recipe",
]

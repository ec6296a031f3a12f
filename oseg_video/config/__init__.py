"""Typed jobs and the YAML recipes behind them. Imports nothing heavy."""

from oseg_video.config.guidance import build_guidance
from oseg_video.config.job import (
    FAMILY_FIELDS,
    FIELDS,
    GUIDANCE_NAMES,
    GenerateJob,
    is_optional,
    job_from_plain,
    job_to_plain,
    read_setting,
)
from oseg_video.config.recipes import (
    ConfigError,
    dump_yaml,
    find_recipe,
    read_notes,
    read_recipe,
    recipe_names,
    recipe_path,
    resolve_job,
)
from oseg_video.config.schedules import Schedule
from oseg_video.config.suggest import known_or_nearest

__all__ = [
    "FAMILY_FIELDS",
    "FIELDS",
    "GUIDANCE_NAMES",
    "ConfigError",
    "GenerateJob",
    "Schedule",
    "build_guidance",
    "dump_yaml",
    "find_recipe",
    "is_optional",
    "job_from_plain",
    "job_to_plain",
    "known_or_nearest",
    "read_notes",
    "read_recipe",
    "read_setting",
    "recipe_names",
    "recipe_path",
    "resolve_job",
]

"""From the settings of a job to its guidance method."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from oseg_video.config.job import GUIDANCE_FIELDS, GenerateJob
from oseg_video.config.schedules import Schedule
from oseg_video.types import SettingError

if TYPE_CHECKING:
    from oseg_video.guidance.methods import Guidance


def build_guidance(job: GenerateJob) -> Guidance:
    """The job's guidance method with its values; `none` is text guidance at scale 1, which is off.

    Raises SettingError for a value out of range, and for a setting that the method does not have: a
    setting without effect is refused, never ignored.
    """
    from oseg_video.guidance.methods import CFG, METHODS

    given = {
        name: _over_noise_levels(name, value)
        for name in GUIDANCE_FIELDS
        if (value := getattr(job, name)) is not None
    }
    method = METHODS.get(job.guidance)
    arguments = {spec.name for spec in fields(method)} if method else set()
    for name in given:
        if name not in arguments:
            owners = [key for key, other in METHODS.items() if name in {f.name for f in fields(other)}]
            raise SettingError(
                f"{name} has no effect with guidance {job.guidance}; it belongs to {', '.join(owners)}"
            )
    return method(**given) if method else CFG(guidance_scale=1.0)


def _over_noise_levels(name: str, value: Any) -> Any:
    """The value as a method takes it."""
    from oseg_video.guidance.schedule import Breakpoints

    if not isinstance(value, Schedule):
        return value
    try:
        if value.form == "lower_edges":
            return Breakpoints.from_lower_edges(value.levels, value.values)
        return Breakpoints(value.points)
    except SettingError as error:
        raise SettingError(f"{name}: {error}") from None

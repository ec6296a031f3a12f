"""The shift of the noise levels of flow matching, a setting of the pipeline's scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oseg_video.adapters.settings import ReadJson
from oseg_video.settings import Setting
from oseg_video.settings.kinds import FINITE
from oseg_video.types import Pipeline

FLOW_SHIFT: Mapping[str, Setting] = {
    "flow_shift": Setting(
        kind=FINITE,
        help="shift k of the noise levels, s to k s / (1 + (k - 1) s): the larger it is, the more steps are "
        "noisy ones; 1 is off",
        default=None,
        low=0,
        exclusive=True,
        high=1000,
        source="diffusers: flow_shift of UniPCMultistepScheduler, shift of FlowMatchEulerDiscreteScheduler",
    )
}
"""For the `own_settings` of a family."""

# What diffusers' schedulers call it in their configuration.
_NAMES = ("flow_shift", "shift")


def shifted(pipe: Pipeline, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give the pipeline a scheduler with the shift that is set; the settings that are left."""
    if "flow_shift" in settings:
        scheduler = pipe.scheduler
        (name,) = [name for name in _NAMES if name in scheduler.config]
        pipe.scheduler = type(scheduler).from_config(scheduler.config, **{name: settings["flow_shift"]})
    return {name: value for name, value in settings.items() if name != "flow_shift"}


def unshiftable(settings: Mapping[str, Any], read: ReadJson) -> str | None:
    """Why the model's scheduler would not heed a shift that is set, if so."""
    if "flow_shift" not in settings:
        return None
    config = read("scheduler/scheduler_config.json")
    shift = f"flow_shift {settings['flow_shift']:g}"
    if config.get("use_dynamic_shifting"):
        return f"{shift}: the scheduler of this model shifts by the size of the clip"
    flow = config.get("use_flow_sigmas", True)
    if config and not (flow and any(name in config for name in _NAMES)):
        return f"{shift}: {config.get('_class_name', 'the scheduler of this model')} shifts no noise levels"
    return None

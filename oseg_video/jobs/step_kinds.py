"""The steps of a job by what they do, before any of them runs."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from oseg_video.adapters import ModelAdapter
from oseg_video.adapters.settings import ReadJson
from oseg_video.config import GenerateJob
from oseg_video.guidance.methods import Guidance
from oseg_video.guidance.plan import Step, StepPlan
from oseg_video.guidance.scales import guides
from oseg_video.jobs.checks import clip_settings
from oseg_video.types import SettingError


def read_nothing(name: str) -> Mapping[str, Any]:
    """Stands for the files of a model that is not at hand."""
    return {}


def pipeline_scale(adapter: ModelAdapter, job: GenerateJob, read: ReadJson = read_nothing) -> Any:
    """The scale that the pipeline will be called with; `read` reads the model's files, if they are there."""
    name = adapter.image_to_video if job.image is not None else adapter.text_to_video
    parameters = inspect.signature(adapter.pipeline_class(str(name)).__call__).parameters.values()
    call = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    settings = clip_settings(job)
    settings.pop("image", None)  # a file's name here, where the call takes an image
    call |= adapter.pipeline_arguments(settings)
    largest = job.guidance.largest_guidance_scale
    return adapter.call_scale(call, read) if largest is None else largest


def check_branches(adapter: ModelAdapter, job: GenerateJob, read: ReadJson = read_nothing) -> None:
    """Refuse, with a SettingError, guidance by a branch that the pipeline will not run."""
    scale = pipeline_scale(adapter, job, read)
    plans = () if guides(scale) else (plan for _, _, plan in step_kinds(job.guidance, job.steps, scale))
    if any("uncond" in branch.conditions for plan in plans for branch in plan.branches.values()):
        raise SettingError(
            f"guidance_scale {scale:g}: {job.guidance.name} needs the unconditional branch, which "
            f"{adapter.family} runs for scales above 1 only; give it one, or 1 for no text guidance"
        )


def step_kinds(guidance: Guidance, steps: int, scale: Any) -> Iterator[tuple[str, int | None, StepPlan]]:
    """Steps that do the same, in order: which, how many, and the plan."""
    levels = guidance.levels
    for level, lower in itertools.pairwise([*levels, 0.0]):
        plans = [guidance.plan(Step(index, steps, level, scale)) for index in range(steps)]
        first = 0
        for _, group in itertools.groupby(plans, lambda plan: (plan.formula, repr(plan.branches))):
            same = list(group)
            span = f"steps {first + 1} to {first + len(same)}"
            first += len(same)
            if len(levels) == 1:
                yield span, len(same), same[0]
            else:
                within = f"noise level {level:.4g} down to {lower:.4g}"
                yield within if len(same) == steps else f"{within}, {span}", None, same[0]

"""No guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from oseg_video.guidance.methods.base import Guidance, guidance_method
from oseg_video.guidance.plan import Branch, Step, StepPlan


@guidance_method
@dataclass(frozen=True, kw_only=True)
class Unguided(Guidance):
    """The conditional prediction as it is, `C`: one pass a step."""

    name: ClassVar[str] = "none"
    follows_pipeline: ClassVar[bool] = False

    @property
    def largest_guidance_scale(self) -> float | None:
        return 1.0

    def plan(self, step: Step) -> StepPlan:
        from oseg_video.guidance.methods.base import _cond_alone

        return StepPlan({"cond": Branch("cond")}, "C", _cond_alone if step.runs_uncond else None)

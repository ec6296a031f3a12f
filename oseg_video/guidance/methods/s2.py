"""S2-Guidance: a prediction with blocks left out at random."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from oseg_video.guidance.methods.base import (
    BlockGuidance,
    PerturbedGuidance,
    ScaledGuidance,
    guidance_method,
)
from oseg_video.guidance.perturbations import Change, SkipBlock
from oseg_video.guidance.plan import Step, StepPlan
from oseg_video.settings import setting, settings_of
from oseg_video.settings.kinds import FINITE, INTEGER, INTERVAL, SCALE, Blocks
from oseg_video.settings.schedule import Schedule


@guidance_method
@dataclass(frozen=True, kw_only=True)
class S2(PerturbedGuidance):
    """S2-Guidance: the perturbed branch skips blocks drawn anew in every step (arXiv 2508.12880).

    `C + (w - 1) T + lambda (C - P)` (equation 4). `blocks` names those to draw from; the paper leaves out
    the first one, and drops about a tenth. The choice depends on `draw` and the step alone, so that it is the
    same on every rank and in every run.
    """

    name: ClassVar[str] = "s2"
    draws_blocks: ClassVar[bool] = True

    scale: float | Schedule[float] = setting(
        SCALE,
        settings_of(BlockGuidance)["scale"].help,
        default=0.25,
        low=0,
        per_method=True,
        source="arXiv 2508.12880, appendix B.4",
    )
    interval: tuple[float, float] = setting(
        INTERVAL,
        settings_of(ScaledGuidance)["interval"].help,
        default=(0.1, 0.9),
        source="the central 80 % (arXiv 2508.12880, 4.5)",
    )
    dropped: float = setting(
        FINITE,
        "share of the blocks that is skipped in a step, 0 to 1, rounded to at least one block",
        default=0.1,
        low=0,
        high=1,
        source="arXiv 2508.12880, 3.3",
    )
    draw: int = setting(INTEGER, "seed of the choice of blocks", default=0, low=0)

    @property
    def change(self) -> Change:
        return SkipBlock()

    def _perturbed_plan(self, blocks: Blocks, perturbed_scale: float, step: Step) -> StepPlan:
        # Python draws the same from a text on every machine, and another choice for every step.
        count = max(1, round(self.dropped * len(blocks)))
        drawn = random.Random(f"{self.draw}:{step.index}").sample(blocks, count)
        return super()._perturbed_plan(tuple(sorted(drawn, key=blocks.index)), perturbed_scale, step)

"""CFG-Zero*: a scaled unconditional prediction, and first steps that predict zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from oseg_video.guidance.methods.base import TextGuidance, guidance_method
from oseg_video.guidance.plan import Step
from oseg_video.settings import setting
from oseg_video.settings.kinds import INTEGER
from oseg_video.types import SettingError

if TYPE_CHECKING:
    from torch import Tensor


@guidance_method
@dataclass(frozen=True, kw_only=True)
class CFGZeroStar(TextGuidance):
    """CFG-Zero*, `a U + w (C - a U)` with `a = <C, U> / ||U||^2` per sample (arXiv 2503.18886).

    Made for flow matching: it acts on the velocity that such a model predicts.
    """

    name: ClassVar[str] = "cfg-zero"

    zero_steps: int = setting(
        INTEGER,
        "how many first steps predict zero, whatever the scale; 0 is off",
        default=1,
        low=0,
        source="the paper's default (arXiv 2503.18886)",
    )

    def difference(self, cond: Tensor, uncond: Tensor, step: Step) -> Tensor:
        from oseg_video.guidance import combine

        return combine.zero_star_difference(cond, uncond)

    def shown_difference(self, uncond: str) -> str:
        return f"(C - a {uncond})"

    def zeroes(self, step: Step) -> bool:
        if self.zero_steps >= step.count:
            raise SettingError(
                f"zero_steps must be below the number of sampling steps, {step.count}, got {self.zero_steps}"
            )
        return step.index < self.zero_steps

"""Adaptive projected guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from oseg_video.guidance.methods.base import TextGuidance, guidance_method
from oseg_video.guidance.plan import Step
from oseg_video.settings import setting
from oseg_video.settings.kinds import FINITE

if TYPE_CHECKING:
    from torch import Tensor

_AVERAGE = "apg_average"


@guidance_method
@dataclass(frozen=True, kw_only=True)
class APG(TextGuidance):
    """Adaptive projected guidance, `C + (w - 1) D'` (arXiv 2410.02416): high scales without oversaturation.

    D' is `C - U` with momentum over the steps, its norm limited and its component along C times eta. It acts
    on the type that the model predicts (velocity, noise, v), as diffusers' guider does, not on denoised
    samples as in the paper's experiments. With eta 1, momentum 0 and norm_threshold 0 it is CFG.
    """

    name: ClassVar[str] = "apg"

    eta: float = setting(
        FINITE,
        "share of the text difference along C that is kept, 0 to 1; 1 keeps all of it",
        default=0.0,
        low=0,
        high=1,
        source="0 is the paper's advice (arXiv 2410.02416)",
    )
    momentum: float = setting(
        FINITE,
        "weight of the running average of earlier differences, between -1 and 1; below 0 it pushes away from "
        "them; 0 is off",
        default=-0.5,
        low=-1,
        high=1,
        exclusive=True,
        source="our choice; the paper sets one below 0 for each model",
    )
    norm_threshold: float = setting(
        FINITE,
        "largest Euclidean norm of a sample's text difference; 0 is off",
        default=0.0,
        low=0,
        source="the paper's numbers are for images; the norm grows with the clip and differs by model",
    )

    def difference(self, cond: Tensor, uncond: Tensor, step: Step) -> Tensor:
        from oseg_video.guidance import combine

        update, average = combine.apg_update(
            cond,
            uncond,
            step.memory.get(_AVERAGE),
            eta=self.eta,
            momentum=self.momentum,
            norm_threshold=self.norm_threshold,
        )
        if self.momentum:
            step.memory[_AVERAGE] = average
        return update

    def shown_difference(self, uncond: str) -> str:
        limit = f"at most {self.norm_threshold:g}" if self.norm_threshold else "unlimited"
        return f"APG(C - {uncond}; eta {self.eta:g}, momentum {self.momentum:g}, norm {limit})"

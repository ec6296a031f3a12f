"""Sliding mode control of the text difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from oseg_video.guidance.methods.base import TextGuidance, guidance_method
from oseg_video.guidance.plan import Step
from oseg_video.guidance.scales import shown
from oseg_video.settings import setting
from oseg_video.settings.kinds import FINITE

if TYPE_CHECKING:
    from torch import Tensor

    from oseg_video.guidance.scales import Scale

_BEFORE = "smc_before"


@guidance_method
@dataclass(frozen=True, kw_only=True)
class SMCCFG(TextGuidance):
    """Sliding mode control CFG, `U + w (e - K sign(s))` with `e = C - U` (CFG-Ctrl, arXiv 2603.03281).

    `s = (e - e') + lambda e'`, where e' is the corrected difference of the step before, on the first step e
    itself (algorithm 1). Made for flow matching: K is in units of the velocity. With switching 0 it is CFG.
    """

    name: ClassVar[str] = "smc-cfg"

    switching: float = setting(
        FINITE,
        "gain K, by which each element of the text difference is corrected, in units of the prediction; 0 is "
        "off",
        default=0.2,
        low=0,
        source="for Wan (hanyang-21/CFG-Ctrl)",
    )
    sliding: float = setting(
        FINITE,
        "slope lambda of the sliding surface: weight of the last difference beside its change",
        default=5.0,
        low=0,
        source="for Wan (hanyang-21/CFG-Ctrl)",
    )

    def extrapolated(self, cond: Tensor, uncond: Tensor, scale: Scale, step: Step) -> Tensor:
        from oseg_video.guidance import combine
        from oseg_video.guidance.numerics import upcast

        step.memory[_BEFORE] = corrected = combine.switched_difference(
            cond, uncond, step.memory.get(_BEFORE), slope=self.sliding, gain=self.switching
        )
        return upcast(uncond) + scale * corrected

    def formula(self, scale: Scale, uncond: str) -> str:
        numbers = f"K {self.switching:g}, lambda {self.sliding:g}"
        return f"{uncond} + {shown(scale)} SMC(C - {uncond}; {numbers})"

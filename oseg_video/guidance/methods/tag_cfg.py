"""Tangential amplifying guidance of the text difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from oseg_video.guidance.methods.base import TextGuidance, guidance_method
from oseg_video.guidance.plan import Step
from oseg_video.settings import setting
from oseg_video.settings.kinds import FINITE, SWITCH

if TYPE_CHECKING:
    from torch import Tensor

    from oseg_video.guidance.scales import Scale


@guidance_method
@dataclass(frozen=True, kw_only=True)
class TAGCFG(TextGuidance):
    """TAG for CFG, `U + w (C - U) + eta A` (arXiv 2510.04533, equation 26).

    A is the projection of C on what of `C - U` is orthogonal to the noisy latents x (equations 24 and 25).
    The paper has noise predictions; in every other type the same comes out. With alignment 0 it is CFG.
    """

    name: ClassVar[str] = "tag-cfg"

    alignment: float = setting(
        FINITE,
        "weight eta of the part of C along the tangential text difference; 0 is off",
        default=1.0,
        low=0,
        source="arXiv 2510.04533, table 12",
    )
    relative: bool = setting(
        SWITCH,
        "whether that part is brought to the norm of the text difference first",
        default=False,
        source="arXiv 2510.04533, equation 28",
    )

    def extrapolated(self, cond: Tensor, uncond: Tensor, scale: Scale, step: Step) -> Tensor:
        from oseg_video.guidance import combine

        assert step.sample is not None
        aligned = combine.aligned_tangent(cond, uncond, step.sample, relative=self.relative)
        return super().extrapolated(cond, uncond, scale, step) + self.alignment * aligned

    def formula(self, scale: Scale, uncond: str) -> str:
        relative = ", relative" if self.relative else ""
        return (
            f"{super().formula(scale, uncond)} + {self.alignment:g} A(C - {uncond}; tangent to x{relative})"
        )

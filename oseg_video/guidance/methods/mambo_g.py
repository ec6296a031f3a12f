"""MAMBO-G: a scale that falls where the text difference is large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from oseg_video.guidance.methods.base import TextGuidance, guidance_method
from oseg_video.guidance.plan import Step
from oseg_video.settings import setting
from oseg_video.settings.kinds import FINITE

if TYPE_CHECKING:
    from torch import Tensor


@guidance_method
@dataclass(frozen=True, kw_only=True)
class MAMBOG(TextGuidance):
    """MAMBO-G, CFG at the scale `1 + (w - 1) exp(-a r)` with `r = ||C - U|| / ||U||` (arXiv 2508.03442).

    Per sample. It damps the first steps, where the difference is large, so that high scales and few steps
    go together. Made for flow matching: it acts on the velocity that such a model predicts.
    """

    name: ClassVar[str] = "mambo-g"

    damping: float = setting(
        FINITE,
        "how fast the scale falls with the relative size of the text difference; 0 is off",
        default=8.0,
        low=0,
        source="the authors' guider in diffusers (arXiv 2508.03442)",
    )

    def difference(self, cond: Tensor, uncond: Tensor, step: Step) -> Tensor:
        from oseg_video.guidance import combine

        return combine.damped_difference(cond, uncond, self.damping)

    def shown_difference(self, uncond: str) -> str:
        return f"exp(-{self.damping:g} r) (C - {uncond})"

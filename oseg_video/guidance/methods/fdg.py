"""Frequency-decoupled guidance."""

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
class FDG(TextGuidance):
    """Frequency-decoupled guidance: fine detail is guided more than the rest (arXiv 2506.19713).

    `C + (w - 1) low(D) + (w_high - 1) high(D)` with `D = C - U` (algorithm 1), and low what a two-level
    Laplacian pyramid keeps of each latent frame. w is the paper's w_low, and `detail` the ratio
    `(w_high - 1) / (w - 1)`, so that a schedule of w takes both with it. With detail 1 it is CFG.
    """

    name: ClassVar[str] = "fdg"

    detail: float = setting(
        FINITE,
        "weight of the high frequencies of the text difference, (w_high - 1) / (w - 1); 1 is off",
        default=3.0,
        low=0,
        source="w_low 3 and w_high 7 of SD 2.1 and SD 3 (arXiv 2506.19713, table 8a)",
    )

    def difference(self, cond: Tensor, uncond: Tensor, step: Step) -> Tensor:
        from oseg_video.guidance import bands, combine

        difference = combine.difference(cond, uncond)
        return bands.weigh_high_band(difference, self.detail, step.grid, step.behind)

    def shown_difference(self, uncond: str) -> str:
        return f"FDG(C - {uncond}; high frequencies times {self.detail:g})"

"""Classifier-free guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from oseg_video.guidance.methods.base import TextGuidance, guidance_method
from oseg_video.guidance.plan import Step

if TYPE_CHECKING:
    from torch import Tensor

    from oseg_video.guidance.scales import Scale


@guidance_method
@dataclass(frozen=True, kw_only=True)
class CFG(TextGuidance):
    """Classifier-free guidance, `U + w (C - U)` (arXiv 2207.12598)."""

    name: ClassVar[str] = "cfg"
    is_pipelines_rule: ClassVar[bool] = True

    def guided(self, cond: Tensor, uncond: Tensor, scale: Scale, step: Step) -> Tensor:
        from oseg_video.guidance import combine

        # diffusers' own expression, so that only what a method adds differs from a stock pipeline.
        return combine.cfg(cond, uncond, scale)

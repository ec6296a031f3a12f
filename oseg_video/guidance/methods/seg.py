"""Smoothed energy guidance."""

import math
from dataclasses import dataclass
from typing import ClassVar

from oseg_video.guidance.methods.base import PerturbedGuidance, ScaleSchedule
from oseg_video.guidance.perturbations import BlurQueries, Change
from oseg_video.guidance.smoothing import validate_blur_sigma, validate_boundary


@dataclass(frozen=True, kw_only=True)
class SEG(PerturbedGuidance):
    """Smoothed energy guidance: the perturbed branch blurs the queries (arXiv 2408.00760)."""

    seg_scale: ScaleSchedule = 1.0
    """Weight lambda of `cond - perturbed`; 0 is off."""
    blur_sigma: float | tuple[float, float] = math.inf
    """Smoothing width in tokens, one number or (frames, space); inf is the mean, 0 is off."""
    boundary: str = "symmetric"
    """Treatment of the grid's edges: "symmetric" (doubly stochastic) or "reflect" (SEG's code)."""

    name: ClassVar[str] = "seg"
    scale_name: ClassVar[str] = "seg_scale"

    def __post_init__(self) -> None:
        validate_blur_sigma(self.blur_sigma)
        validate_boundary(self.boundary)
        super().__post_init__()

    @property
    def _perturbs(self) -> bool:
        return super()._perturbs and validate_blur_sigma(self.blur_sigma) != (0, 0)

    def _change(self) -> Change:
        return BlurQueries(self.blur_sigma, self.boundary)

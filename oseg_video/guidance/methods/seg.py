"""Smoothed energy guidance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from oseg_video.guidance.methods.base import PerturbedGuidance, guidance_method
from oseg_video.guidance.perturbations import BlurQueries
from oseg_video.guidance.validation import BOUNDARIES, BlurSigma
from oseg_video.settings import setting
from oseg_video.settings.kinds import SIGMA, TEXT


def blur_sigma_setting(default: float, source: str) -> Any:
    """The setting `blur_sigma` of a method that smooths queries."""
    return setting(
        SIGMA,
        "smoothing width in tokens, one number or frames,space; inf is the mean, 0 is off",
        default=default,
        low=0,
        source=source,
    )


def boundary_setting() -> Any:
    """The setting `boundary` of a method that smooths queries."""
    return setting(
        TEXT,
        "edges of the smoothing: symmetric (doubly stochastic) or reflect (SEG's released code)",
        default="symmetric",
        choices=BOUNDARIES,
    )


@guidance_method
@dataclass(frozen=True, kw_only=True)
class SEG(PerturbedGuidance):
    """Smoothed energy guidance: the perturbed branch smooths the queries (arXiv 2408.00760)."""

    name: ClassVar[str] = "seg"

    blur_sigma: BlurSigma = blur_sigma_setting(math.inf, "the strongest setting of arXiv 2408.00760")
    boundary: str = boundary_setting()

    @property
    def change(self) -> BlurQueries:
        return BlurQueries(self.blur_sigma, self.boundary)

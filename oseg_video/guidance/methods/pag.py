"""Perturbed-attention guidance."""

from dataclasses import dataclass
from typing import ClassVar

from oseg_video.guidance.methods.base import PerturbedGuidance, ScaleSchedule
from oseg_video.guidance.perturbations import Change, ReplaceAttention


@dataclass(frozen=True, kw_only=True)
class PAG(PerturbedGuidance):
    """Perturbed-attention guidance: in the perturbed branch a token attends to itself (arXiv 2403.17377)."""

    pag_scale: ScaleSchedule = 1.0
    """Weight lambda of `cond - perturbed`; 0 is off."""

    name: ClassVar[str] = "pag"
    scale_name: ClassVar[str] = "pag_scale"

    def _change(self) -> Change:
        return ReplaceAttention("values")

"""Perturbed-attention guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from oseg_video.guidance.methods.base import PerturbedGuidance, guidance_method
from oseg_video.guidance.perturbations import Change, ReplaceAttention


@guidance_method
@dataclass(frozen=True, kw_only=True)
class PAG(PerturbedGuidance):
    """Perturbed-attention guidance: in the perturbed branch a token attends to itself (arXiv 2403.17377)."""

    name: ClassVar[str] = "pag"

    @property
    def change(self) -> Change:
        return ReplaceAttention("values")

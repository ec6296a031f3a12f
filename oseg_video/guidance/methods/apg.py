"""Adaptive projected guidance."""

from dataclasses import dataclass
from typing import ClassVar

from oseg_video.guidance.methods.base import Guidance
from oseg_video.guidance.text import ProjectedText, TextTreatment


@dataclass(frozen=True, kw_only=True)
class APG(Guidance):
    """Adaptive projected guidance, `C + (w - 1) D'` (arXiv 2410.02416): high scales without oversaturation.

    D' is `C - U` with momentum over the steps, its norm limited and its component along C times eta. It acts
    on the type that the model predicts, as diffusers' guider does, not on denoised samples as in the paper's
    experiments. Outside the interval: `C`. With eta 1, momentum 0 and norm_threshold 0 it is CFG.
    """

    eta: float = ProjectedText.eta
    """Share of the component along C that is kept, 0 to 1; 0 is the paper's advice, 1 keeps all of it."""
    momentum: float = ProjectedText.momentum
    """Weight of the running average of earlier differences, between -1 and 1; 0 is off. The paper advises
    values below 0, for each model another one."""
    norm_threshold: float = ProjectedText.norm_threshold
    """Largest Euclidean norm of a sample's difference; 0 is off. It depends on the model and the clip's size,
    so there is no default that fits all."""

    name: ClassVar[str] = "apg"

    @property
    def _text(self) -> TextTreatment:
        return ProjectedText(eta=self.eta, momentum=self.momentum, norm_threshold=self.norm_threshold)

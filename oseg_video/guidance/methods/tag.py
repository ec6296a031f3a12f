"""Tangential amplifying guidance."""

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
class TAG(TextGuidance):
    """Tangential amplifying guidance: what leads along the shell of noisy latents, larger (arXiv 2510.04533).

    Of the guided prediction g the part orthogonal to the noisy latents x is multiplied (equation 7), with or
    without text guidance. As the `text` of a perturbed method it acts before the push is added. With tangent
    1 it is CFG.
    """

    name: ClassVar[str] = "tag"
    acts_alone: ClassVar[bool] = True

    tangent: float = setting(
        FINITE,
        "factor of the part of the guided prediction that is orthogonal to the noisy latents; 1 is off",
        default=1.05,
        low=0,
        source="SD 3's (arXiv 2510.04533, table 16); 1.15 to 1.2 for the older ones",
    )

    def shaped(self, prediction: Tensor, step: Step) -> Tensor:
        from oseg_video.guidance import combine

        assert step.sample is not None
        return combine.amplify_tangent(prediction, step.sample, self.tangent)

    def shown_shaped(self, prediction: str) -> str:
        return f"TAG({prediction}; tangent times {self.tangent:g})"

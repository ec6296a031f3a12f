"""CFG-Zero*: a scaled unconditional prediction, and first steps that predict zero."""

from dataclasses import dataclass
from typing import ClassVar

from oseg_video.guidance.methods.base import Guidance
from oseg_video.guidance.text import TextTreatment, ZeroStarText


@dataclass(frozen=True, kw_only=True)
class CFGZeroStar(Guidance):
    """CFG-Zero*, `a U + w (C - a U)` with `a = <C, U> / ||U||^2` per sample (arXiv 2503.18886).

    Made for flow matching: it acts on the velocity that such a model predicts. Outside the interval: `C`.
    """

    zero_steps: int = ZeroStarText.zero_steps
    """How many first steps predict zero, whatever the scale; 1 is the paper's default, 0 is off."""

    name: ClassVar[str] = "cfg-zero"

    @property
    def _text(self) -> TextTreatment:
        return ZeroStarText(zero_steps=self.zero_steps)

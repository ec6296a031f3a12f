"""Momentum guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from oseg_video.guidance.methods.base import TextGuidance, guidance_method
from oseg_video.guidance.plan import Step
from oseg_video.settings import setting
from oseg_video.settings.kinds import FINITE

if TYPE_CHECKING:
    from torch import Tensor

_AVERAGE = "mg_average"


@guidance_method
@dataclass(frozen=True, kw_only=True)
class MG(TextGuidance):
    """Momentum guidance: away from the average of earlier guided predictions (arXiv 2602.20360).

    `g + alpha (g - m)`, then `m = (1 - beta) g + beta m`, which begins as the first g (algorithm 1), with or
    without text guidance. Made for flow matching: it acts on the velocity that such a model predicts. As the
    `text` of a perturbed method it knows nothing of the push. With history 0 it is CFG.
    """

    name: ClassVar[str] = "mg"
    acts_alone: ClassVar[bool] = True

    history: float = setting(
        FINITE,
        "weight alpha of the difference to the average of earlier predictions; 0 is off",
        default=0.5,
        low=0,
        source="our choice; the paper searches it for each model",
    )
    history_decay: float = setting(
        FINITE,
        "share beta of the average that lasts from step to step, 0 to 1; 0 compares with the last step alone",
        default=0.6,
        low=0,
        high=1,
        source="our choice; the paper searches it for each model",
    )

    def shaped(self, prediction: Tensor, step: Step) -> Tensor:
        from oseg_video.guidance import combine

        average = step.memory.get(_AVERAGE)
        pushed, step.memory[_AVERAGE] = combine.push_from_history(
            prediction, average, scale=self.history, decay=self.history_decay
        )
        return pushed

    def shown_shaped(self, prediction: str) -> str:
        numbers = f"alpha {self.history:g}, beta {self.history_decay:g}"
        return f"MG({prediction}; {numbers})"

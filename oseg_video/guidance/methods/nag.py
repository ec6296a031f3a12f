"""Normalised attention guidance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from oseg_video.guidance.methods.base import ScaledGuidance, guidance_method
from oseg_video.guidance.methods.cfg import CFG
from oseg_video.guidance.perturbations import ExtrapolateAttention
from oseg_video.guidance.plan import ALL_BLOCKS, Branch, Perturbation, Step, StepPlan
from oseg_video.guidance.scales import in_float32, is_off, shown
from oseg_video.settings import setting
from oseg_video.settings.kinds import FINITE, SCALE, Blocks
from oseg_video.settings.schedule import Schedule, value_at, values_of

if TYPE_CHECKING:
    from torch import Tensor

    from oseg_video.guidance.scales import Scale

_ALL: Blocks = (ALL_BLOCKS,)
_ASKS_FOR_TEXT = 2.0
"""A guidance scale at which every pipeline takes a negative text; its number does not count."""


@guidance_method
@dataclass(frozen=True, kw_only=True)
class NAG(ScaledGuidance):
    """Normalised attention guidance: a negative prompt without an unconditional pass (arXiv 2505.21179).

    C~: wherever the video attends to the text of the conditional pass, away from what the negative text gives
    (`attention.extrapolated_attention`). So a distilled model has a negative prompt: in one pass a step where
    attention to the text is cross-attention, in two where it is joint, as each text then takes a row through
    all blocks, beside the same video. Call the pipeline with a scale above 1, which is how it takes a
    negative text. With a `guidance_scale` there is text guidance as well, `C~ + (w - 1) (C~ - U)`; left out,
    it is 1.
    """

    name: ClassVar[str] = "nag"

    follows_pipeline: ClassVar[bool] = False

    scale: float | Schedule[float] = setting(
        SCALE,
        "weight s of the text's attention in Z- + s (Z+ - Z-), away from the negative text's; 1 is off",
        default=5.0,
        low=1,
        per_method=True,
        source="examples of the authors' code, whose nag_scale it is; phi = s - 1 in the paper",
    )
    tau: float = setting(
        FINITE,
        "how many times as large as the text's attention the result may be, in the L1 norm of each token",
        default=2.5,
        low=1,
        source="the authors' code",
    )
    alpha: float = setting(
        FINITE,
        "share of the result beside the text's own attention, 0 to 1; 0 is off",
        default=0.25,
        low=0,
        high=1,
        source="the authors' code for Flux and Wan; 0.5 for SDXL",
    )

    @property
    def change(self) -> ExtrapolateAttention:
        """At the largest scale."""
        return self._change(max(values_of(self.scale)))

    @property
    def blocks_used(self) -> Blocks:
        return super().blocks_used if self.change.identity else _ALL

    @property
    def largest_guidance_scale(self) -> float | None:
        own = super().largest_guidance_scale
        largest = 1.0 if own is None else own
        return largest if self.change.identity else max(largest, _ASKS_FOR_TEXT)

    def plan(self, step: Step) -> StepPlan:
        change = self._change(value_at(self.scale, step.noise_level))
        if not self._active(step):
            return self._plain_plan(step)
        if change.identity:
            return self._text_plan(CFG(), step)
        branches = {"cond": Branch("cond", Perturbation(_ALL, change))}
        scale, formula = self._text_scale(step), "C~"
        if not is_off(scale):
            branches = {"uncond": Branch("uncond"), **branches}
            formula = f"C~ + {shown(scale, less=1)} (C~ - U)"
        return self._with_rule(branches, formula, partial(_rule, in_float32(scale)), step, "C~")

    def _text_scale(self, step: Step) -> Scale:
        return 1.0 if self.guidance_scale is None else super()._text_scale(step)

    def _change(self, scale: float) -> ExtrapolateAttention:
        return ExtrapolateAttention(scale, self.tau, self.alpha)


def _rule(scale: Scale, *, cond: Tensor, uncond: Tensor | None = None) -> Tensor:
    from oseg_video.guidance import combine
    from oseg_video.guidance.numerics import upcast

    return upcast(cond) if uncond is None else combine.cfg(cond, uncond, scale)

"""Spatio-temporal guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from oseg_video.guidance.methods.base import PerturbedGuidance, guidance_method
from oseg_video.guidance.perturbations import Change, ReplaceAttention, SkipBlock
from oseg_video.settings import setting
from oseg_video.settings.kinds import TEXT

_CHANGES: dict[str, Change] = {
    "residual": SkipBlock(),
    "attention_skip": ReplaceAttention("input"),
    "attention_values": ReplaceAttention("values"),
}


@guidance_method
@dataclass(frozen=True, kw_only=True)
class STG(PerturbedGuidance):
    """Spatio-temporal guidance: the perturbed branch skips blocks or their attention (arXiv 2411.18664)."""

    name: ClassVar[str] = "stg"

    mode: Literal["residual", "attention_skip", "attention_values"] = setting(
        TEXT,
        "what is skipped: the whole block (residual), or the mixing of its tokens, in whose place the "
        "attention's input (attention_skip) or its values (attention_values) go on",
        default="residual",
        choices=tuple(_CHANGES),
        source="residual: arXiv 2411.18664; the others: LTX-Video's own modes",
    )

    @property
    def change(self) -> Change:
        return _CHANGES[self.mode]

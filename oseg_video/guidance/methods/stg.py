"""Spatio-temporal guidance."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from oseg_video.guidance.methods.base import PerturbedGuidance, ScaleSchedule
from oseg_video.guidance.perturbations import Change, ReplaceAttention, SkipBlock
from oseg_video.types import SettingError

_CHANGES: dict[str, Change] = {
    "residual": SkipBlock(),
    "attention_skip": ReplaceAttention("input"),
    "attention_values": ReplaceAttention("values"),
}


@dataclass(frozen=True, kw_only=True)
class STG(PerturbedGuidance):
    """Spatio-temporal guidance: the perturbed branch skips blocks or their attention (arXiv 2411.18664)."""

    stg_scale: ScaleSchedule = 1.0
    """Weight lambda of `cond - perturbed`; 0 is off."""
    mode: Literal["residual", "attention_skip", "attention_values"] = "residual"
    """What is skipped: "residual" the whole block; "attention_skip" and "attention_values" (LTX-Video's own
    modes) the mixing of tokens, in whose place the attention's input or its values go on."""

    name: ClassVar[str] = "stg"
    scale_name: ClassVar[str] = "stg_scale"

    def __post_init__(self) -> None:
        if self.mode not in list(_CHANGES):
            raise SettingError(f"mode must be one of {', '.join(_CHANGES)}, got {self.mode!r}")
        super().__post_init__()

    def _change(self) -> Change:
        return _CHANGES[self.mode]

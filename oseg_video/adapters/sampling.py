"""What a family's pipelines do with their denoiser in one sampling step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from oseg_video.guidance.plan import Condition
from oseg_video.types import Pipeline

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Calls", "Condition", "Sampling"]

Calls = tuple[tuple[Condition, ...], ...]
"""The denoiser calls of one step, each with the conditions in its rows, in equal shares of the batch."""


@dataclass(frozen=True)
class Sampling:
    """Pipelines with one call for all rows; families whose pipelines do otherwise override what differs.

    `call` is always the arguments of the pipeline call in progress, defaults included. A pipeline that reads
    a value anew at every step, because a callback may change it, is asked here for the same value.
    """

    unconditional_hint: str = "give it a guidance_scale above 1"
    """How to call the pipeline so that it runs an unconditional branch, for error messages."""
    combines_denoised: bool = False
    """Whether the pipeline combines denoised latents, `x - sigma v` of a velocity v, and not predictions as
    they are; guidance then does so, too."""
    call_per_condition: bool = False
    """Whether the pipeline calls its denoiser once for each condition, and not once for the rows of both."""
    own_guidance: Mapping[str, float] = field(default_factory=dict)
    """Arguments of the pipeline's call by which it would guide by itself -> values that switch them off. They
    are off where the call leaves them out, whatever their defaults, and it must give no others."""
    latents_take_prediction_dtype: bool = False
    """Whether the pipeline feeds its latents back without casting them to the denoiser's dtype; guided
    predictions are then handed to it in the dtype of plain ones, not in float32."""

    def refusal(self, pipe: Pipeline) -> str | None:
        """Why a pipeline of a supported class cannot be guided as it is configured, if so."""
        return None

    def runs_uncond(self, pipe: Pipeline, call: Mapping[str, Any]) -> bool:
        """Whether the step in progress has an `uncond`."""
        return bool(pipe.do_classifier_free_guidance)

    def calls(self, *, uncond: bool) -> Calls:
        """The denoiser calls of a step with or without an `uncond`."""
        if not uncond:
            return (("cond",),)
        return (("cond",), ("uncond",)) if self.call_per_condition else (("uncond", "cond"),)

    def scale(self, pipe: Pipeline, call: Mapping[str, Any], denoiser: str) -> float | Tensor:
        """The scale w of the pipeline's own `u + w (c - u)`; asked only when it runs an `uncond`.

        denoiser: the attribute of the pipeline that is being called.
        """
        scale: float | Tensor = pipe.guidance_scale
        return scale

    def audio_scale(self, pipe: Pipeline, call: Mapping[str, Any]) -> float:
        """That of the sound, where the pipeline makes sound."""
        return float(pipe.audio_guidance_scale)

    def schedulers(self, pipe: Pipeline) -> tuple[Any, ...]:
        """The scheduler of each stream that the denoiser predicts."""
        return (pipe.scheduler,)

    def rescale(self, pipe: Pipeline, call: Mapping[str, Any]) -> float:
        """The pipeline's own rescaling of the guided prediction; 0 is off."""
        return float(getattr(pipe, "guidance_rescale", 0.0))

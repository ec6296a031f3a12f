"""Self-attention guidance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from oseg_video.guidance.methods.base import BlockGuidance, PushedGuidance, guidance_method
from oseg_video.guidance.perturbations import BlurAttended, Change
from oseg_video.guidance.plan import Branch, Condition, Perturbation
from oseg_video.settings import setting, settings_of
from oseg_video.settings.kinds import BLOCKS, FINITE, Blocks
from oseg_video.settings.schedule import Schedule


@guidance_method
@dataclass(frozen=True, kw_only=True)
class SAG(PushedGuidance):
    """Self-attention guidance: P starts from latents smoothed where attention gathers (arXiv 2210.00939).

    `C + (w - 1) T + lambda (U - P)`: the perturbed branch is an unconditional one (equation 25), or without
    text guidance `C + lambda (C - P)` with a conditional one. For UNets. `blocks` names the one block whose
    self-attention says where.
    """

    name: ClassVar[str] = "sag"

    blocks: Blocks | Schedule[Blocks] = setting(
        BLOCKS,
        settings_of(BlockGuidance)["blocks"].help,
        default=("mid:0",),
        source="the first self-attention of the middle, arXiv 2210.00939",
    )
    latent_blur_sigma: float = setting(
        FINITE,
        "width in latents of the smoothing of the predicted clean latents; 0 is off",
        default=1.0,
        low=0,
        high=1000,
        source="diffusers' StableDiffusionSAGPipeline",
    )

    @property
    def change(self) -> Change:
        return BlurAttended(self.latent_blur_sigma)

    def _perturbed_branch(self, blocks: Blocks, plain: Mapping[str, Branch]) -> Branch:
        source: Condition = "uncond" if "uncond" in plain else "cond"
        return Branch(source, Perturbation(blocks, self.change, source=source))

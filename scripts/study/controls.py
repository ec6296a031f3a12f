"""A control for OSEG: queries moved as far as OSEG moves them, in a direction that means nothing.

Tensor letters as in `oseg_video.guidance.queries`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from oseg_video.guidance.methods import PerturbedGuidance, guidance_method
from oseg_video.guidance.methods.seg import blur_sigma_setting
from oseg_video.guidance.queries import oseg_queries
from oseg_video.guidance.validation import BlurSigma
from oseg_video.types import TokenGrid


@dataclass(frozen=True)
class MoveAnywhere:
    """Each query of each head moves by a random vector as long as OSEG's change of it."""

    blur_sigma: BlurSigma
    site: ClassVar = "normalised"
    identity: ClassVar[bool] = False
    words: ClassVar[str] = "queries moved in random directions, as far as OSEG moves them"

    def __call__(self, query: Tensor, key: Tensor, grid: TokenGrid) -> Tensor:
        change = oseg_queries(query, key, grid, blur_sigma=self.blur_sigma) - query
        direction = torch.nn.functional.normalize(torch.randn_like(query), dim=-1)
        return query + direction * change.norm(dim=-1, keepdim=True)


@guidance_method
@dataclass(frozen=True, kw_only=True)
class RandomDirection(PerturbedGuidance):
    """Guidance by the control."""

    name: ClassVar[str] = "random-direction"

    blur_sigma: BlurSigma = blur_sigma_setting(5.0, "as of OSEG")

    @property
    def change(self) -> MoveAnywhere:
        return MoveAnywhere(self.blur_sigma)

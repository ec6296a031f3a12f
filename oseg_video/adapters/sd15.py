"""Stable Diffusion 1.5 (stable-diffusion-v1-5/stable-diffusion-v1-5); 1.4 and 2 have its pipelines, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from oseg_video.adapters.base import register_adapter
from oseg_video.adapters.sdxl import SDXLAdapter
from oseg_video.types import Denoiser

if TYPE_CHECKING:
    from torch import Tensor


@register_adapter
class StableDiffusionAdapter(SDXLAdapter):
    """SDXL's denoiser class with one text encoder, without pooled text and sizes."""

    family = "sd15"
    text_to_video = "StableDiffusionPipeline"
    other_pipelines = ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
    hub_repository = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    full_size: ClassVar[Mapping[str, Any]] = {"cross_attention_dim": 768}

    def _added_conditions(self, denoiser: Denoiser, rows: int) -> dict[str, Tensor] | None:
        return None

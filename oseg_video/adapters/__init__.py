"""Adapters: one file per model family; importing this package registers them all."""

from oseg_video.adapters import cogvideox, hunyuan, hunyuan15, ltx, ltx2, mochi, sd15, sdxl, svd, wan
from oseg_video.adapters.base import (
    AttentionSite,
    ModelAdapter,
    UnsupportedPipelineError,
    VideoTokens,
    adapter_for,
    adapter_for_class,
    all_adapters,
    family_settings,
)
from oseg_video.adapters.blocks import BlockAddress, UnknownBlockError
from oseg_video.adapters.settings import ClipSize

__all__ = [
    "AttentionSite",
    "BlockAddress",
    "ClipSize",
    "ModelAdapter",
    "UnknownBlockError",
    "UnsupportedPipelineError",
    "VideoTokens",
    "adapter_for",
    "adapter_for_class",
    "all_adapters",
    "cogvideox",
    "family_settings",
    "hunyuan",
    "hunyuan15",
    "ltx",
    "ltx2",
    "mochi",
    "sd15",
    "sdxl",
    "svd",
    "wan",
]

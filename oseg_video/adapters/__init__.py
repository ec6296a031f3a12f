"""Adapters: one file per model family; importing this package registers them all."""

import pkgutil
from importlib import import_module

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

for _module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
    import_module(_module.name)

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
    "family_settings",
]

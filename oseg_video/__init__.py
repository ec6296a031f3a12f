"""Training-free guidance for text-to-video and image-to-video diffusion pipelines."""

from importlib import import_module
from typing import Any

_HOME = {
    "APG": "oseg_video.guidance.methods",
    "CFG": "oseg_video.guidance.methods",
    "CFGZeroStar": "oseg_video.guidance.methods",
    "OSEG": "oseg_video.guidance.methods",
    "PAG": "oseg_video.guidance.methods",
    "SEG": "oseg_video.guidance.methods",
    "STG": "oseg_video.guidance.methods",
    "GuidanceError": "oseg_video.engine.guided",
    "SilentGuidanceError": "oseg_video.engine.guided",
    "guided": "oseg_video.engine.guided",
    "Breakpoints": "oseg_video.guidance.schedule",
    "OsegVideoError": "oseg_video.types",
    "TokenGrid": "oseg_video.types",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    # Imported when first used, so that `import oseg_video` and the command's --help stay instant.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

"""Classifier-free guidance."""

from dataclasses import dataclass
from typing import ClassVar

from oseg_video.guidance.methods.base import Guidance


@dataclass(frozen=True, kw_only=True)
class CFG(Guidance):
    """Classifier-free guidance, `U + w (C - U)` (arXiv 2207.12598). Outside the interval: `C`."""

    name: ClassVar[str] = "cfg"

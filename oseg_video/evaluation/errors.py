"""What evaluation refuses."""

from __future__ import annotations

from oseg_video.types import OsegVideoError


class EvaluationError(OsegVideoError):
    """Clips, weights or a metric's name that cannot be used; the message names them."""


class VBenchError(EvaluationError):
    """VBench's interpreter is missing, or VBench cannot do what was asked; the message says what to do."""

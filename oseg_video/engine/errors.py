"""What can go wrong while a pipeline is guided; each message is one complete line."""

from oseg_video.types import OsegVideoError


class GuidanceError(OsegVideoError):
    """The guidance cannot be honoured on this pipeline as it was called."""


class SilentGuidanceError(GuidanceError):
    """A perturbation left no trace: a site did not fire, or the perturbed prediction is the plain one."""

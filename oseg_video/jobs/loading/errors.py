"""What goes wrong while a model is found and loaded."""

from oseg_video.types import OsegVideoError


class LoadError(OsegVideoError):
    """A model that cannot be found or loaded as asked; the message says why."""

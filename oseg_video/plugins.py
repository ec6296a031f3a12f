"""Packages that add methods and families of their own, through the entry point group `oseg_video`."""

from __future__ import annotations

from importlib.metadata import entry_points

from oseg_video.types import OsegVideoError

GROUP = "oseg_video"


class PluginError(OsegVideoError):
    """A package under the entry point group `oseg_video` that cannot be imported."""


def load_plugins() -> None:
    """Import the modules that other packages name under the group. Raises PluginError."""
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            raise PluginError(
                f"cannot import {point.value}, which {GROUP} is extended by: {error}"
            ) from error

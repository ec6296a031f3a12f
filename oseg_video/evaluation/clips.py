"""Clips on disk, with what their manifests say about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ClipFile:
    """A clip that can be read. Frames, size and fps are what the file says, never assumed."""

    path: Path
    """A video file, a GIF or a folder of PNG pictures."""
    name: str
    """Its path relative to the folder that was asked for, with that folder's name in front if there are
    several; unique in an evaluation."""
    frames: int
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    fps: float | None
    """Frames per second, or None where the file does not say (a folder of pictures)."""
    method: str
    """The row of the table that it belongs to."""
    prompt: str | None
    """From the manifest; None without one, or where the model takes no text."""
    seed: int | None
    """From the manifest; None without one."""

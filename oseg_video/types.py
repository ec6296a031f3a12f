"""What every layer shares: the token grid and the errors that a user may meet. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


class Pipeline(Protocol):
    """A diffusers pipeline object: called with the settings of a clip; its components are attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def __getattr__(self, name: str, /) -> Any: ...

    def __setattr__(self, name: str, value: Any, /) -> None: ...


class Denoiser(Protocol):
    """The network of a pipeline, a module of diffusers; its parts and its config are attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def __getattr__(self, name: str, /) -> Any: ...


class Scheduler(Protocol):
    """A scheduler of diffusers; its timesteps, noise levels and config are attributes, by kind."""

    def __getattr__(self, name: str, /) -> Any: ...


class OsegVideoError(ValueError):
    """Base of every error that a user can cause and fix; its message is one complete line."""


class SettingError(OsegVideoError):
    """A setting outside its allowed values; the message names the setting, the value and what is allowed."""


class ShapeError(OsegVideoError):
    """A tensor that does not fit the token grid, or does not fit another tensor."""


@dataclass(frozen=True, slots=True)
class TokenGrid:
    """The video tokens of one attention site: `frames x height x width`, flattened with width fastest.

    It belongs to a site and counts latent tokens after patchify, not pixels. Text tokens are counted apart.
    Raises SettingError unless all three are positive integers.
    """

    frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SettingError(f"TokenGrid {name} must be a positive integer, got {value!r}")

    @property
    def tokens(self) -> int:
        """Number of video tokens, S = F * H * W."""
        return self.frames * self.height * self.width

    @property
    def shape(self) -> tuple[int, int, int]:
        """(frames, height, width)."""
        return self.frames, self.height, self.width

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


class SaidElsewhereError(OsegVideoError):
    """Something that another process says; this one ends without a word."""

"""Addresses of a denoiser's blocks, and the selectors that users name them by."""

from dataclasses import dataclass

from oseg_video.types import SettingError


class UnknownBlockError(SettingError):
    """A selector that names no block of the model; the message says which there are."""


@dataclass(frozen=True)
class BlockAddress:
    """One transformer block by its place in the denoiser."""

    index: int
    """Running index over all blocks, in order of execution."""
    path: str
    """Full name of the block inside the denoiser."""
    stage: str
    """Stack or stage that the block belongs to, such as "dual" or "up.1"."""
    position: int
    """Index among the blocks of its stage and kind."""
    unit: int
    """Index of the replay unit that the block belongs to."""
    kind: str = ""
    """What its attention runs over, in families with more than one kind: "spatial" or "temporal"."""

    @property
    def group(self) -> str:
        """Stage and kind, as a selector."""
        return f"{self.stage}:{self.kind}" if self.kind else self.stage

    def matches(self, selector: int | str) -> bool:
        """Whether a selector (see `ModelAdapter.resolve_blocks`) names this block."""
        if isinstance(selector, int):
            return selector == self.index
        return all(self._has(part) for part in selector.split(":"))

    def _has(self, part: str) -> bool:
        if part.isdecimal():
            return int(part) == self.position
        return part in (self.kind, self.stage) or self.stage.startswith(f"{part}.")

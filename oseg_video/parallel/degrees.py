"""How many ranks work along each axis. Standard library only."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields

from oseg_video.types import SettingError


def started_as() -> tuple[int, int, int]:
    """Rank, number of ranks, and place on this machine, from the environment that torchrun sets.

    (0, 1, 0) for a process of its own, which all three variables together do not describe.
    """
    read = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if not all(value.isdecimal() for value in read):
        return 0, 1, 0
    rank, size, local_rank = map(int, read)
    return rank, size, local_rank


@dataclass(frozen=True, kw_only=True, slots=True)
class Degrees:
    """How many ranks work along each axis; their product is the number of ranks."""

    data: int = 1
    """Clips that are made at the same time."""
    branch: int = 1
    """Ranks that share the branches of one step."""
    ring: int = 1
    """Chunks of the token sequence, passed around for attention."""
    ulysses: int = 1
    """Ranks that trade tokens for attention heads."""

    def __post_init__(self) -> None:
        for axis, degree in self.items():
            if not isinstance(degree, int) or isinstance(degree, bool) or degree < 1:
                raise SettingError(f"{axis} must be a whole number of ranks, at least 1, got {degree!r}")

    @classmethod
    def parse(cls, text: str) -> Degrees:
        """From text such as "ulysses=2,branch=2". Raises SettingError."""
        known = [spec.name for spec in fields(cls)]
        given: dict[str, int] = {}
        for part in text.split(","):
            axis, equals, degree = part.strip().partition("=")
            if axis not in known or not equals or not degree.isascii() or not degree.isdecimal():
                raise SettingError(
                    f"parallel must be auto or AXIS=RANKS,... with the axes {', '.join(known)}, got {text!r}"
                )
            if axis in given:
                raise SettingError(f"parallel names {axis} twice: {text!r}")
            given[axis] = int(degree)
        return cls(**given)

    def items(self) -> Iterator[tuple[str, int]]:
        """(axis, degree), in order of the mesh."""
        return ((spec.name, getattr(self, spec.name)) for spec in fields(self))

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return math.prod(degree for _, degree in self.items())

    def require(self, ranks: int) -> None:
        """Raises SettingError if this is not the number of ranks."""
        if self.ranks != ranks:
            raise SettingError(
                f"parallel {self} needs {self.ranks} ranks, this run has {ranks}; start them with "
                f"--gpus {self.ranks} or torchrun"
            )

    def __str__(self) -> str:
        return ",".join(f"{axis}={degree}" for axis, degree in self.items() if degree > 1) or "one rank"

"""A denoiser's blocks: where they are, what they are called, and the selectors that users name them by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from oseg_video.guidance.plan import ALL_BLOCKS
from oseg_video.types import Denoiser, SettingError


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
        """Whether a selector (see `resolve_blocks`) names this block."""
        if isinstance(selector, int):
            return selector == self.index
        return selector == ALL_BLOCKS or all(self._has(part) for part in selector.split(":"))

    def _has(self, part: str) -> bool:
        if part.isdecimal():
            return int(part) == self.position
        return (bool(part) and part in (self.kind, self.stage)) or self.stage.startswith(f"{part}.")


class BlockLayout(Protocol):
    """Where the blocks of a denoiser are. Called with a denoiser: every block, in order of execution."""

    @property
    def chained(self) -> bool:
        """Whether the replay units are a chain, each one's output being all that the next one takes."""

    def __call__(self, denoiser: Denoiser) -> list[BlockAddress]: ...

    def units(self, denoiser: Denoiser) -> list[str]:
        """Names of the modules that a perturbed pass can replay instead of running, in order of execution."""

    def beside(self, denoiser: Denoiser) -> list[str]:
        """The first of them, if they are beside the chain: what they return is taken behind its blocks."""


class Stacks:
    """Blocks in `nn.ModuleList`s that run one after the other: `Stacks(dual="transformer_blocks", ...)`.

    Stage name -> attribute of the denoiser, in order of execution; named, never guessed. Each block is a
    replay unit. `beside` is a list of modules that some denoisers of the family run before all blocks, to add
    what they return behind several of them; they are units, but no blocks: nothing perturbs them.
    """

    chained = True

    def __init__(self, *, beside: str | None = None, **stacks: str) -> None:
        self._beside = beside
        self._stacks: Mapping[str, str] = stacks

    def __call__(self, denoiser: Denoiser) -> list[BlockAddress]:
        places = [
            (stage, stack, position)
            for stage, stack in self._stacks.items()
            for position in range(len(getattr(denoiser, stack)))
        ]
        before = len(self.beside(denoiser))
        return [
            BlockAddress(index, f"{stack}.{position}", stage, position, unit=before + index)
            for index, (stage, stack, position) in enumerate(places)
        ]

    def units(self, denoiser: Denoiser) -> list[str]:
        return [*self.beside(denoiser), *(block.path for block in self(denoiser))]

    def beside(self, denoiser: Denoiser) -> list[str]:
        modules = getattr(denoiser, self._beside, ()) if self._beside else ()
        return [f"{self._beside}.{position}" for position in range(len(modules))]


def resolve_blocks(
    family: str, blocks: Sequence[BlockAddress], selectors: Sequence[int | str]
) -> list[BlockAddress]:
    """Those of the blocks that selectors name, in order of execution. Raises `UnknownBlockError`.

    A selector is "all", a running index, or parts joined by ":", all of which must hold: a stage ("dual",
    "up.1"; "up" stands for every "up.N"), a kind ("spatial"), a position in its stage and kind ("2").
    """
    chosen: dict[int, BlockAddress] = {}
    for selector in selectors:
        matching = [block for block in blocks if block.matches(selector)]
        if not matching:
            raise UnknownBlockError(_unknown_block(family, selector, blocks))
        chosen |= {block.index: block for block in matching}
    return [chosen[index] for index in sorted(chosen)]


def _unknown_block(family: str, selector: int | str, blocks: Sequence[BlockAddress]) -> str:
    known = f"this {family} model has {len(blocks)} blocks, 0 to {len(blocks) - 1}"
    counts = Counter(block.group for block in blocks)
    if len(counts) > 1 or isinstance(selector, str):
        known += " (" + ", ".join(f"{key}:0 to {count - 1}" for key, count in counts.items()) + ")"
    return f"no block {selector}: {known}"

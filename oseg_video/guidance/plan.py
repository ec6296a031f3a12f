"""What one sampling step needs: named branches, what is perturbed in them, the rule that combines them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from oseg_video.guidance.perturbations import Change, ExtrapolateAttention
from oseg_video.guidance.scales import guides
from oseg_video.types import TokenGrid

if TYPE_CHECKING:
    from torch import Tensor

    from oseg_video.guidance.scales import Scale

    Rule = Callable[..., Tensor]

Condition = Literal["cond", "uncond"]
BlockSelector = int | str
"""A block by its running index, or several by the adapter's names for them, such as "dual:2" or "mid"."""
ALL_BLOCKS: BlockSelector = "all"
"""Every block of any model."""
Stream = Literal["video", "audio"]
STREAMS: tuple[Stream, ...] = ("video", "audio")
"""What a denoiser may predict at once; most have a video stream only."""


@dataclass(frozen=True)
class Perturbation:
    """What is perturbed in a branch: what happens in the chosen blocks, or what the branch starts from."""

    blocks: tuple[BlockSelector, ...]
    """Where the change takes place; with a `source`, where that branch's self-attention is looked at."""
    change: Change
    source: str | None = None
    """The plain branch of the same condition that a change of the input looks at, by name; None for a change
    inside the blocks."""
    streams: tuple[Stream, ...] = STREAMS
    """The streams that are perturbed, as far as the model has them."""


@dataclass(frozen=True)
class Branch:
    """One forward pass of one step: a condition, plain or perturbed."""

    condition: Condition
    perturbation: Perturbation | None = None

    @property
    def reads_negative(self) -> bool:
        """Whether the branch looks at the text of `uncond` as well, though it is no branch of it."""
        return self.perturbation is not None and isinstance(self.perturbation.change, ExtrapolateAttention)

    @property
    def conditions(self) -> frozenset[Condition]:
        """The conditions that the pipeline's calls must bring for this branch."""
        return frozenset((self.condition, "uncond") if self.reads_negative else (self.condition,))


@dataclass(frozen=True)
class Step:
    """Where sampling stands when a prediction is asked for."""

    index: int
    """Step index, 0 to count - 1."""
    count: int
    """Number of sampling steps."""
    noise_level: float
    """1 is pure noise, 0 is clean."""
    pipeline_scale: Scale
    """The guidance scale that the pipeline was called with, a tensor where it grows over the frames."""
    memory: dict[str, Tensor] = field(default_factory=dict, compare=False)
    """What a rule keeps from step to step of one sampling run; empty at its start."""
    sample: Tensor | None = field(default=None, compare=False, repr=False)
    """The noisy latents that the predictions are made for, in the predictions' shape and up to a positive
    factor (some schedulers scale what they show the network); None before sampling."""
    grid: TokenGrid | None = None
    """Latents of the clip where predictions are sequences [B, S, C]; None where height and width are the
    predictions' last two dimensions."""
    behind: int = 0
    """Latents of such a sequence that stand behind the clip's; all others that are none of it come first."""
    unconditional: bool | None = None
    """Whether the pipeline runs `uncond`; None is what most do, where their scale is above 1. Wan 2.2 goes by
    the first of its two scales, HunyuanVideo 1.5 runs it at every scale but 1."""

    @property
    def runs_uncond(self) -> bool:
        """Whether the pipeline runs `uncond`."""
        return guides(self.pipeline_scale) if self.unconditional is None else self.unconditional


@dataclass(frozen=True)
class StepPlan:
    """The branches of one step by name, and the rule that combines their predictions.

    The rule takes the predictions as keyword arguments, one per branch name, and returns the guided
    prediction in float32.
    `rule=None` means that the pipeline's own combination of its plain branches is already the answer.
    """

    branches: Mapping[str, Branch]
    formula: str
    """The guided prediction with its numbers, for the reader: C cond, U uncond, P perturbed, ~ queries of the
    same branch perturbed, a projection scale."""
    rule: Rule | None = None
    of_prediction: bool = False
    """Whether the rule is about what the model predicts, also where others act on denoised latents."""

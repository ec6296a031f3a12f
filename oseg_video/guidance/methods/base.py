"""What guidance methods share: scales, blocks and their checks, text guidance, and the perturbed term."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from oseg_video.guidance import combine
from oseg_video.guidance.numerics import upcast
from oseg_video.guidance.perturbations import Change
from oseg_video.guidance.plan import BlockSelector, Branch, Perturbation, Rule, Step, StepPlan
from oseg_video.guidance.schedule import Breakpoints, Interval, value_at, values_of
from oseg_video.guidance.text import (
    PlainText,
    TextName,
    TextTreatment,
    guides,
    is_off,
    same_scale,
    treat_text,
)
from oseg_video.guidance.validation import is_block_selector, is_number
from oseg_video.types import SettingError

ScaleSchedule = float | Breakpoints[float]
"""A number, or a number that changes over the noise level."""
Blocks = tuple[BlockSelector, ...]
BlockSchedule = Blocks | Breakpoints[Blocks]
"""Blocks, or blocks that change over the noise level; none is no perturbation at that level."""


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Text guidance inside an interval, `C` alone outside of it; the base of all methods.

    Raises `SettingError` for a value that is out of range.
    """

    guidance_scale: ScaleSchedule | None = None
    """Weight w of the text in `uncond + w (cond - uncond)`; 1 is off; None takes the pipeline's scale, and
    is off where the pipeline runs no `uncond`."""
    rescale: ScaleSchedule = 0.0
    """How far the guided prediction's standard deviation is pulled back to that of `cond`; 0 is off."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Fraction of the sampling steps [start, stop) in which the method acts."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        if self.guidance_scale is not None:
            check_scale("guidance_scale", self.guidance_scale)
        check_scale("rescale", self.rescale, maximum=1.0)
        object.__setattr__(self, "interval", tuple(self.interval))
        Interval(*self.interval)
        _ = self._text  # its options check themselves

    @property
    def blocks_used(self) -> Blocks:
        """Blocks that the method perturbs at some noise level; empty for a method without perturbation."""
        return ()

    @property
    def largest_guidance_scale(self) -> float | None:
        """The largest guidance scale at any noise level: above 1 it needs a pipeline that runs `uncond`."""
        return None if self.guidance_scale is None else max(values_of(self.guidance_scale))

    def plan(self, step: Step) -> StepPlan:
        """Branches and rule of one step. Raises SettingError for settings that do not fit the sampling."""
        return self._text_plan(step) if self._active(step) else self._plain_plan(step)

    @property
    def _text(self) -> TextTreatment:
        """How the text difference is treated."""
        return PlainText()

    def _active(self, step: Step) -> bool:
        return Interval(*self.interval).contains(step.index, step.count)

    def _text_scale(self, step: Step) -> float | Tensor:
        if self.guidance_scale is not None:
            return value_at(self.guidance_scale, step.noise_level)
        if not guides(step.pipeline_scale):
            return 1.0
        scale = step.pipeline_scale
        return upcast(scale) if isinstance(scale, Tensor) else scale

    def _text_plan(self, step: Step) -> StepPlan:
        """Text guidance alone; the pipeline's own rule where it computes just that."""
        scale = self._text_scale(step)
        if self._text.zeroes(step):
            return StepPlan({"cond": Branch("cond")}, "0", _zero)
        if is_off(scale):
            return self._plain_plan(step)
        branches = {"uncond": Branch("uncond"), "cond": Branch("cond")}
        plain = isinstance(self._text, PlainText) and value_at(self.rescale, step.noise_level) == 0
        if plain and same_scale(scale, step.pipeline_scale):
            return StepPlan(branches, self._text.formula(scale, "U"))
        rule = partial(_text_alone, self._text, scale, step.memory)
        return self._with_rule(branches, self._text.formula(scale, "U"), rule, step)

    def _plain_plan(self, step: Step) -> StepPlan:
        """`C` as it is."""
        return StepPlan({"cond": Branch("cond")}, "C", _cond_alone if guides(step.pipeline_scale) else None)

    def _with_rule(self, branches: Mapping[str, Branch], formula: str, rule: Rule, step: Step) -> StepPlan:
        """The plan, its rule followed by the rescaling that this step asks for."""
        factor = value_at(self.rescale, step.noise_level)
        if factor == 0:
            return StepPlan(branches, formula, rule)
        formula = f"{formula}, rescaled to std(C) by {factor:g}"
        return StepPlan(branches, formula, partial(_rescaled, rule, factor))


@dataclass(frozen=True, kw_only=True)
class PerturbedGuidance(Guidance):
    """`C + (w - 1) T + lambda (C - P)`: text guidance and a push away from a perturbed prediction P.

    T is the text difference, treated as `text` says. Outside the interval, and where lambda is 0 or no block
    is named: text guidance alone. A subclass has a scale, named by `scale_name`, and a `_change`.
    """

    blocks: BlockSchedule = ()
    """Blocks that the perturbed branch changes: running indices, or the adapter's names, such as "dual:2"."""
    text: TextName = "cfg"
    """How the text difference is treated: "cfg" as it is, "apg" projected, "cfg-zero" with a scaled U."""
    eta: float | None = None
    """With text="apg": see `APG`."""
    momentum: float | None = None
    """With text="apg": see `APG`."""
    norm_threshold: float | None = None
    """With text="apg": see `APG`."""
    zero_steps: int | None = None
    """With text="cfg-zero": see `CFGZeroStar`."""

    scale_name: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "blocks", check_blocks(self.blocks))
        check_scale(self.scale_name, self._scale)
        if self._perturbs and not any(values_of(self.blocks)):
            raise SettingError(
                f"blocks must name at least one block for {type(self).__name__} to perturb, got none; "
                f"use CFG for guidance without perturbation"
            )

    @property
    def blocks_used(self) -> Blocks:
        return _sorted(
            {block for blocks in values_of(self.blocks) for block in blocks} if self._perturbs else ()
        )

    def plan(self, step: Step) -> StepPlan:
        blocks = value_at(self.blocks, step.noise_level)
        if not (blocks and self._perturbs and self._active(step)) or self._text.zeroes(step):
            return self._text_plan(step)
        return self._perturbed_plan(blocks, value_at(self._scale, step.noise_level), step)

    @property
    def _text(self) -> TextTreatment:
        return treat_text(
            self.text,
            eta=self.eta,
            momentum=self.momentum,
            norm_threshold=self.norm_threshold,
            zero_steps=self.zero_steps,
        )

    @property
    def _scale(self) -> ScaleSchedule:
        return getattr(self, self.scale_name)

    @property
    def _perturbs(self) -> bool:
        """Whether any step may need a perturbed branch."""
        return any(values_of(self._scale))

    def _change(self) -> Change:
        """What the perturbed branch does inside its blocks."""
        raise NotImplementedError

    def _perturbed_plan(self, blocks: Blocks, perturbed_scale: float, step: Step) -> StepPlan:
        if perturbed_scale == 0:
            return self._text_plan(step)
        scale = self._text_scale(step)
        branches = {} if is_off(scale) else {"uncond": Branch("uncond")}
        branches |= {
            "cond": Branch("cond"),
            "perturbed": Branch("cond", Perturbation(blocks, self._change())),
        }
        text = "C" if is_off(scale) else self._text.formula(scale, "U")
        rule = partial(_text_and_push, self._text, scale, perturbed_scale, step.memory)
        return self._with_rule(branches, f"{text} + {perturbed_scale:g} (C - P)", rule, step)


def check_scale(name: str, value: object, maximum: float = math.inf) -> None:
    """Raises SettingError unless a scale, at every noise level, is a finite number from 0 to `maximum`."""
    for number in value.values if isinstance(value, Breakpoints) else (value,):
        if not (is_number(number) and math.isfinite(number) and 0 <= number <= maximum):
            allowed = "a finite number >= 0" if maximum == math.inf else f"a number from 0 to {maximum:g}"
            raise SettingError(f"{name} must be {allowed}, got {number!r}")


def check_blocks(blocks: object) -> BlockSchedule:
    """The blocks as sorted tuples, indices before names; a single block is a tuple of one.

    Raises SettingError for what cannot name a block, and for a block that is named twice.
    """
    if isinstance(blocks, Breakpoints):
        return Breakpoints(tuple((level, _check_selectors(value)) for level, value in blocks.points))
    return _check_selectors(blocks)


def _check_selectors(blocks: Any) -> Blocks:
    blocks = tuple(blocks) if isinstance(blocks, list | tuple) else (blocks,)
    for block in blocks:
        if not is_block_selector(block):
            raise SettingError(
                f"blocks must be block indices (integers >= 0) or names (a-z, 0-9 and _ . : -), got {block!r}"
            )
    if len(set(blocks)) != len(blocks):
        raise SettingError(f"blocks must name each block once, got {blocks}")
    return _sorted(blocks)


def _sorted(blocks: Any) -> Blocks:
    return tuple(sorted(blocks, key=lambda block: (isinstance(block, str), block)))


def _cond_alone(cond: Tensor) -> Tensor:
    return upcast(cond)


def _zero(cond: Tensor) -> Tensor:
    return upcast(cond).new_zeros(cond.shape)


def _text_alone(
    text: TextTreatment, scale: combine.Scale, memory: dict[str, Tensor], *, cond: Tensor, uncond: Tensor
) -> Tensor:
    return text.guided(cond, uncond, scale, memory)


def _text_and_push(
    text: TextTreatment,
    scale: combine.Scale,
    perturbed_scale: float,
    memory: dict[str, Tensor],
    *,
    cond: Tensor,
    perturbed: Tensor,
    uncond: Tensor | None = None,
) -> Tensor:
    prediction = cond if uncond is None else text.guided(cond, uncond, scale, memory)
    return combine.push_away(prediction, cond=cond, perturbed=perturbed, scale=perturbed_scale)


def _rescaled(rule: Rule, factor: float, **predictions: Tensor) -> Tensor:
    return combine.rescale(rule(**predictions), predictions["cond"], factor)

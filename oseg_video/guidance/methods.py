"""Guidance methods as data: which branches a step needs, how they are perturbed, how they combine.

A method knows no model. For one sampling step it returns a `StepPlan`: named branches (a condition and
at most one perturbation each) and the rule that turns their predictions into the guided prediction. The
runtime runs the branches; an adapter knows where a perturbation goes in a model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from oseg_video.guidance import combine
from oseg_video.guidance.perturbations import BlurOrthogonalQueries, BlurQueries, PublishedQueries, SkipBlock
from oseg_video.guidance.plan import Branch, Perturbation, Rule, Step, StepPlan
from oseg_video.guidance.projection import parse_reference
from oseg_video.guidance.schedule import Breakpoints, Interval, value_at
from oseg_video.guidance.smoothing import validate_blur_sigma, validate_boundary
from oseg_video.guidance.validation import is_number, validate_fraction
from oseg_video.types import SettingError

Scale = float | Breakpoints[float]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """What all methods share. Raises `SettingError` for a value that is out of range."""

    guidance_scale: Scale | None = None
    """Weight w of the text in `uncond + w (cond - uncond)`; 1 is off; None takes the pipeline's scale."""
    rescale: Scale = 0.0
    """How far the guided prediction's standard deviation is pulled back to that of `cond`; 0 is off."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Fraction of the sampling steps [start, stop) in which the method acts."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        if self.guidance_scale is not None:
            _check_scale("guidance_scale", self.guidance_scale)
        _check_scale("rescale", self.rescale, maximum=1.0)
        object.__setattr__(self, "interval", tuple(self.interval))
        Interval(*self.interval)

    @property
    def blocks_used(self) -> tuple[int, ...]:
        """Blocks that the method perturbs at some step; empty for a method without perturbation."""
        return ()

    def plan(self, step: Step) -> StepPlan:
        """Branches and rule of one step."""
        raise NotImplementedError

    def _active(self, step: Step) -> bool:
        return Interval(*self.interval).contains(step.index, step.count)

    def _text_scale(self, step: Step) -> float:
        if self.guidance_scale is None:
            return max(step.pipeline_scale, 1.0)
        return value_at(self.guidance_scale, step.noise_level)

    def _with_rule(self, branches: Mapping[str, Branch], rule: Rule, step: Step) -> StepPlan:
        """The plan, its rule followed by the rescaling that this step asks for."""
        factor = value_at(self.rescale, step.noise_level)
        if factor == 0:
            return StepPlan(branches, rule)
        return StepPlan(branches, partial(_rescaled, rule, factor))

    def _text_only(self, scale: float, step: Step) -> StepPlan:
        """Plain text guidance with `scale`; the pipeline's own rule where it computes just that."""
        if scale == 1:
            return StepPlan({"cond": Branch("cond")}, _cond_alone)
        branches = {"uncond": Branch("uncond"), "cond": Branch("cond")}
        if scale == step.pipeline_scale and value_at(self.rescale, step.noise_level) == 0:
            return StepPlan(branches)
        return self._with_rule(branches, partial(combine.cfg, scale=scale), step)


@dataclass(frozen=True, kw_only=True)
class CFG(Guidance):
    """Classifier-free guidance, `U + w (C - U)` (arXiv 2207.12598). Outside the interval: `C`."""

    name: ClassVar[str] = "cfg"

    def plan(self, step: Step) -> StepPlan:
        return self._text_only(self._text_scale(step) if self._active(step) else 1.0, step)


@dataclass(frozen=True, kw_only=True)
class PerturbedGuidance(Guidance):
    """Text guidance plus a push away from a perturbed prediction. Outside the interval: plain CFG."""

    blocks: tuple[int, ...] = ()
    """Running indices of the blocks that the perturbed branch changes."""

    scale_name: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "blocks", _check_blocks(self.blocks))
        _check_scale(self.scale_name, self._scale)
        if not self.blocks and self._perturbs:
            raise SettingError(
                f"blocks must name at least one block for {type(self).__name__} to perturb, got none; "
                f"use CFG for guidance without perturbation"
            )

    @property
    def _scale(self) -> Scale:
        return getattr(self, self.scale_name)

    @property
    def _perturbs(self) -> bool:
        """Whether any step needs a perturbed branch."""
        return self._scale != 0

    @property
    def blocks_used(self) -> tuple[int, ...]:
        return self.blocks if self._perturbs else ()

    def plan(self, step: Step) -> StepPlan:
        scale = self._text_scale(step)
        if not (self._perturbs and self._active(step)):
            return self._text_only(scale, step)
        return self._perturbed_plan(scale, value_at(self._scale, step.noise_level), step)

    def _perturbation(self) -> Perturbation:
        raise NotImplementedError

    def _perturbed_plan(self, scale: float, perturbed_scale: float, step: Step) -> StepPlan:
        """`U + w (C - U) + lambda (C - P)`: the rule that SEG, STG and PAG share."""
        if perturbed_scale == 0:
            return self._text_only(scale, step)
        branches = {} if scale == 1 else {"uncond": Branch("uncond")}
        branches |= {"cond": Branch("cond"), "perturbed": Branch("cond", self._perturbation())}
        rule = partial(combine.perturbed_guidance, guidance_scale=scale, perturbed_scale=perturbed_scale)
        return self._with_rule(branches, rule, step)


@dataclass(frozen=True, kw_only=True)
class STG(PerturbedGuidance):
    """Spatio-temporal guidance, residual form: the perturbed branch skips whole blocks (arXiv 2411.18664)."""

    stg_scale: Scale = 1.0
    """Weight lambda of `cond - perturbed`; 0 is off."""

    name: ClassVar[str] = "stg"
    scale_name: ClassVar[str] = "stg_scale"

    def _perturbation(self) -> Perturbation:
        return Perturbation(self.blocks, SkipBlock())


@dataclass(frozen=True, kw_only=True)
class SEG(PerturbedGuidance):
    """Smoothed energy guidance: the perturbed branch blurs the queries (arXiv 2408.00760)."""

    seg_scale: Scale = 1.0
    """Weight lambda of `cond - perturbed`; 0 is off."""
    blur_sigma: float | tuple[float, float] = math.inf
    """Smoothing width in tokens, one number or (frames, space); inf is the mean, 0 is off."""
    boundary: str = "symmetric"
    """Treatment of the grid's edges: "symmetric" (doubly stochastic) or "reflect" (SEG's code)."""

    name: ClassVar[str] = "seg"
    scale_name: ClassVar[str] = "seg_scale"

    def __post_init__(self) -> None:
        validate_blur_sigma(self.blur_sigma)
        validate_boundary(self.boundary)
        super().__post_init__()

    @property
    def _perturbs(self) -> bool:
        return super()._perturbs and validate_blur_sigma(self.blur_sigma) != (0, 0)

    def _perturbation(self) -> Perturbation:
        return Perturbation(self.blocks, BlurQueries(self.blur_sigma, self.boundary))


@dataclass(frozen=True, kw_only=True)
class OSEG(PerturbedGuidance):
    """Orthogonal smoothed energy guidance (WACV 2026).

    With `rule="slides"`: `C + (w - 1) (C - U~) + lambda (C - C~)`, or with the plain `U` in the middle
    term if `perturb_unconditional=False`. `rule="published"` reproduces the released code, which differs
    in the query transform and in the combination; there `blur_sigma`, `keep_parallel`, `reference` and
    `boundary` have no meaning and must keep their defaults.
    """

    oseg_scale: Scale = 1.0
    """Weight lambda of `cond - perturbed`; 0 turns that term off."""
    blur_sigma: float | tuple[float, float] = 5.0
    """Smoothing width in tokens, one number or (frames, space); inf is the mean."""
    mix: float = 1.0
    """Share mu of the transformed query, 0 to 1; 0 is off."""
    keep_parallel: float = 0.0
    """Share kappa of the component along the reference key that is kept, 0 to 1."""
    reference: str = "token"
    """The key that defines "parallel": "token", "frame", "clip" or "principal:r"."""
    perturb_unconditional: bool = True
    """Whether the text term pushes away from the perturbed or from the plain unconditional prediction."""
    rule: Literal["slides", "published"] = "slides"
    """How predictions are combined."""
    boundary: str = "symmetric"
    """Treatment of the grid's edges: "symmetric" (doubly stochastic) or "reflect" (SEG's code)."""
    published_skip: bool = False
    """Published rule only: the conditional branch skips the blocks (HunyuanVideo's code) instead of
    staying unperturbed (Mochi's code)."""

    name: ClassVar[str] = "oseg"
    scale_name: ClassVar[str] = "oseg_scale"

    def __post_init__(self) -> None:
        validate_blur_sigma(self.blur_sigma)
        validate_boundary(self.boundary)
        parse_reference(self.reference)
        validate_fraction("mix", self.mix)
        validate_fraction("keep_parallel", self.keep_parallel)
        if self.rule not in ("slides", "published"):
            raise SettingError(f"rule must be 'slides' or 'published', not {self.rule!r}")
        if self.rule == "published":
            self._refuse_unused(
                "blur_sigma", "keep_parallel", "reference", "boundary", "perturb_unconditional"
            )
        else:
            self._refuse_unused("published_skip")
        super().__post_init__()

    def _refuse_unused(self, *names: str) -> None:
        for item in names:
            default = type(self).__dataclass_fields__[item].default
            if getattr(self, item) != default:
                raise SettingError(f"{item}={getattr(self, item)!r} has no meaning with rule={self.rule!r}")

    @property
    def _transforms(self) -> bool:
        """Whether the query transform is anything but the identity."""
        blurs = validate_blur_sigma(self.blur_sigma) != (0, 0)
        return self.mix > 0 and (self.rule == "published" or blurs or self.keep_parallel < 1)

    @property
    def _perturbs(self) -> bool:
        return self._transforms and (super()._perturbs or self.perturb_unconditional)

    def _perturbation(self) -> Perturbation:
        if self.rule == "published":
            return Perturbation(self.blocks, PublishedQueries(self.mix))
        transform = BlurOrthogonalQueries(
            self.blur_sigma, self.mix, self.keep_parallel, self.reference, self.boundary
        )
        return Perturbation(self.blocks, transform)

    def _perturbed_plan(self, scale: float, perturbed_scale: float, step: Step) -> StepPlan:
        if self.rule == "published":
            return self._published_plan(scale, perturbed_scale, step)
        if not self.perturb_unconditional:
            return super()._perturbed_plan(scale, perturbed_scale, step)
        branches = {"cond": Branch("cond")}
        if scale != 1:
            branches["uncond_perturbed"] = Branch("uncond", self._perturbation())
        if perturbed_scale != 0:
            branches["cond_perturbed"] = Branch("cond", self._perturbation())

        rule = partial(combine.oseg_slides, guidance_scale=scale, oseg_scale=perturbed_scale)
        return self._with_rule(branches, rule, step)

    def _published_plan(self, scale: float, perturbed_scale: float, step: Step) -> StepPlan:
        if step.index == 0:
            # The released code replaces the first step's guided prediction by this.
            return StepPlan({"cond": Branch("cond")}, _tenth_of_cond)
        branches = {"cond": Branch("cond"), "uncond_perturbed": Branch("uncond", self._perturbation())}
        if self.published_skip:
            branches["cond_perturbed"] = Branch("cond", Perturbation(self.blocks, SkipBlock()))
        rule = partial(combine.oseg_published, guidance_scale=scale, oseg_scale=perturbed_scale)
        return self._with_rule(branches, rule, step)


METHODS: dict[str, type[Guidance]] = {method.name: method for method in (CFG, SEG, STG, OSEG)}
"""The methods by name."""


def _cond_alone(cond: Tensor) -> Tensor:
    return cond


def _tenth_of_cond(cond: Tensor) -> Tensor:
    return 0.1 * cond.float()


def _rescaled(rule: Rule, factor: float, **predictions: Tensor) -> Tensor:
    return combine.rescale(rule(**predictions), predictions["cond"], factor)


def _check_scale(name: str, value: object, maximum: float = math.inf) -> None:
    for number in [v for _, v in value.points] if isinstance(value, Breakpoints) else [value]:
        if not (is_number(number) and math.isfinite(number) and 0 <= number <= maximum):
            allowed = "a finite number >= 0" if maximum == math.inf else f"a number from 0 to {maximum:g}"
            raise SettingError(f"{name} must be {allowed}, got {number!r}")


def _check_blocks(blocks: object) -> tuple[int, ...]:
    blocks = tuple(blocks) if isinstance(blocks, list | tuple) else (blocks,)
    for block in blocks:
        if isinstance(block, bool) or not isinstance(block, int) or block < 0:
            raise SettingError(f"blocks must be block indices (integers >= 0), got {block!r}")
    if len(set(blocks)) != len(blocks):
        raise SettingError(f"blocks must name each block once, got {blocks}")
    return tuple(sorted(blocks))

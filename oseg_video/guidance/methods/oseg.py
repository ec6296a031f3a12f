"""Orthogonal smoothed energy guidance."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from oseg_video.guidance import combine
from oseg_video.guidance.methods.base import Blocks, PerturbedGuidance, ScaleSchedule
from oseg_video.guidance.numerics import upcast
from oseg_video.guidance.perturbations import BlurOrthogonalQueries, Change, PublishedQueries, SkipBlock
from oseg_video.guidance.plan import Branch, Perturbation, Step, StepPlan
from oseg_video.guidance.projection import parse_reference
from oseg_video.guidance.smoothing import validate_blur_sigma, validate_boundary
from oseg_video.guidance.text import TextTreatment, is_off, shown
from oseg_video.guidance.validation import validate_fraction
from oseg_video.types import SettingError


@dataclass(frozen=True, kw_only=True)
class OSEG(PerturbedGuidance):
    """Orthogonal smoothed energy guidance (WACV 2026).

    With `rule="slides"`: `C + (w - 1) (C - U~) + lambda (C - C~)`, or with the plain `U` in the middle
    term if `perturb_unconditional=False`; `text` treats that middle term. `rule="published"` reproduces the
    released code, which differs in the query transform and in the combination; there `blur_sigma`,
    `keep_parallel`, `reference`, `boundary`, `perturb_unconditional` and `text` have no meaning and must keep
    their defaults.
    """

    oseg_scale: ScaleSchedule = 1.0
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
                "blur_sigma", "keep_parallel", "reference", "boundary", "perturb_unconditional", "text"
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

    def _change(self) -> Change:
        if self.rule == "published":
            return PublishedQueries(self.mix)
        return BlurOrthogonalQueries(
            self.blur_sigma, self.mix, self.keep_parallel, self.reference, self.boundary
        )

    def _perturbed_plan(self, blocks: Blocks, perturbed_scale: float, step: Step) -> StepPlan:
        if self.rule == "published":
            return self._published_plan(blocks, perturbed_scale, step)
        if not self.perturb_unconditional:
            return super()._perturbed_plan(blocks, perturbed_scale, step)
        scale = self._text_scale(step)
        if is_off(scale) and perturbed_scale == 0:
            return self._text_plan(step)
        perturbation = Perturbation(blocks, self._change())
        branches = {"cond": Branch("cond")}
        if not is_off(scale):
            branches["uncond_perturbed"] = Branch("uncond", perturbation)
        if perturbed_scale != 0:
            branches["cond_perturbed"] = Branch("cond", perturbation)
        formula = "C" if is_off(scale) else self._text.formula(scale, "U~")
        if perturbed_scale != 0:
            formula += f" + {perturbed_scale:g} (C - C~)"
        rule = partial(_slides, self._text, scale, perturbed_scale, step.memory)
        return self._with_rule(branches, formula, rule, step)

    def _published_plan(self, blocks: Blocks, perturbed_scale: float, step: Step) -> StepPlan:
        if step.index == 0:
            # The released code replaces the first step's guided prediction by this.
            return StepPlan({"cond": Branch("cond")}, "0.1 C", _tenth_of_cond)
        perturbation = Perturbation(blocks, self._change())
        branches = {"cond": Branch("cond"), "uncond_perturbed": Branch("uncond", perturbation)}
        if self.published_skip:
            branches["cond_perturbed"] = Branch("cond", Perturbation(blocks, SkipBlock()))
        scale = self._text_scale(step)
        away = "C~" if self.published_skip else "C"
        formula = f"C + {shown(scale, less=1)} (C - 0.98 a U~) + {perturbed_scale:g} (C - 0.98 a {away})"
        rule = partial(combine.oseg_published, guidance_scale=scale, oseg_scale=perturbed_scale)
        return self._with_rule(branches, formula, rule, step)


def _slides(
    text: TextTreatment,
    scale: combine.Scale,
    perturbed_scale: float,
    memory: dict[str, Tensor],
    *,
    cond: Tensor,
    uncond_perturbed: Tensor | None = None,
    cond_perturbed: Tensor | None = None,
) -> Tensor:
    prediction = cond
    if uncond_perturbed is not None:
        prediction = text.extrapolated(cond, uncond_perturbed, scale, memory)
    if cond_perturbed is not None:
        prediction = combine.push_away(prediction, cond=cond, perturbed=cond_perturbed, scale=perturbed_scale)
    return prediction


def _tenth_of_cond(cond: Tensor) -> Tensor:
    return 0.1 * upcast(cond)

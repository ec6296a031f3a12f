"""Orthogonal smoothed energy guidance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from oseg_video.guidance.methods.base import PerturbedGuidance, TextGuidance, guidance_method
from oseg_video.guidance.methods.seg import blur_sigma_setting, boundary_setting
from oseg_video.guidance.perturbations import BlurOrthogonalQueries
from oseg_video.guidance.plan import Branch, Step, StepPlan
from oseg_video.guidance.scales import is_off
from oseg_video.guidance.validation import BlurSigma, parse_reference
from oseg_video.settings import setting
from oseg_video.settings.kinds import FINITE, SWITCH, Blocks, Kind
from oseg_video.types import SettingError

if TYPE_CHECKING:
    from torch import Tensor

    from oseg_video.guidance.scales import Scale


def _reference(value: Any) -> str:
    try:
        parse_reference(value)
    except SettingError:
        raise SettingError(f"token, frame, clip or principal:R with R >= 1, got {value!r}") from None
    return str(value)


REFERENCE = Kind("token, frame, clip or principal:R with R >= 1", "NAME", _reference, _reference)


def mix_setting(source: str) -> Any:
    """The setting `mix` of a method that changes queries by a share."""
    return setting(
        FINITE, "share mu of the changed query, 0 to 1; 0 is off", default=1.0, low=0, high=1, source=source
    )


@guidance_method
@dataclass(frozen=True, kw_only=True)
class OSEG(PerturbedGuidance):
    """Orthogonal smoothed energy guidance (WACV 2026).

    `C + (w - 1) (C - U~) + lambda (C - C~)`, or with the plain `U` in the middle term if
    `perturb_unconditional=False`; `text` treats that middle term. `OSEGReleased` is what the authors'
    released code does.
    """

    name: ClassVar[str] = "oseg"

    blur_sigma: BlurSigma = blur_sigma_setting(5.0, "OSEG's slides")
    boundary: str = boundary_setting()
    mix: float = mix_setting("OSEG's slides")
    keep_parallel: float = setting(
        FINITE,
        "share kappa of the component along the reference key that is kept, 0 to 1",
        default=0.0,
        low=0,
        high=1,
        source="0 as in the released code",
    )
    reference: str = setting(
        REFERENCE,
        "the key that defines parallel: token, frame, clip or principal:R",
        default="token",
    )
    perturb_unconditional: bool = setting(
        SWITCH,
        "whether the text term pushes away from the perturbed or from the plain unconditional prediction",
        default=True,
        source="OSEG's slides",
    )

    @property
    def change(self) -> BlurOrthogonalQueries:
        return BlurOrthogonalQueries(
            self.blur_sigma, self.mix, self.keep_parallel, self.reference, self.boundary
        )

    @property
    def _perturbs(self) -> bool:
        return not self.change.identity and (self.perturb_unconditional or super()._perturbs)

    def _perturbed_plan(self, blocks: Blocks, perturbed_scale: float, step: Step) -> StepPlan:
        if not self.perturb_unconditional:
            return super()._perturbed_plan(blocks, perturbed_scale, step)
        scale = self._text_scale(step)
        if is_off(scale) and perturbed_scale == 0:
            return self._text_plan(self.text, step)
        perturbation = self._perturbation(blocks)
        branches = {"cond": Branch("cond")}
        if not is_off(scale):
            branches["uncond_perturbed"] = Branch("uncond", perturbation)
        if perturbed_scale != 0:
            branches["cond_perturbed"] = Branch("cond", perturbation)
        formula = self.text.shown_shaped("C") if is_off(scale) else self.text.formula(scale, "U~")
        if perturbed_scale != 0:
            formula += f" + {perturbed_scale:g} (C - C~)"
        rule = partial(_both_perturbed, self.text, scale, perturbed_scale, step)
        return self._with_rule(branches, formula, rule, step)


def _both_perturbed(
    text: TextGuidance,
    scale: Scale,
    perturbed_scale: float,
    step: Step,
    *,
    cond: Tensor,
    uncond_perturbed: Tensor | None = None,
    cond_perturbed: Tensor | None = None,
) -> Tensor:
    from oseg_video.guidance import combine
    from oseg_video.guidance.numerics import upcast

    if uncond_perturbed is not None:
        prediction = text.extrapolated(cond, uncond_perturbed, scale, step)
    else:
        prediction = text.shaped(upcast(cond), step)
    if cond_perturbed is not None:
        prediction = combine.push_away(prediction, cond=cond, perturbed=cond_perturbed, scale=perturbed_scale)
    return prediction

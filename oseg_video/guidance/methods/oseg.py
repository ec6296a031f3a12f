"""Orthogonal smoothed energy guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from oseg_video.guidance.methods.base import PERTURB, PerturbedGuidance, guidance_method
from oseg_video.guidance.methods.seg import blur_sigma_setting, boundary_setting
from oseg_video.guidance.perturbations import BlurOrthogonalQueries
from oseg_video.guidance.validation import BlurSigma, parse_reference
from oseg_video.settings import setting, settings_of
from oseg_video.settings.kinds import FINITE, TEXT, Kind
from oseg_video.types import SettingError


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

    `C + (w - 1) (C - U~) + lambda (C - C~)`, or with the plain `U` in the middle term if `perturb="cond"`;
    `text` treats that middle term. `OSEGReleased` is what the authors' released code does.
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
    perturb: str = setting(
        TEXT,
        settings_of(PerturbedGuidance)["perturb"].help,
        default="both",
        choices=PERTURB,
        source="OSEG's slides",
    )

    @property
    def change(self) -> BlurOrthogonalQueries:
        return BlurOrthogonalQueries(
            self.blur_sigma, self.mix, self.keep_parallel, self.reference, self.boundary
        )

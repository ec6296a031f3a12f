"""How the difference between the conditional and the unconditional prediction is treated.

Every method has a text part: `C + (w - 1) T`, with T the treated difference. Methods differ in what they add
to it, treatments in T; so a treatment is one class here, and every method takes every treatment. C `cond`,
U `uncond` (plain or perturbed), w the guidance scale. All tensors have one shape [B, ...]; computed and
returned in float32 (float64 stays).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from oseg_video.guidance import combine
from oseg_video.guidance.plan import Step
from oseg_video.guidance.validation import is_number, validate_fraction
from oseg_video.types import SettingError

TextName = Literal["cfg", "apg", "cfg-zero"]

_APG_AVERAGE = "apg_average"


@dataclass(frozen=True, kw_only=True)
class TextTreatment:
    """Base of the treatments: the forms that a treated difference enters, and what to do on a step."""

    name: ClassVar[TextName]

    def difference(self, cond: Tensor, uncond: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """T of one step; may read and write `memory`, which lasts for one sampling run."""
        raise NotImplementedError

    def extrapolated(
        self, cond: Tensor, uncond: Tensor, scale: combine.Scale, memory: dict[str, Tensor]
    ) -> Tensor:
        """`C + (scale - 1) T`."""
        return combine.extrapolate(cond, self.difference(cond, uncond, memory), scale)

    def guided(self, cond: Tensor, uncond: Tensor, scale: combine.Scale, memory: dict[str, Tensor]) -> Tensor:
        """`extrapolated`, in the order of operations that the treatment is known by."""
        return self.extrapolated(cond, uncond, scale, memory)

    def formula(self, scale: combine.Scale, uncond: str) -> str:
        """`extrapolated` for the reader, with `uncond` as the name of the unconditional prediction."""
        return f"C + {shown(scale, less=1)} {self.shown_difference(uncond)}"

    def shown_difference(self, uncond: str) -> str:
        """T for the reader."""
        raise NotImplementedError

    def zeroes(self, step: Step) -> bool:
        """Whether the whole prediction of this step is zero. Raises SettingError if that leaves no step."""
        return False


@dataclass(frozen=True, kw_only=True)
class PlainText(TextTreatment):
    """Classifier-free guidance: T = C - U (arXiv 2207.12598)."""

    name: ClassVar[TextName] = "cfg"

    def difference(self, cond: Tensor, uncond: Tensor, memory: dict[str, Tensor]) -> Tensor:
        return combine.difference(cond, uncond)

    def shown_difference(self, uncond: str) -> str:
        return f"(C - {uncond})"

    def guided(self, cond: Tensor, uncond: Tensor, scale: combine.Scale, memory: dict[str, Tensor]) -> Tensor:
        # diffusers' own expression, so that only what a method adds differs from a stock pipeline.
        return combine.cfg(cond, uncond, scale)


@dataclass(frozen=True, kw_only=True)
class ProjectedText(TextTreatment):
    """Adaptive projected guidance: T is C - U with momentum, norm limit and less of C (arXiv 2410.02416).

    It acts on the type that the model predicts (velocity, noise, v), as diffusers' guider does, not on
    denoised samples as in the paper's experiments. Raises SettingError for a value out of range.
    """

    eta: float = 0.0
    """Share of the component along C that is kept, 0 to 1; 0 is the paper's advice, 1 keeps all of it."""
    momentum: float = -0.5
    """Weight of the running average of earlier differences, between -1 and 1; below 0, as the paper advises,
    it pushes away from them; 0 is off. -0.5 is our choice: the paper sets it for each model."""
    norm_threshold: float = 0.0
    """Largest Euclidean norm of a sample's difference; 0 is off. The norm grows with the size of the clip and
    differs from model to model, so the paper's numbers, for images, are no default here."""

    name: ClassVar[TextName] = "apg"

    def __post_init__(self) -> None:
        validate_fraction("eta", self.eta)
        if not (is_number(self.momentum) and -1 < self.momentum < 1):
            raise SettingError(f"momentum must be a number between -1 and 1, got {self.momentum!r}")
        if not (is_number(self.norm_threshold) and 0 <= self.norm_threshold < float("inf")):
            raise SettingError(
                f"norm_threshold must be a finite number >= 0 (0 is off), got {self.norm_threshold!r}"
            )

    def difference(self, cond: Tensor, uncond: Tensor, memory: dict[str, Tensor]) -> Tensor:
        update, average = combine.apg_update(
            cond,
            uncond,
            memory.get(_APG_AVERAGE),
            eta=self.eta,
            momentum=self.momentum,
            norm_threshold=self.norm_threshold,
        )
        if self.momentum:
            memory[_APG_AVERAGE] = average
        return update

    def shown_difference(self, uncond: str) -> str:
        return (
            f"APG(C - {uncond}; eta {self.eta:g}, momentum {self.momentum:g}, "
            f"norm {f'at most {self.norm_threshold:g}' if self.norm_threshold else 'unlimited'})"
        )


@dataclass(frozen=True, kw_only=True)
class ZeroStarText(TextTreatment):
    """CFG-Zero*: T = C - a U with `a = <C, U> / ||U||^2` per sample, and zero first steps (arXiv 2503.18886).

    Raises SettingError for a value out of range.
    """

    zero_steps: int = 1
    """How many first steps predict zero, whatever the guidance scale; the paper's default, 0 is off."""

    name: ClassVar[TextName] = "cfg-zero"

    def __post_init__(self) -> None:
        if isinstance(self.zero_steps, bool) or not isinstance(self.zero_steps, int) or self.zero_steps < 0:
            raise SettingError(f"zero_steps must be an integer >= 0, got {self.zero_steps!r}")

    def difference(self, cond: Tensor, uncond: Tensor, memory: dict[str, Tensor]) -> Tensor:
        return combine.zero_star_difference(cond, uncond)

    def shown_difference(self, uncond: str) -> str:
        return f"(C - a {uncond})"

    def zeroes(self, step: Step) -> bool:
        if self.zero_steps >= step.count:
            raise SettingError(
                f"zero_steps must be below the number of sampling steps, {step.count}, got {self.zero_steps}"
            )
        return step.index < self.zero_steps


TEXT_TREATMENTS: dict[str, type[TextTreatment]] = {
    treatment.name: treatment for treatment in (PlainText, ProjectedText, ZeroStarText)
}
"""The treatments by name."""


def treat_text(name: str, **options: Any) -> TextTreatment:
    """The treatment of that name; an option of None is left to its default.

    Raises SettingError for an unknown name, an option of another treatment, or a value out of range.
    """
    if name not in list(TEXT_TREATMENTS):
        raise SettingError(f"text must be one of {', '.join(TEXT_TREATMENTS)}, got {name!r}")
    given = {option: value for option, value in options.items() if value is not None}
    for option, value in given.items():
        owners = [key for key, other in TEXT_TREATMENTS.items() if option in option_names(other)]
        if name not in owners:
            raise SettingError(
                f"{option}={value!r} has no meaning with text={name!r}; it belongs to text={owners[0]!r}"
            )
    return TEXT_TREATMENTS[name](**given)


def option_names(treatment: type[TextTreatment]) -> tuple[str, ...]:
    """The options of a treatment."""
    return tuple(spec.name for spec in fields(treatment))


def shown(scale: float | Tensor, less: float = 0) -> str:
    """A scale, less a number, for the reader; one that grows over the frames shows both ends."""
    if isinstance(scale, Tensor):
        return f"[{float(scale.min()) - less:.6g} to {float(scale.max()) - less:.6g}]"
    return f"{scale - less:.6g}"


def guides(scale: float | Tensor) -> bool:
    """Whether a pipeline called with this guidance scale runs an unconditional branch: any entry above 1."""
    return bool((scale > 1).any()) if isinstance(scale, Tensor) else scale > 1


def is_off(scale: float | Tensor) -> bool:
    """Whether a scale leaves the conditional prediction as it is: exactly 1 in every entry."""
    return bool((scale == 1).all()) if isinstance(scale, Tensor) else scale == 1


def same_scale(first: float | Tensor, second: float | Tensor) -> bool:
    """Whether two scales are the same number in every entry."""
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return bool((torch.as_tensor(first) == torch.as_tensor(second)).all())
    return first == second

"""What guidance methods share: text guidance, perturbed blocks, their settings, and the registry."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from oseg_video.guidance.perturbations import IsolateStreams
from oseg_video.guidance.plan import (
    ALL_BLOCKS,
    STREAMS,
    Branch,
    Condition,
    Perturbation,
    Step,
    StepPlan,
    Stream,
)
from oseg_video.guidance.scales import in_float32, is_off, same_scale, shown
from oseg_video.settings import check_settings, setting, settings_of
from oseg_video.settings.kinds import BLOCKS, INTERVAL, SCALE, TEXT, Blocks, Kind
from oseg_video.settings.schedule import Interval, Schedule, value_at, values_of
from oseg_video.types import SettingError

if TYPE_CHECKING:
    from torch import Tensor

    from oseg_video.guidance.perturbations import Change
    from oseg_video.guidance.plan import Rule
    from oseg_video.guidance.scales import Scale

PERTURB = ("cond", "uncond", "both")
"""The predictions that a perturbed method may perturb."""
_LETTERS: Mapping[Condition, str] = {"cond": "C", "uncond": "U"}
_WEAK = {"uncond": "U", "uncond_perturbed": "U~"}
"""The branches that text guidance goes away from, and what they are called in formulas."""

METHODS: dict[str, type[Guidance]] = {}
"""The methods by name."""

MethodT = TypeVar("MethodT", bound="type[Guidance]")


def guidance_method(method: MethodT) -> MethodT:
    """Class decorator, above `@dataclass`: make a method known by its `name`, everywhere.

    Raises RuntimeError where the name is taken.
    """
    if method.name in METHODS:
        raise RuntimeError(f"two guidance methods are called {method.name!r}")
    METHODS[method.name] = method
    return method


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Base of all methods. Raises SettingError for a value that is out of range."""

    name: ClassVar[str]
    """The method's name on the command line."""
    follows_pipeline: ClassVar[bool] = True
    """Whether it takes the pipeline's own guidance scale where it has none."""

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def blocks_used(self) -> Blocks:
        """Blocks that the method perturbs at some noise level; empty for a method without perturbation."""
        return ()

    @property
    def largest_guidance_scale(self) -> float | None:
        """The largest guidance scale at any noise level: above 1 it needs a pipeline that runs `uncond`.

        None where it is the pipeline's own.
        """
        raise NotImplementedError

    @property
    def guides_by_text(self) -> bool:
        """Whether a stream may be guided by text: its scale is above 1, or the pipeline's own."""
        scales = [self.of_stream(stream).largest_guidance_scale for stream in STREAMS]
        return any(scale is None or scale > 1 for scale in scales)

    @property
    def levels(self) -> tuple[float, ...]:
        """The noise levels, from 1 down, at which some setting takes another value."""
        values = [getattr(self, name) for name in settings_of(self)]
        starts = {start for value in values if isinstance(value, Schedule) for start in value.starts}
        return tuple(sorted(starts | {1.0}, reverse=True))

    def plan(self, step: Step) -> StepPlan:
        """Branches and rule of one step. Raises SettingError for settings that do not fit the sampling."""
        raise NotImplementedError

    def without_scale(self) -> Guidance:
        """The method with the pipeline's own guidance scale in place of its own."""
        return self

    def of_stream(self, stream: Stream) -> Guidance:
        """The method as it guides one stream: the audio with the values of its `audio_...` settings."""
        return self


@dataclass(frozen=True, kw_only=True)
class ScaledGuidance(Guidance):
    """Guidance with a text part, `C + (w - 1) T`, inside an interval of the steps."""

    guidance_scale: float | Schedule[float] | None = setting(
        SCALE,
        "weight w of the text in U + w (C - U); 1 is off; like every scale a number, or numbers from a noise "
        "level down: 1.0:4,0.5:2; left out, the pipeline's own",
        default=None,
        low=0,
    )
    rescale: float | Schedule[float] = setting(
        SCALE,
        "how far the standard deviation is pulled back to that of C, 0 to 1; 0 is off",
        default=0.0,
        low=0,
        high=1,
        source="arXiv 2305.08891, 3.4",
    )
    interval: tuple[float, float] = setting(
        INTERVAL, "fraction of the steps in which the method acts, such as 0.1,0.9", default=(0.0, 1.0)
    )
    modality_scale: float | Schedule[float] = setting(
        SCALE,
        "weight m of (m - 1) (C - M), away from video and audio that do not attend to each other; 1 is off",
        default=1.0,
        low=0,
        sound=True,
        source="diffusers' LTX2Pipeline",
    )
    audio_guidance_scale: float | Schedule[float] | None = setting(
        SCALE, "guidance_scale of the audio; left out, that of the video", default=None, low=0, sound=True
    )
    audio_rescale: float | Schedule[float] | None = setting(
        SCALE, "rescale of the audio; left out, that of the video", default=None, low=0, high=1, sound=True
    )
    audio_modality_scale: float | Schedule[float] | None = setting(
        SCALE, "modality_scale of the audio; left out, that of the video", default=None, low=0, sound=True
    )

    @property
    def largest_guidance_scale(self) -> float | None:
        return None if self.guidance_scale is None else max(values_of(self.guidance_scale))

    def without_scale(self) -> Guidance:
        return dataclasses.replace(self, guidance_scale=None)

    def of_stream(self, stream: Stream) -> Guidance:
        if stream == "video":
            return self
        own = {name: getattr(self, name) for name in settings_of(self) if name.startswith("audio_")}
        given = {name.removeprefix("audio_"): value for name, value in own.items() if value is not None}
        heard = copy.copy(self)  # not made anew: what a method asks of both streams need not hold for one
        for name, value in {**dict.fromkeys(own), **given}.items():
            object.__setattr__(heard, name, value)
        return heard

    @property
    def blocks_used(self) -> Blocks:
        scales = [one for one in (self.modality_scale, self.audio_modality_scale) if one is not None]
        return (ALL_BLOCKS,) if any(one != 1 for scale in scales for one in values_of(scale)) else ()

    def _isolated_scale(self, step: Step) -> float:
        """Weight of `C - M` at this step; 0 is off."""
        return value_at(self.modality_scale, step.noise_level) - 1 if self._active(step) else 0

    def _active(self, step: Step) -> bool:
        return Interval(*self.interval).contains(step.index, step.count)

    def _text_scale(self, step: Step) -> Scale:
        if self.guidance_scale is not None:
            return value_at(self.guidance_scale, step.noise_level)
        return step.pipeline_scale if step.runs_uncond else 1.0

    def _text_plan(self, text: TextGuidance, step: Step) -> StepPlan:
        """Text guidance alone; the pipeline's own rule where it computes just that."""
        scale = self._text_scale(step)
        if text.zeroes(step):
            return StepPlan({"cond": Branch("cond")}, "0", _zero, of_prediction=True)
        isolates = self._isolated_scale(step) != 0
        branches = {"uncond": Branch("uncond"), "cond": Branch("cond")}
        plain = text.is_pipelines_rule and value_at(self.rescale, step.noise_level) == 0 and not isolates
        if plain and step.runs_uncond and same_scale(scale, step.pipeline_scale):
            return StepPlan(branches, text.formula(scale, "U"))
        if is_off(scale):
            if not text.acts_alone and not isolates:
                return self._plain_plan(step)
            alone = partial(_shaped_alone, text, step)
            return self._with_rule({"cond": Branch("cond")}, text.shown_shaped("C"), alone, step)
        rule = partial(_text_alone, text, in_float32(scale), step)
        return self._with_rule(branches, text.formula(scale, "U"), rule, step)

    def _plain_plan(self, step: Step) -> StepPlan:
        """`C` as it is."""
        return StepPlan({"cond": Branch("cond")}, "C", _cond_alone if step.runs_uncond else None)

    def _with_rule(
        self, branches: Mapping[str, Branch], formula: str, rule: Rule, step: Step, cond: str = "C"
    ) -> StepPlan:
        """The plan, its rule followed by the push away from isolated streams and by the rescaling.

        cond: what the branch `cond` is called.
        """
        if (away := self._isolated_scale(step)) != 0:
            branches = {**branches, "isolated": Branch("cond", Perturbation((ALL_BLOCKS,), IsolateStreams()))}
            formula = f"{formula} + {away:g} ({cond} - M)"
            rule = partial(_pushed_from_isolated, rule, away)
        factor = value_at(self.rescale, step.noise_level)
        if factor == 0:
            return StepPlan(branches, formula, rule)
        formula = f"{formula}, rescaled to std({cond}) by {factor:g}"
        return StepPlan(branches, formula, partial(_rescaled, rule, factor))


@dataclass(frozen=True, kw_only=True)
class TextGuidance(ScaledGuidance):
    """`C + (w - 1) T` with a text difference T, and what is done to the whole; outside the interval `C`.

    The text part of every perturbed method is one of these: `OSEG(text=APG(eta=0.5), ...)`. A subclass has
    `difference` or `shaped`, and their words; C, U: float [B, ...], the conditional and the (plain or
    perturbed) unconditional prediction; computed and returned in float32 (float64 stays). What lasts from
    step to step is kept in `step.memory`.
    """

    is_pipelines_rule: ClassVar[bool] = False
    """Whether the pipeline's own `u + w (c - u)` is just this."""
    acts_alone: ClassVar[bool] = False
    """Whether `shaped` also changes C where there is no text guidance."""

    def plan(self, step: Step) -> StepPlan:
        return self._text_plan(self, step) if self._active(step) else self._plain_plan(step)

    def difference(self, cond: Tensor, uncond: Tensor, step: Step) -> Tensor:
        """T of one step."""
        from oseg_video.guidance import combine

        return combine.difference(cond, uncond)

    def shown_difference(self, uncond: str) -> str:
        """T for the reader, with `uncond` as the name of the unconditional prediction."""
        return f"(C - {uncond})"

    def shaped(self, prediction: Tensor, step: Step) -> Tensor:
        """What is done to `C + (w - 1) T`, or without text guidance to C."""
        return prediction

    def shown_shaped(self, prediction: str) -> str:
        """`shaped` for the reader."""
        return prediction

    def extrapolated(self, cond: Tensor, uncond: Tensor, scale: Scale, step: Step) -> Tensor:
        """`C + (scale - 1) T`, shaped."""
        from oseg_video.guidance import combine

        difference = self.difference(cond, uncond, step)
        return self.shaped(combine.extrapolate(cond, difference, scale), step)

    def guided(self, cond: Tensor, uncond: Tensor, scale: Scale, step: Step) -> Tensor:
        """`extrapolated`, in the order of operations that the method is known by."""
        return self.extrapolated(cond, uncond, scale, step)

    def formula(self, scale: Scale, uncond: str) -> str:
        """`extrapolated` for the reader."""
        return self.shown_shaped(f"C + {shown(scale, less=1)} {self.shown_difference(uncond)}")

    def zeroes(self, step: Step) -> bool:
        """Whether the whole prediction of this step is zero. Raises SettingError if that leaves no step."""
        return False


def _text_guidance(value: Any) -> TextGuidance:
    if not isinstance(value, TextGuidance):
        known = ", ".join(f"{method.__name__}()" for method in text_methods().values())
        raise SettingError(f"a text guidance, one of {known}, got {value!r}")
    for name, declared in settings_of(ScaledGuidance).items():
        if getattr(value, name) != declared.default:
            raise SettingError(f"without {name}, which belongs to the method around it, got {value!r}")
    return value


def text_methods() -> dict[str, type[TextGuidance]]:
    """The methods that can be the text part of a perturbed one, by name."""
    return {name: method for name, method in METHODS.items() if issubclass(method, TextGuidance)}


TEXT_GUIDANCE = Kind("a text guidance", "NAME", _text_guidance, lambda text: text)
"""Its flat form (flags, YAML) is the method's name, with the method's own settings beside it."""


@dataclass(frozen=True, kw_only=True)
class BlockGuidance(ScaledGuidance):
    """Guidance by a prediction that is perturbed in some blocks, with weight `scale`.

    Outside the interval, and where nothing is perturbed: text guidance alone.
    """

    scale: float | Schedule[float] = setting(
        SCALE,
        "weight lambda of C - P, away from the perturbed prediction; 0 is off",
        default=1.0,
        low=0,
        per_method=True,
    )
    blocks: Blocks | Schedule[Blocks] = setting(
        BLOCKS,
        "blocks that are perturbed, by index or name, such as 1,3 or dual:2,single:17 (by noise level: in a "
        "YAML file)",
        default=(),
    )
    audio_scale: float | Schedule[float] | None = setting(
        SCALE,
        "weight of C - P of the audio; left out, that of the video",
        default=None,
        low=0,
        per_method=True,
        sound=True,
    )
    streams: str = setting(
        TEXT,
        "what is perturbed: both, or only the video's or the audio's tokens",
        default="both",
        choices=("both", *STREAMS),
        sound=True,
    )

    draws_blocks: ClassVar[bool] = False
    """Whether it perturbs some of its blocks, others in every step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._perturbs and not any(values_of(self.blocks)):
            raise SettingError(
                f"blocks must name at least one block for {type(self).__name__} to perturb, got none; "
                f"use CFG for guidance without perturbation"
            )

    @property
    def change(self) -> Change:
        """What the perturbed branch does inside its blocks."""
        raise NotImplementedError

    @property
    def blocks_used(self) -> Blocks:
        used = {block for blocks in values_of(self.blocks) for block in blocks} if self._perturbs else set()
        used |= set(super().blocks_used)
        return tuple(sorted(used, key=lambda block: (isinstance(block, str), block)))

    def plan(self, step: Step) -> StepPlan:
        blocks = value_at(self.blocks, step.noise_level)
        if not (blocks and self._perturbs and self._active(step)) or self._text.zeroes(step):
            return self._text_plan(self._text, step)
        return self._perturbed_plan(blocks, value_at(self.scale, step.noise_level), step)

    @property
    def _text(self) -> TextGuidance:
        return METHODS["cfg"]()  # type: ignore[return-value]

    @property
    def _perturbs(self) -> bool:
        """Whether any step may need a perturbed branch."""
        audio = () if self.audio_scale is None else values_of(self.audio_scale)
        return any((*values_of(self.scale), *audio)) and not self.change.identity

    def _perturbation(self, blocks: Blocks, change: Change | None = None) -> Perturbation:
        """`change` in these blocks, the method's own by default, of the streams that it perturbs."""
        streams = STREAMS if self.streams == "both" else tuple(one for one in STREAMS if one == self.streams)
        return Perturbation(blocks, change or self.change, streams=streams)

    def _perturbed_plan(self, blocks: Blocks, perturbed_scale: float, step: Step) -> StepPlan:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class PushedGuidance(BlockGuidance):
    """`C + (w - 1) T + lambda (X - P)`: text guidance, and a push from a plain prediction X away from P.

    A subclass has a `change`, settings of its own, and says which branch P is (`_perturbed_branch`).
    """

    text: TextGuidance = setting(
        TEXT_GUIDANCE,
        "how the text difference C - U is treated: as it is (cfg), or as a method of text guidance does",
        default=None,
    )

    def __post_init__(self) -> None:
        if self.text is None:
            object.__setattr__(self, "text", METHODS["cfg"]())
        super().__post_init__()

    @property
    def _text(self) -> TextGuidance:
        return self.text

    def _perturbed_plan(self, blocks: Blocks, perturbed_scale: float, step: Step) -> StepPlan:
        if perturbed_scale == 0:
            return self._text_plan(self.text, step)
        branches = {} if is_off(self._text_scale(step)) else {"uncond": Branch("uncond")}
        branches["cond"] = Branch("cond")
        branches["perturbed"] = perturbed = self._perturbed_branch(blocks, branches)
        return self._pushed_plan(branches, _Push(perturbed_scale, perturbed.condition, "perturbed"), step)

    def _perturbed_branch(self, blocks: Blocks, plain: Mapping[str, Branch]) -> Branch:
        """The branch P beside the plain ones; X is the plain one of its condition."""
        return Branch("cond", self._perturbation(blocks))

    def _pushed_plan(self, branches: Mapping[str, Branch], push: _Push | None, step: Step) -> StepPlan:
        """Text guidance by U or U~, whichever is among the branches, and a push."""
        scale = self._text_scale(step)
        weak = next((name for name in _WEAK if name in branches), None)
        formula = self.text.shown_shaped("C") if weak is None else self.text.formula(scale, _WEAK[weak])
        if push is not None:
            formula += f" + {push.scale:g} ({_LETTERS[push.plain]} - {push.shown})"
        rule = partial(_text_and_push, self.text, in_float32(scale), weak, push, step)
        return self._with_rule(branches, formula, rule, step)


@dataclass(frozen=True, kw_only=True)
class PerturbedGuidance(PushedGuidance):
    """`C + (w - 1) T + lambda (C - P)`, or with `perturb` the perturbation in T: `C - U~` for `C - U`.

    A subclass has a `change`, and settings of its own.
    """

    perturb: str = setting(
        TEXT,
        "the predictions that are perturbed: cond, a branch P of its own besides; uncond, U itself, so that "
        "there are two passes and nothing to push away from with lambda; both",
        default="cond",
        choices=PERTURB,
        source="uncond: the SLG of ComfyUI (SkipLayerGuidanceDiTSimple) and Wan2GP",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        scales = self.guidance_scale, self.audio_guidance_scale
        given = [value for scale in scales if scale is not None for value in values_of(scale)]
        off = self.guidance_scale is not None and all(scale == 1 for scale in given)
        if off and self.perturb == "uncond" and self._perturbs:
            raise SettingError(
                "perturb uncond needs text guidance, a guidance_scale other than 1: without it there is no "
                "unconditional prediction to perturb; use cond"
            )

    @property
    def _perturbs(self) -> bool:
        return not self.change.identity and (self.perturb != "cond" or super()._perturbs)

    def _perturbed_plan(self, blocks: Blocks, perturbed_scale: float, step: Step) -> StepPlan:
        if self.perturb == "cond":
            return super()._perturbed_plan(blocks, perturbed_scale, step)
        perturbation = self._perturbation(blocks)
        branches, push = {"cond": Branch("cond")}, None
        if not is_off(self._text_scale(step)):
            branches["uncond_perturbed"] = Branch("uncond", perturbation)
        if self.perturb == "both" and perturbed_scale != 0:
            branches["cond_perturbed"] = Branch("cond", perturbation)
            push = _Push(perturbed_scale, "cond", "cond_perturbed")
        if len(branches) == 1:
            return self._text_plan(self.text, step)
        return self._pushed_plan(branches, push, step)


class _Push(NamedTuple):
    """`scale (X - P)` of a plain and a perturbed branch, by name."""

    scale: float
    plain: Condition
    perturbed: str

    @property
    def shown(self) -> str:
        return "P" if self.perturbed == "perturbed" else f"{_LETTERS[self.plain]}~"


def _cond_alone(cond: Tensor) -> Tensor:
    from oseg_video.guidance.numerics import upcast

    return upcast(cond)


def _zero(cond: Tensor) -> Tensor:
    import torch

    from oseg_video.guidance.numerics import upcast

    return torch.zeros_like(upcast(cond))


def _shaped_alone(text: TextGuidance, step: Step, *, cond: Tensor) -> Tensor:
    return text.shaped(_cond_alone(cond), step)


def _text_alone(text: TextGuidance, scale: Scale, step: Step, *, cond: Tensor, uncond: Tensor) -> Tensor:
    return text.guided(cond, uncond, scale, step)


def _text_and_push(
    text: TextGuidance,
    scale: Scale,
    weak: str | None,
    push: _Push | None,
    step: Step,
    *,
    cond: Tensor,
    **others: Tensor,
) -> Tensor:
    """weak: name of the unconditional prediction; None without text guidance."""
    from oseg_video.guidance import combine

    if weak is None:
        prediction = _shaped_alone(text, step, cond=cond)
    else:
        # `U + w (C - U)` as CFG has it, `C + (w - 1) (C - U~)` as OSEG has it.
        guided = text.guided if weak == "uncond" else text.extrapolated
        prediction = guided(cond, others[weak], scale, step)
    if push is None:
        return prediction
    plain = {"cond": cond, **others}[push.plain]
    return combine.push_away(prediction, cond=plain, perturbed=others[push.perturbed], scale=push.scale)


def _pushed_from_isolated(
    rule: Rule, scale: float, *, cond: Tensor, isolated: Tensor, **predictions: Tensor
) -> Tensor:
    from oseg_video.guidance import combine

    prediction = rule(cond=cond, **predictions)
    return combine.push_away(prediction, cond=cond, perturbed=isolated, scale=scale)


def _rescaled(rule: Rule, factor: float, *, cond: Tensor, **predictions: Tensor) -> Tensor:
    from oseg_video.guidance import combine

    return combine.rescale(rule(cond=cond, **predictions), cond, factor)

"""The guidance under which a model is probed: text guidance, and at times each block perturbed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from oseg_video.guidance.methods import BlockGuidance, Guidance, TextGuidance
from oseg_video.guidance.perturbations import BlurAttended, Change, ObserveAttention
from oseg_video.guidance.plan import Branch, Perturbation, Step, StepPlan, Stream
from oseg_video.settings.kinds import Blocks
from oseg_video.types import SettingError

if TYPE_CHECKING:
    from torch import Tensor

_OBSERVED = "observed"
_STREAM: tuple[Stream, ...] = ("video",)


class ProbeDone(Exception):
    """All noise levels are probed: the rest of the sampling is of no use."""


def perturbing(method: Guidance) -> BlockGuidance:
    """The method, if a probe can perturb one block as it does. Raises SettingError."""
    if not isinstance(method, BlockGuidance) or isinstance(method.change, BlurAttended):
        raise SettingError(
            f"guidance {method.name} perturbs no single block; probe with one that does, such as oseg"
        )
    return method


@dataclass(frozen=True)
class Effect:
    """What perturbing one block alone does to one prediction."""

    change: float
    """`||C - C~|| / ||C||`, of what the pipeline combines: predictions, or denoised latents."""
    cosine: float | None
    """Between `C - C~` and `C - U`; None without U."""


@dataclass(frozen=True, kw_only=True)
class Probing(Guidance):
    """Text guidance `base`; at the first step at or below each noise level, each block perturbed alone.

    What is measured goes to `take_effects(noise_level, effects by block)`; attention goes to `observe`, for
    which `take_step(noise_level)` says beforehand when it is. After the last level `ProbeDone` ends the
    sampling.
    """

    name: ClassVar[str] = "probe"

    base: TextGuidance
    blocks: tuple[int, ...]
    change: Change
    observe: ObserveAttention
    noise_levels: tuple[float, ...]
    take_step: Callable[[float], None]
    take_effects: Callable[[float, Mapping[int, Effect]], None]
    _pending: list[float] = field(default_factory=list, init=False)

    @property
    def blocks_used(self) -> Blocks:
        return self.blocks

    @property
    def largest_guidance_scale(self) -> float | None:
        return self.base.largest_guidance_scale

    def of_stream(self, stream: Stream) -> Guidance:
        """Sound is guided meanwhile, and not looked at."""
        return self if stream in _STREAM else self.base.of_stream(stream)

    def plan(self, step: Step) -> StepPlan:
        if step.index == 0:
            self._pending[:] = sorted(self.noise_levels, reverse=True)
        plan = self.base.plan(step)
        last = step.index == step.count - 1
        due = [level for level in self._pending if last or step.noise_level <= level + 1e-6]
        if not due:
            return plan
        del self._pending[: len(due)]
        self.take_step(step.noise_level)
        branches = {**plan.branches, _OBSERVED: self._branch(self.blocks, self.observe)}
        for block in self.blocks:
            branches[_name(block)] = self._branch((block,), self.change)
        rule = partial(self._measured, plan, step, done=not self._pending)
        return StepPlan(branches, plan.formula, rule)

    def _branch(self, blocks: Blocks, change: Change) -> Branch:
        return Branch("cond", Perturbation(blocks, change, streams=_STREAM))

    def _measured(self, plan: StepPlan, step: Step, *, done: bool, **predictions: Tensor) -> Tensor:
        plain = {name: predictions[name] for name in plan.branches}
        effects = {block: _effect(predictions[_name(block)], **plain) for block in self.blocks}
        self.take_effects(step.noise_level, effects)
        if done:
            raise ProbeDone
        if plan.rule is not None:
            return plan.rule(**plain)
        # The pipeline's own combination is no more possible, but it is that of the method.
        if "uncond" not in plain:
            return plain["cond"]
        return self.base.guided(plain["cond"], plain["uncond"], step.pipeline_scale, step)


def _name(block: int) -> str:
    return f"block {block}"


def _effect(perturbed: Tensor, cond: Tensor, uncond: Tensor | None = None) -> Effect:
    from torch.nn.functional import cosine_similarity

    plain, push = cond.double().flatten(), (cond.double() - perturbed.double()).flatten()
    cosine = None
    if uncond is not None:
        cosine = float(cosine_similarity(push, plain - uncond.double().flatten(), dim=0))
    return Effect(float(push.norm() / plain.norm()), cosine)

"""Guided steps of a denoiser without a pipeline around it, through the engine as a pipeline goes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from oseg_video.adapters.base import Condition, ModelAdapter
from oseg_video.engine.assignment import assign_branches
from oseg_video.engine.branches import BranchRunner
from oseg_video.engine.estimates import KeptPredictions
from oseg_video.engine.report import PassRecord
from oseg_video.engine.step import OpenStep
from oseg_video.engine.step_cache import StepCache
from oseg_video.guidance.attended import Noise
from oseg_video.guidance.methods import Guidance
from oseg_video.guidance.plan import Branch, Step
from oseg_video.guidance.reuse import Reuse
from oseg_video.parallel.mesh import ONE_RANK

CONDITIONS: tuple[Condition, ...] = ("uncond", "cond")


def guided_steps(
    adapter: ModelAdapter,
    denoiser: Any,
    arguments: Mapping[str, Any],
    guidance: Guidance,
    reuse: Reuse,
    steps: int,
) -> Iterator[Tensor]:
    """What a pipeline with one call for both conditions gets in each of its steps.

    arguments: of the denoiser's call, rows of `CONDITIONS`; the same in all steps.
    """
    runner = BranchRunner(adapter, denoiser, guidance.blocks_used, reuse=reuse)
    call = _Call(adapter, denoiser, runner, arguments)
    kept = KeptPredictions(reuse, ONE_RANK)
    memory: dict[str, Tensor] = {}
    with runner.active():
        for index in range(steps):
            step = Step(index, steps, 1 - (index + 0.5) / steps, 3.0, memory)
            work = kept.step(step, guidance.plan(step), "one model")
            ranks = assign_branches(runner, work.branches, CONDITIONS, 1)
            answer: Tensor = OpenStep(step, work, (CONDITIONS,), ranks, ONE_RANK.branch).answer(call)
            yield answer


@dataclass
class _Call:
    """The pipeline's call of its denoiser."""

    adapter: ModelAdapter
    denoiser: Any
    runner: BranchRunner
    arguments: Mapping[str, Any]

    def as_made(self, conditions: tuple[Condition, ...]) -> tuple[Any, list[PassRecord]]:
        return self.denoiser(**self.arguments, return_dict=False)[0], []

    def run(
        self,
        branches: Mapping[str, Branch],
        conditions: tuple[Condition, ...],
        noise_level: float,
        cache: StepCache | None,
        negative: Mapping[str, Any] | None = None,
    ) -> tuple[dict[str, Tensor], list[PassRecord]]:
        call = self.denoiser, self.arguments, branches, conditions
        noise = Noise(noise_level, "epsilon")
        return self.runner.run(*call, noise=noise, negative=negative, cache=cache)

    def rows_of(self, condition: Condition, conditions: tuple[Condition, ...]) -> Mapping[str, Any]:
        batch = len(self.arguments[self.adapter.denoiser_call.sample]) // len(conditions)
        first = conditions.index(condition) * batch
        return self.adapter.denoiser_call.take_rows(self.arguments, slice(first, first + batch))

    def blank(self, conditions: tuple[Condition, ...]) -> Tensor:
        call = self.adapter.denoiser_call
        sample: Tensor = self.arguments[call.sample]
        rows = sample[: len(sample) // len(conditions)]
        return sample.new_zeros(call.prediction_shape(self.denoiser, rows))

    def result(self, prediction: Tensor) -> Tensor:
        return prediction

"""Guide a stock diffusers pipeline: run a method's branches in place of each denoiser call."""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule

from oseg_video.adapters.base import Condition, ModelAdapter, UnsupportedPipelineError, adapter_for
from oseg_video.engine.assignment import assign_branches
from oseg_video.engine.branches import BranchRunner, GuidanceError, SilentGuidanceError
from oseg_video.engine.broadcast import inputs_of_first_rank
from oseg_video.engine.decoding import spread_decoding
from oseg_video.engine.interception import intercepted_calls
from oseg_video.engine.position import sampling_position
from oseg_video.engine.report import GuidanceReport, PassRecord, StepRecord
from oseg_video.engine.step import OpenStep
from oseg_video.guidance.methods import Guidance
from oseg_video.guidance.plan import Step, StepPlan
from oseg_video.parallel.mesh import ONE_RANK, Mesh

__all__ = ["GuidanceError", "SilentGuidanceError", "guided"]

logger = logging.getLogger(__name__)


@contextmanager
def guided(
    pipe: Any, guidance: Guidance, *, reuse_prefix: bool = True, mesh: Mesh = ONE_RANK
) -> Iterator[GuidanceReport]:
    """Guide every call of a stock diffusers pipeline inside the `with`; leave the pipeline as it was after.

    The pipeline's own guidance scale only decides whether there is an unconditional branch (above 1);
    the guidance's scale is the one that counts, and is the pipeline's where the guidance leaves it None.

    pipe: a pipeline object of a supported class (`oseg_video.adapters`).
    guidance: the method, for example `OSEG(guidance_scale=4.5, blocks=(34,))`.
    reuse_prefix: start a perturbed pass at its first perturbed block, with what the unperturbed pass of
        the same condition had there. Exact; False runs every pass whole.
    mesh: the ranks that make the clip together (`oseg_video.parallel`); each calls the pipeline alike, and
        each gets the whole result. Encoders run on the first one only, its latents are used by all, and
        the VAE's tiles or chunks are shared.

    Yields the report, which fills while the pipeline runs. Raises `UnsupportedPipelineError` for another
    pipeline class, `UnknownBlockError` for an unknown block, `GuidanceError` for nesting, before any model
    work; inside, on the first step, `GuidanceError` when the pipeline's call does not provide what the
    guidance needs, and `SilentGuidanceError` when a perturbation had no effect.
    """
    adapter = adapter_for(pipe)
    if reason := adapter.refusal(pipe):
        raise UnsupportedPipelineError(reason)
    denoisers = adapter.denoisers(pipe)
    runners = []
    for denoiser in denoisers:
        runners.append(
            BranchRunner(
                adapter, denoiser, guidance.blocks_used, reuse_prefix=reuse_prefix, sequence=mesh.sequence
            )
        )
        _check_denoiser(denoiser, intervenes=runners[-1].intervenes or mesh.branch.size > 1)
    report = GuidanceReport(guidance.name, runners[0].unit_count)
    session = _Session(pipe, adapter, guidance, report, mesh)
    with ExitStack() as stack:
        stack.enter_context(intercepted_calls(pipe, "__call__", session.sample))
        stack.enter_context(inputs_of_first_rank(pipe, mesh.clip))
        stack.enter_context(spread_decoding(pipe, mesh.clip))
        for denoiser, runner in zip(denoisers, runners, strict=True):
            predict = partial(session.predict, denoiser, runner)
            refused = ("enable_cache",) if runner.intervenes else ()
            stack.enter_context(intercepted_calls(denoiser, "forward", predict, refused))
            stack.enter_context(runner.active())
        yield report
    if not report.steps:
        logger.warning("no step of the pipeline ran inside guided(); was another pipeline called?")


class _Session:
    """Guides the calls of one pipeline, and knows where they stand."""

    def __init__(
        self, pipe: Any, adapter: ModelAdapter, guidance: Guidance, report: GuidanceReport, mesh: Mesh
    ) -> None:
        self._pipe = pipe
        self._adapter = adapter
        self._guidance = guidance
        self._report = report
        self._mesh = mesh
        self._call: Mapping[str, Any] | None = None
        self._memory: dict[str, Tensor] = {}
        self._open: OpenStep | None = None

    def sample(self, _: Callable[..., Any], as_made: Callable[[], Any], bound: inspect.BoundArguments) -> Any:
        """One call of the pipeline."""
        bound.apply_defaults()
        self._call, self._memory, self._open = bound.arguments, {}, None
        try:
            return as_made()
        finally:
            self._call, self._memory, self._open = None, {}, None

    def predict(
        self,
        denoiser: nn.Module,
        runner: BranchRunner,
        call: Callable[..., Any],
        as_made: Callable[[], Any],
        bound: inspect.BoundArguments,
    ) -> Any:
        """The guided prediction for one denoiser call of the pipeline.

        `call` is the denoiser's own; `as_made` repeats the pipeline's call.
        """
        _check_denoiser(denoiser, intervenes=runner.intervenes or self._mesh.branch.size > 1)
        arguments = dict(bound.arguments)
        sample = arguments[self._adapter.sample_argument]
        current = self._current_step(denoiser, runner, arguments)
        conditions = current.conditions
        if current.as_made:
            output = runner.run_plain(as_made, arguments)
            current.answered([PassRecord(conditions, len(sample), 0, ())])
        else:
            return_dict = arguments.pop("return_dict", True)
            branches = current.own_branches
            left_out = set(conditions) - {branch.condition for branch in current.plan.branches.values()}
            if left_out and _has_step_cache(denoiser):
                raise GuidanceError(
                    f"a step cache is enabled on the denoiser and would miss step {current.step.index}, "
                    f"where {type(self._guidance).__name__} runs no {left_out.pop()} branch; call its "
                    f"disable_cache() first"
                )
            predictions, records = runner.run(call, arguments, branches, conditions) if branches else ({}, [])
            shape = self._adapter.prediction_shape(denoiser, sample[: len(sample) // len(conditions)])
            blank = partial(torch.zeros, shape, dtype=sample.dtype, device=sample.device)
            answer = current.answer(predictions, blank)
            current.answered(records)
            output = self._adapter.wrap_output(answer) if return_dict else (answer,)
        if current.complete:
            self._open = None
            self._report.steps.append(
                StepRecord(current.step.index, current.step.noise_level, tuple(current.records))
            )
        return output

    def _current_step(
        self, denoiser: nn.Module, runner: BranchRunner, arguments: Mapping[str, Any]
    ) -> OpenStep:
        """The step that a denoiser call belongs to, begun with its first call."""
        call = self._call
        if call is None:
            raise GuidanceError("the denoiser was called outside of the guided pipeline's own call")
        position = sampling_position(self._pipe, arguments.get("timestep"))
        if self._open is not None:
            if position.index != self._open.step.index:
                raise GuidanceError(
                    f"the pipeline went from step {self._open.step.index} to step {position.index} without "
                    f"asking for the {self._open.conditions} prediction; this version of diffusers is not "
                    f"supported"
                )
            return self._open
        self._require_same_sample(position.index, arguments[self._adapter.sample_argument])
        calls = self._adapter.calls(self._pipe, call)
        conditions = {condition for one in calls for condition in one}
        scale = self._adapter.pipeline_scale(self._pipe, call, denoiser) if "uncond" in conditions else 1.0
        step = Step(position.index, position.count, position.noise_level, scale, self._memory)
        plan = self._guidance.plan(step)
        self._check_plan(plan, conditions, call)
        keep_dtype = self._adapter.latents_take_prediction_dtype
        branch = self._mesh.branch
        every = tuple(condition for one in calls for condition in one)
        ranks = assign_branches(runner, plan.branches, every, branch.size)
        self._open = OpenStep(step, plan, calls, ranks, branch, keep_dtype=keep_dtype)
        return self._open

    def _require_same_sample(self, index: int, sample: Tensor) -> None:
        """Ranks that sample apart from each other would mix parts of different clips."""
        clip = self._mesh.clip
        if clip.size == 1:
            return
        mark = torch.stack([sample.double().sum(), sample.double().square().sum()])
        marks = clip.gather(mark, [mark.shape] * clip.size)
        for rank, other in enumerate(marks):
            # By their bits: a sum that is no number is like itself.
            if not torch.equal(other.view(torch.int64), marks[0].view(torch.int64)):
                raise GuidanceError(
                    f"rank {rank} holds other latents than rank 0 at step {index}; give the pipeline the "
                    f"same arguments on every rank, and a generator if its scheduler draws noise"
                )

    def _check_plan(self, plan: StepPlan, conditions: set[Condition], call: Mapping[str, Any]) -> None:
        name = type(self._guidance).__name__
        if not {branch.condition for branch in plan.branches.values()} <= conditions:
            raise GuidanceError(
                f"{name} with guidance_scale={self._guidance.largest_guidance_scale} needs the unconditional "
                f"branch, but the pipeline was called without it; {self._adapter.unconditional_hint}"
            )
        rescale = self._adapter.pipeline_rescale(self._pipe, call)
        if plan.rule is not None and rescale:
            raise GuidanceError(
                f"the pipeline was called with guidance_rescale={rescale}, which it would apply to the "
                f"guided prediction; give {name} a rescale instead"
            )


def _check_denoiser(denoiser: nn.Module, *, intervenes: bool) -> None:
    if not intervenes:
        return
    if isinstance(denoiser, OptimizedModule) or denoiser._compiled_call_impl is not None:
        raise GuidanceError(
            "the denoiser is compiled as a whole, which hides its blocks; compile the repeated blocks instead"
        )
    if _has_step_cache(denoiser):
        raise GuidanceError(
            "a step cache is enabled on the denoiser and would mix branches; call its disable_cache() first"
        )


def _has_step_cache(denoiser: nn.Module) -> bool:
    """Whether a hook of diffusers keeps something from one call of the denoiser to the next.

    `is_cache_enabled` knows of `enable_cache` alone, not of `apply_first_block_cache` and its kin.
    """
    registries = (getattr(module, "_diffusers_hook", None) for module in denoiser.modules())
    hooks = (hook for registry in registries if registry is not None for hook in registry.hooks.values())
    return getattr(denoiser, "is_cache_enabled", False) or any(hook._is_stateful for hook in hooks)

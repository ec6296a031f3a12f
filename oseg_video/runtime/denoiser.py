"""Guide a stock diffusers pipeline: run a method's branches in place of each denoiser call."""

import inspect
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule

from oseg_video.adapters.base import Condition, ModelAdapter, UnsupportedPipelineError, adapter_for
from oseg_video.guidance.methods import Guidance
from oseg_video.guidance.numerics import upcast
from oseg_video.guidance.plan import Step, StepPlan
from oseg_video.runtime.branches import BranchRunner, GuidanceError, SilentGuidanceError
from oseg_video.runtime.report import GuidanceReport, PassRecord, StepRecord
from oseg_video.runtime.sampling import sampling_position

__all__ = ["GuidanceError", "SilentGuidanceError", "guided"]

logger = logging.getLogger(__name__)


@contextmanager
def guided(pipe: Any, guidance: Guidance, *, reuse_prefix: bool = True) -> Iterator[GuidanceReport]:
    """Guide every call of a stock diffusers pipeline inside the `with`; leave the pipeline as it was after.

    The pipeline's own guidance scale only decides whether there is an unconditional branch (above 1);
    the guidance's scale is the one that counts, and is the pipeline's where the guidance leaves it None.

    pipe: a pipeline object of a supported class (`oseg_video.adapters`).
    guidance: the method, for example `OSEG(guidance_scale=4.5, blocks=(34,))`.
    reuse_prefix: start a perturbed pass at its first perturbed block, with what the unperturbed pass of
        the same condition had there. Exact; False runs every pass whole.

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
        runners.append(BranchRunner(adapter, denoiser, guidance.blocks_used, reuse_prefix=reuse_prefix))
        _check_denoiser(denoiser, guidance)
    report = GuidanceReport(guidance.name, runners[0].unit_count)
    session = _Session(pipe, adapter, guidance, report)
    with ExitStack() as stack:
        stack.enter_context(_intercepted_calls(pipe, "__call__", session.sample))
        for denoiser, runner in zip(denoisers, runners, strict=True):
            predict = partial(session.predict, denoiser, runner)
            refused = ("enable_cache",) if guidance.blocks_used else ()
            stack.enter_context(_intercepted_calls(denoiser, "forward", predict, refused))
            stack.enter_context(runner.active())
        yield report
    if not report.steps:
        logger.warning("no step of the pipeline ran inside guided(); was another pipeline called?")


class _OpenStep:
    """A step until all its denoiser calls are answered."""

    def __init__(
        self,
        step: Step,
        plan: StepPlan,
        calls: tuple[tuple[Condition, ...], ...],
        *,
        keep_dtype: bool = False,
    ) -> None:
        """`keep_dtype`: answer in the predictions' dtype, not in float32."""
        self.step = step
        self.plan = plan
        self._keep_dtype = keep_dtype
        self.records: list[PassRecord] = []
        self._calls = calls
        self._answered = 0
        self._predictions: dict[str, Tensor] = {}
        self._guided: Tensor | None = None
        self._waiting: list[weakref.ref[Tensor]] = []

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions in the rows of the call to be answered."""
        return self._calls[self._answered]

    @property
    def complete(self) -> bool:
        """Whether every call of the step is answered."""
        return self._answered == len(self._calls)

    def answered(self, passes: list[PassRecord]) -> None:
        """Count one call, which took these passes."""
        self._answered += 1
        self.records += passes

    def answer(self, predictions: dict[str, Tensor]) -> Tensor:
        """The result of a call, from the predictions of its branches.

        The same prediction for every condition makes the pipeline's own `u + w (c - u)` the identity. A
        pipeline that calls once per condition holds the first result while it asks for the second, so the
        guided prediction is written into that result once it is known.
        """
        assert self.plan.rule is not None
        self._predictions |= predictions
        if self._guided is None and self._predictions.keys() == self.plan.branches.keys():
            guided_prediction = self.plan.rule(**self._predictions)
            dtype = next(iter(predictions.values())).dtype
            self._guided = guided_prediction.to(dtype) if self._keep_dtype else guided_prediction
            self._hand_on(self._guided)
        if self._guided is not None:
            return torch.cat([self._guided] * len(self.conditions))
        (prediction,) = [
            value for name, value in predictions.items() if self.plan.branches[name].perturbation is None
        ]
        waiting = (prediction if self._keep_dtype else upcast(prediction)).clone()
        self._waiting.append(weakref.ref(waiting))
        return waiting

    def _hand_on(self, guided_prediction: Tensor) -> None:
        for reference in self._waiting:
            earlier = reference()
            if earlier is None:
                raise GuidanceError(
                    "the pipeline copies one prediction before it asks for the next, so that guidance over "
                    "both cannot reach it; this version of diffusers is not supported"
                )
            earlier.copy_(guided_prediction)


class _Session:
    """Guides the calls of one pipeline, and knows where they stand."""

    def __init__(self, pipe: Any, adapter: ModelAdapter, guidance: Guidance, report: GuidanceReport) -> None:
        self._pipe = pipe
        self._adapter = adapter
        self._guidance = guidance
        self._report = report
        self._call: Mapping[str, Any] | None = None
        self._memory: dict[str, Tensor] = {}
        self._open: _OpenStep | None = None

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
        _check_denoiser(denoiser, self._guidance)
        arguments = dict(bound.arguments)
        current = self._current_step(denoiser, arguments)
        conditions = current.conditions
        if current.plan.rule is None:
            output = as_made()
            rows = len(arguments[self._adapter.sample_argument])
            current.answered([PassRecord(conditions, rows, 0, ())])
        else:
            return_dict = arguments.pop("return_dict", True)
            branches = {name: b for name, b in current.plan.branches.items() if b.condition in conditions}
            left_out = set(conditions) - {branch.condition for branch in branches.values()}
            if left_out and _has_step_cache(denoiser):
                raise GuidanceError(
                    f"a step cache is enabled on the denoiser and would miss step {current.step.index}, "
                    f"where {type(self._guidance).__name__} runs no {left_out.pop()} branch; call its "
                    f"disable_cache() first"
                )
            predictions, records = runner.run(call, arguments, branches, conditions)
            answer = current.answer(predictions)
            current.answered(records)
            output = self._adapter.wrap_output(answer) if return_dict else (answer,)
        if current.complete:
            self._open = None
            self._report.steps.append(
                StepRecord(current.step.index, current.step.noise_level, tuple(current.records))
            )
        return output

    def _current_step(self, denoiser: nn.Module, arguments: Mapping[str, Any]) -> _OpenStep:
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
        calls = self._adapter.calls(self._pipe, call)
        conditions = {condition for one in calls for condition in one}
        scale = self._adapter.pipeline_scale(self._pipe, call, denoiser) if "uncond" in conditions else 1.0
        step = Step(position.index, position.count, position.noise_level, scale, self._memory)
        plan = self._guidance.plan(step)
        self._check_plan(plan, conditions, call)
        keep_dtype = self._adapter.latents_take_prediction_dtype
        self._open = _OpenStep(step, plan, calls, keep_dtype=keep_dtype)
        return self._open

    def _check_plan(self, plan: StepPlan, conditions: set[Condition], call: Mapping[str, Any]) -> None:
        name = type(self._guidance).__name__
        if not {branch.condition for branch in plan.branches.values()} <= conditions:
            raise GuidanceError(
                f"{name} with guidance_scale={self._guidance.guidance_scale} needs the unconditional branch, "
                f"but the pipeline was called without it; {self._adapter.unconditional_hint}"
            )
        rescale = self._adapter.pipeline_rescale(self._pipe, call)
        if plan.rule is not None and rescale:
            raise GuidanceError(
                f"the pipeline was called with guidance_rescale={rescale}, which it would apply to the "
                f"guided prediction; give {name} a rescale instead"
            )


def _check_denoiser(denoiser: nn.Module, guidance: Guidance) -> None:
    if not guidance.blocks_used:
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


@contextmanager
def _intercepted_calls(
    target: Any,
    implementation: str,
    answer: Callable[[Callable[..., Any], Callable[[], Any], inspect.BoundArguments], Any],
    refused: tuple[str, ...] = (),
) -> Iterator[None]:
    """Send calls of this one object through `answer(call, call as it was made, bound arguments)`.

    A call must be repeatable as it was made: diffusers' LoRA scaling looks for `attention_kwargs` among the
    keyword arguments only.

    The instance gets a subclass of its class for the time being: offload hooks and compilers rewrite the
    `forward` of an instance whenever they like, but `__call__` is looked up on the class, so ours stays
    the outermost. (`torch.nn.utils.parametrize` swaps classes in the same way.) `implementation` names the
    method that has the signature of a call, `refused` those that must not be called meanwhile.
    """
    original = type(target)
    if getattr(original, "_guided", False):
        raise GuidanceError("this pipeline is guided already; leave the first guided() before the next")
    _, *parameters = inspect.signature(getattr(original, implementation)).parameters.values()
    signature = inspect.Signature(parameters)

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = partial(original.__call__, self)
        return answer(call, partial(call, *args, **kwargs), signature.bind(*args, **kwargs))

    def refuse(name: str, *_: Any, **__: Any) -> None:
        raise GuidanceError(f"{name}() cannot be called inside guided() with a perturbed method")

    namespace: dict[str, Any] = {name: partial(refuse, name) for name in refused if hasattr(target, name)}
    namespace |= {"__call__": __call__, "__module__": original.__module__, "_guided": True}
    metaclass: Any = type(original)
    target.__class__ = metaclass(original.__name__, (original,), namespace)
    try:
        yield
    finally:
        target.__class__ = original

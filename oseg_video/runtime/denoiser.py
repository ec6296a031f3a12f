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
from oseg_video.guidance.plan import Branch, Step, StepPlan
from oseg_video.parallel.group import Group
from oseg_video.parallel.mesh import ONE_RANK, Mesh
from oseg_video.runtime.assignment import assign_branches, exchange_predictions
from oseg_video.runtime.branches import BranchRunner, GuidanceError, SilentGuidanceError, require_effect
from oseg_video.runtime.decoding import spread_decoding
from oseg_video.runtime.first_rank import inputs_of_first_rank
from oseg_video.runtime.report import GuidanceReport, PassRecord, StepRecord
from oseg_video.runtime.sampling import sampling_position

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
        stack.enter_context(_intercepted_calls(pipe, "__call__", session.sample))
        stack.enter_context(inputs_of_first_rank(pipe, mesh.clip))
        stack.enter_context(spread_decoding(pipe, mesh.clip))
        for denoiser, runner in zip(denoisers, runners, strict=True):
            predict = partial(session.predict, denoiser, runner)
            refused = ("enable_cache",) if runner.intervenes else ()
            stack.enter_context(_intercepted_calls(denoiser, "forward", predict, refused))
            stack.enter_context(runner.active())
        yield report
    if not report.steps:
        logger.warning("no step of the pipeline ran inside guided(); was another pipeline called?")


class _OpenStep:
    """A step until all its denoiser calls are answered.

    Of its branches each rank of the branch axis runs some. A rank that runs none of those of a call answers
    it at once, so that ranks work on different calls at the same time.
    """

    def __init__(
        self,
        step: Step,
        plan: StepPlan,
        calls: tuple[tuple[Condition, ...], ...],
        ranks: Mapping[str, int],
        group: Group,
        *,
        keep_dtype: bool = False,
    ) -> None:
        """`ranks`: the rank that runs each branch. `keep_dtype`: answer in the predictions' dtype, not in
        float32."""
        self.step = step
        self.plan = plan
        self._keep_dtype = keep_dtype
        self.records: list[PassRecord] = []
        self._calls = calls
        self._ranks = ranks
        self._group = group
        self._answered = 0
        self._predictions: dict[str, Tensor] = {}
        self._results: dict[Condition, Tensor] = {}
        self._waiting: list[tuple[Condition, weakref.ref[Tensor]]] = []

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions in the rows of the call to be answered."""
        return self._calls[self._answered]

    @property
    def complete(self) -> bool:
        """Whether every call of the step is answered."""
        return self._answered == len(self._calls)

    @property
    def as_made(self) -> bool:
        """Whether the pipeline's own calls, as it makes them, are all that the step needs."""
        return self.plan.rule is None and self._group.size == 1

    @property
    def own_branches(self) -> dict[str, Branch]:
        """What this rank runs for the call to be answered."""
        return {
            name: branch
            for name, branch in self.plan.branches.items()
            if branch.condition in self.conditions and self._ranks[name] == self._group.rank
        }

    def answered(self, passes: list[PassRecord]) -> None:
        """Count one call, which took these passes."""
        self._answered += 1
        self.records += passes

    def answer(self, predictions: dict[str, Tensor], blank: Callable[[], Tensor]) -> Tensor:
        """The result of a call, from the predictions of this rank's branches.

        The same prediction for every condition makes the pipeline's own `u + w (c - u)` the identity. A
        pipeline that calls once per condition holds the first result while it asks for the second, so the
        guided prediction is written into that result once it is known. `blank`: a tensor like a prediction.
        """
        # Exchanged predictions are in float32, but the scheduler may go on in the network's own type.
        dtype = blank().dtype if self._group.size > 1 else next(iter(predictions.values()), blank()).dtype
        self._predictions |= predictions
        seen = {condition for call in self._calls[: self._answered + 1] for condition in call}
        if not self._results and {branch.condition for branch in self.plan.branches.values()} <= seen:
            everyones = exchange_predictions(self._group, self._ranks, self._predictions, blank)
            self._results = self._combined(everyones, dtype)
            self._hand_on()
        if self._results:
            return torch.cat([self._results[condition] for condition in self.conditions])
        (condition,) = self.conditions
        plain = [
            value for name, value in predictions.items() if self.plan.branches[name].perturbation is None
        ]
        waiting = self._in_answer_dtype(plain[0] if plain else blank(), dtype).clone()
        self._waiting.append((condition, weakref.ref(waiting)))
        return waiting

    def _combined(self, predictions: dict[str, Tensor], dtype: torch.dtype) -> dict[Condition, Tensor]:
        """What the pipeline gets for each condition: the guided prediction, or without a rule its own.

        dtype: that of the network's predictions.
        """
        require_effect(self.plan.branches, predictions)
        if self.plan.rule is None:
            return {
                branch.condition: self._in_answer_dtype(predictions[name], dtype)
                for name, branch in self.plan.branches.items()
            }
        guided_prediction = self._in_answer_dtype(self.plan.rule(**predictions), dtype)
        return {condition: guided_prediction for call in self._calls for condition in call}

    def _in_answer_dtype(self, prediction: Tensor, dtype: torch.dtype) -> Tensor:
        return prediction.to(dtype) if self._keep_dtype else upcast(prediction)

    def _hand_on(self) -> None:
        for condition, reference in self._waiting:
            earlier = reference()
            if earlier is None:
                raise GuidanceError(
                    "the pipeline copies one prediction before it asks for the next, so that guidance over "
                    "both cannot reach it; this version of diffusers is not supported"
                )
            earlier.copy_(self._results[condition])


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
    ) -> _OpenStep:
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
        self._open = _OpenStep(step, plan, calls, ranks, branch, keep_dtype=keep_dtype)
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
                f"{name} with guidance_scale={self._guidance.guidance_scale} needs the unconditional branch, "
                f"but the pipeline was called without it; {self._adapter.unconditional_hint}"
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

"""Guide a stock diffusers pipeline: run a method's branches in place of each denoiser call."""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule

from oseg_video.adapters.base import ModelAdapter, VideoTokens, adapter_for
from oseg_video.adapters.intervention import BlockPlan, changed_queries, gated_blocks
from oseg_video.guidance.methods import Guidance
from oseg_video.guidance.perturbations import QueryTransform, SkipBlock
from oseg_video.guidance.plan import Branch, Perturbation, Step, StepPlan
from oseg_video.runtime.report import GuidanceReport, PassRecord, StepRecord
from oseg_video.types import OsegVideoError, TokenGrid

logger = logging.getLogger(__name__)


class GuidanceError(OsegVideoError):
    """The guidance cannot be honoured on this pipeline as it was called."""


class SilentGuidanceError(GuidanceError):
    """A perturbation left no trace: a site did not fire, or the perturbed prediction is the plain one."""


@contextmanager
def guided(pipe: Any, guidance: Guidance, *, reuse_prefix: bool = True) -> Iterator[GuidanceReport]:
    """Guide every call of a stock diffusers pipeline inside the `with`; leave the pipeline as it was after.

    The pipeline's own `guidance_scale` only decides whether there is an unconditional branch (above 1);
    the guidance's scale is the one that counts, and is the pipeline's where the guidance leaves it None.

    pipe: a pipeline object of a supported class (`oseg_video.adapters`).
    guidance: the method, for example `OSEG(guidance_scale=4.5, blocks=(34,))`.
    reuse_prefix: start a perturbed pass at its first perturbed block, with what the unperturbed pass of
        the same condition had there. Exact; False runs every pass whole.

    Yields the report, which fills while the pipeline runs. Raises `UnsupportedPipelineError` for another
    pipeline class, `GuidanceError` for an unknown block or for nesting, before any model work; inside, on
    the first step, `GuidanceError` when the pipeline's call does not provide what the guidance needs, and
    `SilentGuidanceError` when a perturbation had no effect.
    """
    adapter = adapter_for(pipe)
    denoiser = adapter.denoiser(pipe)
    _check_blocks(guidance, adapter.count_blocks(denoiser), adapter.family)
    _check_denoiser(denoiser, guidance)
    session = _GuidedDenoiser(pipe, adapter, denoiser, guidance, reuse_prefix)
    gates = gated_blocks(adapter, denoiser, session.current_plan) if guidance.blocks_used else nullcontext()
    with _intercepted_calls(denoiser, session.predict), gates:
        yield session.report
    if not session.report.steps:
        logger.warning("no step of the pipeline ran inside guided(); was another pipeline called?")


class _Pass(NamedTuple):
    """Branches that share one forward pass, in the order of its rows."""

    names: tuple[str, ...]
    conditions: tuple[str, ...]
    perturbation: Perturbation | None
    reuses_prefix: bool


class _GuidedDenoiser:
    """The guided call of one denoiser, and where it stands."""

    def __init__(
        self, pipe: Any, adapter: ModelAdapter, denoiser: nn.Module, guidance: Guidance, reuse_prefix: bool
    ) -> None:
        self.report = GuidanceReport(guidance.name, adapter.count_blocks(denoiser))
        self._pipe = pipe
        self._adapter = adapter
        self._denoiser = denoiser
        self._guidance = guidance
        self._first_perturbed = min(guidance.blocks_used, default=0)
        self._reuse_prefix = reuse_prefix and self._first_perturbed > 0
        # Named before the gates take the blocks' places.
        self._blocks = {address.index: address for address in adapter.blocks(denoiser)}
        self._plan: BlockPlan | None = None

    def current_plan(self) -> BlockPlan | None:
        """The block plan of the pass in progress, for the gates."""
        return self._plan

    def predict(self, call: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """The guided prediction for one denoiser call of the pipeline; `call` is the denoiser's own."""
        _check_denoiser(self._denoiser, self._guidance)
        conditions = self._adapter.conditions(self._pipe)
        step = self._current_step()
        plan = self._guidance.plan(step)
        self._check_call(plan, conditions)
        if plan.rule is None:
            output = call(**arguments)
            self._record(step, [PassRecord(conditions, len(arguments["hidden_states"]), 0, ())])
            return output
        return_dict = arguments.pop("return_dict", True)
        predictions, records = self._run_branches(call, arguments, plan.branches, conditions)
        self._record(step, records)
        # The same prediction for every condition makes the pipeline's own u + w (c - u) the identity.
        guided_prediction = torch.cat([plan.rule(**predictions)] * len(conditions))
        return self._adapter.wrap_output(guided_prediction) if return_dict else (guided_prediction,)

    def _run_branches(
        self,
        call: Callable[..., Any],
        arguments: Mapping[str, Any],
        branches: Mapping[str, Branch],
        conditions: tuple[str, ...],
    ) -> tuple[dict[str, Tensor], list[PassRecord]]:
        """The prediction of every branch, and the passes that it took."""
        batch = len(arguments["hidden_states"]) // len(conditions)
        passes = _group(branches, conditions, self._reuse_prefix)
        predictions: dict[str, Tensor] = {}
        records = []
        prefix: Any = None
        prefix_conditions: tuple[str, ...] = ()
        for current in passes:
            plan = BlockPlan(actions=self._actions(current.perturbation, arguments))
            if current.reuses_prefix:
                rows = _rows(current.conditions, prefix_conditions, batch)
                plan.start = self._first_perturbed
                plan.replay = self._adapter.take_output_rows(prefix, rows)
            elif current.perturbation is None and any(later.reuses_prefix for later in passes):
                plan.capture_at = self._first_perturbed - 1
            inputs = self._adapter.take_rows(arguments, _rows(current.conditions, conditions, batch))
            prediction = self._run_pass(call, inputs, plan)
            if current.perturbation is None:
                prefix, prefix_conditions = plan.captured, current.conditions
            else:
                self._require_fired(current.perturbation, plan)
            predictions |= zip(current.names, prediction.split(batch), strict=True)
            records.append(PassRecord(current.names, len(prediction), plan.start, tuple(plan.fired)))
        _require_effect(branches, predictions)
        return predictions, records

    def _run_pass(self, call: Callable[..., Any], arguments: Mapping[str, Any], plan: BlockPlan) -> Tensor:
        self._plan = plan
        try:
            return call(**arguments, return_dict=False)[0]
        finally:
            self._plan = None

    def _actions(
        self, perturbation: Perturbation | None, arguments: Mapping[str, Any]
    ) -> dict[int, Callable[..., Any]]:
        """What the gates of the perturbed blocks do in place of the block."""
        if perturbation is None:
            return {}
        if isinstance(perturbation.change, SkipBlock):
            return {index: partial(self._skip_block, index) for index in perturbation.blocks}
        tokens = self._adapter.video_tokens(self._denoiser, arguments)
        transform_block = partial(self._transform_block, perturbation.change, tokens)
        return {index: partial(transform_block, index) for index in perturbation.blocks}

    def _skip_block(self, index: int, _: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self._fired(self._blocks[index].name)
        return self._adapter.skip_block(*args, **kwargs)

    def _transform_block(
        self,
        transform: QueryTransform,
        tokens: VideoTokens,
        index: int,
        block: nn.Module,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        site = self._adapter.site(block, self._blocks[index].name)
        change = partial(_apply, transform, tokens.grid)
        with changed_queries(site, transform.site, tokens, change, self._fired):
            return block(*args, **kwargs)

    def _fired(self, name: str) -> None:
        assert self._plan is not None
        self._plan.fired.append(name)

    def _current_step(self) -> Step:
        scheduler = self._pipe.scheduler
        count = self._pipe.num_timesteps
        if scheduler.step_index is not None:
            position = scheduler.step_index
        elif scheduler.begin_index is not None:
            position = scheduler.begin_index
        else:
            position = scheduler.index_for_timestep(self._pipe.current_timestep)
        sigma = float(scheduler.sigmas[position])
        # Mochi's scheduler counts from noise to data.
        noise_level = 1 - sigma if scheduler.config.get("invert_sigmas") else sigma
        # A pipeline that starts from a given video runs only the last `count` of the scheduler's steps.
        index = position - (len(scheduler.timesteps) - count)
        return Step(index, count, min(max(noise_level, 0.0), 1.0), float(self._pipe.guidance_scale))

    def _check_call(self, plan: StepPlan, conditions: tuple[str, ...]) -> None:
        missing = {branch.condition for branch in plan.branches.values()} - set(conditions)
        if missing:
            raise GuidanceError(
                f"{self._guidance.name} with guidance_scale={self._guidance.guidance_scale} needs the "
                f"unconditional branch, but the pipeline was called with guidance_scale="
                f"{self._pipe.guidance_scale}, which turns it off; give the pipeline one above 1"
            )
        pipeline_rescale = getattr(self._pipe, "guidance_rescale", 0.0)
        if plan.rule is not None and pipeline_rescale:
            raise GuidanceError(
                f"the pipeline was called with guidance_rescale={pipeline_rescale}, which it would apply to "
                f"the guided prediction; give {type(self._guidance).__name__} a rescale instead"
            )

    def _require_fired(self, perturbation: Perturbation, plan: BlockPlan) -> None:
        for index in perturbation.blocks:
            name = self._blocks[index].name
            if not any(fired == name or fired.startswith(f"{name}.") for fired in plan.fired):
                raise SilentGuidanceError(
                    f"block {index} ({name}) was to be perturbed, but its attention site never fired; "
                    f"fused projections or a foreign attention processor may bypass it"
                )

    def _record(self, step: Step, passes: list[PassRecord]) -> None:
        self.report.steps.append(StepRecord(step.index, step.noise_level, tuple(passes)))


def _apply(transform: QueryTransform, grid: TokenGrid, query: Tensor, key: Tensor) -> Tensor:
    return transform(query, key, grid)


def _group(branches: Mapping[str, Branch], conditions: tuple[str, ...], reuse_prefix: bool) -> list[_Pass]:
    """The fewest passes that run all branches, unperturbed ones first, rows in the order of `conditions`."""
    plain = {branch.condition for branch in branches.values() if branch.perturbation is None}
    groups: dict[tuple[Perturbation | None, bool], list[str]] = {}
    for name in sorted(branches, key=lambda name: conditions.index(branches[name].condition)):
        branch = branches[name]
        reuses = reuse_prefix and branch.perturbation is not None and branch.condition in plain
        groups.setdefault((branch.perturbation, reuses), []).append(name)
    passes = [
        _Pass(tuple(names), tuple(branches[name].condition for name in names), perturbation, reuses)
        for (perturbation, reuses), names in groups.items()
    ]
    return sorted(passes, key=lambda one: one.perturbation is not None)


def _rows(wanted: tuple[str, ...], conditions: tuple[str, ...], batch: int) -> slice:
    """The rows of neighbouring `wanted` conditions in a batch that holds `batch` rows of each condition."""
    first = conditions.index(wanted[0])
    assert conditions[first : first + len(wanted)] == wanted
    return slice(first * batch, (first + len(wanted)) * batch)


def _require_effect(branches: Mapping[str, Branch], predictions: Mapping[str, Tensor]) -> None:
    plain = {b.condition: predictions[name] for name, b in branches.items() if b.perturbation is None}
    for name, branch in branches.items():
        if branch.perturbation is None or branch.condition not in plain:
            continue
        if torch.equal(predictions[name], plain[branch.condition]):
            raise SilentGuidanceError(
                f"perturbing blocks {list(branch.perturbation.blocks)} did not change the {branch.condition} "
                f"prediction at all; the guidance would do nothing"
            )


def _check_blocks(guidance: Guidance, count: int, family: str) -> None:
    for block in guidance.blocks_used:
        if block >= count:
            raise GuidanceError(f"no block {block}: this {family} model has {count} blocks, 0 to {count - 1}")


def _check_denoiser(denoiser: nn.Module, guidance: Guidance) -> None:
    if not guidance.blocks_used:
        return
    if isinstance(denoiser, OptimizedModule) or denoiser._compiled_call_impl is not None:
        raise GuidanceError(
            "the denoiser is compiled as a whole, which hides its blocks; compile the repeated blocks instead"
        )
    if getattr(denoiser, "is_cache_enabled", False):
        raise GuidanceError(
            "a step cache is enabled on the denoiser and would mix branches; call its disable_cache() first"
        )


@contextmanager
def _intercepted_calls(module: nn.Module, predict: Callable[..., Any]) -> Iterator[None]:
    """Send calls of this one module through `predict(call, arguments)`.

    The instance gets a subclass of its class for the time being: offload hooks and compilers rewrite the
    `forward` of an instance whenever they like, but `__call__` is looked up on the class, so ours stays
    the outermost. (`torch.nn.utils.parametrize` swaps classes in the same way.)
    """
    original = type(module)
    if getattr(original, "_guided", False):
        raise GuidanceError("this pipeline is guided already; leave the first guided() before the next")
    signature = inspect.signature(original.forward)

    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs).arguments
        del bound[next(iter(signature.parameters))]
        return predict(partial(original.__call__, self), dict(bound))

    namespace = {"__call__": __call__, "__module__": original.__module__, "_guided": True}
    metaclass: Any = type(original)
    module.__class__ = metaclass(original.__name__, (original,), namespace)
    try:
        yield
    finally:
        module.__class__ = original

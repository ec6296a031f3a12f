"""Guide a stock diffusers pipeline: run a method's branches in place of each denoiser call."""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.eval_frame import OptimizedModule

from oseg_video.adapters.base import Condition, ModelAdapter, UnsupportedPipelineError, adapter_for
from oseg_video.console import logger
from oseg_video.engine.assignment import assign_branches
from oseg_video.engine.branches import BranchRunner
from oseg_video.engine.broadcast import inputs_of_first_rank
from oseg_video.engine.checks import check_blocks, check_reuse, check_sound
from oseg_video.engine.decoding import spread_decoding
from oseg_video.engine.effect import without_effect
from oseg_video.engine.errors import GuidanceError, SilentGuidanceError
from oseg_video.engine.estimates import KeptPredictions
from oseg_video.engine.patching.calls import (
    MadeCall,
    denoiser_signature,
    intercepted_calls,
    intercepted_denoiser,
)
from oseg_video.engine.position import Sampler
from oseg_video.engine.reading import noise_of, reads_attention
from oseg_video.engine.report import GuidanceReport, PassRecord, StepRecord
from oseg_video.engine.step import OpenStep
from oseg_video.engine.step_cache import StepCache
from oseg_video.guidance.methods import Guidance
from oseg_video.guidance.plan import STREAMS, Branch, Step, StepPlan, Stream
from oseg_video.guidance.reuse import EXACT, USE_OURS, Reuse
from oseg_video.guidance.scales import guides
from oseg_video.guidance.streams import Denoised, plan_streams
from oseg_video.parallel.mesh import ONE_RANK, Mesh
from oseg_video.types import Denoiser, Pipeline, SettingError, TokenGrid

__all__ = ["GuidanceError", "SilentGuidanceError", "guided"]


@contextmanager
def guided(
    pipe: Pipeline, guidance: Guidance, *, reuse: Reuse = EXACT, mesh: Mesh = ONE_RANK
) -> Iterator[GuidanceReport]:
    """`oseg_video.guided` for a method that is not a name; what it takes and raises is said there."""
    _check_arguments(guidance, reuse, mesh)
    check_reuse(guidance, reuse)
    adapter = adapter_for(pipe)
    check_sound(adapter, guidance)
    if reason := adapter.sampling.refusal(pipe):
        raise UnsupportedPipelineError(reason)
    wrapped = {
        name: getattr(pipe, name)
        for name in adapter.denoiser_attributes
        if getattr(pipe, name, None) is not None
    }
    if not wrapped:
        names = " or ".join(adapter.denoiser_attributes)
        raise UnsupportedPipelineError(f"this {type(pipe).__name__} was loaded without its {names}")
    classes = {adapter.denoiser_class, *adapter.like_denoisers}
    denoisers = {name: _unwrapped(denoiser, classes) for name, denoiser in wrapped.items()}
    runners: dict[Denoiser, BranchRunner] = {}
    for name, denoiser in denoisers.items():
        if denoiser not in runners:  # Wan's two experts may be one
            check_blocks(adapter, denoiser, guidance)
            runners[denoiser] = BranchRunner(
                adapter, denoiser, guidance.blocks_used, reuse=reuse, sequence=mesh.sequence
            )
        _check_denoiser(wrapped[name], runners[denoiser], mesh)
    if reads_attention(guidance):
        noise_of(pipe, level=1.0)  # refused here or never
    report = GuidanceReport(guidance.name, next(iter(runners.values())).unit_count)
    session = _Session(pipe, adapter, guidance, reuse, report, mesh)
    with ExitStack() as stack:
        stack.enter_context(intercepted_calls(pipe, session.sample, session.arrived))
        stack.enter_context(inputs_of_first_rank(pipe, mesh.clip))
        stack.enter_context(spread_decoding(pipe, mesh.clip, adapter.decodes_by))
        for name, denoiser in denoisers.items():
            target = _Target(name, denoiser, runners[denoiser])
            signature = denoiser_signature(wrapped[name], denoiser, adapter.denoiser_call.sample)
            refused = ("enable_cache",) if target.runner.intervenes else ()
            predict = partial(session.predict, target)
            twin = stack.enter_context(intercepted_denoiser(pipe, name, signature, predict, refused))
            session.twins[name] = twin
        for runner in runners.values():
            stack.enter_context(runner.active())
        yield report
    if not report.steps:
        logger.warning("no step of the pipeline ran inside guided(); was another pipeline called?")


@dataclass(frozen=True)
class _Target:
    """One denoiser of the pipeline."""

    name: str
    """Attribute of the pipeline."""
    denoiser: Denoiser
    """Without what wraps it."""
    runner: BranchRunner


@dataclass(frozen=True)
class _DenoiserCall:
    """What `OpenStep.answer` may do about one call of the denoiser."""

    pipe: Pipeline
    adapter: ModelAdapter
    target: _Target
    made: MadeCall
    arguments: Mapping[str, Any]

    @property
    def sample(self) -> Tensor:
        sample: Tensor = self.arguments[self.adapter.denoiser_call.sample]
        return sample

    def as_made(self, conditions: tuple[Condition, ...]) -> tuple[Any, list[PassRecord]]:
        output = self.target.runner.run_plain(self.made.repeat, self.arguments)
        return output, [PassRecord(conditions, len(self.sample), 0, self.target.runner.unit_count, ())]

    def run(
        self,
        branches: Mapping[str, Branch],
        conditions: tuple[Condition, ...],
        noise_level: float,
        cache: StepCache | None,
        negative: Mapping[str, Any] | None = None,
    ) -> tuple[dict[str, Tensor], list[PassRecord]]:
        inputs = {name: value for name, value in self.arguments.items() if name != "return_dict"}
        perturbed = (branch.perturbation for branch in branches.values() if branch.perturbation is not None)
        reads = any(one.source is not None for one in perturbed)
        noise = noise_of(self.pipe, noise_level) if reads else None
        return self.target.runner.run(
            self.made.again, inputs, branches, conditions, noise=noise, negative=negative, cache=cache
        )

    def rows_of(self, condition: Condition, conditions: tuple[Condition, ...]) -> Mapping[str, Any]:
        batch, first = len(self.sample) // len(conditions), conditions.index(condition)
        rows = slice(first * batch, (first + 1) * batch)
        return self.adapter.denoiser_call.take_rows(self.arguments, rows)

    def blank(self, conditions: tuple[Condition, ...]) -> Tensor:
        latents = self.latents(conditions)
        return torch.zeros_like(self.adapter.denoiser_call.joined(latents).join(latents))

    def latents(self, conditions: tuple[Condition, ...]) -> tuple[Tensor, ...]:
        """The noisy latents of one condition, for each stream."""
        samples = self.adapter.denoiser_call.samples(self.target.denoiser, self.arguments)
        return tuple(one[: len(one) // len(conditions)] for one in samples)

    def result(self, prediction: Tensor) -> Any:
        call = self.adapter.denoiser_call
        samples = call.samples(self.target.denoiser, self.arguments)
        predictions = call.joined(samples).split(prediction)
        return call.wrap_output(predictions) if self.arguments.get("return_dict", True) else predictions


class _Session:
    """Guides the calls of one pipeline, and knows where they stand."""

    def __init__(
        self,
        pipe: Pipeline,
        adapter: ModelAdapter,
        guidance: Guidance,
        reuse: Reuse,
        report: GuidanceReport,
        mesh: Mesh,
    ) -> None:
        self._pipe = pipe
        self._adapter = adapter
        self._guidance = guidance
        self._reuse = reuse
        self._report = report
        self._mesh = mesh
        self._call: _RunningCall | None = None
        self.twins: dict[str, Denoiser] = {}
        """What the pipeline holds in place of its denoisers, by attribute."""

    def arrived(self, arguments: Mapping[str, Any]) -> None:
        """A subclass's call has gone on to its base with these arguments."""
        if self._call is not None:
            self._call.arguments = arguments

    def sample(
        self, as_made: Callable[..., Any], arguments: Mapping[str, Any], given: Mapping[str, Any]
    ) -> Any:
        """One call of the pipeline, without what it would guide by itself."""
        if self._call is not None:
            raise GuidanceError("the pipeline was called again while a call of it is running")
        for name, twin in self.twins.items():
            if vars(self._pipe).get(name) is not twin:
                raise GuidanceError(
                    f"the pipeline's {name} was exchanged or wrapped inside guided(), and would run without "
                    f"guidance; do so before"
                )
        off = {name: value for name, value in self._switched_off(given).items() if name in arguments}
        sampler = Sampler(self._pipe, windows=self._adapter.samples_windows(self._pipe))
        call = self._call = _RunningCall(
            {**arguments, **off}, sampler, partial(KeptPredictions, self._reuse, self._mesh)
        )
        try:
            output = as_made(**off)
        finally:
            self._call = None
        if self._mesh.clip.rank == 0 and (reason := self._without_effect(call)):
            logger.warning(reason)
        return output

    def _switched_off(self, given: Mapping[str, Any]) -> dict[str, float]:
        """Values that switch the pipeline's own guidance off, by argument, of those that its call leaves out.

        Raises `GuidanceError` for one that it gives.
        """
        own = self._adapter.sampling.own_guidance
        for name, off in own.items():
            if given.get(name, off) not in (off, None):
                raise GuidanceError(
                    f"the pipeline was called with {name}={given[name]}, by which it would guide on its own; "
                    f"leave it out, and give {type(self._guidance).__name__} what it should do"
                )
        return {name: off for name, off in own.items() if given.get(name) is None}

    def predict(self, target: _Target, made: MadeCall) -> Any:
        """The guided prediction for one denoiser call of the pipeline."""
        if self._call is None:
            raise GuidanceError("the denoiser was called outside of the guided pipeline's own call")
        if self._call.thread != threading.get_ident():
            return made.repeat()  # of another pipeline, which was built from the parts of this one
        _check_denoiser(made.function, target.runner, self._mesh)
        call = _DenoiserCall(self._pipe, self._adapter, target, made, made.arguments)
        step = self._call.open_step or self._begin_step(self._call, call)
        if not self._call.sampler.in_same_step(call.arguments.get("timestep")):
            raise GuidanceError(
                f"the pipeline left step {step.step.index} without asking for the {step.conditions} "
                f"prediction; this version of diffusers is not supported"
            )
        if step.left_out and not step.as_made and _has_step_cache(target.denoiser):
            raise GuidanceError(
                f"a step cache is enabled on the denoiser and would miss step {step.step.index}, "
                f"where {type(self._guidance).__name__} runs no {step.left_out.pop()} branch; call its "
                f"disable_cache() first; {USE_OURS}"
            )
        output = step.answer(call)
        self._call.open_step = None if step.complete else step
        if step.complete:
            if step.step.index == step.step.count - 1:
                self._call.forget()
            place = step.step.index, step.step.noise_level
            self._report.steps.append(StepRecord(*place, tuple(step.records), step.work.estimated))
        return output

    def _begin_step(self, current: "_RunningCall", call: _DenoiserCall) -> OpenStep:
        """The step that begins with this denoiser call."""
        position = current.sampler.next_step(call.arguments.get("timestep"))
        self._require_same_sample(position.index, call.sample)
        sampling, arguments = self._adapter.sampling, current.arguments
        calls = sampling.calls(uncond=sampling.runs_uncond(self._pipe, arguments))
        rows, conditions = len(call.sample), len(calls[0])
        if rows == 0 or rows % conditions:
            raise GuidanceError(
                f"the pipeline called its denoiser with {rows} rows, which are no {conditions} equal parts "
                f"({', '.join(calls[0])}); its arguments say otherwise"
            )
        if self._reuse.cache and "cond" not in calls[0]:
            raise GuidanceError(
                "a step cache decides by the conditional prediction, which this pipeline asks for too late"
            )
        every = tuple(condition for one in calls for condition in one)
        latents = call.latents(calls[0])
        if position.index == 0 or latents[0].shape != current.shape:
            current.begin_run(latents[0].shape)
        steps = {
            stream: Step(
                index=position.index,
                count=position.count,
                noise_level=position.noise_level,
                pipeline_scale=self._scale(current, call, stream) if "uncond" in every else 1.0,
                memory=current.memory[stream],
                sample=sample,
                grid=self._grid(call, sample, stream),
                behind=self._adapter.latents_behind(call.arguments) if stream == "video" else 0,
                unconditional="uncond" in every,
            )
            for stream, sample in zip(self._adapter.streams, latents, strict=True)
        }
        denoised = None
        if sampling.combines_denoised:
            denoised = Denoised(tuple(map(current.sampler.sigma, sampling.schedulers(self._pipe))))
        joined = self._adapter.denoiser_call.joined(latents)
        plan = plan_streams(self._guidance, steps, joined, denoised)
        step = steps["video"]
        self._check_plan(plan, step, set(every), current)
        current.plans.append(plan)
        current.had_text = current.had_text or "uncond" in every
        # No setting of the method takes another value between two of its levels.
        schedule = sum(start >= step.noise_level for start in self._guidance.levels)
        work = current.kept.step(step, plan, (call.target.name, schedule))
        branch = self._mesh.branch
        ranks = assign_branches(call.target.runner, work.branches, every, branch.size)
        keep_dtype = sampling.latents_take_prediction_dtype
        return OpenStep(step, work, calls, ranks, branch, keep_dtype=keep_dtype)

    def _scale(self, current: "_RunningCall", call: _DenoiserCall, stream: Stream) -> float | Tensor:
        """The scale of the pipeline's own text guidance of a stream."""
        sampling = self._adapter.sampling
        if stream == "audio":
            return sampling.audio_scale(self._pipe, current.arguments)
        return sampling.scale(self._pipe, current.arguments, call.target.name)

    def _grid(self, call: _DenoiserCall, sample: Tensor, stream: Stream) -> TokenGrid | None:
        """The latents of a stream where its prediction is a sequence of them."""
        if stream == "audio":
            return TokenGrid(sample.shape[1], 1, 1)
        return self._adapter.prediction_grid(call.arguments)

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

    def _check_plan(
        self, plan: StepPlan, step: Step, conditions: set[Condition], current: "_RunningCall"
    ) -> None:
        name = type(self._guidance).__name__
        if not all(branch.conditions <= conditions for branch in plan.branches.values()):
            scales = {one: self._guidance.of_stream(one).largest_guidance_scale for one in STREAMS}
            scale, other = scales["video"], scales["audio"]
            audio = scale in (None, 1) and other not in (None, 1)
            said = f"audio_guidance_scale={other}" if audio else f"guidance_scale={scale}"
            needs = f"{name} with {said} needs the unconditional branch, "
            if all(branch.condition in conditions for branch in plan.branches.values()):
                needs = f"{name} needs the text of the unconditional branch, which it does not run, "
            if current.had_text:
                raise GuidanceError(
                    f"{needs}but the pipeline stopped running it at step {step.index + 1} of {step.count}; "
                    f"leave the guidance_scale of {name} out, so that it follows the pipeline's, or end its "
                    f"interval there"
                )
            raise GuidanceError(
                f"{needs}but the pipeline was called without it; {self._adapter.sampling.unconditional_hint}"
            )
        rescale = self._adapter.sampling.rescale(self._pipe, current.arguments)
        if plan.rule is not None and rescale:
            raise GuidanceError(
                f"the pipeline was called with guidance_rescale={rescale}, which it would apply to the "
                f"guided prediction; give {name} a rescale instead"
            )

    def _without_effect(self, call: "_RunningCall") -> str | None:
        if not call.plans:
            return None
        scale = self._guidance.largest_guidance_scale
        asked = call.had_text and (scale is None or guides(scale))
        return without_effect(self._guidance, call.plans, guides_text=asked)


class _RunningCall:
    """A call of the pipeline that is running."""

    kept: KeptPredictions
    """Of the sampling run in progress."""
    memory: dict[Stream, dict[str, Tensor]]
    """That of the method, in the sampling run in progress."""
    shape: torch.Size | None = None
    """Of the latents of one condition."""

    def __init__(
        self, arguments: Mapping[str, Any], sampler: Sampler, keep: Callable[[], KeptPredictions]
    ) -> None:
        self.arguments = arguments
        self.sampler = sampler
        self._keep = keep
        self.thread = threading.get_ident()
        self.open_step: OpenStep | None = None
        self.plans: list[StepPlan] = []
        self.had_text = False
        """Whether an unconditional branch has run."""

    def begin_run(self, shape: torch.Size) -> None:
        """A sampling run begins: the only one, a long clip's next window, or with latents of a new size."""
        self.shape = shape
        self.kept = self._keep()
        self.memory = {stream: {} for stream in STREAMS}

    def forget(self) -> None:
        """What was kept is not needed after the last step, and the VAE needs the room."""
        self.kept = self._keep()


def _check_arguments(guidance: Guidance, reuse: Reuse, mesh: Mesh) -> None:
    if isinstance(guidance, type):
        raise SettingError(
            f"guidance must be a method with its settings, such as {guidance.__name__}(...), got the class "
            f"{guidance.__name__}"
        )
    if not isinstance(guidance, Guidance):
        raise SettingError(
            f"guidance must be a guidance method, such as CFG(guidance_scale=4.5), got {guidance!r}"
        )
    if not isinstance(reuse, Reuse):
        raise SettingError(f"reuse must be settings such as Reuse(cache=0.1), got {reuse!r}")
    if not isinstance(mesh, Mesh):
        raise SettingError(
            f"mesh must be the ranks of this run, such as Mesh.of(Degrees(ulysses=2)), got {mesh!r}"
        )


def _unwrapped(denoiser: Denoiser, classes: Collection[str]) -> Denoiser:
    """The denoiser of these classes inside whatever wraps it (`torch.compile`, PEFT, ...), or itself."""
    modules: Iterator[Denoiser] = denoiser.modules()
    fitting = (one for one in modules if any(kind.__name__ in classes for kind in type(one).__mro__))
    return next(fitting, denoiser)


def _check_denoiser(denoiser: Any, runner: BranchRunner, mesh: Mesh) -> None:
    if not (runner.intervenes or mesh.branch.size > 1):
        return
    if isinstance(denoiser, OptimizedModule) or denoiser._compiled_call_impl is not None:
        raise GuidanceError(
            "the denoiser is compiled as a whole, which hides its blocks; compile the repeated blocks instead"
        )
    if mesh.sequence.size > 1 and runner.compiled:
        raise GuidanceError("compiled blocks cannot share their tokens over ranks (ulysses, ring)")
    if _has_step_cache(denoiser):
        raise GuidanceError(
            f"a step cache is enabled on the denoiser and would mix branches; call its disable_cache() "
            f"first; {USE_OURS}"
        )


def _has_step_cache(denoiser: Denoiser) -> bool:
    """Whether a hook of diffusers keeps something from one call of the denoiser to the next.

    `is_cache_enabled` knows of `enable_cache` alone, not of `apply_first_block_cache` and its kin.
    """
    registries = (getattr(module, "_diffusers_hook", None) for module in denoiser.modules())
    hooks = (hook for registry in registries if registry is not None for hook in registry.hooks.values())
    return getattr(denoiser, "is_cache_enabled", False) or any(hook._is_stateful for hook in hooks)

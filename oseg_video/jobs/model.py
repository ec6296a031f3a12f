"""A model in memory, which makes one clip after another."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from oseg_video.config import GenerateJob
from oseg_video.config.manifest import Manifest, new_manifest
from oseg_video.engine.guided import guided
from oseg_video.engine.patching import replaced
from oseg_video.files import atomic_path
from oseg_video.guidance.methods import Guidance
from oseg_video.jobs.activations import decoding_activations, job_activations
from oseg_video.jobs.checks import clip_settings
from oseg_video.jobs.image import StartImage, write_image
from oseg_video.jobs.loading import pipeline as loading
from oseg_video.jobs.loading.device import falls_back, refuse_large, resolve_device
from oseg_video.jobs.loading.errors import LoadError
from oseg_video.jobs.loading.memory import NotEnoughMemoryError
from oseg_video.jobs.loading.meta import empty_denoiser
from oseg_video.jobs.outputs import ClipPlan
from oseg_video.jobs.progress import StepClock
from oseg_video.media import Sound, frames_sha256, to_uint8, write_clip
from oseg_video.parallel.mesh import ONE_RANK, Mesh
from oseg_video.types import OsegVideoError, Pipeline


class GenerateError(OsegVideoError):
    """A job that failed for a reason that the user can fix."""


@dataclass(frozen=True)
class ClipResult:
    """One finished clip."""

    path: Path
    prompt: str | None
    """None where the model takes no text."""
    seed: int
    seconds: float
    """Wall clock from the prompt to the file, without loading the model."""
    seconds_per_step: float | None
    """Mean over all steps but the first; None for a single step."""
    manifest: Manifest

    @property
    def sha256(self) -> str:
        """SHA-256 of the generated frames, before any lossy encoding."""
        return str(self.manifest.clip["sha256"])


def check_device(job: GenerateJob, find: Callable[[], loading.ModelSource]) -> None:
    """Raises LoadError, before weights are read, for a device that is not fit for the job.

    find: gives the job's model, where it has to be looked at.
    """
    if job.offload != "none" and resolve_device(job.device).type == "cpu":
        raise LoadError(f"--offload {job.offload} needs a GPU: on the CPU there is nothing to offload to")
    if falls_back(job.device):
        refuse_large(job.model, empty_denoiser(find()))


class LoadedModel:
    """A pipeline with its weights. A clip does not depend on which others it made before."""

    def __init__(
        self,
        source: loading.ModelSource,
        job: GenerateJob,
        *,
        mesh: Mesh = ONE_RANK,
        device: str | None = None,
        shard_weights: bool = False,
    ) -> None:
        """Load it as the job says. Raises LoadError, HubError or NotEnoughMemoryError.

        mesh: the ranks that make each clip together. device: this rank's, in place of the job's.
        shard_weights: the ranks that share a clip's tokens share the denoiser's weights, too.
        """
        placed = dataclasses.replace(job, device=device or job.device)
        check_device(placed, lambda: source)
        with naming_lack_of_memory():
            self.pipe = loading.load_pipeline(
                source,
                placed,
                mesh=mesh,
                shard_weights=shard_weights,
                count=partial(_count, source, job, mesh),
            )
        self.mesh = mesh
        self._adapter = source.adapter
        self._placed = _placement(job)
        self._identity = {
            "pipeline": type(self.pipe).__name__,
            "repository": source.repository,
            "commit": source.commit,
            "sha256": loading.fingerprint(source.directory) if source.directory else None,
        }

    def serves(self, job: GenerateJob) -> bool:
        """Whether this is the model that the job asks for, loaded as it asks."""
        return _placement(job) == self._placed

    def cut_prompts(self, job: GenerateJob) -> list[str]:
        """One line for each prompt that the pipeline cuts, which it does without a word that a user sees."""
        parameter = inspect.signature(self.pipe.__call__).parameters.get("max_sequence_length")
        default = parameter.default if parameter else self._adapter.text_limit(self.pipe)
        limit = job.max_sequence_length or default
        if limit is None:
            return []
        counts = {prompt: len(self.pipe.tokenizer(prompt).input_ids) for prompt in job.prompts}
        return [
            f"prompt {prompt[:30]!r} has {tokens} tokens; only the first {limit} count"
            for prompt, tokens in counts.items()
            if tokens > limit
        ]

    def make_clip(self, job: GenerateJob, plan: ClipPlan, start: StartImage | None) -> ClipResult:
        """Make one clip of the job and write it with its manifest, clip first. Of the ranks that make it
        together the first one writes.

        The job must be one that the model `serves`. Raises NotEnoughMemoryError, GenerateError, or
        what guiding and writing raise.
        """
        began = time.perf_counter()
        title = plan.path.name if plan.prompt is None else plan.prompt[:30]
        with (
            naming_lack_of_memory(),
            StepClock(job.steps, f"{title} (seed {plan.seed})") as clock,
            guided(self.pipe, self.guidance(job), reuse=job.reuse, mesh=self.mesh) as report,
        ):
            frames, sound = self._sample(job, plan, start, clock)
            clock.decoded()
        report.merge(self.mesh.branch.gather_objects(report.steps))
        made, asked = tuple(frames.shape), (job.frames, 3, job.height, job.width)
        if made != asked:
            raise GenerateError(f"the model made frames, channels, height, width {made} instead of {asked}")
        step = clock.seconds_per_step
        seconds = {
            "generate": round(time.perf_counter() - began, 3),
            "step": None if step is None else round(step, 4),
        }
        device = torch.device(self.pipe._execution_device)
        clip_job = dataclasses.replace(
            job,
            prompts=() if plan.prompt is None else (plan.prompt,),
            seeds=(plan.seed,),
            dtype=str(loading.resolve_dtype(job.dtype, device)).removeprefix("torch."),
            revision=self._identity["commit"] or job.revision,
        )
        manifest = new_manifest(
            clip_job,
            model={"name": job.model, **self._identity},
            clip={
                "frames": frames.shape[0],
                "height": frames.shape[2],
                "width": frames.shape[3],
                "fps": job.fps,
                "sha256": frames_sha256(frames),
                **({"sound": _described(sound)} if sound else {}),
            },
            passes=report.to_dict(),
            seconds=seconds,
            machine={**machine(device), "parallel": str(self.mesh.degrees)},
            image={"file": job.image, "sha256": start.sha256, "fitted": start.fitted} if start else None,
        )
        if self.mesh.clip.rank == 0:
            _write(plan, frames, job.fps, manifest, sound)
        return ClipResult(plan.path, plan.prompt, plan.seed, time.perf_counter() - began, step, manifest)

    def _sample(
        self,
        job: GenerateJob,
        plan: ClipPlan,
        start: StartImage | None,
        clock: StepClock,
    ) -> tuple[torch.Tensor, Sound | None]:
        """Run the pipeline once -> uint8 [F, C, H, W], and the sound if the model makes any."""
        with self.configured(job, plan.prompt, start) as arguments, _counting_steps(self.pipe, clock):
            output = self.pipe(
                **arguments,
                # On the CPU whatever the device: the same seed, the same noise.
                generator=torch.Generator("cpu").manual_seed(plan.seed),
                output_type="pt",
            )
        sound = self._adapter.sound(self.pipe, output)
        return to_uint8(self._adapter.clip(output)), sound and Sound(sound[0].float().cpu(), sound[1])

    def guidance(self, job: GenerateJob) -> Guidance:
        """The job's method; without its scale where the pipeline has scales of its own.

        Those are what only the pipeline can apply: one for each expert, one for each frame.
        """
        own_scale = self._adapter.scales_set(job.own)
        return job.guidance.without_scale() if own_scale else job.guidance

    @contextlib.contextmanager
    def configured(
        self, job: GenerateJob, prompt: str | None, start: StartImage | None
    ) -> Iterator[dict[str, Any]]:
        """What the pipeline is called with for one clip of the job.

        While this is open its components are as the clip needs them; then they are those that it had.
        """
        given = clip_settings(job)
        given |= {"prompt": prompt} if prompt is not None else {}
        given |= {"image": start.image} if start else {}
        components = dict(self.pipe.components)
        try:
            yield self._adapter.pipeline_arguments(self._adapter.configure(self.pipe, given))
        finally:
            for name, component in self.pipe.components.items():
                if component is not components[name]:
                    setattr(self.pipe, name, components[name])


def machine(device: torch.device) -> dict[str, Any]:
    """The device that ran the model, and what else floating-point results depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "device": str(device),
        "name": name or platform.machine(),
        "system": platform.system(),
        # Sums are split over the threads, so their number changes the last bits.
        "threads": torch.get_num_threads(),
    }


def _count(source: loading.ModelSource, job: GenerateJob, mesh: Mesh, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of activations on this rank: in a step, and while the clip is decoded."""
    adapter, read = source.adapter, source.read_json
    step = job_activations(job, adapter, empty_denoiser(source), read, dtype, mesh.degrees, mesh.branch.rank)
    return step, decoding_activations(job, adapter, read, dtype)


def _placement(job: GenerateJob) -> tuple[Any, ...]:
    """What of a job decides which weights are loaded, and how."""
    names = ("model", "revision", "variant", "dtype", "device", "offload", "vae_tiling", "compile")
    return (*(getattr(job, name) for name in names), job.image is None)


@contextlib.contextmanager
def naming_lack_of_memory() -> Iterator[None]:
    """Say in one line, with what to do, that memory ran out."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise NotEnoughMemoryError(
            "out of GPU memory; try --offload model (or group, sequential), --vae-tiling, fewer frames or a "
            "smaller size"
        ) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # torch's CPU allocator has no error class of its own
            raise
        raise NotEnoughMemoryError(
            "out of memory; try --vae-tiling, fewer frames or a smaller size"
        ) from error


@contextlib.contextmanager
def _counting_steps(pipe: Pipeline, clock: StepClock) -> Iterator[None]:
    """Tell the clock of every step. Not every pipeline has a callback, but all move a progress bar."""

    @contextlib.contextmanager
    def progress_bar(*_: Any, **__: Any) -> Iterator[Any]:
        yield SimpleNamespace(update=lambda *_: clock.step())

    with replaced(pipe, "progress_bar", progress_bar):
        yield


def _described(sound: Sound) -> dict[str, Any]:
    """For the manifest."""
    channels, samples = sound.samples.shape
    return {"channels": channels, "samples": samples, "rate": sound.rate, "sha256": sound.sha256}


def _write(
    plan: ClipPlan, frames: torch.Tensor, fps: float | None, manifest: Manifest, sound: Sound | None
) -> None:
    try:
        plan.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GenerateError(f"cannot make the folder {plan.path.parent}: {error.strerror}") from None
    # The manifest first, and into its place after the clip: beside an old one, a clip would pass for another.
    with atomic_path(plan.manifest) as prepared:
        prepared.write_text(manifest.text, encoding="utf-8")
        if plan.format == "image":
            write_image(plan.path, frames, manifest.comment)
        else:
            assert fps is not None
            write_clip(plan.path, frames, fps, format=plan.format, comment=manifest.comment, sound=sound)

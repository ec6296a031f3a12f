"""One job -> clips, each with its manifest. Everything that can be refused is refused before any work."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from oseg_video.adapters import ModelAdapter
from oseg_video.config import GenerateJob, build_guidance
from oseg_video.guidance.methods import Guidance
from oseg_video.media import frames_sha256, to_uint8, write_clip, write_text
from oseg_video.runtime import loading
from oseg_video.runtime.denoiser import guided
from oseg_video.runtime.manifest import build_manifest, manifest_comment, manifest_text
from oseg_video.runtime.naming import ClipPlan, check_outputs, plan_clips
from oseg_video.runtime.picture import Picture, load_picture
from oseg_video.runtime.progress import Progress, StepClock
from oseg_video.types import OsegVideoError, SettingError


class GenerateError(OsegVideoError):
    """A job that failed for a reason that the user can mend."""


@dataclass(frozen=True)
class ClipResult:
    """One finished clip."""

    path: Path
    prompt: str
    seed: int
    seconds: float
    """Wall clock from the prompt to the file, without loading the model."""
    seconds_per_step: float | None
    """Mean over all steps but the first; None for a single step."""
    manifest: dict[str, Any]

    @property
    def sha256(self) -> str:
        """SHA-256 of the generated frames, before any lossy encoding."""
        return str(self.manifest["clip"]["sha256"])


def generate(
    job: GenerateJob,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    on_clip: Callable[[ClipResult], None] | None = None,
) -> list[ClipResult]:
    """Make every clip of the job: prompts x seeds, one at a time, each from a generator of its own.

    A clip does not depend on which others the job makes. `on_clip` is called as soon as a clip is written.
    Raises OsegVideoError for all that a user can mend; before the model is loaded where that is possible.
    """
    progress = progress or Progress(quiet=True)
    plans = plan_clips(job)
    source = loading.find_model(job.model, job.revision)
    check_size(job, source.adapter)
    source.pipeline_for(image=job.image is not None)
    guidance = build_guidance(job)
    _check_text_guidance(job, guidance)
    if guidance.blocks_used:
        source.adapter.resolve_blocks(loading.empty_denoiser(source), guidance.blocks_used)
    check_outputs(plans, overwrite=overwrite)
    picture = load_picture(Path(job.image), job.height, job.width) if job.image else None
    if picture:
        progress.note(f"{job.image}: {picture.fitted}")
    try:
        pipe = loading.load_pipeline(source, job, progress)
        model = {
            "name": job.model,
            "pipeline": type(pipe).__name__,
            "repository": source.repository,
            "commit": source.commit,
            "sha256": loading.fingerprint(source.directory) if source.directory else None,
        }
        results = []
        _note_long_prompts(job, pipe, progress)
        for plan in plans:
            result = _make_clip(job, plan, pipe, guidance, picture, model, progress)
            results.append(result)
            if on_clip:
                on_clip(result)
        return results
    except torch.OutOfMemoryError as error:
        raise GenerateError(
            "out of GPU memory; try --offload model (or group, sequential), --vae-tiling, fewer frames or a "
            "smaller size"
        ) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # torch's CPU allocator has no error class of its own
            raise
        raise GenerateError("out of memory; try --vae-tiling, fewer frames or a smaller size") from error


def nearest_frames(frames: int, multiple: int) -> list[int]:
    """Allowed frame counts k * multiple + 1 around `frames`, or `frames` alone if it is allowed."""
    below = (frames - 1) // multiple * multiple + 1
    return [frames] if frames == below else [below, below + multiple]


def nearest_sizes(size: int, multiple: int) -> list[int]:
    """Allowed sizes around `size` pixels, or `size` alone if it is allowed."""
    below = size // multiple * multiple
    return [size] if size == below else [n for n in (below, below + multiple) if n]


def check_size(job: GenerateJob, adapter: ModelAdapter) -> None:
    """Refuse a frame count or a size that the model does not make, naming the nearest ones that it does."""
    for name in ("height", "width"):
        value = getattr(job, name)
        allowed = nearest_sizes(value, adapter.size_multiple)
        if allowed != [value]:
            raise SettingError(
                f"{name} {value}: {adapter.family} needs a multiple of {adapter.size_multiple} pixels; "
                f"nearest: {' or '.join(map(str, allowed))}"
            )
    if job.steps < adapter.minimum_steps:
        raise SettingError(f"steps {job.steps}: {adapter.family} needs at least {adapter.minimum_steps}")
    allowed = nearest_frames(job.frames, adapter.frame_multiple)
    if allowed != [job.frames]:
        raise SettingError(
            f"frames {job.frames}: {adapter.family} makes {adapter.frame_multiple} k + 1 frames; "
            f"nearest: {' or '.join(map(str, allowed))}"
        )


def _check_text_guidance(job: GenerateJob, guidance: Guidance) -> None:
    scale = guidance.guidance_scale
    if job.negative_prompt is not None and isinstance(scale, int | float) and scale <= 1:
        raise SettingError(
            f"negative_prompt has no effect without text guidance; guidance_scale is {scale:g}, not above 1"
        )


def _note_long_prompts(job: GenerateJob, pipe: Any, progress: Progress) -> None:
    """Say which prompts the pipeline cuts; it does so without a word that a user would see."""
    limit = (
        job.max_sequence_length or inspect.signature(pipe.__call__).parameters["max_sequence_length"].default
    )
    for prompt in job.prompts:
        tokens = len(pipe.tokenizer(prompt).input_ids)
        if tokens > limit:
            progress.note(f"prompt {prompt[:30]!r} has {tokens} tokens; only the first {limit} count")


def _make_clip(
    job: GenerateJob,
    plan: ClipPlan,
    pipe: Any,
    guidance: Guidance,
    picture: Picture | None,
    model: dict[str, Any],
    progress: Progress,
) -> ClipResult:
    began = time.perf_counter()
    with (
        progress.sampling(job.steps, f"{plan.prompt[:30]} (seed {plan.seed})") as clock,
        guided(pipe, guidance) as report,
    ):
        frames = _sample(job, plan, pipe, guidance, picture, clock)
        clock.decoded()
    if frames.shape[0] != job.frames:
        raise GenerateError(f"the model made {frames.shape[0]} frames instead of {job.frames}")
    step = clock.seconds_per_step
    seconds = {
        "generate": round(time.perf_counter() - began, 3),
        "step": None if step is None else round(step, 4),
    }
    clip_job = dataclasses.replace(
        job,
        prompts=(plan.prompt,),
        seeds=(plan.seed,),
        dtype=str(pipe.dtype).removeprefix("torch."),
        revision=model["commit"] or job.revision,
    )
    manifest = build_manifest(
        clip_job,
        model=model,
        clip={
            "frames": frames.shape[0],
            "height": frames.shape[2],
            "width": frames.shape[3],
            "fps": job.fps,
            "sha256": frames_sha256(frames),
        },
        passes=report.to_dict(),
        seconds=seconds,
        device=torch.device(pipe._execution_device),
        image={"file": job.image, "sha256": picture.sha256, "fitted": picture.fitted} if picture else None,
    )
    _write(plan, frames, job.fps, manifest)
    return ClipResult(plan.path, plan.prompt, plan.seed, time.perf_counter() - began, step, manifest)


def _sample(
    job: GenerateJob,
    plan: ClipPlan,
    pipe: Any,
    guidance: Guidance,
    picture: Picture | None,
    clock: StepClock,
) -> torch.Tensor:
    """Run the pipeline once -> uint8 [F, C, H, W]."""

    def after_step(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        clock.step()
        return {}

    arguments: dict[str, Any] = {
        "prompt": plan.prompt,
        "height": job.height,
        "width": job.width,
        "num_frames": job.frames,
        "num_inference_steps": job.steps,
        # On the CPU whatever the device: the same seed, the same noise.
        "generator": torch.Generator("cpu").manual_seed(plan.seed),
        "output_type": "pt",
        "callback_on_step_end": after_step,
    }
    optional = {
        "negative_prompt": job.negative_prompt,
        "guidance_scale": guidance.guidance_scale,
        "max_sequence_length": job.max_sequence_length,
        "image": picture.image if picture else None,
    }
    arguments |= {name: value for name, value in optional.items() if value is not None}
    if "frame_rate" in inspect.signature(pipe.__call__).parameters:
        arguments["frame_rate"] = job.fps
    return to_uint8(pipe(**arguments).frames[0])


def _write(plan: ClipPlan, frames: torch.Tensor, fps: float, manifest: dict[str, Any]) -> None:
    try:
        plan.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GenerateError(f"cannot make the folder {plan.path.parent}: {error.strerror}") from None
    write_clip(plan.path, frames, fps, format=plan.format, comment=manifest_comment(manifest))
    write_text(plan.manifest, manifest_text(manifest))

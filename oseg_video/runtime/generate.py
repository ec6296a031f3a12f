"""One job -> clips, each with its manifest. Everything that can be refused is refused before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from oseg_video.config import GenerateJob, build_guidance
from oseg_video.runtime import loading
from oseg_video.runtime.empty import empty_denoiser
from oseg_video.runtime.fitting import check_fits
from oseg_video.runtime.loaded import ClipResult, LoadedModel
from oseg_video.runtime.naming import check_outputs, plan_clips
from oseg_video.runtime.picture import load_picture
from oseg_video.runtime.progress import Progress


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
    source = check_job(job)
    plans = plan_clips(job, pictures=source.adapter.makes_pictures)
    check_outputs(plans, overwrite=overwrite)
    picture = load_picture(Path(job.image), job.height, job.width) if job.image else None
    if picture:
        progress.note(f"{job.image}: {picture.fitted}")
    model = LoadedModel(source, job, progress)
    model.note_long_prompts(job, progress)
    results = []
    for plan in plans:
        results.append(model.make_clip(job, plan, picture, progress))
        if on_clip:
            on_clip(results[-1])
    return results


def check_job(job: GenerateJob) -> loading.ModelSource:
    """The job's model, after a look at all that can be refused without its weights. Raises OsegVideoError."""
    source = loading.find_model(job.model, job.revision, image=job.image is not None)
    source.pipeline_for(image=job.image is not None)
    guidance = build_guidance(job)
    check_fits(job, source, guidance)
    if guidance.blocks_used:
        source.adapter.resolve_blocks(empty_denoiser(source), guidance.blocks_used)
    return source

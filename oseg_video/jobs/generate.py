"""One job -> clips, each with its manifest. Everything that can be refused is refused before any work."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from oseg_video.config import GenerateJob
from oseg_video.console import logger, quietly
from oseg_video.engine.checks import check_blocks, check_reuse
from oseg_video.jobs.checks import check_fits
from oseg_video.jobs.image import load_image
from oseg_video.jobs.loading import pipeline as loading
from oseg_video.jobs.loading.device import describe_device
from oseg_video.jobs.loading.meta import empty_denoiser
from oseg_video.jobs.model import ClipResult, LoadedModel
from oseg_video.jobs.outputs import check_outputs, plan_clips
from oseg_video.jobs.ranks import AUTO, COLLECTIVE_TIMEOUT, Ranks, degrees_for, make_mesh
from oseg_video.jobs.step_kinds import check_branches


def generate(
    job: GenerateJob,
    *,
    overwrite: bool = False,
    on_clip: Callable[[ClipResult], None] | None = None,
    parallel: str = AUTO,
    shard_weights: bool = False,
    timeout: float = COLLECTIVE_TIMEOUT,
) -> list[ClipResult]:
    """Make every clip of the job: prompts x seeds, one at a time, each from a generator of its own.

    A clip does not depend on which others the job makes. `on_clip` is called as soon as a clip is written.
    Under torchrun the ranks share the work as `parallel` says ("auto", or degrees such as
    "ulysses=2,branch=2"); `on_clip` is called on the rank that wrote the clip, and each rank returns the
    clips that it took part in. shard_weights: the ranks of ulysses and ring hold a part of the denoiser's
    weights each. timeout: seconds after which a collective that hangs is an error.

    Raises OsegVideoError for all that a user can fix; before the model is loaded where that is possible.
    """
    ranks = Ranks.started()
    with ranks.joined(job.device, timeout), nullcontext() if ranks.rank == 0 else quietly():
        source = check_job(job)
        plans = plan_clips(job, images=source.adapter.makes_images)
        if ranks.local_rank == 0:  # each machine may have a disk of its own
            check_outputs(plans, overwrite=overwrite)
        ranks.meet()  # or a fast rank's first clip would be there already
        if source.adapter.audio is not None and (kinds := {one.format for one in plans} - {"mp4"}):
            logger.info(f"the sound is left out: {' and '.join(sorted(kinds))} holds none, mp4 does")
        start = load_image(Path(job.image), job.height, job.width) if job.image else None
        if start:
            logger.info(f"{job.image}: {start.fitted}")
        degrees, why = degrees_for(ranks, parallel, job, source, len(plans))
        if why:
            logger.info(f"{ranks.size} ranks, {degrees}: {why}")
        logger.info(f"device {describe_device(ranks.device(job.device))}")
        mesh = make_mesh(ranks, degrees, job, timeout)
        model = LoadedModel(
            source, job, mesh=mesh, device=ranks.device(job.device), shard_weights=shard_weights
        )
        for line in model.cut_prompts(job):
            logger.info(line)
        results = []
        for plan in plans[mesh.data.rank :: mesh.data.size]:
            results.append(model.make_clip(job, plan, start))
            if on_clip and mesh.clip.rank == 0:
                on_clip(results[-1])
        return results


def check_job(job: GenerateJob) -> loading.ModelSource:
    """The job's model, after a look at all that can be refused without its weights. Raises OsegVideoError."""
    source = loading.find_model(job.model, job.revision, image=job.image is not None)
    check_fits(job, source)
    check_branches(source.adapter, job, source.read_json)
    check_reuse(job.guidance, job.reuse)
    if job.guidance.blocks_used:
        check_blocks(source.adapter, empty_denoiser(source), job.guidance)
    return source

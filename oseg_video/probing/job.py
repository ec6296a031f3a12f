"""Look into the model of a job, alone or on ranks that share its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from oseg_video.config import GenerateJob
from oseg_video.console import logger, quietly
from oseg_video.guidance.methods.cfg import CFG
from oseg_video.jobs.generate import check_job
from oseg_video.jobs.image import load_image
from oseg_video.jobs.model import LoadedModel, naming_lack_of_memory
from oseg_video.jobs.ranks import Ranks, check_compiled, make_mesh
from oseg_video.parallel.degrees import Degrees
from oseg_video.probing.landscape import Landscape, landscape
from oseg_video.probing.method import perturbing
from oseg_video.probing.probe import check_probe, probe
from oseg_video.probing.result import ProbeResult


def probe_job(job: GenerateJob, *, parallel: str = "", **settings: Any) -> ProbeResult:
    """Probe the job's model with its prompts and first seed; each rank gets the result.

    The job's method is the one whose perturbation each block gets. parallel: degrees such as "ring=2"; by
    default all ranks on the ulysses axis. settings: `blocks`, `noise_levels`, `sigmas`, `queries` of `probe`.

    Raises OsegVideoError for all that a user can fix, before the model is loaded where that is possible.
    """
    check_probe(**settings)
    method = perturbing(job.guidance)
    with _loaded(job, parallel) as (pipe, arguments):
        return probe(pipe, method, job.prompts, **settings, **arguments)


def landscape_job(job: GenerateJob, **settings: Any) -> Landscape:
    """The landscape of a block of the job's model, with its first prompt and seed.

    settings: `block`, `noise_level`, `sigmas`, `token` of `landscape`. Raises as `probe_job`.
    """
    check_probe(**settings)
    with _loaded(job) as (pipe, arguments):
        prompt: dict[str, Any] = {"prompt": job.prompts[0]} if job.prompts else {}
        return landscape(pipe, **settings, **arguments, **prompt)


@contextmanager
def _loaded(job: GenerateJob, parallel: str = "") -> Iterator[tuple[Any, dict[str, Any]]]:
    """The pipeline, and what `probe` and `landscape` are called with, but for prompts and what to look at."""
    perturbing(job.guidance)
    ranks = Ranks.started()
    with ranks.joined(job.device), nullcontext() if ranks.rank == 0 else quietly():
        source = check_job(job)
        degrees = Degrees.parse(parallel) if parallel else Degrees(ulysses=ranks.size)
        degrees.require(ranks.size)
        check_compiled(job, degrees)
        start = load_image(Path(job.image), job.height, job.width) if job.image else None
        mesh = make_mesh(ranks, degrees, job)
        model = LoadedModel(source, job, mesh=mesh, device=ranks.device(job.device))
        for line in model.cut_prompts(job):
            logger.info(line)
        running = perturbing(model.guidance(job))
        prompt = job.prompts[0] if job.prompts else None
        with model.configured(job, prompt, start) as arguments, naming_lack_of_memory():
            arguments.pop("prompt", None)
            arguments |= {"mesh": mesh, "seed": job.seeds[0]}
            arguments["text"] = CFG(guidance_scale=running.guidance_scale)
            yield model.pipe, arguments

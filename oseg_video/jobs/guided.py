"""`guided` as Python users have it: a method, or the name of one for which the family's recipe stands."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from oseg_video.adapters import adapter_for
from oseg_video.config import recipe
from oseg_video.embedded import MODELS
from oseg_video.engine.guided import guided as guided_by
from oseg_video.engine.report import GuidanceReport
from oseg_video.guidance.methods import Guidance
from oseg_video.guidance.reuse import EXACT, Reuse
from oseg_video.parallel.mesh import ONE_RANK, Mesh
from oseg_video.types import Pipeline


def guided(
    pipe: Pipeline, guidance: Guidance | str, *, reuse: Reuse = EXACT, mesh: Mesh = ONE_RANK
) -> AbstractContextManager[GuidanceReport]:
    """Guide every call of a stock diffusers pipeline inside the `with`; leave the pipeline as it was after.

    The pipeline's own guidance scale only decides whether there is an unconditional branch (above 1);
    the guidance's scale is the one that counts, and is the pipeline's where the guidance leaves it None.

    pipe: a pipeline object of a supported class (`oseg_video.adapters`), or of a subclass. Other pipelines
        that share its denoiser stay as they are.
    guidance: the method, for example `OSEG(guidance_scale=4.5, blocks=(34,))`; or a method's name, such as
        "oseg", for what the recipe of the pipeline's family says of it, and of these weights.
    reuse: what later passes and steps reuse of earlier ones. By default what is exact: a perturbed pass
        starts at its first perturbed block. `Reuse(refresh={"uncond": 2}, cache=0.1)` estimates, too.
    mesh: the ranks that make the clip together (`oseg_video.parallel`); each calls the pipeline alike, and
        each gets the whole result. Encoders run on the first one only, its latents are used by all, and
        the VAE's tiles or chunks are shared.

    Yields the report, which fills while the pipeline runs. A call in which the method never acted logs a
    warning.

    Raises, before any model work, `SettingError` for a guidance that is none and for the name of no method,
    `UnsupportedPipelineError` for another pipeline class, `UnknownBlockError` for an unknown block, and
    `GuidanceError` for nesting and for a cache without a chain of blocks. Inside, on the first step, it
    raises `GuidanceError` when the pipeline's call does not provide what the guidance needs, and
    `SilentGuidanceError` when a perturbation had no effect.
    """
    return guided_by(pipe, named_method(pipe, guidance), reuse=reuse, mesh=mesh)


def named_method(pipe: Pipeline, guidance: Guidance | str) -> Guidance:
    """The method, or what the recipe of the pipeline's family says of the one with this name."""
    if not isinstance(guidance, str):
        return guidance
    loaded_from = str(getattr(pipe, "name_or_path", "") or "")
    shipped = (name for name, path in MODELS.items() if loaded_from and Path(loaded_from) == path)
    return recipe(next(shipped, adapter_for(pipe).family), guidance, weights=loaded_from)

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

    guidance: the method, for example `OSEG(guidance_scale=4.5, blocks=(34,))`; or a method's name, such as
    "oseg", for what the recipe of the pipeline's family says of it, and of these weights. The rest, and what
    is raised, as of `oseg_video.engine.guided.guided`; besides, SettingError for the name of no method.
    """
    return guided_by(pipe, named_method(pipe, guidance), reuse=reuse, mesh=mesh)


def named_method(pipe: Pipeline, guidance: Guidance | str) -> Guidance:
    """The method, or what the recipe of the pipeline's family says of the one with this name."""
    if not isinstance(guidance, str):
        return guidance
    loaded_from = str(getattr(pipe, "name_or_path", "") or "")
    shipped = (name for name, path in MODELS.items() if loaded_from and Path(loaded_from) == path)
    return recipe(next(shipped, adapter_for(pipe).family), guidance, weights=loaded_from)

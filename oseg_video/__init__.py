"""Training-free guidance for text-to-video and image-to-video diffusion pipelines."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oseg_video.comparison.compare import compare
    from oseg_video.config import GenerateJob, recipe
    from oseg_video.engine.errors import GuidanceError, SilentGuidanceError
    from oseg_video.evaluation.evaluate import evaluate
    from oseg_video.guidance.methods import Guidance
    from oseg_video.guidance.methods.apg import APG
    from oseg_video.guidance.methods.cfg import CFG
    from oseg_video.guidance.methods.cfg_zero import CFGZeroStar
    from oseg_video.guidance.methods.fdg import FDG
    from oseg_video.guidance.methods.mambo_g import MAMBOG
    from oseg_video.guidance.methods.mg import MG
    from oseg_video.guidance.methods.nag import NAG
    from oseg_video.guidance.methods.none import Unguided
    from oseg_video.guidance.methods.oseg import OSEG
    from oseg_video.guidance.methods.oseg_released import OSEGReleased
    from oseg_video.guidance.methods.pag import PAG
    from oseg_video.guidance.methods.s2 import S2
    from oseg_video.guidance.methods.sag import SAG
    from oseg_video.guidance.methods.seg import SEG
    from oseg_video.guidance.methods.smc_cfg import SMCCFG
    from oseg_video.guidance.methods.stg import STG
    from oseg_video.guidance.methods.tag import TAG
    from oseg_video.guidance.methods.tag_cfg import TAGCFG
    from oseg_video.guidance.reuse import Reuse
    from oseg_video.jobs.generate import generate
    from oseg_video.jobs.guided import guided
    from oseg_video.jobs.reproduce import reproduce
    from oseg_video.parallel.degrees import Degrees
    from oseg_video.parallel.mesh import Mesh
    from oseg_video.probing.landscape import landscape
    from oseg_video.probing.probe import probe
    from oseg_video.settings.schedule import Schedule
    from oseg_video.sweeps.launch import sweep
    from oseg_video.tuning.tune import tune
    from oseg_video.types import OsegVideoError, TokenGrid

    __version__: str

_HOME = {
    "Degrees": "oseg_video.parallel.degrees",
    "GenerateJob": "oseg_video.config",
    "Guidance": "oseg_video.guidance.methods",
    "GuidanceError": "oseg_video.engine.errors",
    "Mesh": "oseg_video.parallel.mesh",
    "OsegVideoError": "oseg_video.types",
    "Reuse": "oseg_video.guidance.reuse",
    "Schedule": "oseg_video.settings.schedule",
    "SilentGuidanceError": "oseg_video.engine.errors",
    "TokenGrid": "oseg_video.types",
    "compare": "oseg_video.comparison.compare",
    "evaluate": "oseg_video.evaluation.evaluate",
    "generate": "oseg_video.jobs.generate",
    "guided": "oseg_video.jobs.guided",
    "landscape": "oseg_video.probing.landscape",
    "probe": "oseg_video.probing.probe",
    "recipe": "oseg_video.config",
    "reproduce": "oseg_video.jobs.reproduce",
    "sweep": "oseg_video.sweeps.launch",
    "tune": "oseg_video.tuning.tune",
}

__all__ = [
    "APG",
    "CFG",
    "FDG",
    "MAMBOG",
    "MG",
    "NAG",
    "OSEG",
    "PAG",
    "S2",
    "SAG",
    "SEG",
    "SMCCFG",
    "STG",
    "TAG",
    "TAGCFG",
    "CFGZeroStar",
    "Degrees",
    "GenerateJob",
    "Guidance",
    "GuidanceError",
    "Mesh",
    "OSEGReleased",
    "OsegVideoError",
    "Reuse",
    "Schedule",
    "SilentGuidanceError",
    "TokenGrid",
    "Unguided",
    "__version__",
    "compare",
    "evaluate",
    "generate",
    "guided",
    "landscape",
    "probe",
    "recipe",
    "reproduce",
    "sweep",
    "tune",
]


def __getattr__(name: str) -> Any:
    # Imported when first used, so that `import oseg_video` and the command's --help stay instant.
    if name == "__version__":
        from importlib.metadata import version

        return version("oseg-video")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name[:1].isupper():  # a method, also one of another package
        methods = import_module("oseg_video.guidance.methods")
        if hasattr(methods, name):
            return getattr(methods, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

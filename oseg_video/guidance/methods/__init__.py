"""Guidance methods as data: which branches a step needs, how they are perturbed, how they combine.

A method is one dataclass in one file of this folder, under `@guidance_method`; the README of `guidance` says
how to add one, here or in a package of your own. It knows no model: for one sampling step it returns a
`StepPlan`, named branches (a condition and at most one perturbation each) and the rule that turns their
predictions into the guided prediction. The engine runs the branches; an adapter knows where a perturbation
goes in a model.
"""

import pkgutil
from importlib import import_module

from oseg_video.guidance.methods.base import (
    METHODS,
    BlockGuidance,
    Guidance,
    PerturbedGuidance,
    TextGuidance,
    guidance_method,
)

for _module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
    import_module(_module.name)
for _name in sorted(METHODS):  # not the order in which the files import each other
    METHODS[_name] = METHODS.pop(_name)

from oseg_video.guidance.methods.apg import APG  # noqa: E402
from oseg_video.guidance.methods.cfg import CFG  # noqa: E402
from oseg_video.guidance.methods.cfg_zero import CFGZeroStar  # noqa: E402
from oseg_video.guidance.methods.fdg import FDG  # noqa: E402
from oseg_video.guidance.methods.mambo_g import MAMBOG  # noqa: E402
from oseg_video.guidance.methods.mg import MG  # noqa: E402
from oseg_video.guidance.methods.nag import NAG  # noqa: E402
from oseg_video.guidance.methods.none import Unguided  # noqa: E402
from oseg_video.guidance.methods.oseg import OSEG  # noqa: E402
from oseg_video.guidance.methods.oseg_released import OSEGReleased  # noqa: E402
from oseg_video.guidance.methods.pag import PAG  # noqa: E402
from oseg_video.guidance.methods.s2 import S2  # noqa: E402
from oseg_video.guidance.methods.sag import SAG  # noqa: E402
from oseg_video.guidance.methods.seg import SEG  # noqa: E402
from oseg_video.guidance.methods.smc_cfg import SMCCFG  # noqa: E402
from oseg_video.guidance.methods.stg import STG  # noqa: E402
from oseg_video.guidance.methods.tag import TAG  # noqa: E402
from oseg_video.guidance.methods.tag_cfg import TAGCFG  # noqa: E402

__all__ = [
    "APG",
    "CFG",
    "FDG",
    "MAMBOG",
    "METHODS",
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
    "BlockGuidance",
    "CFGZeroStar",
    "Guidance",
    "OSEGReleased",
    "PerturbedGuidance",
    "TextGuidance",
    "Unguided",
    "guidance_method",
]

"""Guidance methods as data: which branches a step needs, how they are perturbed, how they combine.

A method knows no model. For one sampling step it returns a `StepPlan`: named branches (a condition and
at most one perturbation each) and the rule that turns their predictions into the guided prediction. The
engine runs the branches; an adapter knows where a perturbation goes in a model. A new method is one file
here, and its class in `METHODS`.
"""

from oseg_video.guidance.methods.apg import APG
from oseg_video.guidance.methods.base import BlockSchedule, Guidance, PerturbedGuidance, ScaleSchedule
from oseg_video.guidance.methods.cfg import CFG
from oseg_video.guidance.methods.cfg_zero import CFGZeroStar
from oseg_video.guidance.methods.oseg import OSEG
from oseg_video.guidance.methods.pag import PAG
from oseg_video.guidance.methods.seg import SEG
from oseg_video.guidance.methods.stg import STG
from oseg_video.guidance.plan import Branch, Perturbation, Rule, Step, StepPlan

METHODS: dict[str, type[Guidance]] = {
    method.name: method for method in (CFG, CFGZeroStar, APG, STG, PAG, SEG, OSEG)
}
"""The methods by name."""

__all__ = [
    "APG",
    "CFG",
    "METHODS",
    "OSEG",
    "PAG",
    "SEG",
    "STG",
    "BlockSchedule",
    "Branch",
    "CFGZeroStar",
    "Guidance",
    "Perturbation",
    "PerturbedGuidance",
    "Rule",
    "ScaleSchedule",
    "Step",
    "StepPlan",
]

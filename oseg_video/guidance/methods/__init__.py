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

__all__ = [
    "METHODS",
    "BlockGuidance",
    "Guidance",
    "PerturbedGuidance",
    "TextGuidance",
    "guidance_method",
]


def __getattr__(name: str) -> type[Guidance]:
    """A method by the name of its class, such as `OSEG`, also one of another package."""
    for method in METHODS.values():
        if method.__name__ == name:
            return method
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

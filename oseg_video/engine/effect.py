"""Nothing silent: perturbations that change nothing, predictions that are none, methods left out."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from oseg_video.engine.errors import GuidanceError, SilentGuidanceError
from oseg_video.guidance.methods import BlockGuidance, Guidance
from oseg_video.guidance.plan import Branch, StepPlan


def require_effect(
    branches: Mapping[str, Branch], predictions: Mapping[str, Tensor], fresh: Collection[str]
) -> None:
    """Raises `SilentGuidanceError` if a perturbed prediction equals the plain one of its condition.

    branches: those that are computed. fresh: the names of those that are looked at, which makes the device
    wait: the ones that are computed for the first time.
    """
    plain = {b.condition: predictions[name] for name, b in branches.items() if b.perturbation is None}
    for name in fresh:
        branch = branches[name]
        if branch.perturbation is None or branch.perturbation.change.identity:
            continue
        if branch.condition not in plain or predictions[name].is_meta:
            continue
        if torch.equal(predictions[name], plain[branch.condition]):
            raise SilentGuidanceError(
                f"perturbing blocks {list(branch.perturbation.blocks)} did not change the {branch.condition} "
                f"prediction at all; the guidance would do nothing"
            )


def require_finite(prediction: Tensor, step: int) -> None:
    """Raises `GuidanceError` if a guided prediction is no number somewhere. Makes the device wait."""
    if not prediction.is_meta and not prediction.isfinite().all():
        raise GuidanceError(
            f"the guided prediction of step {step} has values that are no finite numbers; bfloat16 in place "
            f"of float16, or smaller scales, may help"
        )


def without_effect(guidance: Guidance, plans: Sequence[StepPlan], *, guides_text: bool) -> str | None:
    """What a method leaves out altogether in steps with these plans, if anything: one line for the reader.

    guides_text: it was asked for text guidance, and the pipeline runs an unconditional branch.
    """
    branches = [branch for plan in plans for branch in plan.branches.values()]
    if isinstance(guidance, BlockGuidance) and not any(branch.perturbation for branch in branches):
        return f"{guidance.name} perturbs no step: scale, blocks, schedules and interval leave none"
    if guides_text and not any("uncond" in branch.conditions for branch in branches):
        return f"{guidance.name} guides no step: its interval leaves none"
    return None

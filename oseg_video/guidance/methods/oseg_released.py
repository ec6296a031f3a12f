"""What the released code of OSEG does, for comparison with its authors' clips."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from oseg_video.guidance.methods.base import BlockGuidance, guidance_method
from oseg_video.guidance.methods.oseg import mix_setting
from oseg_video.guidance.perturbations import Change, ReleasedQueries, SkipBlock
from oseg_video.guidance.plan import Branch, Step, StepPlan
from oseg_video.guidance.scales import in_float32, is_off, shown
from oseg_video.settings import setting
from oseg_video.settings.kinds import SWITCH, Blocks

if TYPE_CHECKING:
    from torch import Tensor


@guidance_method
@dataclass(frozen=True, kw_only=True)
class OSEGReleased(BlockGuidance):
    """OSEG as its authors' released code has it (saqibnazmus/OSEG), not as the slides do.

    `C + (w - 1) (C - s a U~) + lambda (C - s a C~)` with `a = <C, X> / ||X||^2` per sample and s = 0.98; on
    the first step `0.1 C`. Queries are centred and smoothed over channels, see `queries.released_queries`.
    """

    name: ClassVar[str] = "oseg-released"

    mix: float = mix_setting("0.67 for Mochi, 1 for HunyuanVideo (saqibnazmus/OSEG)")
    skip_conditional: bool = setting(
        SWITCH,
        "whether the conditional branch skips the blocks (HunyuanVideo's code) or stays as it is (Mochi's)",
        default=False,
        source="saqibnazmus/OSEG",
    )

    @property
    def change(self) -> Change:
        return ReleasedQueries(self.mix)

    @property
    def _perturbs(self) -> bool:
        return not self.change.identity

    def _perturbed_plan(self, blocks: Blocks, perturbed_scale: float, step: Step) -> StepPlan:
        from oseg_video.guidance import combine

        if step.index == 0:
            # The released code replaces the first step's guided prediction by this.
            return StepPlan({"cond": Branch("cond")}, "0.1 C", _tenth_of_cond)
        scale = self._text_scale(step)
        branches = {"cond": Branch("cond")}
        if not is_off(scale):
            branches["uncond_perturbed"] = Branch("uncond", self._perturbation(blocks))
        if self.skip_conditional and perturbed_scale != 0:
            branches["cond_perturbed"] = Branch("cond", self._perturbation(blocks, SkipBlock()))
        away = "C~" if self.skip_conditional else "C"
        formula = f"C + {shown(scale, less=1)} (C - 0.98 a U~) + {perturbed_scale:g} (C - 0.98 a {away})"
        rule = partial(combine.oseg_released, guidance_scale=in_float32(scale), scale=perturbed_scale)
        return self._with_rule(branches, formula, rule, step)


def _tenth_of_cond(cond: Tensor) -> Tensor:
    from oseg_video.guidance.numerics import upcast

    return 0.1 * upcast(cond)

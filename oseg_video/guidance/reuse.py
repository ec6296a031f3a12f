"""What a step takes over from the steps before it, and which of its branches are computed. Without torch.

C is the plain conditional prediction of a step and P another of its branches. A branch that is not computed
is estimated as `P = C - D`, with `D = C - P` of the last step in which both were computed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from oseg_video.guidance.plan import Branch, Step, StepPlan
from oseg_video.settings import check_settings, setting
from oseg_video.settings.kinds import FINITE, LARGEST, Kind
from oseg_video.types import SettingError

PLAIN = Branch("cond")
"""The branch whose prediction is C: from it all others are estimated."""
KINDS = ("uncond", "perturbed")
"""The branches that can be estimated: those without the text, perturbed or not, and the perturbed others."""

USE_OURS = "reuse=Reuse(cache=0.1), or --cache 0.1, is a step cache that knows branches"
"""What to use in place of other step caches."""

Refresh = tuple[tuple[str, float], ...]
"""(kind of branch, every how many of its steps it is computed, or until which fraction of all steps)."""


def _every(value: Any) -> float:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else 0
    if 1 <= number < LARGEST and number % 1 == 0:
        return int(number)
    if not 0 < number < 1:
        raise SettingError(f"numbers of steps from 1, or fractions between 0 and 1, got {value!r}")
    return number


def _refresh(value: Any) -> Refresh:
    try:
        every = dict(value)
    except (TypeError, ValueError):
        raise SettingError(f"steps by branch, such as uncond=2,perturbed=3, got {value!r}") from None
    for name in every:
        if name not in KINDS:
            raise SettingError(f"steps by branch, which is one of {', '.join(KINDS)}, got {name!r}")
    return tuple((name, _every(every[name])) for name in KINDS if name in every)


def _refresh_text(text: str) -> Refresh:
    every: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        if name in every:
            raise SettingError(f"steps by branch, each named once, got {text!r}")
        try:
            every[name] = float(number)
        except ValueError:
            raise SettingError(f"steps by branch, such as uncond=2,perturbed=3, got {text!r}") from None
    return _refresh(every)


REFRESH = Kind(
    "steps by branch, such as {uncond: 2, perturbed: 3}", "NAME=N,..", _refresh, _refresh_text, dict
)


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """How steps are run with less than all of their work. Raises SettingError for a value out of range.

    `prefix` is exact; the other two are estimates, off by default. A guidance method gets the prediction of
    every branch and does not know which of them were computed.
    """

    prefix: bool = True
    """Whether a perturbed pass starts at its first perturbed block, with what the plain pass had there."""
    refresh: Refresh = setting(
        REFRESH,
        "compute branches every so many steps, or up to a fraction of the steps, such as "
        "uncond=2,perturbed=0.5; else they keep their last difference to the conditional prediction",
        default=(),
        group="reuse",
    )
    cache: float = setting(
        FINITE,
        "skip all blocks but the first where its residual moved by less than this share since the last "
        "computed step, such as 0.1; 0 is off",
        default=0.0,
        low=0,
        high=1,
        group="reuse",
        source="first-block cache of ParaAttention, here with one decision for all branches",
    )

    def __post_init__(self) -> None:
        if not isinstance(self.prefix, bool):
            raise SettingError(f"prefix must be True or False, got {self.prefix!r}")
        check_settings(self)

    @property
    def active(self) -> bool:
        """Whether any prediction may be an estimate."""
        return self.cache > 0 or any(every != 1 for _, every in self.refresh)

    def estimates(self, branch: Branch) -> bool:
        """Whether predictions of a branch may be estimates."""
        return self.cache > 0 or self.every(branch) != 1

    def every(self, branch: Branch) -> float:
        """Every how many of its steps a branch is computed, or (below 1) until which fraction of all."""
        kind = "uncond" if branch.condition == "uncond" else "perturbed"
        return 1 if branch == PLAIN else dict(self.refresh).get(kind, 1)


def no_chain(family: str) -> str:
    """Why a family has no step cache, for error messages."""
    return f"cache: {family} has no chain of blocks of which the first could decide; use refresh, or cache 0"


EXACT = Reuse()
"""No estimates: the default."""


class Due(NamedTuple):
    """What of one step is computed."""

    branches: Mapping[str, Branch]
    """The branches that are computed."""
    fresh: Mapping[str, Branch]
    """Those of them that were not computed before, or not under the same circumstances."""
    whole: bool
    """Whether no cache may skip the step."""


class Calendar:
    """Which branches of one sampling run are computed, step by step.

    A branch is computed in the first step that asks for it, in the first one after a change of model, of
    what is perturbed in it, or of a scheduled setting, in the last step of all, and besides as `Reuse` says.
    Asked for every step in order: `due` before it runs, `done` after.
    """

    def __init__(self, reuse: Reuse) -> None:
        self._reuse = reuse
        self._circumstances: Hashable = None
        self._computed: dict[str, Branch] = {}
        self._waited: dict[str, int] = {}
        """Steps that asked for a branch since it was computed."""

    def due(self, step: Step, plan: StepPlan, circumstances: Hashable = None) -> Due:
        """What is computed. circumstances: model and schedule; no estimate outlives them."""
        if circumstances != self._circumstances:
            self._circumstances = circumstances
            self._computed.clear()
        branches = plan.branches
        fresh = {name: one for name, one in branches.items() if self._computed.get(name) != one}
        last = step.index == step.count - 1
        if last or PLAIN not in branches.values():
            return Due(branches, fresh, True)
        wanted = {name for name, one in branches.items() if name in fresh or self._is_due(name, one, step)}
        # What a branch looks at is computed with it.
        perturbations = [branches[name].perturbation for name in wanted]
        wanted |= {one.source for one in perturbations if one is not None and one.source is not None}
        return Due({name: one for name, one in branches.items() if name in wanted}, fresh, bool(fresh))

    def done(self, plan: StepPlan, computed: Mapping[str, Branch]) -> None:
        """Note which branches of a step were computed; the others were estimated."""
        for name in plan.branches:
            self._waited[name] = 0 if name in computed else self._waited[name] + 1
        self._computed |= computed

    def _is_due(self, name: str, branch: Branch, step: Step) -> bool:
        every = self._reuse.every(branch)
        if every < 1:
            return step.index / step.count < every  # as an interval ends
        return self._waited[name] + 1 >= every

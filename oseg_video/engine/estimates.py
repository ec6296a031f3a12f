"""Predictions that are not computed in a step: what one sampling run keeps for them, and how they follow."""

from collections.abc import Hashable, Mapping

from torch import Tensor

from oseg_video.engine.step_cache import StepCache
from oseg_video.guidance.numerics import upcast
from oseg_video.guidance.plan import Branch, Step, StepPlan
from oseg_video.guidance.reuse import PLAIN, Calendar, Due, Reuse
from oseg_video.parallel.mesh import Mesh


class KeptPredictions:
    """What one sampling run keeps from step to step, as `Reuse` asks."""

    def __init__(self, reuse: Reuse, mesh: Mesh) -> None:
        self._reuse = reuse
        self._calendar = Calendar(reuse)
        self._differences: dict[str, Tensor] = {}
        self._cache = StepCache(reuse.cache, mesh.branch, mesh.sequence.whole) if reuse.cache else None

    def step(self, step: Step, plan: StepPlan, circumstances: Hashable) -> "StepWork":
        """What of a step is computed. circumstances: as of `Calendar.due`."""
        due = self._calendar.due(step, plan, circumstances)
        if self._cache is not None:
            self._cache.begin(may_skip=not due.whole)
        stock = not any(map(self._reuse.estimates, plan.branches.values()))
        return StepWork(plan, due, stock, self._cache, self)

    def complete(self, work: "StepWork", computed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The predictions of all branches of a step: those that were computed, and the estimates."""
        plan, predictions = work.plan, dict(computed)
        self._calendar.done(plan, {} if work.skipped else work.due.branches)
        plain = next((name for name, branch in plan.branches.items() if branch == PLAIN), None)
        for name, branch in plan.branches.items():
            if plain is None or name == plain or not self._reuse.estimates(branch):
                continue
            if name in computed:
                self._differences[name] = upcast(computed[plain]) - upcast(computed[name])
            else:
                predictions[name] = upcast(computed[plain]) - self._differences[name]
        return predictions


class StepWork:
    """One step: the branches that are computed, the others are estimated."""

    def __init__(
        self, plan: StepPlan, due: Due, stock: bool, cache: StepCache | None, kept: KeptPredictions
    ) -> None:
        self.plan = plan
        self.due = due
        self.stock = stock
        """Whether nothing of the step is ever estimated."""
        self.cache = cache
        """Decides about the step in the pass of the plain conditional branch, if there is one."""
        self._kept = kept

    @property
    def skipped(self) -> bool:
        """Whether the cache skips the step: then the plain conditional prediction is an estimate, too."""
        return self.cache is not None and self.cache.skipped

    @property
    def branches(self) -> Mapping[str, Branch]:
        """The branches that are run, as far as is known: a cache decides while the first one runs."""
        due = self.due.branches
        return {name: one for name, one in due.items() if one == PLAIN} if self.skipped else due

    @property
    def fresh(self) -> Mapping[str, Branch]:
        """Those of them that are computed for the first time, or under new circumstances."""
        return self.due.fresh

    @property
    def estimated(self) -> tuple[str, ...]:
        """The branches whose predictions are estimates."""
        computed = {} if self.skipped else self.due.branches
        return tuple(name for name in self.plan.branches if name not in computed)

    def complete(self, computed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The predictions of all branches."""
        return self._kept.complete(self, computed)

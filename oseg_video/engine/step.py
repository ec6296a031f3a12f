"""One step of the sampler under guidance, over the denoiser calls that the pipeline makes for it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from oseg_video.adapters.sampling import Calls, Condition
from oseg_video.engine.assignment import exchange_predictions
from oseg_video.engine.effect import require_effect, require_finite
from oseg_video.engine.estimates import StepWork
from oseg_video.engine.patching.answers import LateAnswer
from oseg_video.engine.report import PassRecord
from oseg_video.engine.step_cache import StepCache
from oseg_video.guidance.numerics import upcast
from oseg_video.guidance.plan import Branch, Step
from oseg_video.parallel.group import Group


class DenoiserCall(Protocol):
    """One call of the denoiser by the pipeline, which waits for its result."""

    def as_made(self, conditions: tuple[Condition, ...]) -> tuple[Any, list[PassRecord]]:
        """The result of the call just as the pipeline made it, and its passes."""

    def run(
        self,
        branches: Mapping[str, Branch],
        conditions: tuple[Condition, ...],
        noise_level: float,
        cache: StepCache | None,
        negative: Mapping[str, Any] | None = None,
    ) -> tuple[dict[str, Tensor], list[PassRecord]]:
        """The predictions of branches instead, whose conditions are among those of the call's rows.

        negative: the arguments of a call that has the rows of `uncond`, for branches that look at their text.
        """

    def rows_of(self, condition: Condition, conditions: tuple[Condition, ...]) -> Mapping[str, Any]:
        """The arguments of the call for the rows of one of its conditions."""

    def blank(self, conditions: tuple[Condition, ...]) -> Tensor:
        """A tensor like the prediction of one branch."""

    def result(self, prediction: Tensor) -> Any:
        """A prediction for all rows of the call, as the denoiser returns it."""


class OpenStep:
    """A step from its first denoiser call until all of them are answered.

    It is in one of two states. **Gathering**: predictions of branches are still missing. **Decided**: all are
    there and combined into the guided prediction g. `answer` answers the pipeline's next call in either. A
    pipeline goes on to its own `u + w (c - u)`, which is g whatever w is if both u and c are answered with g.
    There are two shapes of pipelines (rows of a call in brackets, u unconditional, c conditional):

        one call with both rows (Mochi, LTX, CogVideoX, SVD, SDXL)

            pipeline            answer                                          state
            [u c]  ---------->  run u, c and what is perturbed; combine         gathering -> decided
                   <----------  [g g]
            u + w (c - u) = g

        one call for each condition (Wan, HunyuanVideo)

            pipeline            answer                                          state
            [c]    ---------->  run c and what is perturbed under c             gathering
                   <----------  [c], and remember it: the pipeline holds it
            [u]    ---------->  run u and what is perturbed under u; combine    gathering -> decided
                   <----------  [g], and write g into the c that it holds
            u + w (c - u) = g

    Where one condition is all that the branches need, the first call decides and later ones run nothing; the
    branches that are estimated need none. A branch of c that looks at the text of u (NAG) waits for the
    second call, and then runs with the arguments of the first. Of the branches each rank of the branch axis
    runs some. A rank that runs none of those of a call answers it at once, so that ranks work on different
    calls at the same time; but where a step cache decides, all wait for its decision.
    """

    def __init__(
        self,
        step: Step,
        work: StepWork,
        calls: Calls,
        ranks: Mapping[str, int],
        group: Group,
        *,
        keep_dtype: bool = False,
    ) -> None:
        """`work`: what of the step is computed. `ranks`: the rank that runs each branch. `keep_dtype`: answer
        in the predictions' dtype, not in float32."""
        self.step = step
        self.plan = work.plan
        self.work = work
        self.records: list[PassRecord] = []
        self._calls = calls
        self._ranks = ranks
        self._group = group
        self._keep_dtype = keep_dtype
        self._answered = 0
        self._gathered: dict[str, Tensor] = {}
        self._late: list[tuple[Condition, LateAnswer]] = []
        self._made: dict[tuple[Condition, ...], DenoiserCall] = {}
        """The calls up to the present one, by the conditions in their rows."""
        self._decided: dict[Condition, Tensor] | None = None

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions in the rows of the call to be answered."""
        return self._calls[self._answered]

    @property
    def left_out(self) -> set[Condition]:
        """Conditions of that call that no branch has."""
        return set(self.conditions) - {branch.condition for branch in self.plan.branches.values()}

    @property
    def complete(self) -> bool:
        """Whether every call of the step is answered."""
        return self._answered == len(self._calls)

    @property
    def as_made(self) -> bool:
        """Whether the pipeline's own calls, as it makes them, are all that the step needs."""
        return self.plan.rule is None and self._group.size == 1 and self.work.stock

    def answer(self, call: DenoiserCall) -> Any:
        """The result of the pipeline's next call."""
        conditions = self.conditions
        if self.as_made:
            output, passes = call.as_made(conditions)
        else:
            predictions, passes = self._run(call, conditions)
            output = call.result(self._answer(call, conditions, predictions))
        self._answered += 1
        self.records += passes
        return output

    def _answer(
        self, call: DenoiserCall, conditions: tuple[Condition, ...], predictions: dict[str, Tensor]
    ) -> Tensor:
        blank = partial(call.blank, conditions)
        # Exchanged predictions are in float32, but the scheduler may go on in the network's own type.
        dtype = blank().dtype if self._group.size > 1 else next(iter(predictions.values()), blank()).dtype
        self._gathered |= predictions
        if self._decided is None and self._all_seen:
            self._decided = self._combined(blank, dtype)
            for condition, late in self._late:
                late.write(self._decided[condition])
        if self._decided is not None:
            return torch.cat([self._decided[condition] for condition in conditions])
        (condition,) = conditions
        plain = [x for name, x in predictions.items() if self.plan.branches[name].perturbation is None]
        waiting = self._in_answer_dtype(plain[0] if plain else blank(), dtype).clone()
        self._late.append((condition, LateAnswer(waiting)))
        return waiting

    def _run(
        self, call: DenoiserCall, conditions: tuple[Condition, ...]
    ) -> tuple[dict[str, Tensor], list[PassRecord]]:
        """What this rank runs for a call: branches of which it brings the last condition that they need."""
        cache = self.work.cache if "cond" in conditions else None
        if cache is not None and self._group.rank > 0:
            cache.hear(call.blank(conditions))
            cache = None
        self._made[conditions] = call
        own = {
            name: branch
            for name, branch in self.work.branches.items()
            if self._ranks[name] == self._group.rank
            and branch.conditions <= self._seen
            and not branch.conditions.isdisjoint(conditions)
        }
        negative = None
        if any(branch.reads_negative for branch in own.values()):
            rows = next(rows for rows in self._made if "uncond" in rows)
            negative = self._made[rows].rows_of("uncond", rows)
        predictions: dict[str, Tensor] = {}
        passes: list[PassRecord] = []
        for rows, made in self._made.items():
            mine = {name: branch for name, branch in own.items() if branch.condition in rows}
            if mine:
                found, records = made.run(mine, rows, self.step.noise_level, cache, negative)
                predictions |= found
                passes += records
        return predictions, passes

    @property
    def _seen(self) -> set[Condition]:
        """The conditions of the calls up to the present one."""
        return {condition for rows in self._made for condition in rows}

    @property
    def _all_seen(self) -> bool:
        """Whether these are all that the branches need."""
        return all(branch.conditions <= self._seen for branch in self.work.branches.values())

    def _combined(self, blank: Callable[[], Tensor], dtype: torch.dtype) -> dict[Condition, Tensor]:
        """What the pipeline gets for each condition: the guided prediction, or without a rule its own.

        dtype: that of the network's predictions.
        """
        branches = self.work.branches
        ranks = {name: self._ranks[name] for name in branches}
        computed = exchange_predictions(self._group, ranks, self._gathered, blank)
        require_effect(branches, computed, self.work.fresh)
        predictions = self.work.complete(computed)
        if self.plan.rule is None:
            return {
                branch.condition: self._in_answer_dtype(predictions[name], dtype)
                for name, branch in self.plan.branches.items()
            }
        guided_prediction = self._in_answer_dtype(self.plan.rule(**predictions), dtype)
        if self.work.fresh:
            require_finite(guided_prediction, self.step.index)
        return {condition: guided_prediction for call in self._calls for condition in call}

    def _in_answer_dtype(self, prediction: Tensor, dtype: torch.dtype) -> Tensor:
        return prediction.to(dtype) if self._keep_dtype else upcast(prediction)

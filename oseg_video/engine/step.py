"""One step of the sampler under guidance, over the denoiser calls that the pipeline makes for it."""

import weakref
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from oseg_video.adapters.base import Condition
from oseg_video.engine.assignment import exchange_predictions
from oseg_video.engine.branches import GuidanceError, require_effect
from oseg_video.engine.report import PassRecord
from oseg_video.guidance.numerics import upcast
from oseg_video.guidance.plan import Branch, Step, StepPlan
from oseg_video.parallel.group import Group


class OpenStep:
    """A step until all its denoiser calls are answered.

    Of its branches each rank of the branch axis runs some. A rank that runs none of those of a call answers
    it at once, so that ranks work on different calls at the same time.
    """

    def __init__(
        self,
        step: Step,
        plan: StepPlan,
        calls: tuple[tuple[Condition, ...], ...],
        ranks: Mapping[str, int],
        group: Group,
        *,
        keep_dtype: bool = False,
    ) -> None:
        """`ranks`: the rank that runs each branch. `keep_dtype`: answer in the predictions' dtype, not in
        float32."""
        self.step = step
        self.plan = plan
        self._keep_dtype = keep_dtype
        self.records: list[PassRecord] = []
        self._calls = calls
        self._ranks = ranks
        self._group = group
        self._answered = 0
        self._predictions: dict[str, Tensor] = {}
        self._results: dict[Condition, Tensor] = {}
        self._waiting: list[tuple[Condition, weakref.ref[Tensor]]] = []

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions in the rows of the call to be answered."""
        return self._calls[self._answered]

    @property
    def complete(self) -> bool:
        """Whether every call of the step is answered."""
        return self._answered == len(self._calls)

    @property
    def as_made(self) -> bool:
        """Whether the pipeline's own calls, as it makes them, are all that the step needs."""
        return self.plan.rule is None and self._group.size == 1

    @property
    def own_branches(self) -> dict[str, Branch]:
        """What this rank runs for the call to be answered."""
        return {
            name: branch
            for name, branch in self.plan.branches.items()
            if branch.condition in self.conditions and self._ranks[name] == self._group.rank
        }

    def answered(self, passes: list[PassRecord]) -> None:
        """Count one call, which took these passes."""
        self._answered += 1
        self.records += passes

    def answer(self, predictions: dict[str, Tensor], blank: Callable[[], Tensor]) -> Tensor:
        """The result of a call, from the predictions of this rank's branches.

        The same prediction for every condition makes the pipeline's own `u + w (c - u)` the identity. A
        pipeline that calls once per condition holds the first result while it asks for the second, so the
        guided prediction is written into that result once it is known. `blank`: a tensor like a prediction.
        """
        # Exchanged predictions are in float32, but the scheduler may go on in the network's own type.
        dtype = blank().dtype if self._group.size > 1 else next(iter(predictions.values()), blank()).dtype
        self._predictions |= predictions
        seen = {condition for call in self._calls[: self._answered + 1] for condition in call}
        if not self._results and {branch.condition for branch in self.plan.branches.values()} <= seen:
            everyones = exchange_predictions(self._group, self._ranks, self._predictions, blank)
            self._results = self._combined(everyones, dtype)
            self._hand_on()
        if self._results:
            return torch.cat([self._results[condition] for condition in self.conditions])
        (condition,) = self.conditions
        plain = [
            value for name, value in predictions.items() if self.plan.branches[name].perturbation is None
        ]
        waiting = self._in_answer_dtype(plain[0] if plain else blank(), dtype).clone()
        self._waiting.append((condition, weakref.ref(waiting)))
        return waiting

    def _combined(self, predictions: dict[str, Tensor], dtype: torch.dtype) -> dict[Condition, Tensor]:
        """What the pipeline gets for each condition: the guided prediction, or without a rule its own.

        dtype: that of the network's predictions.
        """
        require_effect(self.plan.branches, predictions)
        if self.plan.rule is None:
            return {
                branch.condition: self._in_answer_dtype(predictions[name], dtype)
                for name, branch in self.plan.branches.items()
            }
        guided_prediction = self._in_answer_dtype(self.plan.rule(**predictions), dtype)
        return {condition: guided_prediction for call in self._calls for condition in call}

    def _in_answer_dtype(self, prediction: Tensor, dtype: torch.dtype) -> Tensor:
        return prediction.to(dtype) if self._keep_dtype else upcast(prediction)

    def _hand_on(self) -> None:
        for condition, reference in self._waiting:
            earlier = reference()
            if earlier is None:
                raise GuidanceError(
                    "the pipeline copies one prediction before it asks for the next, so that guidance over "
                    "both cannot reach it; this version of diffusers is not supported"
                )
            earlier.copy_(self._results[condition])

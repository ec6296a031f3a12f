"""Reuse the slow way: every pass of every step is run whole, every prediction is kept, then the definition.

It is a method around a method, whose rule puts estimates in the place of the predictions that it got; and
hooks on the first and the last block, which put the cached output in the place of the computed one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from oseg_video.adapters import adapter_for
from oseg_video.guidance.methods import Guidance
from oseg_video.guidance.plan import Step, StepPlan
from oseg_video.settings import settings_of
from oseg_video.settings.schedule import value_at


@dataclass
class Kept:
    """One step."""

    index: int
    last: bool
    branches: Any
    circumstances: Any
    predictions: dict[str, Tensor] = field(default_factory=dict)
    skipped: bool = False
    computed: set[str] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class Slow(Guidance):
    """`inner`, with some branches computed every so many steps (`uncond`, `perturbed`)."""

    name: ClassVar[str] = "slow"

    inner: Guidance
    uncond: float = 1
    perturbed: float = 1
    switch: int | None = None
    """The step from which another model is asked."""
    steps: list[Kept] = field(default_factory=list, hash=False, compare=False)

    @property
    def blocks_used(self) -> Any:
        return self.inner.blocks_used

    @property
    def largest_guidance_scale(self) -> float | None:
        return self.inner.largest_guidance_scale

    def plan(self, step: Step) -> StepPlan:
        plan = self.inner.plan(step)
        settings = (getattr(self.inner, name) for name in settings_of(self.inner))
        held = [value_at(setting, step.noise_level) for setting in settings]
        circumstances = (self.switch is not None and step.index >= self.switch, held)
        self.steps.append(Kept(step.index, step.index == step.count - 1, plan.branches, circumstances))
        return replace(plan, rule=partial(self._rule, plan, step))

    def every(self, name: str) -> float:
        return self.uncond if name.startswith("uncond") else self.perturbed

    def known(self, name: str) -> list[Kept]:
        """The steps before the last one that a branch can be estimated from."""
        now = self.steps[-1]
        return [
            one
            for one in self.steps[:-1]
            if one.circumstances == now.circumstances and one.branches.get(name) == now.branches[name]
        ]

    @property
    def must(self) -> bool:
        """Whether the last step is computed whatever the cache says."""
        now = self.steps[-1]
        return now.last or any(
            not any(name in one.computed for one in self.known(name)) for name in now.branches
        )

    def _rule(self, plan: StepPlan, step: Step, **predictions: Tensor) -> Tensor:
        now = self.steps[-1]
        now.predictions = {name: one.double() for name, one in predictions.items()}
        given = dict(now.predictions)
        for name in plan.branches:
            before = [one for one in self.known(name) if name in one.computed]
            every = self.every(name) if name != "cond" else 1
            age = sum(name in one.branches for one in self.steps if before and one.index > before[-1].index)
            due = step.index / step.count < every if every < 1 else age >= every
            if not now.skipped and (not before or now.last or due):
                now.computed.add(name)
            elif name != "cond":
                old = before[-1].predictions
                given[name] = now.predictions["cond"] - (old["cond"] - old[name])
        return plan.rule(**given).float()

    @property
    def estimated(self) -> list[set[str]]:
        """The estimated branches of every step."""
        return [{*one.branches} - one.computed for one in self.steps]


@contextmanager
def slow_cache(pipe: Any, slow: Slow, threshold: float, clips: int = 1) -> Iterator[None]:
    """Put outputs of the last block of earlier steps in place of its own, in the rows of the condition.

    clips: rows of each condition. The first pass of a step must have those of the plain conditional branch,
    as its last ones.
    """
    adapter = adapter_for(pipe)
    state: dict[str, Any] = {"step": None, "old": {}, "open": False}

    def rows(value: Any) -> list[Tensor]:
        return [one[-clips:] for one in (value if isinstance(value, tuple) else (value,))]

    def first(_: Any, args: Any, kwargs: Any, output: Any) -> None:
        if state["step"] is slow.steps[-1]:
            return
        state.update(step=slow.steps[-1], open=True)
        before = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        head = [one.clone() for one in rows(output)]
        state.update(head=head, residual=head[0] - rows(before)[0])
        old = state["old"].get("residual")
        if old is not None and not slow.must:
            moved = (state["residual"] - old).abs().double().mean() / old.abs().double().mean()
            slow.steps[-1].skipped = bool(moved < threshold)

    def last(_: Any, __: Any, ___: Any, output: Any) -> Any:
        if not state["open"]:
            return None
        state["open"] = False
        outputs = list(output) if isinstance(output, tuple) else [output]
        if slow.steps[-1].skipped:
            for one, head, rest in zip(outputs, state["head"], state["old"]["rest"], strict=True):
                one[-clips:] = head + rest
            return tuple(outputs) if isinstance(output, tuple) else outputs[0]
        rest = [one - head for one, head in zip(rows(output), state["head"], strict=True)]
        state["old"] = {"residual": state["residual"], "rest": rest}
        return None

    handles = []
    for denoiser in adapter.denoisers(pipe):
        blocks = [denoiser.get_submodule(address.path) for address in adapter.blocks(denoiser)]
        handles.append(blocks[0].register_forward_hook(first, with_kwargs=True))
        handles.append(blocks[-1].register_forward_hook(last, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

"""Steps in which only the first block runs, and what the other blocks added before is added again.

A first-block cache (ParaAttention, and diffusers after it) lets every branch decide for itself whether a step
is skipped, so that differences between branches mix steps. Here the plain conditional branch decides for the
whole step: for all rows of the batch, for all branches, which follow by their differences (`estimates.py`),
and for all ranks.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from oseg_video.engine.patching.gates import BlockPlan
from oseg_video.engine.reuse import Written, write_counts
from oseg_video.guidance.numerics import upcast
from oseg_video.parallel.group import Group


class StepCache:
    """What the plain conditional branch of one sampling run had in its last computed step.

    For a chain of blocks. The branch runs on the first of the ranks that share branches; where ranks share
    tokens, each keeps those of its own.
    """

    def __init__(self, threshold: float, branch: Group, sequence: Group) -> None:
        """A step is skipped where `sum |r - r'| < threshold * sum |r'|`: r is what the first block adds to
        its hidden states, r' what it added in the last computed step."""
        self._threshold = threshold
        self._branch = branch
        self._sequence = sequence
        self._may_skip = False
        self._residual: Tensor | None = None
        self._rest: Any = None
        """What the blocks behind the first one added to its output; None where it is not known."""
        self.skipped = False
        """Whether the step in progress is skipped."""

    def begin(self, *, may_skip: bool) -> None:
        """A step begins."""
        self._may_skip = may_skip
        self.skipped = False

    def hear(self, like: Tensor) -> None:
        """Wait for the decision, on a rank that does not run the branch. `like`: a tensor on its device."""
        if self._may_skip:
            self.skipped = bool(self._branch.broadcast(like.new_zeros(1, dtype=torch.int32)))

    def watch(self, plan: BlockPlan, units: Sequence[str], written: Written) -> None:
        """Decide in the pass that follows this plan. units: the blocks. written: as of `Prefix`."""
        first, last = units[0], units[-1]
        plan.actions = {first: partial(self._first_block, plan, units, written)}

        def keep(output: Any) -> None:
            head, counts = self._head
            # Of what was written into meanwhile, the difference would be another one.
            same = write_counts(head) == counts
            if not same:
                written.add(first)
            self._rest = tree_map(torch.sub, output, head) if same else None
            del self._head

        if first != last:
            plan.capture = {**plan.capture, last: keep}

    def _first_block(
        self,
        plan: BlockPlan,
        units: Sequence[str],
        written: Written,
        block: nn.Module,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        before = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        output = block(*args, **kwargs)
        residual = (output if isinstance(output, Tensor) else output[0]) - before
        self.skipped = self._may_skip and self._decided(residual)
        if self.skipped:
            final = tree_map(torch.add, output, self._rest)
            plan.replay = {**dict.fromkeys(units[1:], lambda: output), units[-1]: lambda: final}
        else:
            self._residual = residual
            head = written.safe(units[0], output)
            self._head = head, write_counts(head)
        return output

    def _decided(self, residual: Tensor) -> bool:
        """The decision of all ranks. Costs a wait for the device."""
        skip = torch.zeros((), dtype=torch.int32, device=residual.device)
        if self._rest is not None and self._residual is not None and residual.shape == self._residual.shape:
            total = partial(torch.linalg.vector_norm, ord=1, dtype=upcast(residual[:0]).dtype)
            sums = torch.stack([total(residual - self._residual), total(self._residual)])
            moved, size = torch.stack(self._sequence.gather(sums, [sums.shape] * self._sequence.size)).sum(0)
            skip = (moved < self._threshold * size).to(torch.int32)
        return bool(self._branch.broadcast(skip.reshape(1)))

"""What a perturbed pass need not run again: outputs of the unperturbed pass before the first perturbed block.

Exact as long as the outputs are what they were. Code behind a block may write into its output (FreeU does),
and a replay would hand on what was written, to be written once more. So it is noticed: a tensor counts the
writes into itself. The step in which it happens first runs its perturbed passes whole; from then on that
block's output is copied. Nothing is copied where nothing is written.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from oseg_video.adapters.denoiser import take_rows


class Written:
    """The blocks and stages of one denoiser whose outputs are written into after they were returned."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def add(self, name: str) -> None:
        self._names.add(name)

    def safe(self, name: str, value: Any) -> Any:
        """The value, or a copy that no one else can write into."""
        if name in self._names or any(x.is_inference() for x in _tensors(value)):  # which count no writes
            return tree_map_only(Tensor, Tensor.clone, value)
        return value


class Prefix:
    """The outputs of one unperturbed pass."""

    def __init__(self, units: Sequence[str], kept: Sequence[str], written: Written) -> None:
        """units: those that perturbed passes leave out. kept: those whose outputs they need, the last one and
        others."""
        self._units = units
        self._kept = kept
        self._written = written
        self._outputs: dict[str, Any] = {}
        self._counts: dict[str, list[int]] = {}

    def capture(self) -> dict[str, Callable[[Any], None]]:
        """By name of each unit to keep: what takes its output."""
        return {name: partial(self._keep, name) for name in self._kept}

    def replay(self, rows: slice, count: int) -> Mapping[str, Callable[[], Any]]:
        """By name of each unit to leave out: what gives its output, of some of `count` rows.

        Empty if an output is no longer what it was.
        """
        changed = [name for name in self._kept if write_counts(self._outputs[name]) != self._counts[name]]
        for name in changed:
            self._written.add(name)
        if changed:
            return {}
        return {
            name: partial(self._give, name if name in self._outputs else self._units[-1], rows, count)
            for name in self._units
        }

    def _keep(self, name: str, output: Any) -> None:
        self._outputs[name] = self._written.safe(name, output)
        self._counts[name] = write_counts(self._outputs[name])

    def _give(self, name: str, rows: slice, count: int) -> Any:
        return self._written.safe(name, take_rows(self._outputs[name], rows, count))


def write_counts(value: Any) -> list[int]:
    """How often each tensor was written into; views of one tensor count together."""
    return [0 if x.is_inference() else x._version for x in _tensors(value)]


def _tensors(value: Any) -> Iterator[Tensor]:
    return (x for x in tree_leaves(value) if isinstance(x, Tensor))

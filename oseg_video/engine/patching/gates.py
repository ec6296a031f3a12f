"""Gates in front of a denoiser's blocks: they capture, replay, skip or perturb as the pass in progress plans.

Gates take the place of modules for one pass. They sit outside of everything that wraps a block itself
(compiled code, offload hooks, LoRA), so these keep working. Between passes the modules are in their places:
what a user sets on them, loads into them or hooks on them while a pipeline is guided stays.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from torch import nn

from oseg_video.adapters.base import ModelAdapter
from oseg_video.adapters.denoiser import BlockInputs
from oseg_video.engine.errors import GuidanceError
from oseg_video.engine.patching.calls import real
from oseg_video.parallel.sequence import SpreadSequence
from oseg_video.types import Denoiser


@dataclass(kw_only=True)
class BlockPlan:
    """What the gates do during one forward pass of the denoiser, by the names of their modules."""

    replay: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    """Gives the output of an earlier pass over the same inputs, returned in place of running the module."""
    capture: Mapping[str, Callable[[Any], None]] = field(default_factory=dict)
    """Called with the output of the module."""
    actions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """Called with the block and its inputs in place of the block."""
    change_inputs: Callable[[nn.Module, str, BlockInputs], BlockInputs] | None = None
    """Applied to every block, its name and its inputs: its new inputs."""
    change_output: Callable[[str, Any], Any] | None = None
    """Applied to the name and the output of every block."""
    spread: SpreadSequence | None = None
    """How the video tokens are spread over ranks, if they are."""
    fired: list[str] = field(default_factory=list)
    """Names of the sites and blocks at which an intervention took place, in order."""
    passed: set[str] = field(default_factory=set)
    """Names of the modules that were called, or replayed."""


CurrentPlan = Callable[[], BlockPlan | None]
"""The plan of the pass that this thread is in, if there is one."""


class Gate(nn.Module):
    """Stands in for one module and follows the plan of the pass in progress, if there is one.

    It shows the parameters and submodules of that module as its own, so that everything inside the denoiser
    keeps its name. A copy of it is one of the module.
    """

    block: nn.Module

    def __init__(self, block: nn.Module, name: str, is_block: bool, current_plan: CurrentPlan) -> None:
        super().__init__()
        self._parameters, self._buffers, self._modules = block._parameters, block._buffers, block._modules
        self._non_persistent_buffers_set = block._non_persistent_buffers_set
        object.__setattr__(self, "block", block)  # as a submodule it would add its name to all others
        self._name = name
        self._is_block = is_block
        self._current_plan = current_plan

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        plan = self._current_plan()
        if plan is None:
            return self.block(*args, **kwargs)
        plan.passed.add(self._name)
        output = self._output(plan, *args, **kwargs)
        if plan.change_output and self._is_block:
            output = plan.change_output(self._name, output)
        return output

    def _output(self, plan: BlockPlan, *args: Any, **kwargs: Any) -> Any:
        """Of the module, or what the plan has in its place."""
        if self._name in plan.replay:
            return plan.replay[self._name]()
        if plan.change_inputs and self._is_block:
            args, kwargs = plan.change_inputs(self.block, self._name, (args, kwargs))
        action = plan.actions.get(self._name)
        output = action(self.block, *args, **kwargs) if action else self.block(*args, **kwargs)
        if self._name in plan.capture:
            plan.capture[self._name](output)
        return output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.block, name)

    def __reduce__(self) -> Any:
        return _itself, (self.block,)


def _itself(block: nn.Module) -> nn.Module:
    return block


_TAKEN: WeakSet[Denoiser] = WeakSet()
"""Denoisers whose blocks somebody perturbs."""


@contextmanager
def taken(denoiser: Denoiser) -> Iterator[None]:
    """Be the only one who puts gates into `denoiser`, while this is open. Raises GuidanceError."""
    denoiser = real(denoiser)
    if denoiser in _TAKEN:
        raise GuidanceError(
            "the denoiser is guided already, in another pipeline; leave the first guided() before the next"
        )
    _TAKEN.add(denoiser)
    try:
        yield
    finally:
        _TAKEN.discard(denoiser)


@contextmanager
def gated(adapter: ModelAdapter, denoiser: Denoiser, current_plan: CurrentPlan) -> Iterator[None]:
    """Put a gate in front of every unit and block of `denoiser`; the modules return on leaving."""
    blocks = [address.path for address in adapter.blocks(denoiser)]
    places = []
    for path in dict.fromkeys([*adapter.blocks.units(denoiser), *blocks]):
        parent, _, leaf = path.rpartition(".")
        places.append((denoiser.get_submodule(parent), leaf, path, denoiser.get_submodule(path)))
    try:
        for owner, leaf, path, module in places:
            setattr(owner, leaf, Gate(module, path, path in blocks, current_plan))
        yield
    finally:
        for owner, leaf, _, module in places:
            setattr(owner, leaf, module)

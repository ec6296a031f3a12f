"""Block stacks whose video tokens are spread over ranks: in before the first block, whole after the last.

Between the two every block works on this rank's tokens. Only its self-attention looks at all of them, so that
is where the ranks speak with each other. Text is whole on every rank, so cross-attention needs no one else.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

from torch import Tensor, nn

from oseg_video.adapters.base import ModelAdapter
from oseg_video.adapters.denoiser import BlockInputs, TextCut
from oseg_video.engine.patching.gates import BlockPlan
from oseg_video.parallel.sequence import SpreadSequence
from oseg_video.types import Denoiser


class BlockStack:
    """What happens to the inputs and outputs of a denoiser's blocks in every pass, whatever is perturbed."""

    def __init__(self, adapter: ModelAdapter, denoiser: Denoiser) -> None:
        self._adapter = adapter
        paths = [address.path for address in adapter.blocks(denoiser)]
        self._first, self._last = paths[0], paths[-1]

    def plan(self, spread: SpreadSequence | None, text: TextCut) -> BlockPlan:
        """Blocks work on this rank's tokens, with the mask that is left of their own."""
        plan = BlockPlan(spread=spread)
        if spread is not None:
            plan.change_inputs = partial(self._own_tokens, spread, text)
            plan.change_output = partial(self._all_tokens, spread)
        elif text.mask is not None:
            plan.change_inputs = partial(_without_padding, text)
        return plan

    def _own_tokens(
        self, spread: SpreadSequence, text: TextCut, block: nn.Module, path: str, inputs: BlockInputs
    ) -> BlockInputs:
        """A block's inputs for this rank's tokens. The first block is given those of all ranks."""
        args, kwargs = text.inputs(inputs)
        named = named_inputs(block, args, kwargs)
        assert self._adapter.token_inputs is not None  # else no rank shares its tokens
        named = self._adapter.token_inputs.take(named, spread.shard)
        if path == self._first:
            named["hidden_states"] = spread.shard.take(named["hidden_states"], 1)
        return (), named

    def _all_tokens(self, spread: SpreadSequence, path: str, output: Any) -> Any:
        """A block's output; that of the last block for the tokens of all ranks."""
        if path != self._last:
            return output
        if isinstance(output, Tensor):
            return spread.gather(output, dim=1)
        hidden_states, *others = output
        return (spread.gather(hidden_states, dim=1), *others)


def _without_padding(text: TextCut, _: nn.Module, __: str, inputs: BlockInputs) -> BlockInputs:
    return text.inputs(inputs)


def named_inputs(block: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A block's inputs by name."""
    names: list[str] = _parameters(type(block))  # type: ignore[arg-type]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def handed_on(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a block returns that hands its inputs on unchanged: one of them, or a tuple of several.

    names: of the outputs (`ModelAdapter.block_outputs`).
    """
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    first, *others = (given[name] for name in names)
    return (first, *others) if others else first


@cache
def _parameters(block_class: Any) -> list[str]:
    _, *parameters = inspect.signature(block_class.forward).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]

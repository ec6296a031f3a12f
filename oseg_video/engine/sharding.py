"""Block stacks whose video tokens are spread over ranks: in before the first block, whole after the last.

Between the two every block works on this rank's tokens. Only its self-attention looks at all of them, so that
is where the ranks speak with each other. Text is whole on every rank, so cross-attention needs no one else.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from oseg_video.adapters.base import ModelAdapter
from oseg_video.engine.hooks import BlockPlan, Inputs
from oseg_video.parallel.attention import sequence_attention
from oseg_video.parallel.group import ParallelError
from oseg_video.parallel.sequence import SpreadSequence


class BlockStack:
    """What happens to the inputs and outputs of a denoiser's blocks in every pass, whatever is perturbed."""

    def __init__(self, adapter: ModelAdapter, denoiser: nn.Module) -> None:
        self._adapter = adapter
        paths = [address.path for address in adapter.blocks(denoiser)]
        self._first, self._last = paths[0], paths[-1]

    def plan(self, spread: SpreadSequence | None, *, no_padding: bool) -> BlockPlan:
        """Blocks work on this rank's tokens; no mask where it would mask nothing."""
        plan = BlockPlan(spread=spread)
        if spread is not None:
            plan.change_inputs = partial(self._own_tokens, spread, no_padding)
            plan.change_output = partial(self._all_tokens, spread)
        elif no_padding:
            plan.change_inputs = self._without_mask
        return plan

    def _without_mask(self, _: nn.Module, __: str, inputs: Inputs) -> Inputs:
        return self._adapter.without_mask(*inputs)

    def _own_tokens(
        self, spread: SpreadSequence, no_padding: bool, block: nn.Module, path: str, inputs: Inputs
    ) -> Inputs:
        """A block's inputs for this rank's tokens. The first block is given those of all ranks."""
        args, kwargs = self._adapter.without_mask(*inputs) if no_padding else inputs
        names: list[str] = _parameters(type(block))  # type: ignore[arg-type]
        named = dict(zip(names, args, strict=False)) | kwargs
        named = self._adapter.shard_inputs(named, spread.shard)
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


@contextmanager
def spread_attention(
    adapter: ModelAdapter, denoiser: nn.Module, current: Callable[[], SpreadSequence | None]
) -> Iterator[None]:
    """Let every self-attention of the denoiser's blocks see the tokens of all ranks, while this is open.

    Attention processors of every family end in `scaled_dot_product_attention`, so that is what is replaced,
    inside the self-attention modules only, as long as `current` names a sequence.
    """
    with ExitStack() as stack:
        for address in adapter.blocks(denoiser):
            site = adapter.site(denoiser.get_submodule(address.path), address)
            _Interception(site.name, current).install(site.attention, stack)
        yield


class _Interception(TorchFunctionMode):
    """Replaces the attention inside one module, from its call to its return."""

    def __init__(self, name: str, current: Callable[[], SpreadSequence | None]) -> None:
        super().__init__()
        self._name = name
        self._current = current
        self._spread: SpreadSequence | None = None
        self._count = 0

    def install(self, attention: nn.Module, stack: ExitStack) -> None:
        stack.callback(attention.register_forward_pre_hook(self._before).remove)
        stack.callback(attention.register_forward_hook(self._after, always_call=True).remove)

    def _before(self, _: nn.Module, __: Any) -> None:
        self._spread, self._count = self._current(), 0
        if self._spread is not None:
            self.__enter__()

    def _after(self, _: nn.Module, __: Any, output: Any) -> None:
        if self._spread is None:
            return
        self._spread = None
        self.__exit__(None, None, None)
        if output is not None and self._count == 0:
            raise ParallelError(
                f"{self._name} does not attend through torch's scaled_dot_product_attention, so its tokens "
                f"cannot be spread over ranks; use diffusers' native attention backend"
            )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention or self._spread is None:
            return func(*args, **(kwargs or {}))
        self._count += 1
        return _attend(self._spread, *args, **(kwargs or {}))


def _attend(
    spread: SpreadSequence,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` of a spread-out sequence, with its arguments."""
    assert not (dropout_p or is_causal or enable_gqa)
    return sequence_attention(query, key, value, attn_mask, spread=spread, scale=scale)


@cache
def _parameters(block_class: Any) -> list[str]:
    """Names of a block's inputs, in order. Blocks without a use for further inputs have no name for them."""
    _, *parameters = inspect.signature(block_class.forward).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]

"""Attention over the tokens of all ranks in place of torch's own, where tokens of the video are keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from oseg_video.adapters.base import ModelAdapter
from oseg_video.parallel.attention import sequence_attention
from oseg_video.parallel.group import ParallelError
from oseg_video.parallel.sequence import SpreadSequence
from oseg_video.types import Denoiser


@contextmanager
def spread_attention(
    adapter: ModelAdapter, denoiser: Denoiser, current: Callable[[], SpreadSequence | None]
) -> Iterator[None]:
    """Let every self-attention of the denoiser's blocks see the tokens of all ranks, while this is open.

    And what looks at the video from another stream, which every rank has whole.

    Attention processors of every family end in `scaled_dot_product_attention`, so that is what is replaced,
    inside the self-attention modules only, as long as `current` names a sequence (for this thread).
    """
    with ExitStack() as stack:
        for address in adapter.blocks(denoiser):
            block = denoiser.get_submodule(address.path)
            site = adapter.site(block, address)
            _Interception(site.name, current, _among_all).install(site.attention, stack)
            if adapter.audio is not None:
                name = adapter.audio.reads_video
                reader = _Interception(f"{address.path}.{name}", current, _to_all)
                reader.install(getattr(block, name), stack)
        yield


def _among_all(given: AttentionArguments, spread: SpreadSequence) -> Tensor:
    """The video tokens of all ranks attend to each other."""
    return sequence_attention(
        given.query, given.key, given.value, given.mask, spread=spread, scale=given.scale
    )


def _to_all(given: AttentionArguments, spread: SpreadSequence) -> Tensor:
    """Queries that every rank has attend to the video tokens of all ranks."""
    key, value = (spread.gather(x, dim=2) for x in (given.key, given.value))
    return F.scaled_dot_product_attention(given.query, key, value, given.mask, scale=given.scale)


class HookedMode(TorchFunctionMode):
    """A function mode that hooks before and after a module's call enter and leave.

    torch calls no hook after an interruption (Ctrl-C), so what installs the hooks has to leave it once more.
    """

    _entered = False

    def enter(self) -> None:
        """Be the innermost mode."""
        self.__enter__()  # type: ignore[no-untyped-call]
        self._entered = True

    def leave(self) -> None:
        """Be none any more, if it is one."""
        if self._entered:
            self._entered = False
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]


class _Interception(HookedMode):
    """Replaces the attention inside one module, from its call to its return."""

    def __init__(
        self,
        name: str,
        current: Callable[[], SpreadSequence | None],
        attend: Callable[[AttentionArguments, SpreadSequence], Tensor],
    ) -> None:
        super().__init__()
        self._name = name
        self._current = current
        self._attend = attend
        self._count = 0

    def install(self, attention: nn.Module, stack: ExitStack) -> None:
        stack.callback(attention.register_forward_pre_hook(self._before).remove)
        stack.callback(attention.register_forward_hook(self._after, always_call=True).remove)
        stack.callback(self.leave)

    def _before(self, _: nn.Module, __: Any) -> None:
        if self._current() is not None:
            self._count = 0
            self.enter()

    def _after(self, _: nn.Module, __: Any, output: Any) -> None:
        if self._current() is None:
            return
        self.leave()
        if output is not None and self._count == 0:
            raise ParallelError(
                f"{self._name} does not attend through torch's scaled_dot_product_attention, so its tokens "
                f"cannot be spread over ranks; use diffusers' native attention backend"
            )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        spread = self._current()
        if func is not F.scaled_dot_product_attention or spread is None:
            return func(*args, **(kwargs or {}))
        self._count += 1
        return self._attend(attention_arguments(*args, **(kwargs or {})), spread)


class AttentionArguments(NamedTuple):
    """What torch's attention function is given."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float | None


def attention_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> AttentionArguments:
    """The arguments of a call of `scaled_dot_product_attention`, of those that diffusers' processors use."""
    assert not (dropout_p or is_causal or enable_gqa)
    return AttentionArguments(query, key, value, attn_mask, scale)

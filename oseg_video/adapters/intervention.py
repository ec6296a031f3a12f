"""Interventions on blocks: gates that capture, replay, skip or perturb, and hooks on video queries.

Gates take the place of blocks in their `nn.ModuleList` for as long as a pipeline is guided. They sit
outside of everything that wraps a block itself (compiled code, offload hooks, LoRA), so these keep working.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from oseg_video.adapters.base import AttentionSite, ModelAdapter, VideoTokens

QueryChange = Callable[[Tensor, Tensor], Tensor]
"""New video queries from the video queries and their keys."""


@dataclass(kw_only=True)
class BlockPlan:
    """What the gates do during one forward pass of the denoiser."""

    start: int = 0
    """First block that runs; the blocks before it return `replay` instead."""
    replay: Any = None
    """Output of block `start - 1` in an earlier pass over the same inputs."""
    capture_at: int | None = None
    """Block whose output is kept in `captured`."""
    captured: Any = None
    actions: dict[int, Callable[..., Any]] = field(default_factory=dict)
    """By block: called with the block and its inputs in place of the block."""
    fired: list[str] = field(default_factory=list)
    """Names of the sites and blocks at which an intervention took place, in order."""


class BlockGate(nn.Module):
    """Stands in for one block and follows the plan of the pass in progress, if there is one."""

    def __init__(self, block: nn.Module, index: int, current_plan: Callable[[], BlockPlan | None]) -> None:
        super().__init__()
        self.block = block
        self.index = index
        self._current_plan = current_plan

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        plan = self._current_plan()
        if plan is None:
            return self.block(*args, **kwargs)
        if self.index < plan.start:
            return plan.replay
        action = plan.actions.get(self.index, _run_block)
        output = action(self.block, *args, **kwargs)
        if self.index == plan.capture_at:
            plan.captured = output
        return output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)


def _run_block(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return block(*args, **kwargs)


@contextmanager
def gated_blocks(
    adapter: ModelAdapter, denoiser: nn.Module, current_plan: Callable[[], BlockPlan | None]
) -> Iterator[None]:
    """Put a gate in front of every block of `denoiser`; the blocks themselves return on leaving."""
    originals = []
    try:
        for address in adapter.blocks(denoiser):
            stack = getattr(denoiser, address.stack)
            block = stack[address.position]
            originals.append((stack, address.position, block))
            stack[address.position] = BlockGate(block, address.index, current_plan)
        yield
    finally:
        for stack, position, block in originals:
            stack[position] = block


@contextmanager
def changed_queries(
    site: AttentionSite,
    where: Literal["normalised", "projected"],
    tokens: VideoTokens,
    change: QueryChange,
    fired: Callable[[str], None],
) -> Iterator[None]:
    """Change the video queries of one attention site while the context is open.

    Every attention processor of diffusers projects query and key, then normalises the query, then rotates
    it. So the key projection's output is noted, and the query is changed where it passes its norm: before
    it (`projected`, layout [B, S, C]) or after it (`normalised`, [B, N, S, D], the key normalised alike).
    Keys, values and text queries stay as they are. Each change calls `fired` with the site's name.
    """
    noted_key: list[Tensor] = []

    def note_key(_: nn.Module, __: Any, key_BSC: Tensor) -> None:
        noted_key[:] = [key_BSC]

    def change_projected(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        (query,) = args
        query_BSC = query.flatten(2)
        changed_BSC = _with_span(
            query_BSC, change(query_BSC[:, tokens.span], noted_key[0][:, tokens.span]), tokens, dim=1
        )
        fired(site.name)
        return (changed_BSC.reshape(query.shape),)

    def change_normalised(_: nn.Module, args: tuple[Tensor, ...], query: Tensor) -> Tensor:
        key = site.norm_k(noted_key[0].reshape(args[0].shape))
        query_BNSD, key_BNSD = _to_heads(query, site), _to_heads(key, site)
        changed_BNSD = change(query_BNSD[:, :, tokens.span], key_BNSD[:, :, tokens.span])
        fired(site.name)
        return _from_heads(_with_span(query_BNSD, changed_BNSD, tokens, dim=2), site)

    handles = [site.to_k.register_forward_hook(note_key)]
    try:
        if where == "projected":
            handles.append(site.norm_q.register_forward_pre_hook(change_projected))
        else:
            handles.append(site.norm_q.register_forward_hook(change_normalised))
        # Compiled code does not see hooks that were added after its compilation, so run this block without.
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _to_heads(x: Tensor, site: AttentionSite) -> Tensor:
    """[B, S, C] or [B, S, N, D] -> [B, N, S, D]."""
    return (x.unflatten(2, (site.heads, -1)) if site.norm_layout == "BSC" else x).transpose(1, 2)


def _from_heads(x_BNSD: Tensor, site: AttentionSite) -> Tensor:
    """[B, N, S, D] -> the layout of the site's norm."""
    x_BSND = x_BNSD.transpose(1, 2)
    return x_BSND.flatten(2) if site.norm_layout == "BSC" else x_BSND.contiguous()


def _with_span(x: Tensor, video: Tensor, tokens: VideoTokens, dim: int) -> Tensor:
    """`x` with its video tokens along `dim` replaced by `video`."""
    before, _, after = x.tensor_split((tokens.start, tokens.span.stop), dim=dim)
    return torch.cat([before, video, after], dim=dim) if video.shape != x.shape else video

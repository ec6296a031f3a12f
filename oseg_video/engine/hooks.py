"""Interventions on blocks: gates that capture, replay, skip or perturb, and hooks on video tokens.

Gates take the place of modules for as long as a pipeline is guided. They sit outside of everything that wraps
a block itself (compiled code, offload hooks, LoRA), so these keep working.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from oseg_video.adapters.base import AttentionSite, Layout, ModelAdapter, VideoTokens
from oseg_video.parallel.sequence import SpreadSequence

QueryChange = Callable[[Tensor, Tensor], Tensor]
"""New video queries from the video queries and their keys."""
Inputs = tuple[tuple[Any, ...], dict[str, Any]]
BlockInputs = Callable[[nn.Module, str, Inputs], Inputs]
"""New inputs from a block, its name and its inputs."""


@dataclass(kw_only=True)
class BlockPlan:
    """What the gates do during one forward pass of the denoiser, by the names of their modules."""

    replay: Mapping[str, Any] = field(default_factory=dict)
    """Outputs of an earlier pass over the same inputs, returned in place of running the module."""
    capture: frozenset[str] = frozenset()
    """Modules whose output is kept in `captured`."""
    captured: dict[str, Any] = field(default_factory=dict)
    actions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """Called with the block and its inputs in place of the block."""
    change_inputs: BlockInputs | None = None
    """Applied to the inputs of every block."""
    change_output: Callable[[str, Any], Any] | None = None
    """Applied to the name and the output of every block."""
    spread: SpreadSequence | None = None
    """How the video tokens are spread over ranks, if they are."""
    fired: list[str] = field(default_factory=list)
    """Names of the sites and blocks at which an intervention took place, in order."""


class Gate(nn.Module):
    """Stands in for one module and follows the plan of the pass in progress, if there is one.

    It shows the parameters and submodules of that module as its own, so that everything inside the denoiser
    keeps its name: LoRA and weights can be loaded while the gate is there.
    """

    block: nn.Module

    def __init__(
        self, block: nn.Module, name: str, is_block: bool, current_plan: Callable[[], BlockPlan | None]
    ) -> None:
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
        if self._name in plan.replay:
            return plan.replay[self._name]
        if plan.change_inputs and self._is_block:
            args, kwargs = plan.change_inputs(self.block, self._name, (args, kwargs))
        action = plan.actions.get(self._name)
        output = action(self.block, *args, **kwargs) if action else self.block(*args, **kwargs)
        if self._name in plan.capture:
            plan.captured[self._name] = output
        if plan.change_output and self._is_block:
            output = plan.change_output(self._name, output)
        return output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.block, name)


@contextmanager
def gated(
    adapter: ModelAdapter, denoiser: nn.Module, current_plan: Callable[[], BlockPlan | None]
) -> Iterator[None]:
    """Put a gate in front of every unit and block of `denoiser`; the modules return on leaving."""
    blocks = {address.path for address in adapter.blocks(denoiser)}
    places = []
    for path in dict.fromkeys([*adapter.units(denoiser), *(a.path for a in adapter.blocks(denoiser))]):
        parent, _, leaf = path.rpartition(".")
        places.append((denoiser.get_submodule(parent), leaf, path, denoiser.get_submodule(path)))
    try:
        for owner, leaf, path, module in places:
            setattr(owner, leaf, Gate(module, path, path in blocks, current_plan))
        yield
    finally:
        for owner, leaf, _, module in places:
            setattr(owner, leaf, module)


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
    Without a norm the query is changed as it leaves its projection, which costs one more key projection.
    Keys, values and text queries stay as they are. Each change calls `fired` with the site's name; there is
    none where fused projections leave `to_k` uncalled.
    """
    noted_key: list[Tensor] = []
    heads = site.attention.heads

    def note_key(_: nn.Module, __: Any, key_BSC: Tensor) -> None:
        noted_key[:] = [key_BSC]

    def changed(query_BSC: Tensor, key_BSC: Tensor) -> Tensor:
        video = change(query_BSC[:, tokens.span], key_BSC[:, tokens.span])
        fired(site.name)
        return _with_span(query_BSC, video, tokens.span, dim=1)

    def changed_heads(query_BNSD: Tensor, key_BNSD: Tensor) -> Tensor:
        video = _changed_video(change, query_BNSD, key_BNSD, tokens)
        fired(site.name)
        return _with_span(query_BNSD, video, tokens.span, dim=2)

    def before_norm(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        if not noted_key:
            return None
        query_BSC = _to_heads(args[0], site.norm_layout, heads).transpose(1, 2).flatten(2)
        query_BSC = changed(query_BSC, noted_key[0])
        return (_from_heads(_split_heads(query_BSC, heads), site.norm_layout),)

    def after_norm(_: nn.Module, args: tuple[Tensor, ...], query: Tensor) -> Tensor | None:
        if not noted_key:
            return None
        assert site.norm_k is not None
        key = site.norm_k(_from_heads(_split_heads(noted_key[0], heads), site.norm_layout))
        layout = site.norm_layout
        query_BNSD = changed_heads(_to_heads(query, layout, heads), _to_heads(key, layout, heads))
        return _from_heads(query_BNSD, layout)

    def after_projection(_: nn.Module, args: tuple[Tensor, ...], query_BSC: Tensor) -> Tensor:
        key_BSC = site.attention.to_k(args[0])
        if where == "projected":
            return changed(query_BSC, key_BSC)
        query_BNSD = changed_heads(_split_heads(query_BSC, heads), _split_heads(key_BSC, heads))
        return _from_heads(query_BNSD, "BSC")

    if site.norm_q is None:
        handles = [site.attention.to_q.register_forward_hook(after_projection)]
    elif where == "projected":
        handles = [
            site.attention.to_k.register_forward_hook(note_key),
            site.norm_q.register_forward_pre_hook(before_norm),
        ]
    else:
        handles = [
            site.attention.to_k.register_forward_hook(note_key),
            site.norm_q.register_forward_hook(after_norm),
        ]
    with _uncompiled(handles):
        yield


@contextmanager
def replaced_attention(
    site: AttentionSite,
    source: Literal["values", "input"],
    tokens: VideoTokens,
    fired: Callable[[str], None],
) -> Iterator[None]:
    """Replace what the attention mixes for the video tokens, while the context is open.

    `source` is what stands in for it before the output projection, [B, S, C]: the tokens' own values, or the
    input of the attention. Text tokens keep their output. Each change calls `fired` with the site's name;
    there is none where fused projections leave `to_v` uncalled.
    """
    noted: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Tensor, ...], value_BSC: Tensor) -> None:
        noted[:] = [value_BSC if source == "values" else args[0]]

    def replaced(mixed_BSC: Tensor) -> Tensor:
        fired(site.name)
        return _with_span(mixed_BSC, noted[0][:, tokens.span].to(mixed_BSC.dtype), tokens.span, dim=1)

    def before_projection(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return (replaced(args[0]), *args[1:]) if noted else None

    def after_attention(_: nn.Module, __: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return (replaced(output[0]), *output[1:]) if noted else None

    handles = [site.attention.to_v.register_forward_hook(note)]
    if site.to_out is None:
        handles.append(site.attention.register_forward_hook(after_attention))
    else:
        handles.append(site.to_out.register_forward_pre_hook(before_projection))
    with _uncompiled(handles):
        yield


@contextmanager
def _uncompiled(handles: list[Any]) -> Iterator[None]:
    """Run what is inside without compiled code, then remove the hooks.

    Compiled code does not see hooks that were added after its compilation.
    """
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        with torch.compiler.set_stance("force_eager"):
            yield


def _split_heads(x_BSC: Tensor, heads: int) -> Tensor:
    """[B, S, C] -> [B, N, S, D]."""
    return x_BSC.unflatten(2, (heads, -1)).transpose(1, 2)


def _to_heads(x: Tensor, layout: Layout, heads: int) -> Tensor:
    """`layout` -> [B, N, S, D]."""
    if layout == "BSC":
        return _split_heads(x, heads)
    return x.transpose(1, 2) if layout == "BSND" else x


def _from_heads(x_BNSD: Tensor, layout: Layout) -> Tensor:
    """[B, N, S, D] -> `layout`."""
    if layout == "BNSD":
        return x_BNSD
    x_BSND = x_BNSD.transpose(1, 2)
    return x_BSND.flatten(2) if layout == "BSC" else x_BSND.contiguous()


def _changed_video(change: QueryChange, query_BNSD: Tensor, key_BNSD: Tensor, tokens: VideoTokens) -> Tensor:
    """The changed queries of the clip's tokens, of those that this rank has: [B, N, S, D].

    Where tokens are spread over ranks, each rank changes those of all ranks for some of the heads.
    """
    span, spread = tokens.span, tokens.spread
    if spread is None:
        return change(query_BNSD[:, :, span], key_BNSD[:, :, span])
    first = tokens.start - tokens.text_first
    clip = slice(first, first + tokens.grid.tokens)

    def change_whole(query_BMLD: Tensor, key_BMLD: Tensor) -> Tensor:
        return _with_span(query_BMLD, change(query_BMLD[:, :, clip], key_BMLD[:, :, clip]), clip, dim=2)

    mine = slice(tokens.text_first, tokens.text_first + len(spread.shard))
    video = spread.over_heads(change_whole, query_BNSD[:, :, mine], key_BNSD[:, :, mine])
    return video[:, :, span.start - tokens.text_first : span.stop - tokens.text_first]


def _with_span(x: Tensor, video: Tensor, span: slice, dim: int) -> Tensor:
    """`x` with its tokens in `span` along `dim` replaced by `video`."""
    before, _, after = x.tensor_split((span.start, span.stop), dim=dim)
    return torch.cat([before, video, after], dim=dim) if video.shape != x.shape else video

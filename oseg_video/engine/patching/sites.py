"""Hooks at one attention site, for as long as a perturbed block runs: other queries, or another output."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from oseg_video.adapters.denoiser import AttentionSite, Layout, VideoTokens
from oseg_video.engine.errors import GuidanceError

_PIECES = 24
"""A change of one of so many takes less than half of the room of all queries."""

QueryChange = Callable[[Tensor, Tensor], Tensor]
"""New video queries from the video queries and their keys."""
Fired = Callable[[str], None]
"""Takes the name of a site at which something took place."""


class ChangedQueries:
    """Changes the video queries of one attention site.

    Every attention processor of diffusers projects query and key, then normalises the query, then rotates
    it. So the key projection's output is noted, and the query is changed where it passes its norm: before
    it ("projected", layout [B, S, C]) or after it ("normalised", [B, N, S, D], the key normalised alike).
    Without a norm the query is changed as it leaves its projection, which costs one more key projection.
    Keys, values and text queries stay as they are. Each change calls `fired` with the site's name; there is
    none where fused projections leave `to_k` uncalled.
    """

    def __init__(self, site: AttentionSite, tokens: VideoTokens, change: QueryChange, fired: Fired) -> None:
        self._site = site
        self._tokens = tokens
        self._change = change
        self._fired = fired
        self._heads: int = site.attention.heads
        self._key_BSC: Tensor | None = None

    def installed(self, where: Literal["normalised", "projected"]) -> "_Hooks":
        """A context in which they are changed."""
        attention, norm = self._site.attention, self._site.norm_q
        if norm is None:
            projected = self._projected_BSC if where == "projected" else self._projected_heads
            return _hooks((attention.to_q, projected))
        if where == "projected":
            return _hooks((attention.to_k, self._note_key), before=(norm, self._before_norm))
        return _hooks((attention.to_k, self._note_key), (norm, self._after_norm))

    def _note_key(self, _: nn.Module, __: Any, key_BSC: Tensor) -> None:
        self._key_BSC = key_BSC

    def _before_norm(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        if self._key_BSC is None:
            return None
        layout = self._site.norm_layout
        query_BSC = _to_heads(args[0], layout, self._heads).transpose(1, 2).flatten(2)
        query_BSC = self._changed(query_BSC, self._key_BSC)
        return (_from_heads(_split_heads(query_BSC, self._heads), layout),)

    def _after_norm(self, _: nn.Module, args: Any, query: Tensor) -> Tensor | None:
        if self._key_BSC is None:
            return None
        layout = self._site.norm_layout
        assert self._site.norm_k is not None
        key = self._site.norm_k(_from_heads(_split_heads(self._key_BSC, self._heads), layout))
        query_BNSD, key_BNSD = (_to_heads(x, layout, self._heads) for x in (query, key))
        return _from_heads(self._changed_heads(query_BNSD, key_BNSD), layout)

    def _projected_BSC(self, _: nn.Module, args: tuple[Tensor, ...], query_BSC: Tensor) -> Tensor:
        return self._changed(query_BSC, self._site.attention.to_k(args[0]))

    def _projected_heads(self, _: nn.Module, args: tuple[Tensor, ...], query_BSC: Tensor) -> Tensor:
        key_BSC = self._site.attention.to_k(args[0])
        query_BNSD, key_BNSD = (_split_heads(x, self._heads) for x in (query_BSC, key_BSC))
        return _from_heads(self._changed_heads(query_BNSD, key_BNSD), "BSC")

    def _changed(self, query_BSC: Tensor, key_BSC: Tensor) -> Tensor:
        changed = in_pieces(self._change, query_BSC, key_BSC, self._tokens.span, tokens=1)
        self._fired(self._site.name)
        return changed

    def _changed_heads(self, query_BNSD: Tensor, key_BNSD: Tensor) -> Tensor:
        changed = _changed_video(self._change, query_BNSD, key_BNSD, self._tokens)
        self._fired(self._site.name)
        return changed


class ReplacedAttention:
    """Replaces what the attention mixes for the video tokens, those of keyframes and references among them.

    `source` is what stands in for it before the output projection, [B, S, C]: the tokens' own values, or the
    input of the attention. Text tokens keep their output. Each change calls `fired` with the site's name;
    there is none where fused projections leave `to_v` uncalled.
    """

    def __init__(
        self,
        site: AttentionSite,
        source: Literal["values", "input"],
        tokens: VideoTokens,
        fired: Fired,
    ) -> None:
        self._site = site
        self._source = source
        self._span = tokens.video_span
        self._fired = fired
        self._heads: int = site.attention.heads
        self._noted_BSC: Tensor | None = None
        self._logits_BSN: Tensor | None = None

    def installed(self) -> "_Hooks":
        """A context in which it is replaced."""
        attention, to_out = self._site.attention, self._site.to_out
        if to_out is None:
            return _hooks((attention.to_v, self._note), (attention, self._after_attention))
        noted: list[tuple[nn.Module, Callable[..., Any]]] = [(attention.to_v, self._note)]
        if self._site.to_gate_logits is not None:
            noted.append((self._site.to_gate_logits, self._note_gates))
        return _hooks(*noted, before=(to_out, self._before_projection))

    def _note(self, _: nn.Module, args: tuple[Tensor, ...], value_BSC: Tensor) -> None:
        self._noted_BSC = value_BSC if self._source == "values" else args[0]

    def _note_gates(self, _: nn.Module, __: Any, logits_BSN: Tensor) -> None:
        self._logits_BSN = logits_BSN

    def _before_projection(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return None if self._noted_BSC is None else (self._replaced(args[0], self._noted_BSC), *args[1:])

    def _after_attention(self, _: nn.Module, __: Any, output: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return None if self._noted_BSC is None else (self._replaced(output[0], self._noted_BSC), *output[1:])

    def _replaced(self, mixed_BSC: Tensor, noted_BSC: Tensor) -> Tensor:
        self._fired(self._site.name)
        if self._logits_BSN is not None:
            gates_BSN1 = (2.0 * torch.sigmoid(self._logits_BSN)).unsqueeze(-1)
            noted_BSC = (noted_BSC.unflatten(2, (self._heads, -1)) * gates_BSN1).flatten(2)
        return _with_span(mixed_BSC, noted_BSC[:, self._span].to(mixed_BSC.dtype), self._span, dim=1)


class CombinedRows:
    """Combines what the attention mixes for the video tokens in the first half of the rows and in the second.

    Both halves hold the same video, each beside a text of its own; both get the result, `combine(first,
    second)` of [B, S, C], before the output projection. Text tokens keep their output. Calls `fired` with the
    site's name.
    """

    def __init__(self, site: AttentionSite, tokens: VideoTokens, combine: QueryChange, fired: Fired) -> None:
        self._site = site
        self._span = tokens.video_span
        self._combine = combine
        self._fired = fired

    def installed(self) -> "_Hooks":
        """A context in which they are combined."""
        if self._site.to_out is None:
            return _hooks((self._site.attention, self._after_attention))
        return _hooks(before=(self._site.to_out, self._before_projection))

    def _before_projection(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return self._combined(args[0]), *args[1:]

    def _after_attention(self, _: nn.Module, __: Any, output: tuple[Any, ...]) -> tuple[Any, ...]:
        return self._combined(output[0]), *output[1:]

    def _combined(self, mixed_BSC: Tensor) -> Tensor:
        self._fired(self._site.name)
        first, second = mixed_BSC[:, self._span].chunk(2)
        combined = in_pieces(self._combine, first, second, slice(0, first.shape[1]), tokens=1)
        return _with_span(mixed_BSC, torch.cat([combined, combined]), self._span, dim=1)


class _Hooks(ExitStack):
    """Hooks that are removed on leaving; inside nothing runs compiled."""


def _hooks(
    *after: tuple[nn.Module, Callable[..., Any]], before: tuple[nn.Module, Callable[..., Any]] | None = None
) -> _Hooks:
    """Hooks after, and one before, the forward of modules, in this thread only."""
    stack = _Hooks()
    handles: list[RemovableHandle] = [
        module.register_forward_hook(in_this_thread(hook)) for module, hook in after
    ]
    if before is not None:
        handles.append(before[0].register_forward_pre_hook(in_this_thread(before[1])))
    for handle in handles:
        stack.callback(handle.remove)
    # Compiled code does not see hooks that were added after its compilation.
    stack.enter_context(eager())
    return stack


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, but in no other thread than this one.

    Another thread may run the same module for a pipeline that is not guided.
    """
    thread = threading.get_ident()

    def hook_of_this_thread(*args: Any) -> Any:
        return hook(*args) if threading.get_ident() == thread else None

    return hook_of_this_thread


_STANCE = threading.Lock()
_eager: list[Any] = []
"""What set the process's stance, once for each that is inside `eager` at the moment."""


@contextmanager
def eager() -> Iterator[None]:
    """Nothing runs compiled, in any thread: torch has one stance for the process.

    The last that leaves restores it: threads leave in another order than they came.
    """
    with _STANCE:
        _eager.append(_eager[0] if _eager else torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        with _STANCE:
            stance = _eager.pop()
            if not _eager:
                stance.__exit__(None, None, None)


def _split_heads(x_BSC: Tensor, heads: int) -> Tensor:
    """[B, S, C] -> [B, N, S, D]."""
    batch, tokens, _ = x_BSC.shape
    return x_BSC.reshape(batch, tokens, heads, -1).transpose(1, 2)


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
    """The queries, those of the clip's tokens changed: [B, N, S, D].

    Where tokens are spread over ranks, each rank changes those of all ranks for some of the heads.
    """
    span, spread = tokens.span, tokens.spread
    if spread is None:
        return in_pieces(change, query_BNSD, key_BNSD, span, tokens=2)
    first = tokens.start - tokens.text_first
    clip = slice(first, first + tokens.grid.tokens)

    def change_whole(query_BMLD: Tensor, key_BMLD: Tensor) -> Tensor:
        return in_pieces(change, query_BMLD, key_BMLD, clip, tokens=2)

    mine = slice(tokens.text_first, tokens.text_first + len(spread.shard))
    video = spread.over_heads(change_whole, query_BNSD[:, :, mine], key_BNSD[:, :, mine])
    video = video[:, :, span.start - tokens.text_first : span.stop - tokens.text_first]
    return _with_span(query_BNSD, video, span, dim=2)


def in_pieces(change: QueryChange, query: Tensor, key: Tensor, span: slice, tokens: int) -> Tensor:
    """The queries, their tokens in `span` along dimension `tokens` changed.

    Heads, [B, N, S, D], are changed a few at a time, as is every batch row and, [B, S, C], every token: a
    change in float32 needs several times the room of what it changes.
    """
    if span.stop > query.shape[tokens]:
        raise GuidanceError(
            f"an attention sees {query.shape[tokens]} tokens, where those of the clip end at {span.stop}; "
            f"what merges tokens, or leaves some out, cannot be used with a perturbation"
        )
    changed = torch.empty_like(query)
    outside = [slice(0, span.start), slice(span.stop, query.shape[tokens])]
    for part in outside:
        changed.narrow(tokens, part.start, part.stop - part.start).copy_(
            query.narrow(tokens, part.start, part.stop - part.start)
        )
    into, query, key = (x.narrow(tokens, span.start, span.stop - span.start) for x in (changed, query, key))
    # Along one dimension, over which no change looks: batch rows, or else heads or tokens.
    dim = 0 if query.shape[0] > query.shape[1] else 1
    size = max(1, query.shape[dim] // _PIECES)
    for piece, *inputs in zip(*(x.split(size, dim) for x in (into, query, key)), strict=True):
        piece.copy_(change(*inputs))
    return changed


def _with_span(x: Tensor, video: Tensor, span: slice, dim: int) -> Tensor:
    """`x` with its tokens in `span` along `dim` replaced by `video`."""
    before, _, after = x.tensor_split((span.start, span.stop), dim=dim)
    return torch.cat([before, video, after], dim=dim) if video.shape != x.shape else video

"""What the gates of perturbed blocks do in place of their blocks: one action for every kind of change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from oseg_video.adapters.base import AttentionSite, ModelAdapter, VideoTokens
from oseg_video.adapters.blocks import BlockAddress
from oseg_video.adapters.denoiser import JointText, TextAttention
from oseg_video.engine.patching.observing import ObservedAttention
from oseg_video.engine.patching.sites import ChangedQueries, CombinedRows, ReplacedAttention
from oseg_video.engine.patching.text import TwoTexts
from oseg_video.engine.sharding import handed_on, named_inputs
from oseg_video.guidance.perturbations import (
    BlurAttended,
    ExtrapolateAttention,
    IsolateStreams,
    ObserveAttention,
    QueryTransform,
    ReplaceAttention,
    SkipBlock,
)
from oseg_video.guidance.plan import Perturbation, Stream
from oseg_video.parallel.sequence import SpreadSequence
from oseg_video.types import Denoiser, TokenGrid


class BlockActions:
    """Makes the actions of one denoiser's blocks."""

    def __init__(
        self,
        adapter: ModelAdapter,
        denoiser: Denoiser,
        resolve: Callable[[Perturbation], list[BlockAddress]],
        beside: Sequence[str],
        fired: Callable[[str], None],
    ) -> None:
        """resolve: the blocks of a perturbation. beside: paths of the modules beside them.

        fired: is told the name of a block, or of a site in it, when it is changed.
        """
        self._adapter = adapter
        self._denoiser = denoiser
        self._resolve = resolve
        self._beside = beside
        self._fired = fired

    def of(
        self,
        perturbation: Perturbation,
        arguments: Mapping[str, Any],
        spread: SpreadSequence | None,
        negative: Mapping[str, Any] | None,
    ) -> dict[str, Callable[..., Any]]:
        """What is called with each perturbed block and its inputs, in place of the block, by its path.

        arguments: of the denoiser's call. spread: how ranks share its tokens. negative: the arguments of the
        rows with the negative text, for a change that looks at it.
        """
        change = perturbation.change
        assert not isinstance(change, BlurAttended)
        addresses = self._resolve(perturbation)
        streams = perturbed_streams(self._adapter, perturbation)
        if isinstance(change, SkipBlock):
            return {address.path: partial(self._skip_block, address, streams) for address in addresses}
        texts = self._adapter.text_attention
        if isinstance(change, ExtrapolateAttention) and not isinstance(texts, JointText):
            assert negative is not None
            tokens_of = [(one, negative[one.text].shape[1]) for one in texts]
            act = partial(self._attend_to_both, change, tokens_of)
            return {path: partial(act, path) for path in (*self._beside, *(one.path for one in addresses))}
        if isinstance(change, IsolateStreams):
            return {address.path: partial(self._isolate, address) for address in addresses}
        # All sites of one stage and kind see the same tokens.
        tokens: dict[str, dict[Stream, VideoTokens]] = {}
        for address in addresses:
            if address.group not in tokens:
                found = {
                    one: self._adapter.tokens(self._denoiser, arguments, address, one) for one in streams
                }
                tokens[address.group] = {
                    one: replace(those, spread=spread) if one == "video" else those
                    for one, those in found.items()
                }
        if isinstance(change, ExtrapolateAttention):
            rows = partial(self._attend_in_rows, change)
            return {one.path: partial(rows, tokens[one.group], one) for one in addresses}
        return {
            address.path: partial(self._change_attention, change, tokens[address.group], address)
            for address in addresses
        }

    def _skip_block(
        self,
        address: BlockAddress,
        streams: tuple[Stream, ...],
        block: nn.Module,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The block's inputs for its outputs, of these streams."""
        self._fired(address.path)
        outputs = handed_on(self._adapter.block_outputs, args, kwargs)
        if streams != self._adapter.streams:
            # Then each output is a stream.
            ran = zip(self._adapter.streams, outputs, block(*args, **kwargs), strict=True)
            return tuple(skipped if one in streams else made for one, skipped, made in ran)
        return outputs

    def _isolate(self, address: BlockAddress, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The block without attention from one stream to the other."""
        assert self._adapter.audio is not None  # checked before
        self._fired(address.path)
        return block(**{**named_inputs(block, args, kwargs), **self._adapter.audio.isolated})

    def _attend_to_both(
        self,
        change: ExtrapolateAttention,
        texts: Sequence[tuple[TextAttention, int]],
        path: str,
        block: nn.Module,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The block; its cross-attention attends to its own text and the negative one behind that apart.

        texts: the cross-attentions, and how many tokens each one's negative text has.
        """
        with ExitStack() as stack:
            for one, tokens in texts:
                name, attention = f"{path}.{one.attribute}", getattr(block, one.attribute)
                both = TwoTexts(name, attention, tokens, change, self._fired)
                stack.enter_context(both.installed())
            return block(*args, **kwargs)

    def _attend_in_rows(
        self,
        change: ExtrapolateAttention,
        tokens: Mapping[Stream, VideoTokens],
        address: BlockAddress,
        block: nn.Module,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The block with each text in a row of its own, and the same video in both."""
        texts = self._adapter.text_attention
        assert isinstance(texts, JointText)
        if texts.of_text:
            args, kwargs = (), texts.of_first(named_inputs(block, args, kwargs))
        return self._change_attention(change, tokens, address, block, *args, **kwargs)

    def _change_attention(
        self,
        change: QueryTransform | ReplaceAttention | ObserveAttention | ExtrapolateAttention,
        tokens: Mapping[Stream, VideoTokens],
        address: BlockAddress,
        block: nn.Module,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        with ExitStack() as hooks:
            for stream, those in tokens.items():
                site = self._adapter.stream_site(block, address, stream)
                hooks.enter_context(self._changed_site(change, site, those, address))
            return block(*args, **kwargs)

    def _changed_site(
        self,
        change: QueryTransform | ReplaceAttention | ObserveAttention | ExtrapolateAttention,
        site: AttentionSite,
        tokens: VideoTokens,
        address: BlockAddress,
    ) -> AbstractContextManager[Any]:
        if isinstance(change, ReplaceAttention):
            return ReplacedAttention(site, change.source, tokens, self._fired).installed()
        if isinstance(change, ExtrapolateAttention):
            return CombinedRows(site, tokens, change, self._fired).installed()
        if isinstance(change, ObserveAttention):
            see = partial(change.see, address.index)
            return ObservedAttention(site, tokens, change.transforms, see, self._fired).installed()
        apply = partial(_apply, change, tokens.grid)
        return ChangedQueries(site, tokens, apply, self._fired).installed(change.site)


def perturbed_streams(adapter: ModelAdapter, perturbation: Perturbation) -> tuple[Stream, ...]:
    """The model's streams that are perturbed."""
    return tuple(one for one in adapter.streams if one in perturbation.streams)


def _apply(transform: QueryTransform, grid: TokenGrid, query: Tensor, key: Tensor) -> Tensor:
    return transform(query, key, grid)

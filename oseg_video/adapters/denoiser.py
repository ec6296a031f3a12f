"""What a family's denoiser is made of: attention sites, video tokens, rows, padded text, inputs per token."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from oseg_video.adapters.blocks import BlockAddress
from oseg_video.guidance.streams import JoinedStreams
from oseg_video.parallel.shards import Shard, with_size
from oseg_video.types import Denoiser, TokenGrid
from oseg_video.waits import read_once

if TYPE_CHECKING:
    from torch import Tensor, nn

    from oseg_video.parallel.sequence import SpreadSequence

Layout = Literal["BSC", "BSND", "BNSD"]
BlockInputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword inputs of one block."""


@dataclass(frozen=True)
class VideoTokens:
    """Where the video tokens stand in the sequence that one self-attention sees."""

    grid: TokenGrid
    """Token grid of the clip, frame-major."""
    start: int = 0
    """Index of the clip's first token; queries outside [start, start + grid.tokens) are never changed."""
    text_first: int = 0
    """How many of the tokens before `start` are text; the others are video that is no part of the clip."""
    behind: int = 0
    """Number of video tokens behind the clip's that are no part of it."""
    spread: SpreadSequence | None = None
    """How the video tokens are spread over ranks, if they are."""

    @property
    def video(self) -> int:
        """Number of video tokens: the clip's, and those before and behind it."""
        return self.start - self.text_first + self.grid.tokens + self.behind

    @property
    def video_span(self) -> slice:
        """All video tokens along the sequence dimension, of those that this rank has."""
        count = self.video if self.spread is None else len(self.spread.shard)
        return slice(self.text_first, self.text_first + count)

    @property
    def span(self) -> slice:
        """The clip's tokens along the sequence dimension, of those that this rank has."""
        first = self.start - self.text_first
        stop = first + self.grid.tokens
        if self.spread is not None:
            first, stop = self.spread.shard.local(first), self.spread.shard.local(stop)
        return slice(self.text_first + first, self.text_first + stop)


@dataclass(frozen=True)
class AttentionSite:
    """One self-attention whose video tokens can be perturbed."""

    name: str
    """Full name of the attention module inside the denoiser."""
    attention: Any
    """The module: `to_q`, `to_k`, `to_v` take and return [B, S, C], C = heads * head dim; `norm_q` and
    `norm_k` may be None; without `to_out` its result is the mixed values themselves, video first."""
    norm_layout: Layout
    """Layout of what `norm_q` and `norm_k` take and return."""

    @property
    def norm_q(self) -> nn.Module | None:
        """Query normalisation: the last module that a query passes before it is rotated, if there is one."""
        return getattr(self.attention, "norm_q", None)

    @property
    def norm_k(self) -> nn.Module | None:
        """Key normalisation."""
        return getattr(self.attention, "norm_k", None)

    @property
    def to_gate_logits(self) -> nn.Module | None:
        """What gates each head before the output projection, by `2 sigmoid(logits)`, if anything."""
        return getattr(self.attention, "to_gate_logits", None)

    @property
    def to_out(self) -> nn.Module | None:
        """Output projection of the video tokens, if it is in the attention module."""
        to_out = getattr(self.attention, "to_out", None)
        return None if to_out is None else to_out[0]


@dataclass(frozen=True)
class Attention:
    """Where a block has its spatio-temporal self-attention. Called with a block and its address: the site."""

    attribute: str
    """Attribute of the block that holds it."""
    norm_layout: Layout
    """Layout of what the query and key norms take and return."""

    def __call__(self, block: nn.Module, address: BlockAddress) -> AttentionSite:
        name = f"{address.path}.{self.attribute}"
        return AttentionSite(name, getattr(block, self.attribute), self.norm_layout)


@dataclass(frozen=True)
class TextAttention:
    """Cross-attention of every block to a text that no block hands on changed.

    Denoiser and block change a text token by token, so that a second text may be given behind the first one.
    """

    attribute: str = "attn2"
    """Attribute of a block that holds it: `to_k` and `to_v` take the text [B, T, C]."""
    mask: str | None = None
    """Argument of the denoiser [B, T] that masks padding, if there is one."""
    text: str = "encoder_hidden_states"
    """Argument of the denoiser, [B, T, C]."""

    def joined(self, arguments: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a denoiser call with the text of others behind its own."""
        import torch

        names = [name for name in (self.text, self.mask) if name and arguments.get(name) is not None]
        return {**arguments, **{name: torch.cat([arguments[name], others[name]], 1) for name in names}}


@dataclass(frozen=True)
class JointText:
    """Text in a stream of its own, which every block changes, beside a video that attends to both at once.

    A second text takes a row of its own through all blocks, with the same video in it.
    """

    texts: tuple[str, ...] = ("encoder_hidden_states",)
    """Arguments of the denoiser that hold nothing but text and its masks, [B, T, ...]."""
    of_text: tuple[str, ...] = ()
    """Inputs of a block, batch first, that the denoiser makes of the text and that change the video, too."""

    def joined(
        self, call: DenoiserCall, arguments: Mapping[str, Any], others: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The arguments of a denoiser call with all rows twice, the second time with the texts of others.

        They are the same in all steps of a sampling run, and put together in the first one.
        """
        mine, theirs = ([one[name] for name in self.texts] for one in (arguments, others))
        both = read_once(self, [*mine, *theirs], lambda: list(map(_one_below_the_other, mine, theirs)))
        return {**call.twice(arguments), **dict(zip(self.texts, both, strict=True))}

    def of_first(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """A block's inputs by name, in both halves of the rows what the first text made of the video."""
        import torch

        return {**inputs, **{name: torch.cat([inputs[name].chunk(2)[0]] * 2) for name in self.of_text}}


@dataclass(frozen=True)
class AudioStream:
    """A second sequence of tokens in a denoiser, beside the video's: its sound, along time alone."""

    site: Attention
    """Its self-attention in a block."""
    isolated: Mapping[str, Any]
    """Inputs of a block with which neither stream attends to the other."""
    reads_video: str
    """Attribute of a block: the attention from its tokens to the video's."""


@dataclass(frozen=True)
class DenoiserCall:
    """What the denoiser takes and returns."""

    rows: tuple[str, ...]
    """Arguments whose first dimension is the batch: tensors, or dicts and lists of such. One may have several
    entries for each row of the sample, row by row."""
    sample: str = "hidden_states"
    """The argument that holds the noisy latents, batch first."""
    audio_sample: str | None = None
    """The argument that holds those of a sound, [B, S, C], which is predicted beside the video."""
    channel_dim: int = 1
    """Dimension of the channels in sample and prediction."""
    output: str = "diffusers.models.modeling_outputs.Transformer2DModelOutput"
    """Full name of the class that holds the prediction (`return_dict=True`)."""

    def take_rows(self, arguments: Mapping[str, Any], rows: slice) -> dict[str, Any]:
        """The arguments of a denoiser call for some rows of its batch."""
        count = len(arguments[self.sample])
        return {
            name: take_rows(value, rows, count) if name in self.rows else value
            for name, value in arguments.items()
        }

    def twice(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a denoiser call with all rows of its batch, and then all of them again."""
        import torch

        count = len(arguments[self.sample])

        def again(x: Tensor) -> Tensor:
            return torch.cat([x, x]) if x.shape[0] >= count else x

        return {
            name: _map_tensors(again, value) if name in self.rows else value
            for name, value in arguments.items()
        }

    def samples(self, denoiser: Denoiser, arguments: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The noisy latents of each stream that the denoiser predicts, without channels of an image."""
        sample = arguments[self.sample]
        shape = self.prediction_shape(denoiser, sample)
        video = sample[tuple(slice(size) for size in shape)]
        return (video,) if self.audio_sample is None else (video, arguments[self.audio_sample])

    def joined(self, samples: Sequence[Tensor]) -> JoinedStreams:
        """How predictions for these latents lie in one tensor."""
        return JoinedStreams(tuple(tuple(one.shape[1:]) for one in samples))

    def prediction(self, output: Sequence[Tensor]) -> Tensor:
        """The prediction of all streams in what the denoiser returns (`return_dict=False`)."""
        streams = output[: 1 if self.audio_sample is None else 2]
        return self.joined(streams).join(streams)

    def prediction_shape(self, denoiser: Denoiser, sample: Tensor) -> tuple[int, ...]:
        """Shape of the denoiser's prediction of the video."""
        config = denoiser.config
        return with_size(sample.shape, self.channel_dim, config.out_channels or config.in_channels)

    def wrap_output(self, predictions: Sequence[Tensor]) -> Any:
        """The denoiser's output object (`return_dict=True`) around the predictions of its streams."""
        module, _, name = self.output.rpartition(".")
        named = dict(zip(("sample", "audio_sample"), predictions, strict=False))
        return getattr(importlib.import_module(module), name)(**named)


@dataclass(frozen=True)
class TextCut:
    """What a pass does without, of text that comes padded."""

    kept: Mapping[str, slice | Tensor] = field(default_factory=dict)
    """Argument of the denoiser -> index of the tokens that stay, along dimension 1."""
    mask: int | str | None = None
    """Place or name of a mask among a block's inputs that gives way to `lengths`; None if blocks keep it."""
    lengths: tuple[int, ...] | None = None
    """Number of valid tokens in each row, for blocks that take it; None stands for no mask at all."""

    def arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the denoiser with the tokens that stay."""
        return {
            name: value[:, self.kept[name]] if name in self.kept else value
            for name, value in arguments.items()
        }

    def inputs(self, inputs: BlockInputs) -> BlockInputs:
        """A block's inputs, its mask as it takes it."""
        args, kwargs = inputs
        if self.mask is None:
            return inputs
        if isinstance(self.mask, str):
            return args, {**kwargs, self.mask: self.lengths}
        return (*args[: self.mask], self.lengths, *args[self.mask + 1 :]), kwargs


@dataclass(frozen=True)
class PaddedText:
    """Text that comes padded with its mask, and what blocks do without the padding.

    Cutting it is exact: padding is masked out wherever tokens mix.
    """

    texts: tuple[tuple[str, str], ...] = ()
    """Arguments of the denoiser's forward: a padded text [B, T, C], and its mask [B, T], nonzero where a
    token is valid."""
    mask: int | str | None = None
    """Place or name of the attention mask among a block's inputs, in families that also go without."""
    takes_lengths: bool = False
    """Whether the number of valid tokens in each row takes its place, where they come before all padding."""
    holes_kept: bool = True
    """Whether padding between valid tokens stays, so that only what follows the last valid one is cut.

    Mochi's attention gives its results to the first text tokens, as many as are valid, and HunyuanVideo's
    takes its keys from as many, so dropping one before them would move the others."""
    absent_if_zero: str | None = None
    """Argument [B, T, C] of which nothing is left where all of it is zero."""

    def cut(self, arguments: Mapping[str, Any]) -> TextCut:
        """What is left out of the arguments: tokens that are padding in every row, and masks of nothing.

        The masks of a sampling run are the same in all of its steps, and read in the first one.
        """
        read = [mask for _, mask in self.texts] + [name for name in (self.absent_if_zero,) if name]
        return read_once(self, [arguments[name] for name in read], partial(self._cut, arguments))

    def _cut(self, arguments: Mapping[str, Any]) -> TextCut:
        kept: dict[str, slice | Tensor] = {}
        padded = not self.texts
        lengths: tuple[int, ...] | None = None
        for text, mask in self.texts:
            rows = _valid_tokens(arguments[mask])
            index = self._kept(rows)
            padded = padded or not all(row[token] for row in rows for token in index)
            lengths = tuple(map(sum, rows))
            holes = any(not all(row[:length]) for row, length in zip(rows, lengths, strict=True))
            if len(index) < len(rows[0]):
                kept |= dict.fromkeys((text, mask), self._as_index(index, arguments[mask]))
        if self.absent_if_zero is not None:
            rest_BTC = arguments[self.absent_if_zero]
            if not rest_BTC.is_meta and not rest_BTC.any():
                kept[self.absent_if_zero] = slice(0)
        if self.takes_lengths:
            return TextCut(kept) if holes else TextCut(kept, self.mask, lengths)
        return TextCut(kept) if padded else TextCut(kept, self.mask)

    def _kept(self, rows: list[list[bool]]) -> list[int]:
        """The text tokens to keep; with holes at least one."""
        valid = [token for token, column in enumerate(zip(*rows, strict=True)) if any(column)]
        return list(range(valid[-1] + 1 if valid else 1)) if self.holes_kept else valid

    def _as_index(self, tokens: list[int], like: Tensor) -> slice | Tensor:
        import torch

        return (
            slice(len(tokens))
            if self.holes_kept
            else torch.tensor(tokens, dtype=torch.long, device=like.device)
        )


NOTHING_CUT = TextCut()


@dataclass(frozen=True)
class TokenInputs:
    """Inputs of a block with an entry per video token, beside its hidden states."""

    dims: Mapping[str, int]
    """Name -> dimension of the tokens, in a tensor or in each of several."""
    further: Callable[[Mapping[str, Any], Shard], dict[str, Any]] | None = None
    """Inputs that ask for more than their dimension: from all inputs by name, new values of some."""

    def take(self, inputs: dict[str, Any], shard: Shard) -> dict[str, Any]:
        """A block's inputs by name, beside its hidden states, for some of the video tokens."""
        taken = {
            name: _map_tensors(partial(shard.take, dim=dim), inputs[name])
            for name, dim in self.dims.items()
            if name in inputs
        }
        return inputs | taken | (self.further(inputs, shard) if self.further else {})


def take_rows(value: Any, rows: slice, count: int) -> Any:
    """Some of `count` rows of a tensor, or of all tensors in tuples, lists and dicts.

    A tensor may hold several entries per row (frames folded into the batch), row by row. One that has fewer
    entries than rows is the same for all of them, as HunyuanVideo's pooled text of one negative prompt is.
    """

    def take(x: Tensor) -> Tensor:
        share = x.shape[0] // count
        return x[rows.start * share : rows.stop * share] if share else x

    return _map_tensors(take, value)


def _one_below_the_other(first_BT: Tensor, second_BT: Tensor) -> Tensor:
    """Rows [B, T, ...] and as many others, or one for all; zeros behind the tokens of what is shorter."""
    import torch

    both = first_BT, second_BT.to(first_BT.dtype).expand(len(first_BT), *second_BT.shape[1:])
    tokens = max(one.shape[1] for one in both)
    padding = [one.new_zeros(len(one), tokens - one.shape[1], *one.shape[2:]) for one in both]
    return torch.cat([torch.cat(pair, dim=1) for pair in zip(both, padding, strict=True)])


def _valid_tokens(mask_BT: Tensor) -> list[list[bool]]:
    """Which tokens of each row are valid; all of them where the mask has no values."""
    if mask_BT.is_meta:
        return [[True] * mask_BT.shape[1]] * len(mask_BT)
    valid: list[list[bool]] = mask_BT.ne(0).tolist()
    return valid


def random_like(denoiser: Denoiser, *shape: int) -> Tensor:
    """Standard normal values with the dtype and device of a denoiser's inputs."""
    import torch

    return torch.randn(*shape, dtype=denoiser.dtype, device=denoiser.device)


def _map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    from torch import Tensor

    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: _map_tensors(change, item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_map_tensors(change, item) for item in value)
    return value

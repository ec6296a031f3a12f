"""What an adapter tells about its model family, and the registry of adapters.

An adapter is the only place that knows a family's classes, blocks, attention sites and token order.
It knows no guidance method. A new family is one file with one class under `@register_adapter`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from oseg_video.adapters.blocks import BlockAddress, UnknownBlockError
from oseg_video.adapters.settings import ClipSize, FamilySettings
from oseg_video.parallel.shards import Shard, with_size
from oseg_video.types import OsegVideoError, TokenGrid

if TYPE_CHECKING:
    from torch import Tensor, nn

    from oseg_video.parallel.sequence import SpreadSequence

Condition = Literal["uncond", "cond"]
Layout = Literal["BSC", "BSND", "BNSD"]


class UnsupportedPipelineError(OsegVideoError):
    """No adapter serves this pipeline class, or not as it is configured."""


@dataclass(frozen=True)
class VideoTokens:
    """Where the video tokens stand in the sequence that one self-attention sees."""

    grid: TokenGrid
    """Token grid of the clip, frame-major."""
    start: int = 0
    """Index of the clip's first token; tokens outside [start, start + grid.tokens) are never changed."""
    text_first: int = 0
    """How many of the tokens before `start` are text; the others are video that is no part of the clip."""
    spread: SpreadSequence | None = None
    """How the video tokens are spread over ranks, if they are."""

    @property
    def video(self) -> int:
        """Number of video tokens: the clip's, and those before it."""
        return self.start - self.text_first + self.grid.tokens

    @property
    def span(self) -> slice:
        """The clip's tokens along the sequence dimension, of those that this rank has."""
        first, stop = self.start - self.text_first, self.video
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
    def to_out(self) -> nn.Module | None:
        """Output projection of the video tokens, if it is in the attention module."""
        to_out = getattr(self.attention, "to_out", None)
        return None if to_out is None else to_out[0]


class ModelAdapter(FamilySettings, ABC):
    """One model family. Subclasses are stateless: they describe, they hold no tensors."""

    denoiser_class: ClassVar[str]
    """diffusers class of the denoiser."""
    full_size: ClassVar[Mapping[str, Any]] = {}
    """Configuration of the denoiser in `hub_repository`, as far as it differs from the class's defaults."""
    denoiser_attributes: ClassVar[tuple[str, ...]] = ("transformer",)
    """Attributes of the pipeline that hold the denoisers; one that is None is left out."""
    stacks: ClassVar[Mapping[str, str]] = {"blocks": "transformer_blocks"}
    """Block stacks in order of execution: stage name -> `nn.ModuleList`; named, never guessed."""
    attention_attribute: ClassVar[str] = "attn1"
    """Attribute of a block that holds its spatio-temporal self-attention."""
    norm_layout: ClassVar[Layout]
    """Layout of what the query and key norms take and return."""
    sample_argument: ClassVar[str] = "hidden_states"
    """Argument of the denoiser's forward that holds the noisy latents, batch first."""
    batched_arguments: ClassVar[tuple[str, ...]]
    """Arguments of the denoiser's forward whose first dimension is the batch (tensors, or dicts of such)."""
    unconditional_hint: ClassVar[str] = "give it a guidance_scale above 1"
    """How to call the pipeline so that it runs an unconditional branch, for error messages."""
    latents_take_prediction_dtype: ClassVar[bool] = False
    """Whether the pipeline feeds its latents back without casting them to the denoiser's dtype; guided
    predictions are then handed to it in the dtype of plain ones, not in float32."""
    sequence_parallel: ClassVar[bool] = True
    """Whether one sequence of video tokens runs through all blocks, so that ranks can share it."""
    token_arguments: ClassVar[Mapping[str, int]] = {}
    """Inputs of a block with an entry per video token, beside its hidden states: name -> their dimension."""
    channel_dim: ClassVar[int] = 1
    """Dimension of the channels in the denoiser's sample and prediction."""
    chained: ClassVar[bool] = True
    """Whether the replay units are a chain, each one's output being all that the next one takes."""

    # -- the pipeline

    def denoisers(self, pipe: Any) -> list[nn.Module]:
        """The pipeline's denoisers, in order of use; all have the same blocks."""
        found = (getattr(pipe, name, None) for name in self.denoiser_attributes)
        return [denoiser for denoiser in found if denoiser is not None]

    def denoiser(self, pipe: Any) -> nn.Module:
        """The pipeline's first denoiser."""
        return self.denoisers(pipe)[0]

    def refusal(self, pipe: Any) -> str | None:
        """Why a pipeline of a supported class cannot be guided as it is configured, if so."""
        return None

    def calls(self, pipe: Any, call: Mapping[str, Any]) -> tuple[tuple[Condition, ...], ...]:
        """The denoiser calls of one step, each with the conditions in its rows, in equal shares of the batch.

        `call` holds the arguments of the pipeline call in progress, defaults included.
        """
        return (("uncond", "cond"),) if pipe.do_classifier_free_guidance else (("cond",),)

    def pipeline_scale(self, pipe: Any, call: Mapping[str, Any], denoiser: nn.Module) -> float | Tensor:
        """The scale w of the pipeline's own `u + w (c - u)`; asked only when it runs an `uncond`."""
        return pipe.guidance_scale

    def pipeline_rescale(self, pipe: Any, call: Mapping[str, Any]) -> float:
        """The pipeline's own rescaling of the guided prediction; 0 is off."""
        return getattr(pipe, "guidance_rescale", 0.0)

    # -- the denoiser's blocks

    def blocks(self, denoiser: nn.Module) -> list[BlockAddress]:
        """Every block of the denoiser, in order of execution."""
        places = [
            (stage, stack, position)
            for stage, stack in self.stacks.items()
            for position in range(len(getattr(denoiser, stack)))
        ]
        return [
            BlockAddress(index, f"{stack}.{position}", stage, position, unit=index)
            for index, (stage, stack, position) in enumerate(places)
        ]

    def units(self, denoiser: nn.Module) -> list[str]:
        """Names of the modules that a perturbed pass can replay instead of running, in order of execution."""
        return [block.path for block in self.blocks(denoiser)]

    def resolve_blocks(self, denoiser: nn.Module, selectors: Sequence[int | str]) -> list[BlockAddress]:
        """The blocks that selectors name, in order of execution. Raises `UnknownBlockError`.

        A selector is a running index, or parts joined by ":", all of which must hold: a stage ("dual",
        "up.1"; "up" stands for every "up.N"), a kind ("spatial"), a position in its stage and kind ("2").
        """
        blocks = self.blocks(denoiser)
        chosen: dict[int, BlockAddress] = {}
        for selector in selectors:
            matching = [block for block in blocks if block.matches(selector)]
            if not matching:
                raise UnknownBlockError(self._unknown_block(selector, blocks))
            chosen |= {block.index: block for block in matching}
        return [chosen[index] for index in sorted(chosen)]

    def _unknown_block(self, selector: int | str, blocks: Sequence[BlockAddress]) -> str:
        known = f"this {self.family} model has {len(blocks)} blocks, 0 to {len(blocks) - 1}"
        counts = Counter(block.group for block in blocks)
        if len(counts) > 1 or isinstance(selector, str):
            known += " (" + ", ".join(f"{key}:0 to {count - 1}" for key, count in counts.items()) + ")"
        return f"no block {selector}: {known}"

    def compile_blocks(self, denoiser: nn.Module, **options: Any) -> None:
        """Compile every block in place (`torch.compile`), as diffusers' regional compilation does."""
        for address in self.blocks(denoiser):
            denoiser.get_submodule(address.path).compile(**options)

    def site(self, block: Any, address: BlockAddress) -> AttentionSite:
        """The spatio-temporal self-attention of a block."""
        name = f"{address.path}.{self.attention_attribute}"
        return AttentionSite(name, getattr(block, self.attention_attribute), self.norm_layout)

    def skip_block(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What a block returns when its hidden states pass through unchanged; takes the block's inputs."""
        return hidden_states

    # -- the denoiser's calls

    @abstractmethod
    def video_tokens(self, denoiser: Any, arguments: Mapping[str, Any], address: BlockAddress) -> VideoTokens:
        """The clip's tokens at a block's attention, from the arguments of a denoiser call."""

    def take_rows(self, arguments: Mapping[str, Any], rows: slice) -> dict[str, Any]:
        """The arguments of a denoiser call for some rows of its batch."""
        return {
            name: _map_tensors(lambda x: x[rows], value) if name in self.batched_arguments else value
            for name, value in arguments.items()
        }

    def trim_text(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """The arguments without text tokens that are padding in every row, and whether no padding is left.

        Exact: padding is masked out wherever tokens mix. Families without padded joint attention keep this.
        """
        return arguments, False

    def without_mask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """A block's inputs with no attention mask; asked only when `trim_text` says that none is needed."""
        return args, kwargs

    def shard_inputs(self, inputs: dict[str, Any], shard: Shard) -> dict[str, Any]:
        """A block's inputs by name, beside its hidden states, for some of the video tokens."""
        taken = {
            name: _map_tensors(partial(shard.take, dim=dim), inputs[name])
            for name, dim in self.token_arguments.items()
            if name in inputs
        }
        return inputs | taken

    def prediction_shape(self, denoiser: Any, sample: Tensor) -> tuple[int, ...]:
        """Shape of the denoiser's prediction."""
        config = denoiser.config
        return with_size(sample.shape, self.channel_dim, config.out_channels or config.in_channels)

    def prepared(self, denoiser: nn.Module) -> AbstractContextManager[None]:
        """Open around every pass of a denoiser whose blocks are perturbed: what else has to change on it."""
        return nullcontext()

    def take_output_rows(self, output: Any, rows: slice, count: int) -> Any:
        """Some rows of a unit's output in a pass over `count` rows.

        A tensor may hold several entries per row (frames folded into the batch), row by row.
        """

        def take(x: Tensor) -> Tensor:
            share = x.shape[0] // count
            return x[rows.start * share : rows.stop * share]

        return _map_tensors(take, output)

    @abstractmethod
    def example_arguments(self, denoiser: Any, clip: ClipSize, rows: int) -> dict[str, Any]:
        """Arguments of a denoiser call as the pipeline makes them, of random values, `rows` in the batch.

        Text has the pipeline's full padded length, all of it valid.
        """

    def wrap_output(self, prediction: Tensor) -> Any:
        """The denoiser's output object (`return_dict=True`) around a prediction."""
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=prediction)


def random_like(denoiser: nn.Module, *shape: int) -> Tensor:
    """Standard normal values with the dtype and device of a denoiser's weights."""
    import torch

    weight = next(denoiser.parameters())
    return torch.randn(*shape, dtype=weight.dtype, device=weight.device)


def _map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    from torch import Tensor

    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: _map_tensors(change, item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_map_tensors(change, item) for item in value)
    return value


_ADAPTERS: dict[str, ModelAdapter] = {}


def register_adapter(adapter_class: type[ModelAdapter]) -> type[ModelAdapter]:
    """Class decorator: make a family known under the names of its pipeline classes."""
    adapter = adapter_class()
    for pipeline in adapter.pipelines:
        if pipeline in _ADAPTERS:
            raise ValueError(f"{pipeline} is already served by {type(_ADAPTERS[pipeline]).__name__}")
        _ADAPTERS[pipeline] = adapter
    return adapter_class


def all_adapters() -> Iterator[ModelAdapter]:
    """Every registered adapter once, in order of registration."""
    yield from dict.fromkeys(_ADAPTERS.values())


def adapter_for_class(pipeline_class: str) -> ModelAdapter:
    """The adapter of a pipeline class name. Raises `UnsupportedPipelineError` with the supported ones."""
    try:
        return _ADAPTERS[pipeline_class]
    except KeyError:
        raise UnsupportedPipelineError(
            f"no adapter for {pipeline_class!r}; supported pipelines: {', '.join(sorted(_ADAPTERS))}"
        ) from None


def adapter_for(pipe: Any) -> ModelAdapter:
    """The adapter of a pipeline object. Raises `UnsupportedPipelineError` with the supported ones."""
    return adapter_for_class(type(pipe).__name__)

"""What an adapter tells about its model family, and the registry of adapters.

An adapter is the only place that knows a family's classes, block stacks, attention sites and token order.
It knows no guidance method. A new family is one file with one class under `@register_adapter`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from oseg_video.types import OsegVideoError, TokenGrid


class UnsupportedPipelineError(OsegVideoError):
    """No adapter serves this pipeline class."""


@dataclass(frozen=True)
class VideoTokens:
    """Where the video tokens stand in the sequence that a denoiser's self-attention sees."""

    grid: TokenGrid
    """Token grid of the clip, frame-major."""
    start: int = 0
    """Index of the clip's first token; tokens outside [start, start + grid.tokens) are never changed."""

    @property
    def span(self) -> slice:
        """The clip's tokens along the sequence dimension."""
        return slice(self.start, self.start + self.grid.tokens)


@dataclass(frozen=True)
class AttentionSite:
    """One self-attention whose video queries can be changed between QK-norm and rotary embedding."""

    name: str
    """Full name of the attention module inside the denoiser."""
    to_k: nn.Module
    """Key projection; its output is [B, S, C]."""
    norm_q: nn.Module
    """Query normalisation: the last module that a query passes before it is rotated."""
    norm_k: nn.Module
    """Key normalisation."""
    heads: int
    """Number of attention heads N; C = N * D."""
    norm_layout: Literal["BSC", "BSND"]
    """Layout of what `norm_q` and `norm_k` take and return."""


@dataclass(frozen=True)
class BlockAddress:
    """One transformer block by its place in the denoiser."""

    index: int
    """Running index over all stacks, in order of execution."""
    stack: str
    """Attribute of the denoiser that holds the block's `nn.ModuleList`."""
    position: int
    """Index inside the stack."""

    @property
    def name(self) -> str:
        """Full name of the block inside the denoiser."""
        return f"{self.stack}.{self.position}"


class ModelAdapter(ABC):
    """One model family. Subclasses are stateless: they describe, they hold no tensors."""

    family: ClassVar[str]
    """Name on the command line."""
    text_to_video: ClassVar[str]
    """diffusers pipeline class for text to video."""
    image_to_video: ClassVar[str | None] = None
    """diffusers pipeline class for image to video, if the family has one."""
    other_pipelines: ClassVar[tuple[str, ...]] = ()
    """Further pipeline classes of the family that `guided` accepts."""
    hub_repository: ClassVar[str]
    """Hub repository that the family name stands for."""
    size_multiple: ClassVar[int]
    """Height and width must be multiples of this many pixels."""
    frame_multiple: ClassVar[int]
    """The frame count must be a multiple of this, plus 1."""
    minimum_steps: ClassVar[int] = 1
    """Fewest sampling steps that the pipelines take."""
    denoiser_attribute: ClassVar[str] = "transformer"
    """Attribute of the pipeline that holds the denoiser."""
    stacks: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    """Block stacks in order of execution; named, never guessed."""
    attention_attribute: ClassVar[str] = "attn1"
    """Attribute of a block that holds its spatio-temporal self-attention."""
    norm_layout: ClassVar[Literal["BSC", "BSND"]]
    """Layout of what the query and key norms take and return."""
    batched_arguments: ClassVar[tuple[str, ...]]
    """Arguments of the denoiser's forward whose first dimension is the batch."""

    @property
    def pipelines(self) -> tuple[str, ...]:
        """All pipeline classes that the adapter serves."""
        return tuple(filter(None, (self.text_to_video, self.image_to_video, *self.other_pipelines)))

    def denoiser(self, pipe: Any) -> nn.Module:
        """The pipeline's denoiser."""
        return getattr(pipe, self.denoiser_attribute)

    def blocks(self, denoiser: nn.Module) -> list[BlockAddress]:
        """Every block of the denoiser, in order of execution."""
        places = [(stack, i) for stack in self.stacks for i in range(len(getattr(denoiser, stack)))]
        return [BlockAddress(index, stack, position) for index, (stack, position) in enumerate(places)]

    def count_blocks(self, denoiser: nn.Module) -> int:
        """Number of blocks of the denoiser, over all stacks."""
        return len(self.blocks(denoiser))

    def compile_blocks(self, denoiser: nn.Module, **options: Any) -> None:
        """Compile every block in place (`torch.compile`), as diffusers' regional compilation does."""
        for address in self.blocks(denoiser):
            getattr(denoiser, address.stack)[address.position].compile(**options)

    def conditions(self, pipe: Any) -> tuple[Literal["uncond", "cond"], ...]:
        """The conditions in the rows of a denoiser call, in order, in equal shares of the batch."""
        return ("uncond", "cond") if pipe.do_classifier_free_guidance else ("cond",)

    def take_rows(self, arguments: Mapping[str, Any], rows: slice) -> dict[str, Any]:
        """The arguments of a denoiser call for some rows of its batch."""
        return {
            name: value[rows] if name in self.batched_arguments and isinstance(value, Tensor) else value
            for name, value in arguments.items()
        }

    @abstractmethod
    def video_tokens(self, denoiser: Any, arguments: Mapping[str, Any]) -> VideoTokens:
        """The clip's tokens, from the arguments of a denoiser call."""

    def site(self, block: Any, name: str) -> AttentionSite:
        """The spatio-temporal self-attention of a block whose full name is `name`."""
        attention = getattr(block, self.attention_attribute)
        return AttentionSite(
            name=f"{name}.{self.attention_attribute}",
            to_k=attention.to_k,
            norm_q=attention.norm_q,
            norm_k=attention.norm_k,
            heads=attention.heads,
            norm_layout=self.norm_layout,
        )

    @abstractmethod
    def skip_block(self, *args: Any, **kwargs: Any) -> Any:
        """What a block returns when its hidden states pass through unchanged; takes the block's inputs."""

    def take_output_rows(self, output: Any, rows: slice) -> Any:
        """Some rows of a block's output."""
        return output[rows] if isinstance(output, Tensor) else tuple(item[rows] for item in output)

    def wrap_output(self, prediction: Tensor) -> Any:
        """The denoiser's output object (`return_dict=True`) around a prediction."""
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=prediction)


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

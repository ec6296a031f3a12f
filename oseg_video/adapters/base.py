"""What an adapter tells about its model family, and the registry of adapters.

An adapter is the only place that knows a family's classes, blocks, attention sites and token order.
It knows no guidance method. A new family is one file with one class under `@register_adapter`; README.md
beside this file shows how to write it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from oseg_video.adapters.blocks import BlockAddress, BlockLayout, Stacks, resolve_blocks
from oseg_video.adapters.denoiser import (
    Attention,
    AttentionSite,
    AudioStream,
    DenoiserCall,
    JointText,
    PaddedText,
    TextAttention,
    TokenInputs,
    VideoTokens,
)
from oseg_video.adapters.sampling import Condition, Sampling
from oseg_video.adapters.settings import ClipSize, FamilySettings
from oseg_video.guidance.plan import STREAMS, Stream
from oseg_video.settings import Setting
from oseg_video.types import Denoiser, OsegVideoError, Pipeline, TokenGrid

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "AttentionSite",
    "ClipSize",
    "Condition",
    "ModelAdapter",
    "UnsupportedPipelineError",
    "VideoTokens",
    "adapter_for",
    "adapter_for_class",
    "all_adapters",
    "family_settings",
    "register_adapter",
]


class UnsupportedPipelineError(OsegVideoError):
    """No adapter serves this pipeline class, or not as it is configured."""


class ModelAdapter(FamilySettings, ABC):
    """One model family: what it offers (`FamilySettings`), what its pipelines call, what its denoiser is.

    Subclasses are stateless: they describe, they hold no tensors.
    """

    # -- what the pipelines call

    decodes_by: ClassVar[str | None] = None
    """The pipeline's method that decodes a clip in several calls of the VAE; None where one call does."""
    denoiser_attributes: ClassVar[tuple[str, ...]] = ("transformer",)
    """Attributes of the pipeline that hold the denoisers; one that is None is left out."""
    sampling: ClassVar[Sampling] = Sampling()
    """What the pipelines do in one step."""

    # -- what the denoiser is made of

    denoiser_class: ClassVar[str]
    """diffusers class of the denoiser."""
    like_denoisers: ClassVar[tuple[str, ...]] = ()
    """Further classes of the family's pipelines, with the same call, blocks and attention."""
    full_size: ClassVar[Mapping[str, Any]] = {}
    """Configuration of the denoiser in `hub_repository`, as far as it differs from the class's defaults."""
    denoiser_call: ClassVar[DenoiserCall]
    """What it takes and returns."""
    blocks: ClassVar[BlockLayout] = Stacks(blocks="transformer_blocks")
    """Where its blocks are."""
    block_outputs: ClassVar[tuple[str, ...]] = ("hidden_states",)
    """What a block returns: the first ones of its inputs, by name, in their order."""
    site: ClassVar[Attention]
    """The spatio-temporal self-attention of a block."""
    text_attention: ClassVar[tuple[TextAttention, ...] | JointText] = ()
    """How the video attends to text: in cross-attention of every block, or jointly; () if it does not."""
    audio: ClassVar[AudioStream | None] = None
    """The sound that the denoiser predicts beside the video, if it does."""
    padded_text: ClassVar[PaddedText] = PaddedText()
    """Text that can be cut to its valid tokens."""
    token_inputs: ClassVar[TokenInputs | None] = TokenInputs({})
    """Inputs of a block per video token; None unless one sequence of them runs through all blocks."""

    @abstractmethod
    def video_tokens(
        self, denoiser: Denoiser, arguments: Mapping[str, Any], address: BlockAddress
    ) -> VideoTokens:
        """The clip's tokens at a block's attention, from the arguments of a denoiser call."""

    def prediction_grid(self, arguments: Mapping[str, Any]) -> TokenGrid | None:
        """The clip's latents where a prediction is a sequence of them, [B, S, C].

        None where height and width are its last two dimensions.
        """
        return None

    def latents_behind(self, arguments: Mapping[str, Any]) -> int:
        """How many latents of such a sequence stand behind the clip's own; all others are before them."""
        return 0

    @abstractmethod
    def example_arguments(self, denoiser: Denoiser, clip: ClipSize, rows: int) -> dict[str, Any]:
        """Arguments of a denoiser call as the pipeline makes them, of random values, `rows` in the batch.

        Text has the pipeline's full padded length, all of it valid.
        """

    def changed_classes(self, denoiser: Denoiser) -> Iterable[tuple[object, type]]:
        """Objects inside a denoiser that need another class while its blocks are perturbed."""
        return ()

    def attention_maps(self, denoiser: Denoiser) -> list[BlockAddress]:
        """The blocks whose self-attention looks over the latents of a frame and no more (UNets)."""
        return []

    # -- what follows

    @property
    def streams(self) -> tuple[Stream, ...]:
        """What the denoiser predicts."""
        return STREAMS if self.audio is not None else ("video",)

    def tokens(
        self, denoiser: Denoiser, arguments: Mapping[str, Any], address: BlockAddress, stream: Stream
    ) -> VideoTokens:
        """A stream's tokens at a block's attention: `video_tokens`, or those of the sound along time."""
        if stream == "video":
            return self.video_tokens(denoiser, arguments, address)
        assert self.denoiser_call.audio_sample is not None
        return VideoTokens(TokenGrid(arguments[self.denoiser_call.audio_sample].shape[1], 1, 1))

    def stream_site(self, block: nn.Module, address: BlockAddress, stream: Stream) -> AttentionSite:
        """A stream's self-attention in a block."""
        if stream == "video":
            return self.site(block, address)
        assert self.audio is not None
        return self.audio.site(block, address)

    @property
    def sequence_parallel(self) -> bool:
        """Whether one sequence of video tokens runs through all blocks, so that ranks can share it."""
        return self.token_inputs is not None

    def denoisers(self, pipe: Pipeline) -> list[nn.Module]:
        """The pipeline's denoisers, in order of use; all have the same blocks."""
        found = (getattr(pipe, name, None) for name in self.denoiser_attributes)
        return [denoiser for denoiser in found if denoiser is not None]

    def resolve_blocks(self, denoiser: Denoiser, selectors: Sequence[int | str]) -> list[BlockAddress]:
        """The blocks that selectors name (`blocks.resolve_blocks`). Raises `UnknownBlockError`."""
        return resolve_blocks(self.family, self.blocks(denoiser), selectors)

    def compile_blocks(self, denoiser: Denoiser, **options: Any) -> None:
        """Compile every block in place (`torch.compile`), as diffusers' regional compilation does."""
        for address in self.blocks(denoiser):
            denoiser.get_submodule(address.path).compile(**options)


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


@dataclass(frozen=True)
class OwnSetting:
    """A setting that only some families have."""

    setting: Setting
    families: tuple[str, ...]


def family_settings() -> dict[str, OwnSetting]:
    """The settings that only some families have, by name."""
    found: dict[str, OwnSetting] = {}
    for adapter in all_adapters():
        for name, setting in adapter.own_settings.items():
            before = found.get(name)
            families = (*(before.families if before else ()), adapter.family)
            found[name] = OwnSetting(before.setting if before else setting, families)
    return found


def adapter_for_class(pipeline_class: str) -> ModelAdapter:
    """The adapter of a pipeline class name. Raises `UnsupportedPipelineError` with the supported ones."""
    return _first_adapter((pipeline_class,))


def adapter_for(pipe: Pipeline) -> ModelAdapter:
    """The adapter of a pipeline object, also of a subclass of a supported class.

    Raises `UnsupportedPipelineError` with the supported ones.
    """
    if isinstance(pipe, type):
        raise UnsupportedPipelineError(
            f"the class {pipe.__name__} is no pipeline object; load one: {pipe.__name__}.from_pretrained(...)"
        )
    return _first_adapter([one.__name__ for one in type(pipe).__mro__])


def _first_adapter(names: Sequence[str]) -> ModelAdapter:
    for name in names:
        if name in _ADAPTERS:
            return _ADAPTERS[name]
    raise UnsupportedPipelineError(
        f"no adapter for {names[0]!r}; supported pipelines: {', '.join(sorted(_ADAPTERS))}"
    )

"""What an adapter tells about its model family, and the registry of adapters.

An adapter is the only place that knows a family's classes, blocks, attention sites and token order.
It knows no guidance method. A new family is one file with one class under `@register_adapter`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from oseg_video.adapters.blocks import BlockAddress, UnknownBlockError
from oseg_video.types import OsegVideoError, TokenGrid

Condition = Literal["uncond", "cond"]
TextUse = Literal["needed", "optional", "none"]
Layout = Literal["BSC", "BSND", "BNSD"]


ARGUMENTS: Mapping[str, str] = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "image": "image",
    "height": "height",
    "width": "width",
    "frames": "num_frames",
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "max_sequence_length": "max_sequence_length",
}
"""What most pipelines call the settings of a clip: setting -> argument of the pipeline's call."""


class UnsupportedPipelineError(OsegVideoError):
    """No adapter serves this pipeline class, or not as it is configured."""


@dataclass(frozen=True)
class VideoTokens:
    """Where the video tokens stand in the sequence that one self-attention sees."""

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


@dataclass(frozen=True)
class ClipSize:
    """Size of a clip in pixels."""

    frames: int
    height: int
    width: int


class ModelAdapter(ABC):
    """One model family. Subclasses are stateless: they describe, they hold no tensors."""

    family: ClassVar[str]
    """Name on the command line."""
    text_to_video: ClassVar[str | None]
    """diffusers pipeline class for text to video (or text to image)."""
    image_to_video: ClassVar[str | None] = None
    """diffusers pipeline class for image to video, if the family has one."""
    other_pipelines: ClassVar[tuple[str, ...]] = ()
    """Further pipeline classes of the family that `guided` accepts."""
    universal_pipelines: ClassVar[tuple[str, ...]] = ()
    """Those of `other_pipelines` that make clips from text, and from a picture and text."""
    hub_repository: ClassVar[str]
    """Hub repository that the family name stands for."""
    image_repository: ClassVar[str | None] = None
    """Hub repository of the image-to-video weights, where they are others."""
    arguments: ClassVar[Mapping[str, str]] = ARGUMENTS
    """Setting of a clip -> argument of the pipeline's call; a setting that is not here the family lacks."""
    text: ClassVar[TextUse] = "needed"
    """Whether a clip needs a prompt, may have one, or has none."""
    makes_pictures: ClassVar[bool] = False
    """Whether a clip is one picture."""
    vae_tiles: ClassVar[bool] = True
    """Whether the VAE can decode in tiles."""
    dtypes: ClassVar[Mapping[str, str]] = {}
    """Number types of pipeline components that differ from the one asked for, whatever that is."""
    size_multiple: ClassVar[int]
    """Height and width must be multiples of this many pixels."""
    frame_multiple: ClassVar[int]
    """The frame count must be a multiple of this, plus 1."""
    spatial_compression: ClassVar[int] = 8
    """Pixels per latent along height and width; `frame_multiple` is the same along time."""
    denoiser_class: ClassVar[str]
    """diffusers class of the denoiser."""
    full_size: ClassVar[Mapping[str, Any]] = {}
    """Configuration of the denoiser in `hub_repository`, as far as it differs from the class's defaults."""
    minimum_steps: ClassVar[int] = 1
    """Fewest sampling steps that the pipelines take."""
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
    chained: ClassVar[bool] = True
    """Whether the replay units are a chain, each one's output being all that the next one takes."""

    @property
    def pipelines(self) -> tuple[str, ...]:
        """All pipeline classes that the adapter serves."""
        return tuple(filter(None, (self.text_to_video, self.image_to_video, *self.other_pipelines)))

    # -- a clip's settings. `settings` are plain values by name, those that are not set left out; `read` reads
    # a JSON file of the model, such as "transformer/config.json", before any weights are loaded.

    def pipeline_arguments(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the pipeline's call. `guidance_scale` is a number: above 1 runs an unconditional
        branch."""
        return {argument: settings[name] for name, argument in self.arguments.items() if name in settings}

    def configure(self, pipe: Any, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Set what the pipeline takes from its components; the settings that are left for its call."""
        return settings

    def objection(self, settings: Mapping[str, Any], read: Callable[[str], Mapping[str, Any]]) -> str | None:
        """Why this model cannot make a clip with these settings, if so: one sentence without the family."""
        return None

    def multiples(self, read: Callable[[str], Mapping[str, Any]]) -> tuple[int, int]:
        """(pixels, frames): `size_multiple` and `frame_multiple` of this model."""
        return self.size_multiple, self.frame_multiple

    def serves_both(self, index: Mapping[str, Any]) -> bool:
        """Whether the weights make clips from text and from a picture alike; `index` is model_index.json."""
        return self.image_to_video is not None and self.image_repository is None

    def component_dtype(self, component: str, dtype: torch.dtype) -> torch.dtype:
        """Number type of a pipeline component's weights where `dtype` is asked for."""
        return getattr(torch, self.dtypes[component]) if component in self.dtypes else dtype

    def text_limit(self, pipe: Any) -> int | None:
        """Tokens of a prompt that count, where that is no argument of the call."""
        return None

    def clip(self, output: Any) -> Tensor:
        """The clip [F, C, H, W] in a pipeline's output, made with `output_type="pt"`."""
        return output.frames[0]

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

    def call_scale(self, call: Mapping[str, Any]) -> float:
        """Largest scale of the pipeline's own text guidance, from its call's arguments; at most 1 is off."""
        return call["guidance_scale"]

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
        groups = [(key, len(list(group))) for key, group in groupby(blocks, lambda block: block.group)]
        if len(groups) > 1 or isinstance(selector, str):
            counts: dict[str, int] = {}
            for key, count in groups:
                counts[key] = counts.get(key, 0) + count
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

    @abstractmethod
    def skip_block(self, *args: Any, **kwargs: Any) -> Any:
        """What a block returns when its hidden states pass through unchanged; takes the block's inputs."""

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

    def example_arguments(self, denoiser: Any, clip: ClipSize, rows: int) -> dict[str, Any]:
        """Arguments of a denoiser call as the pipeline makes them, of random values, `rows` in the batch.

        Text has the pipeline's full padded length, all of it valid.
        """
        raise NotImplementedError

    def latent_size(self, clip: ClipSize) -> tuple[int, int, int]:
        """(frames, height, width) of a clip's latents."""
        frames = (clip.frames - 1) // self.frame_multiple + 1
        return frames, clip.height // self.spatial_compression, clip.width // self.spatial_compression

    def wrap_output(self, prediction: Tensor) -> Any:
        """The denoiser's output object (`return_dict=True`) around a prediction."""
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=prediction)


def trim_padding(mask_BT: Tensor) -> tuple[int, bool]:
    """Text length to keep so that no row loses a valid token, and whether no padding is left then.

    mask_BT: nonzero at valid tokens, which come first in every row. Keeps at least one token.
    """
    if mask_BT.is_meta:  # every token counts
        return mask_BT.shape[1], True
    lengths = mask_BT.ne(0).sum(dim=1)
    longest = max(int(lengths.max()), 1)
    return longest, bool((lengths == longest).all())


def random_like(denoiser: nn.Module, *shape: int) -> Tensor:
    """Standard normal values with the dtype and device of a denoiser's weights."""
    weight = next(denoiser.parameters())
    return torch.randn(*shape, dtype=weight.dtype, device=weight.device)


def _map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
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

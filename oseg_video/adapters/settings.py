"""What a model family offers on the command line, and how a clip's settings reach its pipelines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from oseg_video.settings import Setting
from oseg_video.types import Denoiser, Pipeline

if TYPE_CHECKING:
    import torch
    from torch import Tensor


TextUse = Literal["needed", "optional", "none"]
ReadJson = Callable[[str], Mapping[str, Any]]
"""Reads a JSON file of the model, such as "transformer/config.json", before any weights are loaded."""

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


@dataclass(frozen=True)
class ClipSize:
    """Size of a clip in pixels."""

    frames: int
    height: int
    width: int
    pixels_per_latent: int | None = None
    """Along height and width, where it is not the family's `spatial_compression`."""


class FamilySettings:
    """Pipelines, weights and settings of one model family.

    `settings` are plain values by name, those that are not set left out.
    """

    family: ClassVar[str]
    """Name on the command line."""
    text_to_video: ClassVar[str | None]
    """diffusers pipeline class for text to video (or text to image)."""
    image_to_video: ClassVar[str | None] = None
    """diffusers pipeline class for image to video, if the family has one."""
    other_pipelines: ClassVar[tuple[str, ...]] = ()
    """Further pipeline classes of the family that `guided` accepts."""
    universal_pipelines: ClassVar[tuple[str, ...]] = ()
    """Those of `other_pipelines` that make clips from text, and from an image and text."""
    windowed_pipelines: ClassVar[tuple[str, ...]] = ()
    """Those of `other_pipelines` that make a long clip window after window, each with all steps."""
    hub_repository: ClassVar[str]
    """Hub repository that the family name stands for."""
    image_repository: ClassVar[str | None] = None
    """Hub repository of the image-to-video weights, where they are others."""
    arguments: ClassVar[Mapping[str, str]] = ARGUMENTS
    """Setting of a clip -> argument of the pipeline's call; a setting that is not here the family lacks."""
    own_settings: ClassVar[Mapping[str, Setting]] = {}
    """Settings that only some families have, declared by those; the call's argument has the setting's name
    where `arguments` says no other."""
    own_scales: ClassVar[tuple[str, ...]] = ()
    """Those of `own_settings` that are scales of text or image: the pipeline applies them, and the guidance
    takes the pipeline's scale."""
    shown_scale: ClassVar[str] = ""
    """Which of the pipeline's scales `--explain` plans with, where they are several."""
    image_settings: ClassVar[tuple[str, ...]] = ()
    """Those of `own_settings` that say what to do with the image that a clip starts from."""
    text: ClassVar[TextUse] = "needed"
    """Whether a clip needs a prompt, may have one, or has none."""
    makes_images: ClassVar[bool] = False
    """Whether a clip is one image."""
    vae_tiles: ClassVar[bool] = True
    """Whether the VAE can decode in tiles."""
    dtypes: ClassVar[Mapping[str, str]] = {}
    """Dtypes of pipeline components that differ from the one asked for, whatever that is."""
    size_multiple: ClassVar[int]
    """Height and width must be multiples of this many pixels."""
    frame_multiple: ClassVar[int]
    """The frame count must be a multiple of this, plus 1."""
    spatial_compression: ClassVar[int] = 8
    """Pixels per latent along height and width; `frame_multiple` is the same along time."""
    minimum_steps: ClassVar[int] = 1
    """Fewest sampling steps that the pipelines take."""

    @property
    def pipelines(self) -> tuple[str, ...]:
        """All pipeline classes of the family."""
        return tuple(filter(None, (self.text_to_video, self.image_to_video, *self.other_pipelines)))

    def samples_windows(self, pipe: Pipeline) -> bool:
        """Whether a pipeline is one of `windowed_pipelines`, or a subclass."""
        return any(one.__name__ in self.windowed_pipelines for one in type(pipe).__mro__)

    def pipeline_class(self, name: str) -> Any:
        """The class of one of `pipelines`; a family outside of this package has its own."""
        import diffusers

        return getattr(diffusers, name)

    def pipeline_arguments(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the pipeline's call. `guidance_scale` is a number: above 1 runs an unconditional
        branch."""
        arguments = {**{name: name for name in self.own_settings}, **self.arguments}
        return {argument: settings[name] for name, argument in arguments.items() if name in settings}

    def scales_set(self, own: Mapping[str, Any]) -> list[str]:
        """Those of `own_scales` that are set and not off."""
        return [name for name in self.own_scales if own.get(name, False) is not False]

    def configure(self, pipe: Pipeline, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Set what the pipeline takes from its components; the settings that are left for its call.

        Components that are replaced here are put back after the clip.
        """
        return settings

    def objection(self, settings: Mapping[str, Any], read: ReadJson) -> str | None:
        """Why this model cannot make a clip with these settings, if so: one sentence without the family."""
        return None

    def multiples(self, read: ReadJson) -> tuple[int, int]:
        """(pixels, frames): `size_multiple` and `frame_multiple` of this model."""
        return self.size_multiple, self.frame_multiple

    def serves_both(self, index: Mapping[str, Any]) -> bool:
        """Whether the weights make clips from text and from an image alike; `index` is model_index.json."""
        return self.image_to_video is not None and self.image_repository is None

    def component_dtype(self, component: str, dtype: torch.dtype) -> torch.dtype:
        """Dtype of a pipeline component's weights where `dtype` is asked for."""
        import torch

        return getattr(torch, self.dtypes[component]) if component in self.dtypes else dtype

    def call_scale(self, call: Mapping[str, Any], read: ReadJson) -> float:
        """Largest scale of the pipeline's own text guidance, from its call's arguments; at most 1 is off.

        `read` gives nothing where the model's files are not at hand; then it is that of `hub_repository`.
        """
        scale: float = call["guidance_scale"]
        return scale

    def call_audio_scale(self, call: Mapping[str, Any]) -> float:
        """That of the sound, in families that make sound."""
        scale: float = call["audio_guidance_scale"] or call["guidance_scale"]
        return scale

    def text_limit(self, pipe: Pipeline) -> int | None:
        """Tokens of a prompt that count, where that is no argument of the call."""
        return None

    def pixels_per_latent(self, read: ReadJson) -> int:
        """Along height and width, of this model."""
        return self.spatial_compression

    def latent_size(self, clip: ClipSize) -> tuple[int, int, int]:
        """(frames, height, width) of a clip's latents."""
        side = clip.pixels_per_latent or self.spatial_compression
        return (clip.frames - 1) // self.frame_multiple + 1, clip.height // side, clip.width // side

    def decoding_example(self, vae: Denoiser, clip: ClipSize, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the call of the VAE's `decode` that takes most memory; any values will do.

        settings: those of the clip that were given.
        """
        from oseg_video.adapters.denoiser import random_like

        return {"z": random_like(vae, 1, vae.config.latent_channels, *self.latent_size(clip))}

    def sound(self, pipe: Pipeline, output: Any) -> tuple[Tensor, int] | None:
        """The sound [channels, samples] in a pipeline's output, and samples a second, if there is any."""
        return None

    def clip(self, output: Any) -> Tensor:
        """The clip [F, C, H, W] in a pipeline's output, made with `output_type="pt"`."""
        clip: Tensor = output.frames[0]
        return clip

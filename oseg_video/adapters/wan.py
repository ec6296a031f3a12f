"""Wan 2.1 and 2.2, VACE, SkyReels V2: self-attention of video, then cross-attention to text (Wan-AI)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from oseg_video.adapters.base import ModelAdapter, UnsupportedPipelineError, register_adapter
from oseg_video.adapters.blocks import BlockAddress, Stacks
from oseg_video.adapters.denoiser import (
    Attention,
    DenoiserCall,
    TextAttention,
    TokenInputs,
    VideoTokens,
    random_like,
)
from oseg_video.adapters.flow_shift import FLOW_SHIFT, shifted, unshiftable
from oseg_video.adapters.sampling import Sampling
from oseg_video.adapters.settings import ClipSize, ReadJson
from oseg_video.parallel.shards import Shard
from oseg_video.settings import Setting
from oseg_video.settings.kinds import FINITE
from oseg_video.types import Denoiser, Pipeline, TokenGrid
from oseg_video.waits import read_once

if TYPE_CHECKING:
    from torch import Tensor

# Defaults of the pipelines.
_TEXT_TOKENS = 512
_GUIDANCE_SCALE = 5.0
_IMAGE_TOKENS = 257  # of the CLIP encoder that 2.1 image-to-video comes with


class _SecondScale(Sampling):
    def scale(self, pipe: Pipeline, call: Mapping[str, Any], denoiser: str) -> float | Tensor:
        second = call.get("guidance_scale_2") if denoiser == "transformer_2" else None
        scale: float | Tensor = call["guidance_scale"] if second is None else second
        return scale


def _times(inputs: Mapping[str, Any], shard: Shard) -> dict[str, Any]:
    """A timestep per token, [B, S, 6, C] in Wan 2.2 5B and [B, 6, S, C] in SkyReels V2; else one for all."""
    if inputs.get("attention_mask") is not None:
        raise UnsupportedPipelineError(
            "ranks cannot share the tokens of a clip whose frames attend to earlier blocks of frames alone "
            "(causal_block_size); they can share its branches (branch)"
        )
    tokens = 2 if "attention_mask" in inputs else 1  # which SkyReels V2 has
    return {"temb": shard.take(inputs["temb"], tokens)} if inputs["temb"].ndim == 4 else {}


_DIFFUSION_FORCING = (
    "SkyReelsV2DiffusionForcingPipeline",
    "SkyReelsV2DiffusionForcingImageToVideoPipeline",
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
)


@register_adapter
class WanAdapter(ModelAdapter):
    """`WanTransformer3DModel`: queries are normalised over all heads at once; one call per condition.

    Wan 2.2 14B has two denoisers, `transformer` for the noisy steps and `transformer_2` for the rest, each
    with a scale of its own.
    """

    family = "wan"
    text_to_video = "WanPipeline"
    image_to_video = "WanImageToVideoPipeline"
    other_pipelines = (
        *("WanVideoToVideoPipeline", "WanVACEPipeline", "LucyEditPipeline"),
        *("SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline"),
        *_DIFFUSION_FORCING,
    )
    windowed_pipelines = _DIFFUSION_FORCING
    hub_repository = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    image_repository = "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"
    size_multiple = 16
    frame_multiple = 4
    denoiser_class = "WanTransformer3DModel"
    like_denoisers = ("WanVACETransformer3DModel", "SkyReelsV2Transformer3DModel")
    full_size: ClassVar[Mapping[str, Any]] = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
    own_settings: ClassVar[Mapping[str, Setting]] = {
        **FLOW_SHIFT,
        "guidance_scale_2": Setting(
            kind=FINITE,
            help="2.2 with two experts: weight of the text in the second one",
            default=None,
            low=0,
            high=1000,
        ),
    }
    own_scales = ("guidance_scale_2",)
    shown_scale = "that of the first expert; steps of the second follow guidance_scale_2"
    # As the model cards load them.
    dtypes: ClassVar[Mapping[str, str]] = {"vae": "float32", "image_encoder": "float32"}
    denoiser_attributes = ("transformer", "transformer_2")
    sampling = _SecondScale(call_per_condition=True)
    # Between a first and a last image, a clip has two rows of `encoder_hidden_states_image`.
    denoiser_call = DenoiserCall(
        rows=(
            *("hidden_states", "timestep", "encoder_hidden_states", "encoder_hidden_states_image"),
            "control_hidden_states",
        )
    )
    blocks = Stacks(blocks="blocks", beside="vace_blocks")
    site = Attention("attn1", norm_layout="BSC")
    text_attention = (TextAttention(),)
    token_inputs = TokenInputs({"rotary_emb": 1}, _times)

    def configure(self, pipe: Pipeline, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        return shifted(pipe, settings)

    def objection(self, settings: Mapping[str, Any], read: ReadJson) -> str | None:
        index = read("model_index.json")
        if "guidance_scale_2" in settings:
            if index.get("boundary_ratio") is None:
                return f"guidance_scale_2 {settings['guidance_scale_2']:g}: this model has one expert"
            if settings.get("guidance_scale", _GUIDANCE_SCALE) <= 1:
                return (
                    f"guidance_scale_2 {settings['guidance_scale_2']:g}: text guidance in the second expert "
                    "needs it in the first one too; give a guidance_scale above 1"
                )
        text = settings.get("max_sequence_length", _TEXT_TOKENS)
        if _is_there(index, "image_encoder") and text != _TEXT_TOKENS:
            # diffusers' cross-attention takes the last 512 tokens for text, whatever there is.
            return f"max_sequence_length {text}: image to video with this model takes {_TEXT_TOKENS} only"
        return unshiftable(settings, read)

    def multiples(self, read: ReadJson) -> tuple[int, int]:
        return 2 * self.pixels_per_latent(read), self.frame_multiple

    def pixels_per_latent(self, read: ReadJson) -> int:
        # Wan 2.2 5B has a VAE that halves once more.
        pixels: int = read("vae/config.json").get("scale_factor_spatial", self.spatial_compression)
        return pixels

    def decoding_example(self, vae: Denoiser, clip: ClipSize, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"z": random_like(vae, 1, vae.config.z_dim, *self.latent_size(clip))}

    def serves_both(self, index: Mapping[str, Any]) -> bool:
        return bool(index.get("expand_timesteps"))  # Wan 2.2 5B

    def video_tokens(
        self, denoiser: Denoiser, arguments: Mapping[str, Any], address: BlockAddress
    ) -> VideoTokens:
        sizes = zip(arguments["hidden_states"].shape[2:], denoiser.config.patch_size, strict=True)
        frames, height, width = (size // patch for size, patch in sizes)
        before = _references(denoiser, arguments)
        return VideoTokens(TokenGrid(frames - before, height, width), start=before * height * width)

    def example_arguments(self, denoiser: Denoiser, clip: ClipSize, rows: int) -> dict[str, Any]:
        import torch

        config = denoiser.config
        arguments = {
            "hidden_states": random_like(denoiser, rows, config.in_channels, *self.latent_size(clip)),
            "timestep": torch.full((rows,), 500.0, device=denoiser.device),
            "encoder_hidden_states": random_like(denoiser, rows, _TEXT_TOKENS, config.text_dim),
        }
        if "vace_in_channels" in config:
            control = random_like(denoiser, rows, config.vace_in_channels, *self.latent_size(clip))
            arguments["control_hidden_states"] = control
        if config.image_dim is not None:
            images = random_like(denoiser, rows, _IMAGE_TOKENS, config.image_dim)
            arguments["encoder_hidden_states_image"] = images
        return arguments


def _references(denoiser: Denoiser, arguments: Mapping[str, Any]) -> int:
    """Frames of reference images, which VACE puts before those of the clip."""
    control = arguments.get("control_hidden_states")
    if control is None or control.is_meta:
        return 0
    return read_once("references", [control], lambda: _without_change(control, denoiser.config.in_channels))


def _without_change(control_BCFHW: Tensor, channels: int) -> int:
    """First frames of which nothing is to change: the latents of that part are zero, not those of black.

    Channels are the latents of what stays, of what is to change, and a mask.
    """
    changing_BCFHW = control_BCFHW[:, channels : 2 * channels]
    changes: list[bool] = changing_BCFHW.ne(0).transpose(1, 2).flatten(2).any(2).any(0).tolist()
    return changes.index(True) if True in changes else 0


def _is_there(index: Mapping[str, Any], component: str) -> bool:
    """Whether a pipeline has an optional component, from its model_index.json."""
    entry = index.get(component)
    return isinstance(entry, list) and entry[0] is not None

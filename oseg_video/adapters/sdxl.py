"""Stable Diffusion XL: text to image, a clip of one frame (stabilityai/stable-diffusion-xl-base-1.0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from oseg_video.adapters.base import register_adapter
from oseg_video.adapters.blocks import BlockAddress
from oseg_video.adapters.denoiser import DenoiserCall, TextAttention, VideoTokens, random_like
from oseg_video.adapters.settings import ARGUMENTS, ClipSize
from oseg_video.adapters.unet import Stages, UNetAdapter, level_size
from oseg_video.types import Denoiser, Pipeline, TokenGrid

if TYPE_CHECKING:
    from torch import Tensor

_TEXT_TOKENS = 77  # of every tokenizer
_SIZE_IDS = 6  # original size, crop and target size


@register_adapter
class SDXLAdapter(UNetAdapter):
    """`UNet2DConditionModel`: self-attention over the H x W tokens of the image, [B, H * W, C].

    The arguments with a batch dimension are nested: pooled text and sizes stand in `added_cond_kwargs`.
    """

    family = "sdxl"
    text_to_video = "StableDiffusionXLPipeline"
    other_pipelines = ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")
    text = "optional"
    makes_images = True
    arguments: ClassVar[Mapping[str, str]] = {
        name: argument
        for name, argument in ARGUMENTS.items()
        if name not in ("image", "frames", "max_sequence_length")
    }
    hub_repository = "stabilityai/stable-diffusion-xl-base-1.0"
    size_multiple = 8
    frame_multiple = 1
    denoiser_class = "UNet2DConditionModel"
    full_size: ClassVar[Mapping[str, Any]] = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    denoiser_call = DenoiserCall(
        rows=("sample", "encoder_hidden_states", "timestep_cond", "added_cond_kwargs"),
        sample="sample",
        output="diffusers.models.unets.unet_2d_condition.UNet2DConditionOutput",
    )
    blocks = Stages(("", "transformer_blocks"))
    text_attention = (TextAttention(),)

    def text_limit(self, pipe: Pipeline) -> int | None:
        return int(pipe.tokenizer.model_max_length)

    def clip(self, output: Any) -> Tensor:
        images: Tensor = output.images
        return images

    def video_tokens(
        self, denoiser: Denoiser, arguments: Mapping[str, Any], address: BlockAddress
    ) -> VideoTokens:
        return VideoTokens(TokenGrid(1, *level_size(denoiser, arguments["sample"], address.stage)))

    def example_arguments(self, denoiser: Denoiser, clip: ClipSize, rows: int) -> dict[str, Any]:
        import torch

        config = denoiser.config
        _, height, width = self.latent_size(clip)
        return {
            "sample": random_like(denoiser, rows, config.in_channels, height, width),
            "timestep": torch.full((), 500.0, device=denoiser.device),
            "encoder_hidden_states": random_like(denoiser, rows, _TEXT_TOKENS, config.cross_attention_dim),
            "added_cond_kwargs": self._added_conditions(denoiser, rows),
        }

    def decoding_example(self, vae: Denoiser, clip: ClipSize, settings: Mapping[str, Any]) -> dict[str, Any]:
        _, height, width = self.latent_size(clip)
        return {"z": random_like(vae, 1, vae.config.latent_channels, height, width)}

    def _added_conditions(self, denoiser: Denoiser, rows: int) -> dict[str, Tensor] | None:
        config = denoiser.config
        pooled = config.projection_class_embeddings_input_dim - _SIZE_IDS * config.addition_time_embed_dim
        return {
            "text_embeds": random_like(denoiser, rows, pooled),
            "time_ids": random_like(denoiser, rows, _SIZE_IDS),
        }

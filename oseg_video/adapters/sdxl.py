"""Stable Diffusion XL: text to image, a clip of one frame (stabilityai/stable-diffusion-xl-base-1.0)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from oseg_video.adapters.base import VideoTokens, register_adapter
from oseg_video.adapters.blocks import BlockAddress
from oseg_video.adapters.unet import UNetAdapter, level_size
from oseg_video.types import TokenGrid


@register_adapter
class SDXLAdapter(UNetAdapter):
    """`UNet2DConditionModel`: self-attention over the H x W tokens of the image, [B, H * W, C].

    The arguments with a batch dimension are nested: pooled text and sizes stand in `added_cond_kwargs`.
    """

    family = "sdxl"
    text_to_video = "StableDiffusionXLPipeline"
    other_pipelines = ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")
    hub_repository = "stabilityai/stable-diffusion-xl-base-1.0"
    size_multiple = 8
    frame_multiple = 1
    batched_arguments = ("sample", "encoder_hidden_states", "timestep_cond", "added_cond_kwargs")
    block_lists = (("", "transformer_blocks"),)

    def video_tokens(self, denoiser: Any, arguments: Mapping[str, Any], address: BlockAddress) -> VideoTokens:
        return VideoTokens(TokenGrid(1, *level_size(denoiser, arguments["sample"], address.stage)))

    def wrap_output(self, prediction: Tensor) -> Any:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

        return UNet2DConditionOutput(sample=prediction)

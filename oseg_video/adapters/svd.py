"""Stable Video Diffusion: image to video, spatial and temporal self-attention in a UNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from oseg_video.adapters.base import register_adapter
from oseg_video.adapters.blocks import BlockAddress
from oseg_video.adapters.denoiser import DenoiserCall, VideoTokens, random_like
from oseg_video.adapters.sampling import Sampling
from oseg_video.adapters.settings import ClipSize, ReadJson
from oseg_video.adapters.unet import Stages, UNetAdapter, level_size
from oseg_video.guidance.scales import guides
from oseg_video.settings import Setting
from oseg_video.settings.kinds import FINITE, INTEGER
from oseg_video.types import Denoiser, Pipeline, TokenGrid

# Scale at the first and at the last frame, with the defaults of the pipeline.
_RAMP = {"min_guidance_scale": 1.0, "max_guidance_scale": 3.0}


class _Ramp(Sampling):
    def runs_uncond(self, pipe: Pipeline, call: Mapping[str, Any]) -> bool:
        # The pipeline's own answer is a tensor, made anew at every step.
        return guides(pipe.guidance_scale)


@register_adapter
class SVDAdapter(UNetAdapter):
    """`UNetSpatioTemporalConditionModel`: frames are folded into the batch, all frames of a clip in a row.

    Spatial self-attention sees the H x W tokens of one frame ([B * F, H * W, C]), temporal self-attention the
    F tokens of one place ([B * H * W, F, C]); the grid of a site is the part that it sees. The pipeline's
    guidance scale is a tensor [B, F, 1, 1, 1] that grows from the first frame to the last.
    """

    family = "svd"
    text_to_video = None
    image_to_video = "StableVideoDiffusionPipeline"
    hub_repository = "stabilityai/stable-video-diffusion-img2vid-xt"
    size_multiple = 8
    frame_multiple = 1
    denoiser_class = "UNetSpatioTemporalConditionModel"
    text = "none"
    vae_tiles = False
    decodes_by: ClassVar[str | None] = "decode_latents"
    arguments: ClassVar[Mapping[str, str]] = {
        "image": "image",
        "height": "height",
        "width": "width",
        "frames": "num_frames",
        "steps": "num_inference_steps",
        "fps": "fps",
    }
    own_settings: ClassVar[Mapping[str, Setting]] = {
        "min_guidance_scale": Setting(
            kind=FINITE,
            help="weight of the image at the first frame, in place of guidance_scale",
            default=None,
            low=1,
            high=1000,
        ),
        "max_guidance_scale": Setting(
            kind=FINITE, help="weight of the image at the last frame", default=None, low=1, high=1000
        ),
        "motion_bucket_id": Setting(
            kind=INTEGER, help="how much moves, 0 to 255", default=None, low=0, high=255
        ),
        "noise_aug_strength": Setting(
            kind=FINITE,
            help="noise added to the image; more of it, less likeness and more motion",
            default=None,
            low=0,
            high=100,
        ),
        "decode_chunk_size": Setting(
            kind=INTEGER, help="frames decoded at once; fewer, less memory", default=None, low=1
        ),
    }
    own_scales = ("min_guidance_scale", "max_guidance_scale")
    shown_scale = "that of the last frame, to which it grows from min_guidance_scale"
    sampling = _Ramp("give it a max_guidance_scale above 1", latents_take_prediction_dtype=True)
    denoiser_call = DenoiserCall(
        rows=("sample", "encoder_hidden_states", "added_time_ids"),
        sample="sample",
        channel_dim=2,
        output="diffusers.models.unets.unet_spatio_temporal_condition.UNetSpatioTemporalConditionOutput",
    )
    blocks = Stages(("spatial", "transformer_blocks"), ("temporal", "temporal_transformer_blocks"))

    def pipeline_arguments(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        arguments = super().pipeline_arguments(settings)
        if "guidance_scale" in settings:  # the same for every frame
            arguments |= dict.fromkeys(_RAMP, settings["guidance_scale"])
        return arguments

    def objection(self, settings: Mapping[str, Any], read: ReadJson) -> str | None:
        given = [name for name in _RAMP if name in settings]
        if given and "guidance_scale" in settings:
            return (
                f"guidance_scale {settings['guidance_scale']:g} is one scale for all frames; it cannot go "
                f"with {' and '.join(given)}"
            )
        first, last = (settings.get(name, default) for name, default in _RAMP.items())
        if first > last:
            return f"min_guidance_scale {first:g} must not be above max_guidance_scale {last:g}"
        return None

    def call_scale(self, call: Mapping[str, Any], read: ReadJson) -> float:
        scale: float = call["max_guidance_scale"]
        return scale

    def video_tokens(
        self, denoiser: Denoiser, arguments: Mapping[str, Any], address: BlockAddress
    ) -> VideoTokens:
        sample_BFCHW = arguments["sample"]
        if address.kind == "temporal":
            return VideoTokens(TokenGrid(sample_BFCHW.shape[1], 1, 1))
        return VideoTokens(TokenGrid(1, *level_size(denoiser, sample_BFCHW, address.stage)))

    def decoding_example(self, vae: Denoiser, clip: ClipSize, settings: Mapping[str, Any]) -> dict[str, Any]:
        frames, height, width = self.latent_size(clip)
        at_once = min(settings.get("decode_chunk_size") or frames, frames)
        return {
            "z": random_like(vae, at_once, vae.config.latent_channels, height, width),
            "num_frames": at_once,
        }

    def example_arguments(self, denoiser: Denoiser, clip: ClipSize, rows: int) -> dict[str, Any]:
        import torch

        config = denoiser.config
        frames, height, width = self.latent_size(clip)
        return {
            "sample": random_like(denoiser, rows, frames, config.in_channels, height, width),
            "timestep": torch.full((), 0.5, device=denoiser.device),
            "encoder_hidden_states": random_like(denoiser, rows, 1, config.cross_attention_dim),
            # frames per second, motion bucket and noise augmentation
            "added_time_ids": random_like(denoiser, rows, 3),
        }

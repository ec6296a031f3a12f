"""CogVideoX: joint attention of text and video, text first (zai-org/CogVideoX)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from oseg_video.adapters.base import register_adapter
from oseg_video.adapters.blocks import BlockAddress
from oseg_video.adapters.denoiser import Attention, DenoiserCall, TokenInputs, VideoTokens, random_like
from oseg_video.adapters.joint import JointAttentionAdapter, patch_grid
from oseg_video.adapters.sampling import Sampling
from oseg_video.adapters.settings import ClipSize, ReadJson
from oseg_video.settings import Setting
from oseg_video.settings.kinds import SWITCH
from oseg_video.types import Denoiser, Pipeline, TokenGrid
from oseg_video.waits import place_in, values_of

if TYPE_CHECKING:
    from torch import Tensor


class _DynamicScale(Sampling):
    def runs_uncond(self, pipe: Pipeline, call: Mapping[str, Any]) -> bool:
        # Not from `pipe.guidance_scale`, which a dynamic scale has overwritten at the step before.
        return bool(call["guidance_scale"] > 1)

    def scale(self, pipe: Pipeline, call: Mapping[str, Any], denoiser: str) -> float | Tensor:
        if call["use_dynamic_cfg"]:
            return _dynamic_scale(pipe, call["guidance_scale"])
        return super().scale(pipe, call, denoiser)


@register_adapter
class CogVideoXAdapter(JointAttentionAdapter):
    """`CogVideoXTransformer3DModel`: text and video share their projections and norms."""

    family = "cogvideox"
    text_to_video = "CogVideoXPipeline"
    image_to_video = "CogVideoXImageToVideoPipeline"
    other_pipelines = ("CogVideoXVideoToVideoPipeline", "CogVideoXFunControlPipeline")
    hub_repository = "zai-org/CogVideoX-5b"
    image_repository = "zai-org/CogVideoX-5b-I2V"
    own_settings: ClassVar[Mapping[str, Setting]] = {
        "use_dynamic_cfg": Setting(
            kind=SWITCH,
            help="let the pipeline change the guidance scale from step to step, from 1 to 1 + guidance_scale",
            default=None,
        )
    }
    own_scales = ("use_dynamic_cfg",)
    shown_scale = "the one that use_dynamic_cfg moves in every step"
    size_multiple = 16
    frame_multiple = 4
    denoiser_class = "CogVideoXTransformer3DModel"
    full_size: ClassVar[Mapping[str, Any]] = {
        "num_attention_heads": 48,
        "num_layers": 42,
        "use_rotary_positional_embeddings": True,
    }
    sampling = _DynamicScale()
    # `ofs` has one entry whatever the batch.
    denoiser_call = DenoiserCall(
        rows=("hidden_states", "encoder_hidden_states", "timestep", "timestep_cond"), channel_dim=2
    )
    site = Attention("attn1", norm_layout="BNSD")
    token_inputs = TokenInputs({"image_rotary_emb": 0})

    def objection(self, settings: Mapping[str, Any], read: ReadJson) -> str | None:
        config = read("transformer/config.json")
        learned = config.get("use_learned_positional_embeddings", False)
        height, width = (
            config.get(f"sample_{side}", 0) * self.spatial_compression for side in ("height", "width")
        )
        if learned and (settings["height"], settings["width"]) != (height, width):
            return (
                f"height {settings['height']} and width {settings['width']}: this model has learned its "
                f"positions and makes height {height} and width {width} only"
            )
        text, trained = settings.get("max_sequence_length"), config.get("max_text_seq_length", 226)
        if (learned or not config.get("use_rotary_positional_embeddings")) and text not in (None, trained):
            return f"max_sequence_length {text}: this model takes {trained} only"
        return None

    def video_tokens(
        self, denoiser: Denoiser, arguments: Mapping[str, Any], address: BlockAddress
    ) -> VideoTokens:
        text = arguments["encoder_hidden_states"].shape[1]
        return VideoTokens(_token_grid(denoiser, arguments), start=text, text_first=text)

    def example_arguments(self, denoiser: Denoiser, clip: ClipSize, rows: int) -> dict[str, Any]:
        import torch

        config, device = denoiser.config, denoiser.device
        frames, height, width = self.latent_size(clip)
        frames += -frames % (config.patch_size_t or 1)
        text_tokens = config.max_text_seq_length
        arguments = {
            "hidden_states": random_like(denoiser, rows, frames, config.in_channels, height, width),
            "encoder_hidden_states": random_like(denoiser, rows, text_tokens, config.text_embed_dim),
            "timestep": torch.full((rows,), 500, device=device),
        }
        if config.ofs_embed_dim is not None:
            arguments["ofs"] = random_like(denoiser, 1)
        tokens = _token_grid(denoiser, arguments).tokens
        angles = [torch.randn(tokens, config.attention_head_dim, device=device) for _ in range(2)]
        rotary = config.use_rotary_positional_embeddings
        return {**arguments, "image_rotary_emb": tuple(angles) if rotary else None}


def _token_grid(denoiser: Denoiser, arguments: Mapping[str, Any]) -> TokenGrid:
    frames, _, height, width = arguments["hidden_states"].shape[1:]
    return patch_grid(denoiser.config, frames, height, width)


def _dynamic_scale(pipe: Pipeline, scale: float) -> float:
    """The scale of the step in progress under `use_dynamic_cfg`, in the words of the pipelines.

    They compute it after the denoiser's call, too late to be read. It subtracts a timestep (0 to 999) from a
    number of steps, so it jumps between 1 and 1 + `scale` from step to step; that is theirs to fix.
    """
    steps, timesteps, current = _step_count(pipe), pipe.scheduler.timesteps, pipe.current_timestep
    place = place_in(timesteps, current)
    timestep = current.item() if place is None else values_of(timesteps)[place]
    return 1 + scale * ((1 - math.cos(math.pi * ((steps - timestep) / steps) ** 5.0)) / 2)


def _step_count(pipe: Pipeline) -> int:
    """`num_inference_steps` inside the pipeline's call: of the steps asked for, those that run."""
    scheduler = pipe.scheduler
    return int(scheduler.num_inference_steps - (len(scheduler.timesteps) - pipe.num_timesteps))

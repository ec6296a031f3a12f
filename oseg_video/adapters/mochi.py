"""Mochi: joint attention of video and text (genmo/mochi-1-preview)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from oseg_video.adapters.base import ModelAdapter, VideoTokens, register_adapter
from oseg_video.types import TokenGrid


@register_adapter
class MochiAdapter(ModelAdapter):
    """`MochiTransformer3DModel`: video tokens have projections of their own, text ones are separate."""

    family = "mochi"
    text_to_video = "MochiPipeline"
    hub_repository = "genmo/mochi-1-preview"
    size_multiple = 16
    frame_multiple = 6
    # The pipeline's linear-quadratic schedule divides by half the number of steps.
    minimum_steps = 2
    norm_layout = "BSND"
    batched_arguments = ("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask")

    def video_tokens(self, denoiser: Any, arguments: Mapping[str, Any]) -> VideoTokens:
        frames, height, width = arguments["hidden_states"].shape[2:]
        patch = denoiser.config.patch_size
        return VideoTokens(TokenGrid(frames, height // patch, width // patch))

    def skip_block(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        return hidden_states, encoder_hidden_states

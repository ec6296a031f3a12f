"""Mochi: joint attention of video and text (genmo/mochi-1-preview)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from oseg_video.adapters.base import (
    ClipSize,
    ModelAdapter,
    VideoTokens,
    random_like,
    register_adapter,
    trim_padding,
)
from oseg_video.adapters.blocks import BlockAddress
from oseg_video.types import TokenGrid

_TEXT_TOKENS = 256  # default max_sequence_length of the pipeline


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
    denoiser_class = "MochiTransformer3DModel"
    norm_layout = "BSND"
    batched_arguments = ("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask")

    def video_tokens(self, denoiser: Any, arguments: Mapping[str, Any], address: BlockAddress) -> VideoTokens:
        frames, height, width = arguments["hidden_states"].shape[2:]
        patch = denoiser.config.patch_size
        return VideoTokens(TokenGrid(frames, height // patch, width // patch))

    def trim_text(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        # The attention of a row takes its valid tokens only and needs no mask, whatever the other rows have.
        mask_BT = arguments["encoder_attention_mask"]
        length, no_padding = trim_padding(mask_BT)
        text_BTC = arguments["encoder_hidden_states"]
        trimmed = {
            "encoder_hidden_states": text_BTC[:, :length],
            "encoder_attention_mask": mask_BT[:, :length],
        }
        return arguments | trimmed, no_padding

    def skip_block(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        return hidden_states, encoder_hidden_states

    def example_arguments(self, denoiser: Any, clip: ClipSize, rows: int) -> dict[str, Any]:
        config, device = denoiser.config, denoiser.device
        return {
            "hidden_states": random_like(denoiser, rows, config.in_channels, *self.latent_size(clip)),
            "encoder_hidden_states": random_like(denoiser, rows, _TEXT_TOKENS, config.text_embed_dim),
            "timestep": torch.full((rows,), 500.0, device=device),
            "encoder_attention_mask": torch.ones(rows, _TEXT_TOKENS, dtype=torch.bool, device=device),
        }

"""Mochi: joint attention of video and text (genmo/mochi-1-preview)."""

from __future__ import annotations

from typing import Any

from oseg_video.adapters.base import register_adapter
from oseg_video.adapters.denoiser import Attention, DenoiserCall, PaddedText, TokenInputs, random_like
from oseg_video.adapters.joint import JointAttentionAdapter
from oseg_video.adapters.settings import ClipSize

_TEXT_TOKENS = 256  # default max_sequence_length of the pipeline


@register_adapter
class MochiAdapter(JointAttentionAdapter):
    """`MochiTransformer3DModel`: video tokens have projections of their own, text ones are separate."""

    family = "mochi"
    text_to_video = "MochiPipeline"
    hub_repository = "genmo/mochi-1-preview"
    size_multiple = 16
    frame_multiple = 6
    # The pipeline's linear-quadratic schedule divides by half the number of steps.
    minimum_steps = 2
    denoiser_class = "MochiTransformer3DModel"
    denoiser_call = DenoiserCall(
        rows=("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask")
    )
    site = Attention("attn1", norm_layout="BSND")
    token_inputs = TokenInputs({"image_rotary_emb": 0})
    # The attention of a row takes its valid tokens only, so the mask can stay whatever the other rows have.
    padded_text = PaddedText((("encoder_hidden_states", "encoder_attention_mask"),))

    def example_arguments(self, denoiser: Any, clip: ClipSize, rows: int) -> dict[str, Any]:
        import torch

        config, device = denoiser.config, denoiser.device
        return {
            "hidden_states": random_like(denoiser, rows, config.in_channels, *self.latent_size(clip)),
            "encoder_hidden_states": random_like(denoiser, rows, _TEXT_TOKENS, config.text_embed_dim),
            "timestep": torch.full((rows,), 500.0, device=device),
            "encoder_attention_mask": torch.ones(rows, _TEXT_TOKENS, dtype=torch.bool, device=device),
        }

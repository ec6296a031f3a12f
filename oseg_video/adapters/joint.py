"""What families with joint attention share: blocks that take video and text at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from oseg_video.adapters.base import ModelAdapter
from oseg_video.adapters.blocks import BlockAddress
from oseg_video.adapters.denoiser import JointText, TextAttention, VideoTokens
from oseg_video.types import Denoiser, TokenGrid


class JointAttentionAdapter(ModelAdapter):
    """Blocks take and return `(hidden_states, encoder_hidden_states)`: video [B, S, C] and text [B, T, C]."""

    block_outputs = ("hidden_states", "encoder_hidden_states")
    text_attention: ClassVar[tuple[TextAttention, ...] | JointText] = JointText()

    def video_tokens(
        self, denoiser: Denoiser, arguments: Mapping[str, Any], address: BlockAddress
    ) -> VideoTokens:
        return VideoTokens(patch_grid(denoiser.config, *arguments["hidden_states"].shape[2:]))


def patch_grid(config: Mapping[str, Any], frames: int, height: int, width: int) -> TokenGrid:
    """Token grid of latents after a denoiser with this configuration has cut them into patches."""
    patch, frame_patch = config["patch_size"], config.get("patch_size_t") or 1
    return TokenGrid(frames // frame_patch, height // patch, width // patch)

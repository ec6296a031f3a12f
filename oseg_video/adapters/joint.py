"""What families with joint attention share: blocks that take video and text at once, and padded text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from oseg_video.adapters.base import ModelAdapter, VideoTokens
from oseg_video.adapters.blocks import BlockAddress
from oseg_video.types import TokenGrid

if TYPE_CHECKING:
    from torch import Tensor


class JointAttentionAdapter(ModelAdapter):
    """Blocks take and return `(hidden_states, encoder_hidden_states)`: video [B, S, C] and text [B, T, C]."""

    padded_texts: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Arguments of the denoiser's forward: a padded text [B, T, C], and its mask [B, T], nonzero where a
    token is valid."""
    mask_position: ClassVar[int | None] = None
    """Place of the attention mask among a block's inputs, in families whose attention also goes without."""

    def skip_block(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        return hidden_states, encoder_hidden_states

    def video_tokens(self, denoiser: Any, arguments: Mapping[str, Any], address: BlockAddress) -> VideoTokens:
        return VideoTokens(patch_grid(denoiser.config, *arguments["hidden_states"].shape[2:]))

    def trim_text(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        trimmed: dict[str, Tensor] = {}
        no_padding = bool(self.padded_texts)
        for text, mask in self.padded_texts:
            text_BTC, mask_BT = arguments[text], arguments[mask]
            if mask_BT.is_meta:  # without values: every token counts
                continue
            kept = self.kept_tokens(mask_BT.ne(0))
            trimmed |= {text: text_BTC[:, kept], mask: mask_BT[:, kept]}
            no_padding = no_padding and bool(trimmed[mask].all())
        return arguments | trimmed, no_padding

    def kept_tokens(self, valid_BT: Tensor) -> slice | Tensor:
        """Index of the text tokens to keep: up to the last one that is valid in any row, at least one.

        Padding among them stays: Mochi's attention gives its results to the first text tokens, as many as are
        valid, and HunyuanVideo's takes its keys from as many, so dropping one would move the others.
        """
        valid = valid_BT.any(dim=0).nonzero()
        return slice(int(valid[-1]) + 1 if len(valid) else 1)

    def without_mask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if self.mask_position is None:
            return args, kwargs
        return (*args[: self.mask_position], None, *args[self.mask_position + 1 :]), kwargs


def patch_grid(config: Mapping[str, Any], frames: int, height: int, width: int) -> TokenGrid:
    """Token grid of latents after a denoiser with this configuration has cut them into patches."""
    patch, frame_patch = config["patch_size"], config.get("patch_size_t") or 1
    return TokenGrid(frames // frame_patch, height // patch, width // patch)

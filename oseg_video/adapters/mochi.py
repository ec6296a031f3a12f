"""Mochi: joint attention of video and text (genmo/mochi-1-preview)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

from oseg_video.adapters.base import register_adapter
from oseg_video.adapters.denoiser import (
    Attention,
    DenoiserCall,
    JointText,
    PaddedText,
    TokenInputs,
    random_like,
)
from oseg_video.adapters.joint import JointAttentionAdapter
from oseg_video.adapters.settings import ClipSize
from oseg_video.types import Denoiser

if TYPE_CHECKING:
    from torch import Tensor

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
    # The modulation is that of the time and of the text, pooled.
    text_attention = JointText(("encoder_hidden_states", "encoder_attention_mask"), of_text=("temb",))
    padded_text = PaddedText(
        (("encoder_hidden_states", "encoder_attention_mask"),),
        mask="encoder_attention_mask",
        takes_lengths=True,
    )

    def changed_classes(self, denoiser: Denoiser) -> Iterable[tuple[object, type]]:
        processors = [block.attn1.processor for block in denoiser.transformer_blocks]
        classes: list[Any] = [type(processor) for processor in processors]
        return [(one, _with_lengths(own)) for one, own in zip(processors, classes, strict=True)]

    def example_arguments(self, denoiser: Denoiser, clip: ClipSize, rows: int) -> dict[str, Any]:
        import torch

        config, device = denoiser.config, denoiser.device
        return {
            "hidden_states": random_like(denoiser, rows, config.in_channels, *self.latent_size(clip)),
            "encoder_hidden_states": random_like(denoiser, rows, _TEXT_TOKENS, config.text_embed_dim),
            "timestep": torch.full((rows,), 500.0, device=device),
            "encoder_attention_mask": torch.ones(rows, _TEXT_TOKENS, dtype=torch.bool, device=device),
        }


@cache  # compiled blocks are compiled anew for every new class
def _with_lengths(original: type) -> type:
    """A subclass of an attention processor's class that also takes the number of valid text tokens per row.

    The model's own looks for the valid tokens in a mask, in every block and every row, and the program waits
    for the device each time: 96 times in a pass of two rows through 48 blocks.
    """
    import torch
    from diffusers.models.attention_processor import MochiAttnProcessor2_0

    implementation: Callable[..., Any] = original.__call__

    @wraps(implementation)
    def __call__(
        self: Any,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | tuple[int, ...],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if isinstance(attention_mask, tuple):
            if original is MochiAttnProcessor2_0:
                return _attend(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)
            token_T = torch.arange(encoder_hidden_states.shape[1], device=hidden_states.device)
            attention_mask = torch.stack([token_T < length for length in attention_mask])
        return implementation(
            self, attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs
        )

    return type(original.__name__, (original,), {"__call__": __call__, "__module__": original.__module__})


def _attend(
    attn: Any,
    video_BSC: Tensor,
    text_BTC: Tensor,
    lengths: tuple[int, ...],
    image_rotary_emb: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Joint attention of the video and the first `lengths` text tokens of each row; zeros for the others.

    As `MochiAttnProcessor2_0` has it. image_rotary_emb: cosines and sines [S, N, D / 2] of the angles by
    which neighbouring channels of video queries and keys are turned.
    """
    import torch
    import torch.nn.functional as F

    def heads(x_BSC: Tensor, *layers: tuple[Any, Any]) -> list[Tensor]:
        projected = [project(x_BSC).unflatten(2, (attn.heads, -1)) for project, _ in layers]
        # All are projected first: a perturbation changes queries at their norm, and has seen the keys then.
        pairs = zip(projected, layers, strict=True)
        return [x_BSND if norm is None else norm(x_BSND) for x_BSND, (_, norm) in pairs]

    video = heads(video_BSC, (attn.to_q, attn.norm_q), (attn.to_k, attn.norm_k), (attn.to_v, None))
    text_layers = (attn.add_q_proj, attn.norm_added_q), (attn.add_k_proj, attn.norm_added_k)
    text = heads(text_BTC, *text_layers, (attn.add_v_proj, None))
    if image_rotary_emb is not None:
        video[:2] = [_turned(x_BSND, *image_rotary_emb) for x_BSND in video[:2]]
    mixed = []
    for row, length in enumerate(lengths):
        query, key, value = (
            torch.cat((clip[row], words[row, :length])).transpose(0, 1)[None]
            for clip, words in zip(video, text, strict=True)
        )
        mixed_SC = F.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1).flatten(1)
        mixed.append(F.pad(mixed_SC, (0, 0, 0, text_BTC.shape[1] - length)))
    mixed_video, mixed_text = torch.stack(mixed).tensor_split((video_BSC.shape[1],), dim=1)
    mixed_video = attn.to_out[1](attn.to_out[0](mixed_video))
    return mixed_video, attn.to_add_out(mixed_text) if hasattr(attn, "to_add_out") else mixed_text


def _turned(x_BSND: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs of neighbouring channels turned, in float32."""
    import torch

    even, odd = x_BSND.float().unflatten(-1, (-1, 2)).unbind(-1)
    pairs = even * cos - odd * sin, even * sin + odd * cos
    return torch.stack([one.to(x_BSND.dtype) for one in pairs], dim=-1).flatten(-2)

"""The text encoder and the transformer, trained together by flow matching.

Tensor letters: B clips, C latent channels, F H W latent frames, rows and columns, S video tokens, L text
tokens, N heads, D head dim.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import MochiTransformer3DModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, T5Config, T5EncoderModel

from oseg_video.embedded.dataset import caption, sample_attributes, sample_caption, sample_clips
from oseg_video.embedded.training.latents import KEY_FRAMES, SCALE, pooled_key_frames, small_pictures
from oseg_video.embedded.training.loop import LoopConfig, fit, save_contact_sheet

logger = logging.getLogger(__name__)

TRAINING_SEED = 1
BATCH = 32
LOOP = LoopConfig(steps=5700, learning_rate=1.5e-3, warmup_steps=300, ema_decay=0.999, seed=3)

TEXT_TOKENS = 20
"""Padded caption length in training; the longest caption takes fewer."""
TEXT_DIM = 64
CAPTION_DROPOUT = 0.1
"""Share of clips trained with the empty prompt, which is the unconditional branch of guidance."""
TIMESTEP_SHIFT = 2.0
"""Above 1 the sampled noise levels move towards noise, where the layout of the clip is decided."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Latents float [B, C, F, H, W] of unit scale, and captions as token ids and mask [B, L]."""

    latents: Tensor
    token_ids: Tensor
    token_mask: Tensor


class TextToVideo(nn.Module):
    """Text encoder and transformer as one module, so that one optimiser and one checkpoint hold both."""

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.text_encoder = new_text_encoder(vocabulary_size)
        self.transformer = new_transformer()

    def forward(
        self, noisy_BCFHW: Tensor, timestep_B: Tensor, token_ids: Tensor, token_mask: Tensor
    ) -> Tensor:
        """Predicted velocity, clean latents minus noise; timestep 0 is noise, 1000 is clean."""
        embeddings = self.text_encoder(token_ids, attention_mask=token_mask).last_hidden_state
        return self.transformer(noisy_BCFHW, embeddings, timestep_B, token_mask, return_dict=False)[0]


class BatchedMochiAttention:
    """Mochi's joint attention for a whole batch at once, with a mask over the text.

    The stock processor loops over the batch, and the backward of its fused attention is slow on a CPU.
    Rows of padded text tokens differ from the stock ones, but nothing reads them.
    """

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        tokens = hidden_states.shape[1]
        heads = (attn.heads, -1)
        query = _rotate(attn.norm_q(attn.to_q(hidden_states).unflatten(2, heads)), *image_rotary_emb)
        key = _rotate(attn.norm_k(attn.to_k(hidden_states).unflatten(2, heads)), *image_rotary_emb)
        value = attn.to_v(hidden_states).unflatten(2, heads)
        text_query = attn.norm_added_q(attn.add_q_proj(encoder_hidden_states).unflatten(2, heads))
        text_key = attn.norm_added_k(attn.add_k_proj(encoder_hidden_states).unflatten(2, heads))
        text_value = attn.add_v_proj(encoder_hidden_states).unflatten(2, heads)

        query_BNSD = torch.cat([query, text_query], dim=1).transpose(1, 2)
        key_BNSD = torch.cat([key, text_key], dim=1).transpose(1, 2)
        value_BNSD = torch.cat([value, text_value], dim=1).transpose(1, 2)
        scores = query_BNSD @ key_BNSD.transpose(2, 3) * query_BNSD.shape[-1] ** -0.5
        keep = torch.cat([attention_mask.new_ones(len(query), tokens), attention_mask], dim=1).bool()
        scores = scores.float().masked_fill(~keep[:, None, None], float("-inf"))
        mixed = (scores.softmax(-1).to(value_BNSD.dtype) @ value_BNSD).transpose(1, 2).flatten(2)
        video, text = mixed[:, :tokens], mixed[:, tokens:]
        video = attn.to_out[0](video)
        return video, text if attn.context_pre_only else attn.to_add_out(text)


def new_text_encoder(vocabulary_size: int) -> T5EncoderModel:
    """A two-layer T5 encoder."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary_size,
            d_model=TEXT_DIM,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=32,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )


def new_transformer() -> MochiTransformer3DModel:
    """Mochi's transformer for latents of 4 x 8 x 8: 64 tokens, each block an identity at the start."""
    transformer = MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=6,
        attention_head_dim=32,
        num_layers=6,
        pooled_projection_dim=64,
        in_channels=12,
        text_embed_dim=TEXT_DIM,
        time_embed_dim=128,
    )
    for block in transformer.transformer_blocks:
        context_norm = block.norm1_context
        _zero(block.norm1.linear)
        _zero(context_norm.linear_1 if block.context_pre_only else context_norm.linear)
    _zero(transformer.norm_out.linear)
    _zero(transformer.proj_out)
    # diffusers starts the rotary frequencies at 0, no position at all. Positions are frames in time and, for
    # 4 x 4 patches, multiples of 48 in space (MochiRoPE scales every grid to an area of 192 x 192).
    with torch.no_grad():
        transformer.pos_frequencies.normal_()
        transformer.pos_frequencies[0] *= 0.8
        transformer.pos_frequencies[1:] *= 0.8 / 48
    return transformer


def train_transformer(tokenizer: PreTrainedTokenizerBase, run_dir: Path, device: torch.device) -> TextToVideo:
    """Train on clips drawn on the fly, no clip twice; every checkpoint leaves a contact sheet of samples."""
    torch.manual_seed(TRAINING_SEED)
    model = TextToVideo(len(tokenizer)).to(device)
    for block in model.transformer.transformer_blocks:
        block.attn1.processor = BatchedMochiAttention()
        block.compile()

    def compute_losses(step: int) -> dict[str, Tensor]:
        return flow_matching_losses(model, draw_batch(tokenizer, step, device))

    def show(average: TextToVideo) -> None:
        captions = [caption(sample_attributes(TRAINING_SEED + 1, index)) for index in range(12)]
        latents = sample_latents(average, tokenizer, captions, guidance_scale=2.0, steps=20, device=device)
        save_contact_sheet(small_pictures(latents / SCALE), run_dir / "latents.png", frames=4, scale=6)

    return fit(model, compute_losses, LOOP, run_dir / "transformer.pt", on_save=show)


@torch.no_grad()
def sample_latents(
    model: TextToVideo,
    tokenizer: PreTrainedTokenizerBase,
    captions: list[str],
    *,
    guidance_scale: float,
    steps: int,
    device: torch.device,
) -> Tensor:
    """Latents [B, C, F, H, W] sampled with classifier-free guidance in even steps, for a look only."""
    tokens = tokenizer([""] * len(captions) + captions, padding=True, return_tensors="pt").to(device)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(len(captions), 12, 4, 8, 8, generator=generator).to(device)
    for step in range(steps):
        timestep = torch.full((2 * len(captions),), 1000 * step / steps, device=device)
        with torch.autocast(device.type, torch.bfloat16):
            both = torch.cat([latents] * 2)
            velocity = model(both, timestep, tokens.input_ids, tokens.attention_mask.bool())
        uncond, cond = velocity.float().chunk(2)
        latents = latents + (uncond + guidance_scale * (cond - uncond)) / steps
    return latents


def draw_batch(tokenizer: PreTrainedTokenizerBase, step: int, device: torch.device) -> Batch:
    """New clips with a caption of random phrasing; a share of the captions is dropped."""
    indices = range(BATCH * step, BATCH * (step + 1))
    clips_BFCHW, attributes = sample_clips(TRAINING_SEED, indices, frames=KEY_FRAMES)
    dropped = (torch.rand(BATCH) < CAPTION_DROPOUT).tolist()
    captions = [
        "" if drop else sample_caption(TRAINING_SEED, index, words)
        for index, words, drop in zip(indices, attributes, dropped, strict=True)
    ]
    tokens = tokenizer(captions, padding="max_length", max_length=TEXT_TOKENS, return_tensors="pt")
    return Batch(
        latents=SCALE * pooled_key_frames(clips_BFCHW.to(device)),
        token_ids=tokens.input_ids.to(device),
        token_mask=tokens.attention_mask.bool().to(device),
    )


def flow_matching_losses(model: TextToVideo, batch: Batch) -> dict[str, Tensor]:
    """Squared error of the velocity at shifted uniform noise levels, and its parts at low and high noise."""
    uniform = torch.rand(len(batch.latents))
    noise_level = TIMESTEP_SHIFT * uniform / (1 + (TIMESTEP_SHIFT - 1) * uniform)
    noise_level = noise_level.to(batch.latents.device)
    noise = torch.randn_like(batch.latents)
    level = noise_level[:, None, None, None, None]
    noisy = (1 - level) * batch.latents + level * noise
    with torch.autocast(noisy.device.type, torch.bfloat16):
        velocity = model(noisy, 1000 * (1 - noise_level), batch.token_ids, batch.token_mask)
    error_B = (velocity.float() - (batch.latents - noise)).square().mean(dim=(1, 2, 3, 4))
    high = noise_level > 0.7
    parts = {"high_noise": error_B[high].mean().nan_to_num(), "low_noise": error_B[~high].mean().nan_to_num()}
    return {"loss": error_B.mean(), **parts}


def _zero(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)


def _rotate(x_BSND: Tensor, cos_SND: Tensor, sin_SND: Tensor) -> Tensor:
    """Rotary embedding of neighbouring pairs of channels, in float32."""
    even, odd = x_BSND[..., 0::2].float(), x_BSND[..., 1::2].float()
    rotated = torch.stack([even * cos_SND - odd * sin_SND, even * sin_SND + odd * cos_SND], dim=-1)
    return rotated.flatten(-2).to(x_BSND.dtype)

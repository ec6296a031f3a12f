"""Tiny pipelines of the real diffusers classes: random but seeded weights, no download, built in a second.

Every block matters: parameters that their class starts at zero (Mochi's rotary frequencies, biases) are
drawn from a normal distribution, so that a test that perturbs one block sees it in the video.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXEulerAncestralRFScheduler,
    LTXI2VLongMultiPromptPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
)

from tests.tiny.text import BLOCKS, TEXT_CHANNELS, TEXT_LENGTH, randomise, tiny_text_encoder, tiny_tokenizer

# Tensors this small gain nothing from a second thread, and lose a factor of ten beside a busy process.
torch.set_num_threads(1)

# Height differs from width, so that a mix-up of the two shows. Arguments of the pipeline call.
MOCHI_SIZE = {"height": 48, "width": 32, "num_frames": 13}  # token grid 3 x 3 x 2
LTX_SIZE = {"height": 32, "width": 64, "num_frames": 9}  # token grid 5 x 4 x 8


def tiny_mochi(*, seed: int = 0, **overrides: Any) -> MochiPipeline:
    """A MochiPipeline with 5 blocks of 2 heads; `overrides` go to the transformer's configuration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        text_encoder = tiny_text_encoder(tokenizer)
        transformer = MochiTransformer3DModel(
            **{
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "num_layers": BLOCKS,
                "pooled_projection_dim": 24,
                "in_channels": 12,
                "text_embed_dim": TEXT_CHANNELS,
                "time_embed_dim": 32,
                "max_sequence_length": TEXT_LENGTH,
                **overrides,
            }
        )
        vae = AutoencoderKLMochi(
            encoder_block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1),
            latent_channels=12,
        )
        for module in (transformer, vae):
            randomise(module)
    return MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    )


def tiny_ltx(cls: type = LTXPipeline, *, seed: int = 0, timestep_vae: bool = False, **overrides: Any) -> Any:
    """An LTX pipeline of class `cls` with 5 blocks of 2 heads; `overrides` go to the transformer.

    timestep_vae: the VAE decodes at a timestep, as from LTX-Video 0.9.1 on.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        text_encoder = tiny_text_encoder(tokenizer)
        transformer = LTXVideoTransformer3DModel(
            **{
                "in_channels": 8,
                "out_channels": 8,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "cross_attention_dim": 32,
                "num_layers": BLOCKS,
                "caption_channels": TEXT_CHANNELS,
                **overrides,
            }
        )
        vae = AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, False, False, False),
            decoder_spatio_temporal_scaling=(True, False, False, False),
            patch_size=4,
            timestep_conditioning=timestep_vae,
        )
        for module in (transformer, vae):
            randomise(module)
    return cls(
        # LTXConditionPipeline serves the 0.9.5+ models, whose scheduler takes its timesteps as they are.
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=cls is not LTXConditionPipeline),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    )


def tiny_ltx_long(*, seed: int = 0, **overrides: Any) -> LTXI2VLongMultiPromptPipeline:
    """LTX for long clips, window after window, with the scheduler that it is made for."""
    parts = tiny_ltx(seed=seed, **overrides).components
    return LTXI2VLongMultiPromptPipeline(**{**parts, "scheduler": LTXEulerAncestralRFScheduler()})


__all__ = [
    "BLOCKS",
    "LTX_SIZE",
    "MOCHI_SIZE",
    "TEXT_LENGTH",
    "LTXConditionPipeline",
    "LTXImageToVideoPipeline",
    "LTXPipeline",
    "MochiPipeline",
    "randomise",
    "tiny_ltx",
    "tiny_ltx_long",
    "tiny_mochi",
]

"""A tiny LTX-2: five blocks of two streams, video and audio, with a real VAE for each and a vocoder."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from transformers import Gemma3ForConditionalGeneration

from tests.tiny.text import BLOCKS, TEXT_CHANNELS, TEXT_LENGTH, randomise, tiny_tokenizer

# Height differs from width. Video tokens 5 x 4 x 8; 9 audio tokens, as 9 frames last 0.375 s at 24 a second.
LTX2_SIZE = {"height": 32, "width": 64, "num_frames": 9}
AUDIO_TOKENS = 9

_GEMMA_LAYERS = 2


def tiny_ltx2(cls: type = LTX2Pipeline, *, seed: int = 0, legacy: bool = False, **overrides: Any) -> Any:
    """An LTX-2 pipeline of class `cls` with 5 blocks; `overrides` go to the transformer.

    As LTX-2.3: gated attention, prompts modulated, rotation of split halves, a projection of the text for
    each stream. `legacy`: as LTX-2.0, which has none of it and no STG in diffusers either.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        text_encoder = _tiny_gemma(len(tokenizer))
        newer = {
            "gated_attn": True,
            "cross_attn_mod": True,
            "audio_gated_attn": True,
            "audio_cross_attn_mod": True,
            "use_prompt_embeddings": False,
            "perturbed_attn": True,
        }
        rope_type = "interleaved" if legacy else "split"
        transformer = LTX2VideoTransformer3DModel(
            **{
                "in_channels": 8,
                "out_channels": 8,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "cross_attention_dim": 32,
                "vae_scale_factors": (2, 8, 8),
                "audio_in_channels": 8,
                "audio_out_channels": 8,
                "audio_num_attention_heads": 2,
                "audio_attention_head_dim": 8,
                "audio_cross_attention_dim": 16,
                "num_layers": BLOCKS,
                "caption_channels": TEXT_CHANNELS,
                "rope_type": rope_type,
                **({} if legacy else newer),
                **overrides,
            }
        )
        connectors = LTX2TextConnectors(
            caption_channels=TEXT_CHANNELS,
            text_proj_in_factor=_GEMMA_LAYERS + 1,
            video_connector_num_attention_heads=2,
            video_connector_attention_head_dim=16,
            video_connector_num_layers=1,
            video_connector_num_learnable_registers=8,
            audio_connector_num_attention_heads=2,
            audio_connector_attention_head_dim=16 if legacy else 8,
            audio_connector_num_layers=1,
            audio_connector_num_learnable_registers=8,
            rope_type=rope_type,
            per_modality_projections=not legacy,
            video_hidden_dim=32,
            audio_hidden_dim=16,
        )
        vae = AutoencoderKLLTX2Video(
            latent_channels=8,
            block_out_channels=(8,),
            down_block_types=("LTX2VideoDownBlock3D",),
            decoder_block_out_channels=(8,),
            layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            spatio_temporal_scaling=(True,),
            decoder_spatio_temporal_scaling=(True,),
            decoder_inject_noise=(False, False),
            downsample_type=("spatiotemporal",),
            upsample_type=("spatiotemporal",),
            upsample_residual=(False,),
            upsample_factor=(1,),
            patch_size=4,
        )
        audio_vae = AutoencoderKLLTX2Audio(
            base_channels=8,
            ch_mult=(1, 1, 1),
            num_res_blocks=1,
            latent_channels=4,
            resolution=8,
            mel_bins=8,
        )
        vocoder = LTX2Vocoder(
            in_channels=16,
            hidden_channels=16,
            upsample_kernel_sizes=[16, 10],
            upsample_factors=[16, 10],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1, 3, 5]],
            output_sampling_rate=16000,
        )
        for module in (transformer, connectors, vae, audio_vae, vocoder):
            randomise(module)
    return cls(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05),
        vae=vae.eval(),
        audio_vae=audio_vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        connectors=connectors.eval(),
        transformer=transformer.eval(),
        vocoder=vocoder.eval(),
    )


def _tiny_gemma(vocabulary: int) -> Any:
    """The text half is what the pipeline asks; its vision half is as small as can be."""
    config_class = Gemma3ForConditionalGeneration.config_class
    return Gemma3ForConditionalGeneration(
        config_class(
            text_config={
                "vocab_size": vocabulary,
                "hidden_size": TEXT_CHANNELS,
                "intermediate_size": 32,
                "num_hidden_layers": _GEMMA_LAYERS,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 16,
                "max_position_embeddings": TEXT_LENGTH,
                "sliding_window": TEXT_LENGTH,
                "pad_token_id": 0,
                "eos_token_id": 1,
                "bos_token_id": 1,
            },
            vision_config={
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "image_size": 8,
                "patch_size": 8,
            },
            mm_tokens_per_image=1,
            image_token_index=vocabulary - 1,
        )
    )

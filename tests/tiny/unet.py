"""Tiny UNet pipelines of the real classes: Stable Video Diffusion, Stable Diffusion XL and 1.5.

Three resolutions each, with self-attention at two of them and in the middle, laid out as in the published
models: SVD has none in its deepest down and first up stage, SDXL none in its first down and last up stage.
All components are real; nothing is downloaded.

Facts that the tests and the adapters rely on, for L down stages (diffusers 0.42):

* Token sizes. Down stage i and up stage L - 1 - i work at level i, the middle at level L - 1; level i has
  `ceil(size / 2^i)` rows or columns of the latents' `size`. An up stage is told the odd size that the
  down stage had, so this holds for every size.
* SVD folds frames batch-major: a stage sees [B * F, C, H, W]. Spatial self-attention (`transformer_blocks`)
  sees [B * F, H * W, C], temporal self-attention (`temporal_transformer_blocks`) [B * H * W, F, C]. All rows
  of one sample are neighbours in both.
* A down stage returns (hidden states, residuals); residuals is a tuple that the up stages take from.
"""

from __future__ import annotations

import math
import string
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from tests.tiny.text import randomise

UNET_STAGES = ("down.0", "down.1", "down.2", "mid", "up.0", "up.1", "up.2")
"""Stages of both tiny UNets in order of execution."""

# Both autoencoders shrink by 8, as the published ones do, so that odd latents can be asked for.
SVD_SIZE = {"height": 64, "width": 96, "num_frames": 3}  # latents 3 x 8 x 12
SVD_ODD_SIZE = {"height": 72, "width": 40, "num_frames": 3}  # latents 3 x 9 x 5
SDXL_SIZE = {"height": 96, "width": 64}  # latents 12 x 8
SDXL_ODD_SIZE = {"height": 40, "width": 72}  # latents 5 x 9
SDXL_SQUARE_SIZE = {"height": 96, "width": 96}  # latents 12 x 12
TEXT_LENGTH = 20  # of SDXL's prompts

_CHANNELS = (32, 32, 64)  # of the UNets' stages; SVD normalises groups of 32
_HEADS = (2, 1, 4)
_CROSS_CHANNELS = 32  # of the image or text embeddings that cross-attention reads
_TEXT_CHANNELS = (16, 16)  # of the two text encoders; together _CROSS_CHANNELS
_TIME_CHANNELS = 16  # of each added time id


def tiny_image(size: dict[str, int] = SVD_SIZE, key: str = "") -> Image.Image:
    """An image that differs along both axes; another one for another key."""
    shape = size["width"], size["height"]
    down = Image.linear_gradient("L").resize(shape)
    right = Image.linear_gradient("L").rotate(90).resize(shape)
    third = Image.radial_gradient("L").rotate(zlib.crc32(key.encode()) % 360).resize(shape)
    return Image.merge("RGB", (down, right, third))


def tiny_svd(*, seed: int = 0, **overrides: Any) -> StableVideoDiffusionPipeline:
    """A StableVideoDiffusionPipeline; `overrides` go to the UNet's configuration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNetSpatioTemporalConditionModel(
            **{
                "sample_size": 8,
                "in_channels": 8,
                "out_channels": 4,
                "down_block_types": (
                    "CrossAttnDownBlockSpatioTemporal",
                    "CrossAttnDownBlockSpatioTemporal",
                    "DownBlockSpatioTemporal",
                ),
                "up_block_types": (
                    "UpBlockSpatioTemporal",
                    "CrossAttnUpBlockSpatioTemporal",
                    "CrossAttnUpBlockSpatioTemporal",
                ),
                "block_out_channels": _CHANNELS,
                "addition_time_embed_dim": _TIME_CHANNELS,
                "projection_class_embeddings_input_dim": 3 * _TIME_CHANNELS,
                "layers_per_block": 1,
                "cross_attention_dim": _CROSS_CHANNELS,
                "num_attention_heads": _HEADS,
                "num_frames": SVD_SIZE["num_frames"],
                **overrides,
            }
        )
        vae = AutoencoderKLTemporalDecoder(
            down_block_types=("DownEncoderBlock2D",) * 4,
            block_out_channels=(32, 32, 32, 32),
            layers_per_block=1,
            latent_channels=4,
        )
        image_encoder = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=16,
                intermediate_size=16,
                projection_dim=_CROSS_CHANNELS,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=224,  # the pipeline's own
                patch_size=56,
            )
        )
        for module in (unet, vae):
            randomise(module)
    return StableVideoDiffusionPipeline(
        vae=vae.eval(),
        image_encoder=image_encoder.eval(),
        unet=unet.eval(),
        # The scheduler of stabilityai/stable-video-diffusion-img2vid.
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            interpolation_type="linear",
            use_karras_sigmas=True,
            sigma_min=0.002,
            sigma_max=700.0,
            timestep_spacing="leading",
            timestep_type="continuous",
            steps_offset=1,
        ),
        feature_extractor=CLIPImageProcessor(
            do_resize=False,
            do_center_crop=False,
            image_mean=[0.48145466, 0.4578275, 0.40821073],
            image_std=[0.26862954, 0.26130258, 0.27577711],
        ),
    )


def tiny_sdxl(cls: type = StableDiffusionXLPipeline, *, seed: int = 0, **overrides: Any) -> Any:
    """An SDXL pipeline of class `cls`; `overrides` go to the UNet's configuration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizers = [_tokenizer(), _tokenizer()]
        text_encoder = CLIPTextModel(_text_config(tokenizers[0], _TEXT_CHANNELS[0]))
        text_encoder_2 = CLIPTextModelWithProjection(_text_config(tokenizers[1], _TEXT_CHANNELS[1]))
        pooled = text_encoder_2.config.projection_dim
        unet = UNet2DConditionModel(
            **{
                "sample_size": 12,
                "in_channels": 4,
                "out_channels": 4,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "block_out_channels": _CHANNELS,
                "layers_per_block": 1,
                "transformer_layers_per_block": (1, 1, 2),
                # Under this old name diffusers keeps the number of heads, in SDXL as well.
                "attention_head_dim": _HEADS,
                "cross_attention_dim": sum(_TEXT_CHANNELS),
                "norm_num_groups": 16,
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": _TIME_CHANNELS,
                "projection_class_embeddings_input_dim": pooled + 6 * _TIME_CHANNELS,
                **overrides,
            }
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(16, 16, 16, 16),
            norm_num_groups=16,
            layers_per_block=1,
            latent_channels=4,
            scaling_factor=0.13025,
        )
        for module in (unet, vae):
            randomise(module)
    return cls(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        text_encoder_2=text_encoder_2.eval(),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet.eval(),
        # The scheduler of stabilityai/stable-diffusion-xl-base-1.0.
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="epsilon",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def tiny_sd15(cls: type = StableDiffusionPipeline, *, seed: int = 0, **overrides: Any) -> Any:
    """A Stable Diffusion 1.5 pipeline of class `cls`: tiny SDXL's parts, less the second text encoder."""
    plain = {
        "cross_attention_dim": _TEXT_CHANNELS[0],
        "use_linear_projection": False,
        "transformer_layers_per_block": 1,
        "attention_head_dim": 4,
        "addition_embed_type": None,
        "addition_time_embed_dim": None,
        "projection_class_embeddings_input_dim": None,
    }
    parts = tiny_sdxl(seed=seed, **plain, **overrides).components
    return cls(
        **{name: parts[name] for name in ("vae", "text_encoder", "tokenizer", "unet")},
        # Not stable-diffusion-v1-5's PNDM, which asks twice at one of the steps (`test_sag` has it).
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def self_attentions(unet: torch.nn.Module) -> Iterator[tuple[str, str, int, torch.nn.Module]]:
    """(full name, stage, level, module) of every self-attention, in order of execution.

    Written for tests from the module names alone, apart from the adapters.
    """
    levels = len(unet.down_blocks)
    stages = [(f"down_blocks.{i}", f"down.{i}", i, block) for i, block in enumerate(unet.down_blocks)]
    stages += [("mid_block", "mid", levels - 1, unet.mid_block)]
    stages += [(f"up_blocks.{i}", f"up.{i}", levels - 1 - i, block) for i, block in enumerate(unet.up_blocks)]
    for prefix, stage, level, block in stages:
        for j, transformer in enumerate(getattr(block, "attentions", ())):
            spatial = transformer.transformer_blocks
            temporal = getattr(transformer, "temporal_transformer_blocks", [])
            for k in range(len(spatial)):
                name = f"{prefix}.attentions.{j}.transformer_blocks.{k}.attn1"
                yield name, stage, level, spatial[k].attn1
                if temporal:
                    yield (
                        name.replace(".transformer_", ".temporal_transformer_"),
                        stage,
                        level,
                        temporal[k].attn1,
                    )


def level_size(size: dict[str, int], level: int) -> tuple[int, int]:
    """Height and width of the tokens at a level of the UNet, for the pixels that a pipeline is asked for."""
    return math.ceil(size["height"] / 8 / 2**level), math.ceil(size["width"] / 8 / 2**level)


def _tokenizer() -> CLIPTokenizer:
    """Byte-pair encoding without merges: one token per letter."""
    letters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = [letter + ending for ending in ("", "</w>") for letter in letters]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TEXT_LENGTH)


def _text_config(tokenizer: CLIPTokenizer, channels: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=channels,
        intermediate_size=channels,
        projection_dim=24,
        num_hidden_layers=2,  # SDXL reads the last layer but one
        num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )

"""Tiny Wan pipelines of the real classes: 2.1, 2.2 with two experts, and the 5B model's own time per token.

What the pipelines do, read from diffusers 0.42.1:

- Each step calls the denoiser once per condition, `cond` first, then `uncond` if `guidance_scale > 1`, in
  cache contexts of these names. Everything but the scheduler step happens in these two calls.
- The scale is the argument `guidance_scale`, also at `pipe._guidance_scale`. Wan 2.2 has two denoisers:
  `transformer` while `timestep >= boundary_ratio * num_train_timesteps`, then `transformer_2` with
  `guidance_scale_2` (`pipe._guidance_scale_2`; None takes the first). Whether there is an `uncond` follows
  from the first scale alone. Either denoiser may be missing.
- `hidden_states` is [B, C, F, H, W]; image-to-video concatenates a mask and the image's latents along C,
  except for the 5B model, which puts the image's latents in place of the first frame. The token grid is its
  F, H, W over `config.patch_size` (a triple).
- `timestep` is [B], and [B, S] with S the number of video tokens for a model with `expand_timesteps`; in
  its image-to-video the first frame's tokens are at time 0.
- Blocks (`blocks`): self-attention of the video tokens alone (`attn1`), query and key norms over all heads
  at once ([B, S, C]), then rotary embedding; cross-attention (`attn2`) to text, for 2.1 image-to-video to
  the image also.
- Text is padded with zeros, without a mask. The cross-attention of 2.1 image-to-video splits its tokens at
  a hard-coded 512 text tokens from the end: with fewer it takes the image's tokens for text, without an
  error.
- Its image embeddings are repeated per prompt, not per video: `num_videos_per_prompt=2` raises in the stock
  pipeline. A last image doubles the first dimension of `encoder_hidden_states_image` to 2 B.
- `WanImageToVideoPipeline` cleans a prompt with `ftfy` and raises NameError where that is not installed
  (`WanPipeline` does without); `wan_prompt_embeds` stands in for the prompt.
- `WanPipeline` sets the scheduler's begin index, `WanImageToVideoPipeline` does not: there the scheduler
  has no step index before its first step. With flow sigmas, a sigma is the noise level.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    LucyEditPipeline,
    SkyReelsV2ImageToVideoPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    UMT5EncoderModel,
)

from tests.tiny.text import BLOCKS, TEXT_CHANNELS, randomise, tiny_text_encoder, tiny_tokenizer

# Height differs from width, so that a mix-up of the two shows. Arguments of the pipeline call.
WAN_SIZE = {"height": 48, "width": 64, "num_frames": 9}  # token grid 3 x 3 x 4
WAN_5B_SIZE = {"height": 96, "width": 128, "num_frames": 9}  # its VAE halves once more: the same token grid
WAN_IMAGE_TEXT_LENGTH = 512
"""`max_sequence_length` that 2.1 image-to-video needs: diffusers hard-codes it in the cross-attention."""

_LATENT_CHANNELS = 4
_IMAGE_CHANNELS = 16


def tiny_wan(cls: type = WanPipeline, *, seed: int = 0, **overrides: Any) -> Any:
    """Wan 2.1: one transformer with 5 blocks of 2 heads; with `WanImageToVideoPipeline` it sees the image's
    CLIP embedding as well as its latents. `overrides` go to the transformer's configuration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = _text_and_vae(_LATENT_CHANNELS)
        image = {}
        if cls is WanImageToVideoPipeline:
            overrides = {"image_dim": _IMAGE_CHANNELS, **overrides}
            image = {"image_encoder": _image_encoder(), "image_processor": _image_processor()}
        transformer = _transformer(_LATENT_CHANNELS, with_image=bool(image), **overrides)
    return cls(**parts, **image, transformer=transformer, scheduler=wan_scheduler(3.0))


def tiny_wan_two_experts(cls: type = WanPipeline, *, seed: int = 0, **overrides: Any) -> Any:
    """Wan 2.2 14B: `transformer` down to the boundary, then `transformer_2` with weights of its own.

    Text to video spends 1 of 3 or 2 of 4 steps above the boundary, image to video 2 of 3 or 2 of 4.
    """
    with_image = cls is WanImageToVideoPipeline
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = _text_and_vae(_LATENT_CHANNELS)
        experts = [_transformer(_LATENT_CHANNELS, with_image, **overrides) for _ in range(2)]
    return cls(
        **parts,
        transformer=experts[0],
        transformer_2=experts[1],
        boundary_ratio=0.9 if with_image else 0.875,
        scheduler=wan_scheduler(5.0 if with_image else 3.0),
    )


def tiny_wan_5b(cls: type = WanPipeline, *, seed: int = 0, **overrides: Any) -> Any:
    """Wan 2.2 5B: every token has a timestep of its own, and the VAE takes patches of 2 x 2 pixels."""
    channels = 6
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = _text_and_vae(
            channels,
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
        )
        transformer = _transformer(channels, with_image=False, **overrides)
    return cls(**parts, transformer=transformer, expand_timesteps=True, scheduler=wan_scheduler(5.0))


def tiny_lucy_edit(*, seed: int = 0, **overrides: Any) -> LucyEditPipeline:
    """Lucy Edit: Wan 2.2 5B that sees the latents of the video to edit beside those of the clip."""
    pipe = tiny_wan_5b(seed=seed, **{"in_channels": 12, "out_channels": 6} | overrides)
    return LucyEditPipeline(**pipe.components, expand_timesteps=True)


def tiny_wan_vace(*, seed: int = 0, **overrides: Any) -> WanVACEPipeline:
    """VACE: Wan 2.1 with blocks beside its own, which see a control video, a mask and reference images."""
    pipe = tiny_wan(seed=seed, **overrides)
    config = {name: value for name, value in pipe.transformer.config.items() if not name.startswith("_")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = WanVACETransformer3DModel.from_config(
            # latents of what stays and of what changes, a mask of 8 x 8 pixels
            {**config, "vace_layers": [0, 2], "vace_in_channels": 2 * _LATENT_CHANNELS + 64}
        )
        randomise(transformer)
        for block in (*transformer.blocks, *transformer.vace_blocks):
            torch.nn.init.normal_(block.scale_shift_table)
    return WanVACEPipeline(**{**pipe.components, "transformer": transformer.eval()})


def tiny_skyreels_v2(cls: type = SkyReelsV2Pipeline, *, seed: int = 0, **overrides: Any) -> Any:
    """SkyReels V2: Wan 2.1 with a transformer class of its own."""
    with_image = cls is SkyReelsV2ImageToVideoPipeline
    pipe = tiny_wan(WanImageToVideoPipeline if with_image else WanPipeline, seed=seed, **overrides)
    transformer = SkyReelsV2Transformer3DModel.from_config(
        {name: value for name, value in pipe.transformer.config.items() if not name.startswith("_")}
    )
    missing = transformer.load_state_dict(pipe.transformer.state_dict(), strict=False).missing_keys
    assert not missing
    parts = {name: part for name, part in pipe.components.items() if name != "transformer_2"}
    return cls(**{**parts, "transformer": transformer.eval()})


def wan_prompt_embeds(prompt: str | list[str], length: int = WAN_IMAGE_TEXT_LENGTH) -> dict[str, Any]:
    """Arguments of the pipeline call in place of a prompt, a list being a batch: random embeddings
    [B, length, TEXT_CHANNELS], the same for the same prompt."""
    prompts = [prompt] if isinstance(prompt, str) else prompt

    def embed(text: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        return torch.randn(length, TEXT_CHANNELS, generator=generator)

    return {
        "prompt_embeds": torch.stack([embed(text) for text in prompts]),
        "negative_prompt_embeds": torch.stack([embed("") for _ in prompts]),
        "max_sequence_length": length,
    }


def wan_scheduler(shift: float, kind: str = "unipc") -> Any:
    """The scheduler of the released models ("unipc", flow sigmas) or the other that they are used with
    ("euler"), its noise levels s moved to `shift * s / (1 + (shift - 1) * s)`."""
    if kind == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=shift)
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, num_train_timesteps=1000
    )


def _transformer(channels: int, with_image: bool, **overrides: Any) -> WanTransformer3DModel:
    heads, head_dim = overrides.get("num_attention_heads", 2), overrides.get("attention_head_dim", 16)
    image = {}
    if with_image:
        # latents, 4 channels of mask (one per pixel frame of a latent frame), latents of the image
        image["in_channels"] = 2 * channels + 4
    if overrides.get("image_dim") is not None:
        image["added_kv_proj_dim"] = heads * head_dim
    transformer = WanTransformer3DModel(
        **{
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": BLOCKS,
            "in_channels": channels,
            "out_channels": channels,
            "text_dim": TEXT_CHANNELS,
            "freq_dim": 32,
            "ffn_dim": 48,
            "rope_max_seq_len": 32,
            **image,
            **overrides,
        }
    )
    randomise(transformer)
    with torch.no_grad():
        for block in transformer.blocks:
            # As drawn by the class, the gates let little of a block through.
            block.scale_shift_table.normal_()
    return transformer.eval()


def _text_and_vae(channels: int, **vae_overrides: Any) -> dict[str, Any]:
    tokenizer = tiny_tokenizer()
    generator = torch.Generator().manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=torch.randn(channels, generator=generator).tolist(),
        latents_std=(1 + torch.rand(channels, generator=generator)).tolist(),
        **vae_overrides,
    )
    randomise(vae)
    return {
        "tokenizer": tokenizer,
        "text_encoder": tiny_text_encoder(tokenizer, UMT5EncoderModel),
        "vae": vae.eval(),
    }


def _image_encoder() -> CLIPVisionModel:
    config = CLIPVisionConfig(
        hidden_size=_IMAGE_CHANNELS,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    return CLIPVisionModel(config).eval()


def _image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})

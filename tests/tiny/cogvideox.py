"""Tiny CogVideoX pipelines of the real classes: 2B, 5B and 1.5, text to video and image to video.

What the pipelines do, read from diffusers 0.42.1:

- Each step calls the denoiser once with the rows `[uncond, cond]` in the cache context "cond_uncond", or
  with `cond` alone for `guidance_scale <= 1`. The pipelines have no `do_classifier_free_guidance`: the
  choice is a local variable of the call, made from the argument.
- The scale is read from `pipe.guidance_scale` *after* the denoiser has returned. With `use_dynamic_cfg`
  each step writes a new one there just before, so during a denoiser call the attribute holds the scale of
  the step before (at the first step the argument), and it may be above 1 in a call that has no `uncond`.
- The prediction is cast to float32 before the scale is applied.
- `hidden_states` is [B, F, C, H, W], frames before channels; image-to-video concatenates the image's
  latents (first frame, then zeros) along C. The token grid is F over `patch_size_t` (None is 1), H and W
  over `patch_size`. With `patch_size_t` the pipeline pads the clip to a multiple of it:
  `output_type="latent"` returns the padding.
- `timestep` is [B]. `ofs` (1.5 image-to-video) is [1] whatever the batch. `image_rotary_emb` is a pair of
  [S, D] tensors over video tokens, None for the 2B model, which adds sine-cosine positions to the tokens
  instead.
- Blocks (`transformer_blocks`, called by keyword, `hidden_states` first): one joint attention (`attn1`)
  whose `to_q`, `to_k`, `to_v` see text, then video: [B, T + S, C]. The norms are LayerNorms over a head's
  channels, laid out [B, N, T + S, D], text included; only the video part is rotated, in place. A block
  returns `(hidden_states, encoder_hidden_states)`, the attention too, after it has put text and video
  through `to_out` together.
- Schedulers: `CogVideoXDDIMScheduler` and `CogVideoXDPMScheduler`, variance preserving, with
  `alphas_cumprod` by training timestep and without `sigmas`, `step_index` or `begin_index`; the step is the
  place of the current timestep among `scheduler.timesteps`. At the first timestep `alphas_cumprod` is 0:
  sigma is infinite.
- `num_videos_per_prompt` is overwritten with 1 at the start of the call.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXFunControlPipeline,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)

from tests.tiny.text import (
    BLOCKS,
    TEXT_CHANNELS,
    TEXT_LENGTH,
    randomise,
    tiny_text_encoder,
    tiny_tokenizer,
)

# Height differs from width, so that a mix-up of the two shows. Arguments of the pipeline call.
COGVIDEOX_SIZE = {"height": 48, "width": 64, "num_frames": 9}  # token grid 3 x 3 x 4
COGVIDEOX_15_SIZE = {"height": 48, "width": 64, "num_frames": 17}  # 5 latent frames, padded to 6: 3 x 3 x 4

_LATENT_CHANNELS = 4
_SAMPLE = {"sample_height": 6, "sample_width": 8, "sample_frames": 9}


def tiny_cogvideox(cls: type = CogVideoXPipeline, *, seed: int = 0, **overrides: Any) -> Any:
    """CogVideoX 2B: sine-cosine positions, DDIM. `overrides` go to the transformer's configuration."""
    return _pipeline(cls, cogvideox_scheduler("ddim"), seed, **overrides)


def tiny_cogvideox_5b(cls: type = CogVideoXPipeline, *, seed: int = 0, **overrides: Any) -> Any:
    """CogVideoX 5B: rotary positions (image to video adds learned ones), DPM."""
    learned = cls is CogVideoXImageToVideoPipeline
    options = {"use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": learned}
    return _pipeline(cls, cogvideox_scheduler("dpm"), seed, **options | overrides)


def tiny_cogvideox_15(cls: type = CogVideoXPipeline, *, seed: int = 0, **overrides: Any) -> Any:
    """CogVideoX 1.5: rotary positions, two latent frames per token; image to video adds an offset."""
    options = {
        "use_rotary_positional_embeddings": True,
        "patch_size_t": 2,
        "patch_bias": False,
        "ofs_embed_dim": 32 if cls is CogVideoXImageToVideoPipeline else None,
    }
    return _pipeline(cls, cogvideox_scheduler("dpm"), seed, invert_scale_latents=True, **options | overrides)


def tiny_cogvideox_control(*, seed: int = 0, **overrides: Any) -> Any:
    """CogVideoX-Fun 5B: sees the latents of a control video beside those of the clip; DDIM of diffusers."""
    options = {"use_rotary_positional_embeddings": True, "in_channels": 2 * _LATENT_CHANNELS}
    return _pipeline(CogVideoXFunControlPipeline, cogvideox_scheduler("ddim"), seed, **options | overrides)


def cogvideox_scheduler(kind: str) -> Any:
    """The scheduler of the released models: "ddim" (2B) or "dpm" (5B and 1.5)."""
    cls, shift = {"ddim": (CogVideoXDDIMScheduler, 3.0), "dpm": (CogVideoXDPMScheduler, 1.0)}[kind]
    return cls(
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=shift,
        timestep_spacing="trailing",
    )


def _pipeline(
    cls: type, scheduler: Any, seed: int, invert_scale_latents: bool = False, **overrides: Any
) -> Any:
    images = 2 if cls is CogVideoXImageToVideoPipeline else 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        text_encoder = tiny_text_encoder(tokenizer)
        transformer = CogVideoXTransformer3DModel(
            **{
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "num_layers": BLOCKS,
                "in_channels": images * _LATENT_CHANNELS,
                "out_channels": _LATENT_CHANNELS,
                "text_embed_dim": TEXT_CHANNELS,
                "time_embed_dim": 32,
                "max_text_seq_length": TEXT_LENGTH,
                **_SAMPLE,
                **overrides,
            }
        )
        vae = AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8),
            latent_channels=_LATENT_CHANNELS,
            layers_per_block=1,
            norm_num_groups=2,
            sample_height=48,
            sample_width=64,
            invert_scale_latents=invert_scale_latents,
        )
        for module in (transformer, vae):
            randomise(module)
    return cls(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=scheduler,
    )

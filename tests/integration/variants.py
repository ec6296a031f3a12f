"""Configurations of Wan, CogVideoX and HunyuanVideo beside those in `families`, each with its own path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers import (
    CogVideoXImageToVideoPipeline,
    CogVideoXVideoToVideoPipeline,
    SkyReelsV2DiffusionForcingImageToVideoPipeline,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2DiffusionForcingVideoToVideoPipeline,
    SkyReelsV2ImageToVideoPipeline,
    WanImageToVideoPipeline,
    WanVideoToVideoPipeline,
)
from PIL import Image

from oseg_video.types import TokenGrid
from tests.integration.families import CASES, COGVIDEOX, HUNYUAN, LTX, WAN, Case, gradient
from tests.tiny import LTX_SIZE, TEXT_LENGTH, tiny_ltx_long
from tests.tiny.cogvideox import (
    COGVIDEOX_15_SIZE,
    COGVIDEOX_SIZE,
    tiny_cogvideox_5b,
    tiny_cogvideox_15,
    tiny_cogvideox_control,
)
from tests.tiny.hunyuan import HUNYUAN_SIZE, tiny_skyreels
from tests.tiny.wan import (
    WAN_5B_SIZE,
    WAN_SIZE,
    tiny_lucy_edit,
    tiny_skyreels_v2,
    tiny_wan,
    tiny_wan_5b,
    tiny_wan_two_experts,
    tiny_wan_vace,
    wan_prompt_embeds,
)

SECOND_SCALE = 2.5
"""Guidance scale of Wan's second expert."""


def one_scale(case: Case, scale: float) -> dict[str, float]:
    """Arguments that give every expert of a case the same scale, beside that of the run."""
    return {"guidance_scale_2": scale} if "guidance_scale_2" in case.extra() else {}


def image_of(case: Case, name: str, build: Callable[..., Any], size: dict[str, int], **extra: Any) -> Case:
    """An image-to-video case of Wan; its pipeline pads the text to 512 unless it is given encoded."""
    return replace(
        case,
        name=name,
        build=partial(build, WanImageToVideoPipeline),
        size=size,
        extra=lambda: {"image": gradient(size)} | extra,
        condition=partial(wan_prompt_embeds, length=TEXT_LENGTH),
    )


def _frames(size: dict[str, int]) -> list[Any]:
    return [gradient(size).rotate(10 * i) for i in range(size["num_frames"])]


def video_of(case: Case, pipeline: type, **changes: Any) -> Case:
    """A video-to-video case from the parts of a text-to-video one; of 5 steps the last 3 run."""

    def build(**overrides: Any) -> Any:
        pipe = case.build(**overrides)
        parts = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
        return pipeline(**{name: getattr(pipe, name) for name in parts})

    frames = _frames({**case.size, "num_frames": 9})
    return replace(
        case,
        name=f"{case.name}-video",
        build=build,
        size={side: case.size[side] for side in ("height", "width")},
        extra=lambda: {"video": frames, "strength": 0.6, "num_inference_steps": 5},
        **changes,
    )


def _left_half() -> Image.Image:
    """A mask of what is to change: the right half."""
    mask = Image.new("L", (WAN_SIZE["width"], WAN_SIZE["height"]))
    mask.paste(255, (WAN_SIZE["width"] // 2, 0, WAN_SIZE["width"], WAN_SIZE["height"]))
    return mask


_BY_NAME = {case.name: case for case in CASES}
WAN_IMAGE = _BY_NAME["wan-image"]
WAN_FIRST_LAST = replace(
    WAN_IMAGE,
    name="wan-first-last",
    build=partial(tiny_wan, WanImageToVideoPipeline, pos_embed_seq_len=10),
    extra=lambda: {"image": gradient(WAN_SIZE), "last_image": gradient(WAN_SIZE).rotate(180)},
)
WAN_EXPERTS = replace(
    WAN, name="wan-experts", build=tiny_wan_two_experts, extra=lambda: {"guidance_scale_2": SECOND_SCALE}
)
WAN_IMAGE_EXPERTS = image_of(
    WAN, "wan-experts-image", tiny_wan_two_experts, WAN_SIZE, guidance_scale_2=SECOND_SCALE
)
WAN_5B = replace(WAN, name="wan-5b", build=tiny_wan_5b, size=WAN_5B_SIZE)
WAN_5B_IMAGE = image_of(WAN, "wan-5b-image", tiny_wan_5b, WAN_5B_SIZE)
SKYREELS_V2 = replace(WAN, name="skyreels-v2", build=tiny_skyreels_v2)
SKYREELS_V2_IMAGE = replace(
    WAN_IMAGE, name="skyreels-v2-image", build=partial(tiny_skyreels_v2, SkyReelsV2ImageToVideoPipeline)
)
WAN_VACE = replace(WAN, name="wan-vace", build=tiny_wan_vace)
# Of each frame the left half stays; an image stands before the clip.
WAN_VACE_CONTROL = replace(
    WAN_VACE,
    name="wan-vace-control",
    extra=lambda: {
        "video": _frames(WAN_SIZE),
        "mask": [_left_half()] * 9,
        "reference_images": gradient(WAN_SIZE).rotate(90),
    },
    start=WAN_VACE.grid.height * WAN_VACE.grid.width,
)
# Diffusion forcing: a timestep for every frame, the same for all of them here.
SKYREELS_V2_FORCING = replace(
    WAN, name="skyreels-v2-forcing", build=partial(tiny_skyreels_v2, SkyReelsV2DiffusionForcingPipeline)
)
# The first of two blocks of frames is a step ahead, and attends to no later one.
SKYREELS_V2_CAUSAL = replace(
    SKYREELS_V2_FORCING,
    name="skyreels-v2-causal",
    size={**WAN_SIZE, "num_frames": 13},
    extra=lambda: {"ar_step": 1, "causal_block_size": 2},
    grid=TokenGrid(4, 3, 4),
)
# Three windows of three latent frames; each begins with the last two of the one before.
SKYREELS_V2_LONG = replace(
    SKYREELS_V2_FORCING,
    name="skyreels-v2-long",
    size={**WAN_SIZE, "num_frames": 17},
    extra=lambda: {"base_num_frames": 9, "overlap_history": 5},
)
SKYREELS_V2_FORCING_IMAGE = replace(
    SKYREELS_V2_FORCING,
    name="skyreels-v2-forcing-image",
    build=partial(tiny_skyreels_v2, SkyReelsV2DiffusionForcingImageToVideoPipeline),
    extra=lambda: {"image": gradient(WAN_SIZE)},
    condition=partial(wan_prompt_embeds, length=TEXT_LENGTH),
)
# Two windows of three latent frames; the first begins with the last two of the given video.
SKYREELS_V2_FORCING_VIDEO = replace(
    SKYREELS_V2_FORCING,
    name="skyreels-v2-forcing-video",
    build=partial(tiny_skyreels_v2, SkyReelsV2DiffusionForcingVideoToVideoPipeline),
    size={**WAN_SIZE, "num_frames": 13},
    extra=lambda: {"video": _frames(WAN_SIZE), "base_num_frames": 9, "overlap_history": 5},
    condition=partial(wan_prompt_embeds, length=TEXT_LENGTH),
)
FORCING_VARIANTS = (
    SKYREELS_V2_FORCING,
    SKYREELS_V2_CAUSAL,
    SKYREELS_V2_LONG,
    SKYREELS_V2_FORCING_IMAGE,
    SKYREELS_V2_FORCING_VIDEO,
)
LUCY_EDIT = replace(
    WAN_5B,
    name="lucy-edit",
    build=tiny_lucy_edit,
    extra=lambda: {"video": _frames(WAN_5B_SIZE)},
)
WAN_VIDEO = video_of(WAN, WanVideoToVideoPipeline, condition=partial(wan_prompt_embeds, length=TEXT_LENGTH))

COGVIDEOX_IMAGE = _BY_NAME["cogvideox-image"]
COGVIDEOX_5B = replace(COGVIDEOX, name="cogvideox-5b", build=tiny_cogvideox_5b)
# Two latent frames to a token: 5 latent frames are padded to 6.
COGVIDEOX_15 = replace(COGVIDEOX, name="cogvideox-1.5", build=tiny_cogvideox_15, size=COGVIDEOX_15_SIZE)
COGVIDEOX_15_IMAGE = replace(
    COGVIDEOX_15,
    name="cogvideox-1.5-image",
    build=partial(tiny_cogvideox_15, CogVideoXImageToVideoPipeline),
    extra=lambda: {"image": gradient(COGVIDEOX_SIZE)},
)
COGVIDEOX_CONTROL = replace(
    COGVIDEOX,
    name="cogvideox-control",
    build=tiny_cogvideox_control,
    size={side: COGVIDEOX_SIZE[side] for side in ("height", "width")},
    extra=lambda: {"control_video": _frames(COGVIDEOX_SIZE)},
)
COGVIDEOX_VIDEO = video_of(COGVIDEOX, CogVideoXVideoToVideoPipeline)

WAN_VARIANTS = (
    WAN_FIRST_LAST,
    WAN_EXPERTS,
    WAN_IMAGE_EXPERTS,
    WAN_5B,
    WAN_5B_IMAGE,
    WAN_VIDEO,
    WAN_VACE,
    WAN_VACE_CONTROL,
    LUCY_EDIT,
    SKYREELS_V2,
    SKYREELS_V2_IMAGE,
)
COGVIDEOX_VARIANTS = (
    COGVIDEOX_5B,
    COGVIDEOX_15,
    COGVIDEOX_15_IMAGE,
    COGVIDEOX_VIDEO,
    COGVIDEOX_CONTROL,
)
SKYREELS = replace(
    HUNYUAN, name="skyreels", build=tiny_skyreels, extra=lambda: {"image": gradient(HUNYUAN_SIZE)}
)
# Two windows of five latent frames. Behind each stands a frame of reference, and behind the second one the
# last two frames of the first.
LTX_LONG = replace(
    LTX,
    name="ltx-long",
    build=tiny_ltx_long,
    size={**LTX_SIZE, "num_frames": 15},
    extra=lambda: {
        "cond_image": gradient(),
        "temporal_tile_size": 10,
        "temporal_overlap": 4,
        "negative_index_latents": torch.randn(1, 8, 1, 4, 8, generator=torch.Generator().manual_seed(1)),
        "sigmas": [1.0, 0.75, 0.5, 0.0],
    },
)
VARIANTS = (LTX_LONG, *WAN_VARIANTS, *FORCING_VARIANTS, *COGVIDEOX_VARIANTS, SKYREELS)

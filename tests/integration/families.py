"""One way to run every supported pipeline class, for tests that must hold for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXImageToVideoPipeline,
    HunyuanVideo15ImageToVideoPipeline,
    LTX2ConditionPipeline,
    LTX2ImageToVideoPipeline,
    WanImageToVideoPipeline,
)
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from PIL import Image

from oseg_video.types import TokenGrid
from tests.tiny import (
    LTX_SIZE,
    MOCHI_SIZE,
    TEXT_LENGTH,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    tiny_ltx,
    tiny_mochi,
)
from tests.tiny.cogvideox import COGVIDEOX_SIZE, tiny_cogvideox, tiny_cogvideox_5b
from tests.tiny.hunyuan import (
    HUNYUAN15_IMAGE_SIZE,
    HUNYUAN15_SIZE,
    HUNYUAN_SIZE,
    tiny_hunyuan,
    tiny_hunyuan15,
    tiny_hunyuan_image,
)
from tests.tiny.ltx2 import LTX2_SIZE, tiny_ltx2
from tests.tiny.unet import SDXL_SIZE, SVD_SIZE, tiny_image, tiny_sd15, tiny_sdxl, tiny_svd
from tests.tiny.wan import WAN_SIZE, tiny_wan, wan_prompt_embeds

STEPS = 3
SCALE = 4.0
NO_OWN_GUIDANCE = {
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
    "guidance_rescale": 0.0,
    "audio_guidance_rescale": 0.0,
}
"""Arguments that switch off what LTX-2's pipelines do by default."""


def plain_scale(scale: float) -> dict[str, Any]:
    """Arguments that set the scale of the pipeline's own text guidance; 1 is off."""
    return {"guidance_scale": scale}


def text_prompt(prompt: Any) -> dict[str, Any]:
    """Arguments that condition the clip; a list is a batch."""
    return {"prompt": prompt, "max_sequence_length": TEXT_LENGTH}


def quiet(pipe: Any) -> Any:
    """The pipeline, without its progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def over(*cases: Case) -> Any:
    """Run a test for each of these; its fixtures are `case` and `pipe`."""
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name, indirect=True)


def gradient(size: dict[str, int] = LTX_SIZE) -> Image.Image:
    """An image, dark above, of a clip's size."""
    return Image.linear_gradient("L").convert("RGB").resize((size["width"], size["height"]))


def ramp_scale(scale: float) -> dict[str, Any]:
    """SVD's scale, here the same for every frame."""
    return {"min_guidance_scale": scale, "max_guidance_scale": scale}


def image_for(prompt: Any) -> dict[str, Any]:
    """An image, or a batch of them, in place of a prompt: SVD knows no text."""
    images = [tiny_image(SVD_SIZE, key=one) for one in ([prompt] if isinstance(prompt, str) else prompt)]
    return {"image": images[0] if isinstance(prompt, str) else images}


def true_cfg_scale(scale: float) -> dict[str, Any]:
    """HunyuanVideo's scale; its `guidance_scale` is an input of the network."""
    return {"true_cfg_scale": scale, "negative_prompt": "bad"}


def short_prompt(prompt: Any) -> dict[str, Any]:
    """As `text_prompt`, for pipelines whose tokenizer sets the length."""
    return {"prompt": prompt}


@dataclass(frozen=True)
class Case:
    """A pipeline class with the arguments that it needs beyond the common ones."""

    name: str
    build: Callable[..., Any]
    size: dict[str, int]
    extra: Callable[[], dict[str, Any]] = dict
    """Arguments of every call, such as an image."""
    grid: TokenGrid | None = None
    """Token grid at every attention site; None where sites differ (UNets)."""
    start: int = 0
    """Tokens before the clip's own in the sequence of its attention."""
    scale: Callable[[float], dict[str, Any]] = plain_scale
    condition: Callable[[Any], dict[str, Any]] = text_prompt
    result: str = "frames"
    """Attribute of the pipeline's output."""
    handed_on: Callable[[Any, torch.Tensor], torch.Tensor] = lambda pipe, prediction: prediction
    """What the pipeline gives its scheduler of a prediction, such as all frames but the image's."""
    own: int | None = None
    """How much of what is handed on, along dimension 1, the pipeline mixes with nothing; None: all."""
    blocks: int = 5
    """Number of blocks of the denoiser."""

    def run(
        self,
        pipe: Any,
        prompt: Any = "a red circle",
        seed: int = 0,
        guidance_scale: float = SCALE,
        **overrides: Any,
    ) -> torch.Tensor:
        """Final latents of a short run; a batch of prompts starts each clip from a seed of its own."""
        count = (len(prompt) if isinstance(prompt, list) else 1) * overrides.get("num_videos_per_prompt", 1)
        generators = [torch.Generator().manual_seed(seed + i) for i in range(count)]
        arguments = {
            "num_inference_steps": STEPS,
            "generator": generators if count > 1 else generators[0],
            "output_type": "latent",
        }
        arguments |= self.condition(prompt) | self.scale(guidance_scale) | self.size | self.extra()
        return self.latents(pipe(**(arguments | overrides)))

    def latents(self, output: Any) -> torch.Tensor:
        """Those in what the pipeline returns."""
        return getattr(output, self.result)


@dataclass(frozen=True)
class SoundCase(Case):
    """A pipeline that makes sound as well; its stock calls are without guidance but that by text."""

    scale: Callable[[float], dict[str, Any]] = lambda scale: {
        "guidance_scale": scale,
        "audio_guidance_scale": scale,
        **NO_OWN_GUIDANCE,
    }

    def latents(self, output: Any) -> torch.Tensor:
        return torch.cat([output.frames.flatten(1), output.audio.flatten(1)], dim=1)


@dataclass(frozen=True)
class GuiderCase(Case):
    """A pipeline whose text guidance is a component, with a scale of its own."""

    scale: Callable[[float], dict[str, Any]] = lambda _: {}

    def run(self, pipe: Any, *given: Any, guidance_scale: float = SCALE, **overrides: Any) -> torch.Tensor:
        pipe.guider = pipe.guider.new(guidance_scale=guidance_scale)
        return super().run(pipe, *given, guidance_scale=guidance_scale, **overrides)


def _keyframe() -> dict[str, Any]:
    # A condition on a frame other than the first: its tokens stand before those of the clip.
    return {"conditions": [LTXVideoCondition(image=gradient(), frame_index=8)]}


def _ltx2_keyframe() -> dict[str, Any]:
    # Its tokens stand behind those of the clip.
    return {"conditions": [LTX2VideoCondition(frames=gradient(LTX2_SIZE), index=1)]}


_LTX_GRID = TokenGrid(5, 4, 8)


def _all_but_the_first_frame(pipe: Any, prediction: torch.Tensor) -> torch.Tensor:
    return pipe._unpack_latents(prediction, *_LTX_GRID.shape, 1, 1)[:, :, 1:]


MOCHI = Case("mochi", tiny_mochi, MOCHI_SIZE, grid=TokenGrid(3, 3, 2))
LTX = Case("ltx", tiny_ltx, LTX_SIZE, grid=_LTX_GRID)
LTX2 = SoundCase("ltx2", tiny_ltx2, LTX2_SIZE, grid=TokenGrid(5, 4, 8))
_WAN_GRID = TokenGrid(3, 3, 4)
WAN = Case("wan", tiny_wan, WAN_SIZE, grid=_WAN_GRID)
COGVIDEOX = Case("cogvideox", tiny_cogvideox, COGVIDEOX_SIZE, grid=TokenGrid(3, 3, 4), start=TEXT_LENGTH)
SVD = Case("svd", tiny_svd, SVD_SIZE, scale=ramp_scale, condition=image_for, blocks=14)
SDXL = Case("sdxl", tiny_sdxl, SDXL_SIZE, condition=short_prompt, result="images", blocks=11)
SD15 = Case("sd15", tiny_sd15, SDXL_SIZE, condition=short_prompt, result="images", blocks=7)
HUNYUAN = Case("hunyuan", tiny_hunyuan, HUNYUAN_SIZE, grid=TokenGrid(3, 4, 3), scale=true_cfg_scale)
HUNYUAN15 = GuiderCase(
    "hunyuan15", tiny_hunyuan15, HUNYUAN15_SIZE, grid=TokenGrid(3, 4, 3), condition=short_prompt
)
CASES = (
    MOCHI,
    LTX,
    Case(
        "ltx-image",
        partial(tiny_ltx, LTXImageToVideoPipeline),
        LTX_SIZE,
        lambda: {"image": gradient()},
        grid=_LTX_GRID,
        handed_on=_all_but_the_first_frame,
    ),
    Case(
        "ltx-condition",
        partial(tiny_ltx, LTXConditionPipeline),
        LTX_SIZE,
        _keyframe,
        grid=_LTX_GRID,
        start=_LTX_GRID.height * _LTX_GRID.width,
        handed_on=lambda pipe, prediction: -prediction,
    ),
    LTX2,
    SoundCase(
        "ltx2-image",
        partial(tiny_ltx2, LTX2ImageToVideoPipeline),
        LTX2_SIZE,
        lambda: {"image": gradient(LTX2_SIZE)},
        grid=LTX2.grid,
        handed_on=_all_but_the_first_frame,
    ),
    SoundCase(
        "ltx2-condition",
        partial(tiny_ltx2, LTX2ConditionPipeline),
        LTX2_SIZE,
        _ltx2_keyframe,
        grid=LTX2.grid,
        own=LTX2.grid.tokens,
    ),
    WAN,
    Case(
        "wan-image",
        partial(tiny_wan, WanImageToVideoPipeline),
        WAN_SIZE,
        lambda: {"image": gradient(WAN_SIZE)},
        grid=_WAN_GRID,
        condition=wan_prompt_embeds,
    ),
    COGVIDEOX,
    Case(
        "cogvideox-image",
        partial(tiny_cogvideox_5b, CogVideoXImageToVideoPipeline),
        COGVIDEOX_SIZE,
        lambda: {"image": gradient(COGVIDEOX_SIZE)},
        grid=COGVIDEOX.grid,
        start=TEXT_LENGTH,
    ),
    SVD,
    SDXL,
    SD15,
    HUNYUAN,
    Case(
        "hunyuan-image",
        tiny_hunyuan_image,
        HUNYUAN_SIZE,
        lambda: {"image": gradient(HUNYUAN_SIZE)},
        grid=HUNYUAN.grid,
        scale=true_cfg_scale,
    ),
    HUNYUAN15,
    GuiderCase(
        "hunyuan15-image",
        partial(tiny_hunyuan15, HunyuanVideo15ImageToVideoPipeline),
        {"num_frames": HUNYUAN15_SIZE["num_frames"]},
        lambda: {"image": gradient(HUNYUAN15_IMAGE_SIZE)},
        grid=TokenGrid(3, 5, 3),
        condition=short_prompt,
    ),
)

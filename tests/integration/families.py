"""One way to run every supported pipeline class, for tests that must hold for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from PIL import Image

from tests.tiny import (
    LTX_SIZE,
    MOCHI_SIZE,
    TEXT_LENGTH,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    tiny_ltx,
    tiny_mochi,
)

STEPS = 3
SCALE = 4.0


def _image() -> Image.Image:
    return Image.linear_gradient("L").convert("RGB").resize((LTX_SIZE["width"], LTX_SIZE["height"]))


@dataclass(frozen=True)
class Case:
    """A pipeline class with the arguments that it needs beyond the common ones."""

    name: str
    build: Callable[..., Any]
    size: dict[str, int]
    extra: Callable[[], dict[str, Any]] = dict

    def run(self, pipe: Any, prompt: Any = "a red circle", seed: int = 0, **overrides: Any) -> torch.Tensor:
        """Final latents of a short run; a batch of prompts starts each clip from a seed of its own."""
        count = (len(prompt) if isinstance(prompt, list) else 1) * overrides.get("num_videos_per_prompt", 1)
        generators = [torch.Generator().manual_seed(seed + i) for i in range(count)]
        arguments = {
            "prompt": prompt,
            "num_inference_steps": STEPS,
            "guidance_scale": SCALE,
            "generator": generators if count > 1 else generators[0],
            "output_type": "latent",
            "max_sequence_length": TEXT_LENGTH,
        }
        return pipe(**(arguments | self.size | self.extra() | overrides)).frames


def _keyframe() -> dict[str, Any]:
    # A condition on a frame other than the first: its tokens stand before those of the clip.
    return {"conditions": [LTXVideoCondition(image=_image(), frame_index=8)]}


MOCHI = Case("mochi", tiny_mochi, MOCHI_SIZE)
LTX = Case("ltx", tiny_ltx, LTX_SIZE)
CASES = (
    MOCHI,
    LTX,
    Case("ltx-image", partial(tiny_ltx, LTXImageToVideoPipeline), LTX_SIZE, lambda: {"image": _image()}),
    Case("ltx-condition", partial(tiny_ltx, LTXConditionPipeline), LTX_SIZE, _keyframe),
)

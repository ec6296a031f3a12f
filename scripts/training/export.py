"""Trained modules to a diffusers directory, and a look at what it samples."""

from __future__ import annotations

import copy
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiPipeline
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from oseg_video.embedded.drawing import FRAMES, SIZE
from training.transformer import Task, TextToVideo, new_text_encoder, new_transformer

logger = logging.getLogger(__name__)

EVALUATION_SEED = 100
"""Seed of the prompts of `measure_samples`."""


def build_pipeline(
    task: Task,
    autoencoder: AutoencoderKLMochi,
    tokenizer: PreTrainedTokenizerBase,
    model: TextToVideo,
    dtype: torch.dtype,
) -> MochiPipeline:
    """A pipeline with copies of the trained weights in `dtype`, free of training's attention processors."""
    text_encoder = new_text_encoder(len(tokenizer))
    text_encoder.load_state_dict(model.text_encoder.state_dict())
    transformer = new_transformer(task)
    transformer.load_state_dict(model.transformer.state_dict())
    pipeline = MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=copy.deepcopy(autoencoder).cpu(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        force_zeros_for_empty_prompt=False,
    )
    return pipeline.to(dtype=dtype)


def save_model(pipeline: MochiPipeline, tokenizer_dir: Path, target: Path) -> None:
    """Write everything beside `target`, then swap the directories."""
    partial, old = target.with_name(target.name + ".partial"), target.with_name(target.name + ".old")
    for directory in (partial, old):
        shutil.rmtree(directory, ignore_errors=True)
    pipeline.save_pretrained(partial)
    shutil.copy(tokenizer_dir / "spiece.model", partial / "tokenizer" / "spiece.model")
    if target.exists():
        os.replace(target, old)
    os.replace(partial, target)
    shutil.rmtree(old, ignore_errors=True)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    logger.info("export: %s, %.2f MB", target, size / 1e6)


def save_weights(module: nn.Module, target: Path) -> None:
    """Write float32 weights, atomically."""
    partial = target.with_name(target.name + ".partial")
    save_file(module.state_dict(), partial)
    os.replace(partial, target)


@torch.no_grad()
def measure_samples(
    pipeline: MochiPipeline,
    data: ModuleType,
    agreements: Callable[[Tensor, list[Any]], list[dict[str, bool]]],
    *,
    clips: int,
    guidance_scale: float,
    steps: int,
) -> tuple[dict[str, float], Tensor]:
    """Shares of sampled clips with each thing right that `agreements` names; the clips.

    Prompts are canonical captions of random attributes of the data set; every clip has its own seed.
    `agreements` says of clips [B, F, C, H, W] and the attributes wanted what each clip shows of them.
    """
    pipeline.set_progress_bar_config(disable=True)
    batches, right = [], []
    for first in range(0, clips, 16):
        indices = range(first, min(first + 16, clips))
        wanted = [data.sample_attributes(EVALUATION_SEED, index) for index in indices]
        sampled_BFCHW = pipeline(
            [data.caption(attributes) for attributes in wanted],
            height=SIZE,
            width=SIZE,
            num_frames=FRAMES,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(index) for index in indices],
            max_sequence_length=pipeline.tokenizer.model_max_length,
            output_type="pt",
        ).frames.float()
        batches.append(sampled_BFCHW)
        right += agreements(sampled_BFCHW, wanted)
    shares = {name: sum(row[name] for row in right) / clips for name in right[0]}
    return shares, torch.cat(batches)

"""Trained modules to a diffusers directory, and a look at what it samples."""

from __future__ import annotations

import copy
import logging
import os
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiPipeline
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from oseg_video.embedded.classifier import ClipClassifier
from oseg_video.embedded.dataset import FRAMES, SIZE, VOCABULARIES, caption, sample_attributes
from oseg_video.embedded.training.transformer import TextToVideo, new_text_encoder, new_transformer

logger = logging.getLogger(__name__)

EVALUATION_SEED = 100
"""Seed of the prompts of `measure_samples`."""


def build_pipeline(
    autoencoder: AutoencoderKLMochi,
    tokenizer: PreTrainedTokenizerBase,
    model: TextToVideo,
    dtype: torch.dtype,
) -> MochiPipeline:
    """A pipeline with copies of the trained weights in `dtype`, free of training's attention processors."""
    text_encoder = new_text_encoder(len(tokenizer))
    text_encoder.load_state_dict(model.text_encoder.state_dict())
    transformer = new_transformer()
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


def save_classifier(classifier: ClipClassifier, target: Path) -> None:
    """Write float32 weights, atomically."""
    partial = target.with_name(target.name + ".partial")
    save_file(classifier.state_dict(), partial)
    os.replace(partial, target)


@torch.no_grad()
def measure_samples(
    pipeline: MochiPipeline, classifier: ClipClassifier, *, clips: int, guidance_scale: float, steps: int
) -> tuple[dict[str, float], Tensor]:
    """Shares of sampled clips with each attribute right and with colour, shape and motion right; the clips.

    Prompts are canonical captions of random attributes; every clip has its own seed.
    """
    pipeline.set_progress_bar_config(disable=True)
    wanted = [sample_attributes(EVALUATION_SEED, index) for index in range(clips)]
    batches = []
    for first in range(0, clips, 16):
        batch = wanted[first : first + 16]
        batches.append(
            pipeline(
                [caption(attributes) for attributes in batch],
                height=SIZE,
                width=SIZE,
                num_frames=FRAMES,
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                generator=[torch.Generator().manual_seed(first + row) for row in range(len(batch))],
                max_sequence_length=32,
                output_type="pt",
            ).frames.float()
        )
    sampled_BFCHW = torch.cat(batches)
    judged = classifier.judge(sampled_BFCHW)
    pairs = list(zip(wanted, judged, strict=True))
    right = {
        name: torch.tensor([getattr(a, name) == getattr(b, name) for a, b in pairs]) for name in VOCABULARIES
    }
    shares = {name: float(hits.float().mean()) for name, hits in right.items()}
    shares["all"] = float((right["colour"] & right["shape"] & right["motion"]).float().mean())
    return shares, sampled_BFCHW

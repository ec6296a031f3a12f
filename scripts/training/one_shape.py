"""The stages of the one-shape model's training, by name."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, T5Tokenizer

from oseg_video.embedded import MODEL_PATH, dataset
from oseg_video.embedded.classifier import WEIGHTS, ClipClassifier
from training.autoencoder import load_autoencoder, train_autoencoder
from training.export import build_pipeline, measure_samples, save_model, save_weights
from training.judge import agreements, train_classifier
from training.loop import load_average, save_contact_sheet
from training.text import train_tokenizer
from training.transformer import ONE_SHAPE, TextToVideo, train_transformer

ModuleT = TypeVar("ModuleT", bound=nn.Module)
logger = logging.getLogger(__name__)

SAMPLE_STEPS = 50
GUIDANCE_SCALE = 3.0
TEXT_LENGTH = 32
"""Tokens that the tokenizer allows in a prompt."""


def run(stage: str, arguments: argparse.Namespace, device: torch.device) -> None:
    """Run one stage; what it needs from earlier stages it reads from `arguments.run_dir`."""
    _STAGES[stage](arguments.run_dir, device)


def _vae(run_dir: Path, device: torch.device) -> None:
    train_autoencoder(run_dir, device)


def _transformer(run_dir: Path, device: torch.device) -> None:
    tokenizer = train_tokenizer(run_dir / "tokenizer", dataset.all_captions(), max_length=TEXT_LENGTH)
    train_transformer(ONE_SHAPE, tokenizer, run_dir, device)


def _classifier(run_dir: Path, device: torch.device) -> None:
    train_classifier(load_autoencoder(run_dir).to(device), run_dir, device)


def _export(run_dir: Path, device: torch.device) -> None:
    """Write the shipped model from the newest averaged weights, and sample from it."""
    tokenizer = _tokenizer(run_dir)
    model = _restored(TextToVideo(len(tokenizer), ONE_SHAPE), run_dir / "transformer.pt")
    classifier = _restored(ClipClassifier(), run_dir / "classifier.pt")
    pipeline = build_pipeline(ONE_SHAPE, load_autoencoder(run_dir), tokenizer, model, torch.float16)
    # transformers loads weights in the type they are stored in, diffusers in float32: together, by default.
    pipeline.text_encoder.float()
    save_model(pipeline, run_dir / "tokenizer", MODEL_PATH)
    save_weights(classifier, WEIGHTS)
    pipeline.to(dtype=torch.float32)
    shares, clips_BFCHW = measure_samples(
        pipeline,
        dataset,
        partial(agreements, classifier),
        clips=32,
        guidance_scale=GUIDANCE_SCALE,
        steps=SAMPLE_STEPS,
    )
    logger.info("export: guidance scale %s, %d steps, 32 clips: %s", GUIDANCE_SCALE, SAMPLE_STEPS, shares)
    save_contact_sheet(clips_BFCHW[:16], run_dir / "samples.png")


def _tokenizer(run_dir: Path) -> PreTrainedTokenizerBase:
    return T5Tokenizer.from_pretrained(run_dir / "tokenizer")


def _restored(module: ModuleT, checkpoint: Path) -> ModuleT:
    module.load_state_dict(load_average(checkpoint))
    return module.eval()


_STAGES: dict[str, Callable[[Path, torch.device], None]] = {
    "vae": _vae,
    "transformer": _transformer,
    "classifier": _classifier,
    "export": _export,
}

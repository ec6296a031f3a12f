"""The classifier stage."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLMochi
from torch import Tensor

from oseg_video.embedded.classifier import ClipClassifier, agreement, seen_frames
from oseg_video.embedded.dataset import FRAMES, VOCABULARIES, ClipAttributes, sample_attributes, sample_clips
from training.autoencoder import TRAINING_SEED
from training.latents import SCALE, pooled_latents
from training.loop import LoopConfig, fit

logger = logging.getLogger(__name__)

BATCH = 40
LOOP = LoopConfig(steps=800, learning_rate=2e-3, ema_decay=0.99, seed=4)

DECODED_CLIPS = 320
"""Training clips that passed through the autoencoder, so that its traces are no surprise to the judge."""
DECODED_PER_BATCH = 8
LARGEST_NOISE = 0.4
"""Upper end of the noise on their latents, of standard deviation 1: stands in for imperfect sampling."""
FIRST_CLIP = 1_000_000
"""The classifier draws training clips that the autoencoder and the transformer do not see."""


def train_classifier(autoencoder: AutoencoderKLMochi, run_dir: Path, device: torch.device) -> ClipClassifier:
    """Train on augmented drawn clips and on decoded ones."""
    torch.manual_seed(TRAINING_SEED)
    classifier = ClipClassifier().to(device)
    seen = seen_frames(FRAMES)
    decoded_BFCHW = _decode_training_clips(autoencoder, device)[:, seen]
    decoded_attributes = [sample_attributes(TRAINING_SEED, index) for index in range(DECODED_CLIPS)]

    def compute_losses(step: int) -> dict[str, Tensor]:
        drawn = BATCH - DECODED_PER_BATCH
        first = FIRST_CLIP + drawn * step
        frames_BFCHW, attributes = sample_clips(TRAINING_SEED, range(first, first + drawn), seen)
        rows = torch.randint(DECODED_CLIPS, (DECODED_PER_BATCH,))
        frames_BFCHW = augment(frames_BFCHW.to(device).float() / 255)
        frames_BFCHW = torch.cat([frames_BFCHW, decoded_BFCHW[rows].float()])
        attributes += [decoded_attributes[row] for row in rows.tolist()]
        logits = classifier.read(classifier.frame_features(frames_BFCHW))
        targets = _targets(attributes, device)
        losses = {
            name: F.cross_entropy(logits[name], targets[name], label_smoothing=0.02) for name in VOCABULARIES
        }
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    fit(classifier, compute_losses, LOOP, run_dir / "classifier.pt")
    accuracy = measure_accuracy(classifier, clips=1024, device=device)
    logger.info("classifier: accuracy on fresh drawn clips %s", accuracy)
    return classifier


def agreements(
    classifier: ClipClassifier, clips_BFCHW: Tensor, wanted: list[ClipAttributes]
) -> list[dict[str, bool]]:
    """Of every clip, whether each attribute is right, and whether colour, shape and motion are."""
    return [agreement(a, b) for a, b in zip(wanted, classifier.judge(clips_BFCHW), strict=True)]


@torch.no_grad()
def measure_accuracy(classifier: ClipClassifier, *, clips: int, device: torch.device) -> dict[str, float]:
    """Share of right answers per head on clips of a data set that no stage trains on."""
    right = dict.fromkeys(VOCABULARIES, 0)
    for first in range(0, clips, 64):
        drawn_BFCHW, attributes = sample_clips(TRAINING_SEED + 1, range(first, min(first + 64, clips)))
        judged = classifier.judge(drawn_BFCHW.to(device).float() / 255)
        for a, b in zip(attributes, judged, strict=True):
            for name in VOCABULARIES:
                right[name] += getattr(a, name) == getattr(b, name)
    return {name: count / clips for name, count in right.items()}


def augment(clips_BFCHW: Tensor) -> Tensor:
    """A small gain and shift per colour channel; a third of the clips is blurred, a third gets noise."""
    batch, device = len(clips_BFCHW), clips_BFCHW.device
    gain = 1 + 0.08 * torch.randn(batch, 1, 3, 1, 1, device=device)
    shift = 0.04 * torch.randn(batch, 1, 3, 1, 1, device=device)
    clips_BFCHW = clips_BFCHW * gain + shift
    blurred, noisy, untouched = clips_BFCHW.tensor_split(3)
    softer = F.avg_pool2d(blurred.flatten(0, 1), 3, stride=1, padding=1, count_include_pad=False)
    blurred = blurred.lerp(softer.view_as(blurred), torch.rand(len(blurred), 1, 1, 1, 1, device=device))
    level = 0.08 * torch.rand(len(noisy), 1, 1, 1, 1, device=device)
    noisy = noisy + level * torch.randn_like(noisy)
    return torch.cat([blurred, noisy, untouched]).clamp(0, 1)


@torch.no_grad()
def _decode_training_clips(autoencoder: AutoencoderKLMochi, device: torch.device) -> Tensor:
    """Decoded latents with noise of random level, float16 [B, F, C, H, W] in [0, 1]."""
    decoded = []
    for first in range(0, DECODED_CLIPS, 16):
        clips_BFCHW, _ = sample_clips(TRAINING_SEED, range(first, first + 16))
        latents = pooled_latents(clips_BFCHW.to(device))
        level = LARGEST_NOISE / SCALE * torch.rand(len(latents), 1, 1, 1, 1, device=device)
        noisy = latents + level * torch.randn_like(latents)
        decoded.append((autoencoder.decode(noisy).sample.transpose(1, 2) / 2 + 0.5).clamp(0, 1).half())
    return torch.cat(decoded)


def _targets(attributes: list[ClipAttributes], device: torch.device) -> dict[str, Tensor]:
    indices = torch.tensor([a.indices() for a in attributes], device=device)
    return {name: indices[:, column] for column, name in enumerate(VOCABULARIES)}

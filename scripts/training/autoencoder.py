"""The autoencoder stage: a decoder that draws clips from latents, and an encoder that computes them."""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLMochi
from torch import Tensor

from oseg_video.embedded import MODEL_PATH, dataset, two_shapes
from training.latents import CHANNELS, SCALE, pooled_latents
from training.loop import LoopConfig, autocast, fit, load_average, save_contact_sheet
from training.upsampling import start_from_upsampling

logger = logging.getLogger(__name__)

TRAINING_SEED = 1
"""Seed of the data set from which all stages train; evaluations use others."""

BATCH = 4
DECODER_LOOP = LoopConfig(steps=6200, learning_rate=2e-3, ema_decay=0.998, seed=1)
FURTHER_LOOP = LoopConfig(
    steps=600, learning_rate=7e-4, warmup_steps=30, ema_decay=0.98, seed=6, save_every=300, log_every=10
)
ENCODER_LOOP = LoopConfig(steps=400, learning_rate=2e-3, ema_decay=0.98, seed=2)

SHAPE_WEIGHT = 4.0
LARGEST_NOISE = 0.25
"""Upper end of the noise on the decoder's inputs, drawn per clip, for latents of standard deviation 1.

It teaches the decoder to draw clean edges from the slightly wrong latents of a sampled clip."""
LOG_VARIANCE = -8.0
"""What the encoder says of its own uncertainty, whatever the clip: the latents are exact."""


def new_autoencoder() -> AutoencoderKLMochi:
    """4 x 4 patches are folded first, so nothing but maps of single pixels runs at full resolution.

    The encoder ends in 96 channels because its last group norm has 32 groups: in a group of few channels a
    flat background of any colour normalises to plus and minus one, and its colour is lost.
    """
    return AutoencoderKLMochi(
        encoder_block_out_channels=(16, 32, 96),
        decoder_block_out_channels=(8, 64, 96),
        latent_channels=CHANNELS,
        layers_per_block=(0, 2, 2, 0),
        temporal_expansions=(3, 2),
        spatial_expansions=(4, 2),
        add_attention_block=(False,) * 4,
        latents_mean=None,
        latents_std=None,
        scaling_factor=SCALE,
    )


def train_autoencoder(run_dir: Path, device: torch.device) -> AutoencoderKLMochi:
    """Train decoder, then encoder; a contact sheet (drawn and decoded rows in turn) at every checkpoint."""
    torch.manual_seed(TRAINING_SEED)
    autoencoder = new_autoencoder()
    start_from_upsampling(autoencoder.decoder)
    autoencoder.to(device)

    def decoder_losses(step: int) -> dict[str, Tensor]:
        return _decoder_losses(autoencoder, _draw_batch(step, device))

    def encoder_losses(step: int) -> dict[str, Tensor]:
        return _encoder_losses(autoencoder, _draw_batch(step, device))

    def show(decoder: torch.nn.Module) -> None:
        show_reconstructions(decoder, run_dir / "autoencoder.png", device)

    autoencoder.decoder = fit(
        autoencoder.decoder, decoder_losses, DECODER_LOOP, run_dir / "decoder.pt", on_save=show
    )
    autoencoder.encoder = fit(autoencoder.encoder, encoder_losses, ENCODER_LOOP, run_dir / "encoder.pt")
    return autoencoder


def train_decoder_further(run_dir: Path, device: torch.device) -> AutoencoderKLMochi:
    """Teach the shipped decoder clips of two shapes; half of the clips still show one."""
    autoencoder = AutoencoderKLMochi.from_pretrained(MODEL_PATH / "vae", torch_dtype=torch.float32).to(device)

    def decoder_losses(step: int) -> dict[str, Tensor]:
        half = range(BATCH // 2 * step, BATCH // 2 * (step + 1))
        drawn = [data.sample_clips(TRAINING_SEED, half)[0] for data in (dataset, two_shapes)]
        return _decoder_losses(autoencoder, torch.cat(drawn).to(device))

    autoencoder.decoder = fit(autoencoder.decoder, decoder_losses, FURTHER_LOOP, run_dir / "decoder.pt")
    for data in (dataset, two_shapes):
        show_reconstructions(autoencoder.decoder, run_dir / "autoencoder.png", device, data)
    return autoencoder


@torch.no_grad()
def show_reconstructions(
    decoder: torch.nn.Module, path: Path, device: torch.device, data: ModuleType = dataset
) -> float:
    """Contact sheet of unseen clips and what the decoder draws from their latents; returns the PSNR in dB."""
    clips_BFCHW, _ = data.sample_clips(TRAINING_SEED + 1, range(8))
    drawn = clips_BFCHW.to(device).float() / 255
    decoded = _decode(decoder, pooled_latents(clips_BFCHW.to(device)))
    decoded = (decoded.transpose(1, 2) / 2 + 0.5).clamp(0, 1)
    psnr = float(-10 * (decoded - drawn).square().mean(dim=(1, 2, 3, 4)).log10().mean())
    save_contact_sheet(torch.stack([drawn, decoded], dim=1).flatten(0, 1), path)
    logger.info("autoencoder: PSNR %.2f dB", psnr)
    return psnr


def _draw_batch(step: int, device: torch.device) -> Tensor:
    return dataset.sample_clips(TRAINING_SEED, range(BATCH * step, BATCH * (step + 1)))[0].to(device)


def _decode(decoder: torch.nn.Module, latents_BCTHW: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B, 3, F, 8 H, 8 W] in [-1, 1], without the frames that `decode` drops as well."""
    return decoder(latents_BCTHW)[0][:, :, 5:]


def _decoder_losses(autoencoder: AutoencoderKLMochi, clips_BFCHW: Tensor) -> dict[str, Tensor]:
    target = clips_BFCHW.transpose(1, 2).float() / 127.5 - 1
    latents = pooled_latents(clips_BFCHW)
    level = torch.rand(len(latents), 1, 1, 1, 1, device=latents.device) * (LARGEST_NOISE / SCALE)
    with autocast(latents.device):
        decoded = _decode(autoencoder.decoder, latents + level * torch.randn_like(latents)).float()
    error = decoded - target
    # The corner always shows the background. The shape covers a tenth of a frame and carries all the rest;
    # its surroundings weigh as much, or the notches of a cross fill up.
    shape = (target != target[..., :1, :1]).any(dim=1).float()
    surroundings = F.interpolate(F.max_pool2d(shape, 12, stride=4, padding=4), scale_factor=4)
    weight = 1 + SHAPE_WEIGHT * surroundings[:, None]
    # Errors of neighbouring pixels' differences are what one sees as a ragged or soft edge.
    slope = error.diff(dim=3).abs().mean() + error.diff(dim=4).abs().mean()
    loss = (weight * (error.abs() + error.square())).mean() + 0.5 * slope
    return {"loss": loss, "mse": error.square().mean()}


def _encoder_losses(autoencoder: AutoencoderKLMochi, clips_BFCHW: Tensor) -> dict[str, Tensor]:
    with autocast(clips_BFCHW.device):
        moments = autoencoder.encoder(clips_BFCHW.transpose(1, 2).float() / 127.5 - 1)[0].float()
    mean, log_variance = moments.chunk(2, dim=1)
    mse = (mean - pooled_latents(clips_BFCHW)).square().mean()
    return {"loss": mse + 0.01 * (log_variance - LOG_VARIANCE).square().mean(), "mse": mse}


def load_autoencoder(run_dir: Path) -> AutoencoderKLMochi:
    """The autoencoder from the newest averaged weights; the encoder may not be trained yet."""
    autoencoder = new_autoencoder()
    autoencoder.decoder.load_state_dict(load_average(run_dir / "decoder.pt"))
    if (run_dir / "encoder.pt").exists():
        autoencoder.encoder.load_state_dict(load_average(run_dir / "encoder.pt"))
    return autoencoder.eval()

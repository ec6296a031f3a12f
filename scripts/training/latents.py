"""The latent space of the embedded model, fixed beforehand: a small image of every sixth frame.

A learned latent space takes a GPU to make its shapes sharp. This one needs no training, so the transformer
trains on clips drawn on the fly, and the decoder learns one thing only: to draw the clip that the small
images show. The encoder is trained to compute the same latents.

Tensor letters: B clips, F frames, C channels, H rows, W columns, T latent frames.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

POOL = 4
"""Pixels per side that one value of a small image averages."""
FOLD = 2
"""Pixels per side of a small image that one latent position holds."""
FRAME_STEP = 6
"""Frames between two latent frames; the first latent frame is the first frame alone, as in Mochi's VAE."""
CHANNELS = 3 * FOLD**2
SCALE = 1.3
"""Makes the latents' standard deviation about 1; the exported autoencoder carries it as scaling factor."""


KEY_FRAMES = (0, 6, 12, 18)
"""Frames of a clip of 19 that the latents show."""


def pooled_latents(clips_BFCHW: Tensor) -> Tensor:
    """Latents float32 [B, 12, T, H/8, W/8] of uint8 clips [B, F, C, H, W] with F = 6 (T - 1) + 1.

    RGB in [-1, 1] of every sixth frame, averaged over 4 x 4 pixels and unshuffled by 2. Not scaled.
    """
    return pooled_key_frames(clips_BFCHW[:, ::FRAME_STEP])


def pooled_key_frames(key_frames_BTCHW: Tensor) -> Tensor:
    """`pooled_latents` of clips of which only every sixth frame was drawn."""
    frames = key_frames_BTCHW.float() / 127.5 - 1
    small = F.pixel_unshuffle(F.avg_pool2d(frames.flatten(0, 1), POOL), FOLD)
    return small.unflatten(0, frames.shape[:2]).transpose(1, 2)


def small_images(latents_BCTHW: Tensor) -> Tensor:
    """RGB [B, T, 3, 2 H, 2 W] in [0, 1] held by the (unscaled) latents, to see them without a decoder."""
    frames = latents_BCTHW.transpose(1, 2)
    images = F.pixel_shuffle(frames.flatten(0, 1), FOLD).unflatten(0, frames.shape[:2])
    return (images / 2 + 0.5).clamp(0, 1)

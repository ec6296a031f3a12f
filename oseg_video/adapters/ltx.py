"""LTX-Video: self-attention of video tokens, then cross-attention to text (Lightricks/LTX-Video)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from oseg_video.adapters.base import ModelAdapter, register_adapter
from oseg_video.adapters.blocks import BlockAddress
from oseg_video.adapters.denoiser import (
    Attention,
    DenoiserCall,
    TextAttention,
    TokenInputs,
    VideoTokens,
    random_like,
)
from oseg_video.adapters.settings import ARGUMENTS, ClipSize, ReadJson
from oseg_video.parallel.shards import Shard
from oseg_video.settings import Setting
from oseg_video.settings.kinds import FINITE, NUMBERS
from oseg_video.types import Denoiser, TokenGrid
from oseg_video.waits import read_once

if TYPE_CHECKING:
    from torch import Tensor

_TEXT_TOKENS = 128  # default max_sequence_length of the pipeline
_CONDITION = "LTXConditionPipeline"


def _times(inputs: Mapping[str, Any], shard: Shard) -> dict[str, Any]:
    """A timestep per token, where some tokens are given; else one for all."""
    return {"temb": shard.take(inputs["temb"], 1)} if inputs["temb"].shape[1] > 1 else {}


@register_adapter
class LTXAdapter(ModelAdapter):
    """`LTXVideoTransformer3DModel`: queries are normalised over all heads at once."""

    family = "ltx"
    text_to_video = "LTXPipeline"
    image_to_video = "LTXImageToVideoPipeline"
    other_pipelines = (_CONDITION, "LTXI2VLongMultiPromptPipeline")
    universal_pipelines = (_CONDITION,)
    windowed_pipelines = ("LTXI2VLongMultiPromptPipeline",)
    arguments: ClassVar[Mapping[str, str]] = {**ARGUMENTS, "fps": "frame_rate"}
    own_settings: ClassVar[Mapping[str, Setting]] = {
        "timesteps": Setting(
            kind=NUMBERS,
            help="0.9.5 and later: the timesteps of the sampling, 1000 down to 0, as many as steps",
            default=None,
            low=0,
            high=1000,
        ),
        "decode_timestep": Setting(
            kind=FINITE,
            help="0.9.1 and later: timestep that the VAE decodes at, 0 to 1",
            default=None,
            low=0,
            high=1,
        ),
        "decode_noise_scale": Setting(
            kind=FINITE,
            help="0.9.1 and later: share of noise in the latents that are decoded (default: decode_timestep)",
            default=None,
            low=0,
            high=1,
        ),
        "image_cond_noise_scale": Setting(
            kind=FINITE,
            help="0.9.5 and later: noise on the latents of the image, for more motion; 0 is off",
            default=None,
            low=0,
            high=100,
        ),
    }
    image_settings = ("image_cond_noise_scale",)
    hub_repository = "Lightricks/LTX-Video"
    size_multiple = 32
    spatial_compression = 32
    denoiser_class = "LTXVideoTransformer3DModel"
    frame_multiple = 8
    denoiser_call = DenoiserCall(
        rows=("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask", "video_coords"),
        channel_dim=2,
    )
    site = Attention("attn1", norm_layout="BSC")
    text_attention = (TextAttention(mask="encoder_attention_mask"),)
    token_inputs = TokenInputs({"image_rotary_emb": 1}, _times)

    def objection(self, settings: Mapping[str, Any], read: ReadJson) -> str | None:
        pipeline = read("model_index.json").get("_class_name", _CONDITION)
        for name in ("timesteps", "image_cond_noise_scale"):
            if name in settings and pipeline != _CONDITION:
                return f"{name} is for models of {_CONDITION} (0.9.5 and later); this one is of {pipeline}"
        for name in ("decode_timestep", "decode_noise_scale"):
            if name in settings and not _decodes_at_a_timestep(read):
                return f"{name} {settings[name]:g}: the VAE of this model decodes without a timestep"
        timesteps = settings.get("timesteps")
        if timesteps is None:
            return None
        if len(timesteps) != settings["steps"]:
            return f"timesteps has {len(timesteps)} of them, where steps is {settings['steps']}"
        if any(later >= earlier for earlier, later in itertools.pairwise(timesteps)):
            return f"timesteps must fall from each to the next, got {list(timesteps)}"
        return None

    def video_tokens(
        self, denoiser: Denoiser, arguments: Mapping[str, Any], address: BlockAddress
    ) -> VideoTokens:
        return _video_tokens(arguments)

    def prediction_grid(self, arguments: Mapping[str, Any]) -> TokenGrid:
        return _video_tokens(arguments).grid

    def latents_behind(self, arguments: Mapping[str, Any]) -> int:
        return _video_tokens(arguments).behind

    def decoding_example(self, vae: Denoiser, clip: ClipSize, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().decoding_example(vae, clip, settings), **decoding_timestep(vae)}

    def example_arguments(self, denoiser: Denoiser, clip: ClipSize, rows: int) -> dict[str, Any]:
        import torch

        config, device = denoiser.config, denoiser.device
        frames, height, width = self.latent_size(clip)
        tokens = frames * height * width
        return {
            "hidden_states": random_like(denoiser, rows, tokens, config.in_channels),
            "encoder_hidden_states": random_like(denoiser, rows, _TEXT_TOKENS, config.caption_channels),
            "timestep": torch.full((rows,), 500.0, device=device),
            "encoder_attention_mask": torch.ones(rows, _TEXT_TOKENS, device=device),
            "num_frames": frames,
            "height": height,
            "width": width,
        }


def decoding_timestep(vae: Denoiser) -> dict[str, Any]:
    """What the VAE's `decode` takes besides, if this one takes out the last noise."""
    import torch

    return {"temb": torch.full((1,), 0.05, device=vae.device)} if vae.config.timestep_conditioning else {}


def _decodes_at_a_timestep(read: ReadJson) -> bool:
    vae = read("vae/config.json")
    return not vae or bool(vae.get("timestep_conditioning"))


def _video_tokens(arguments: Mapping[str, Any]) -> VideoTokens:
    coordinates = arguments.get("video_coords")
    if coordinates is None:
        return VideoTokens(TokenGrid(arguments["num_frames"], arguments["height"], arguments["width"]))
    return read_once("tokens", [coordinates], lambda: _tokens_from_coordinates(coordinates))


def _tokens_from_coordinates(coordinates: Tensor) -> VideoTokens:
    """The clip's tokens from coordinates [B, 3, S] (seconds, rows, columns).

    The condition pipeline puts the tokens of conditioning frames other than the first before the clip's own,
    the pipeline of long clips those of the last window and of other references behind them. The clip starts
    at second 0 and its frames follow in time; no tokens before it start there.
    """
    seconds, rows, columns = coordinates[0]
    height, width = rows.unique().numel(), columns.unique().numel()
    times = seconds[:: height * width].tolist()
    starts = [0, *(i for i in range(1, len(times)) if times[i] <= times[i - 1]), len(times)]
    first, stop = next((a, b) for a, b in itertools.pairwise(starts) if times[a] == 0)
    grid = TokenGrid(stop - first, height, width)
    return VideoTokens(grid, first * height * width, behind=(len(times) - stop) * height * width)

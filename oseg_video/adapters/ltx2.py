"""LTX-2: a stream of video and one of sound that attend to each other and to text (Lightricks/LTX-2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from oseg_video.adapters.base import ModelAdapter, register_adapter
from oseg_video.adapters.blocks import BlockAddress
from oseg_video.adapters.denoiser import (
    Attention,
    AudioStream,
    DenoiserCall,
    TextAttention,
    TokenInputs,
    VideoTokens,
    random_like,
)
from oseg_video.adapters.ltx import decoding_timestep
from oseg_video.adapters.sampling import Sampling
from oseg_video.adapters.settings import ARGUMENTS, ClipSize, ReadJson
from oseg_video.parallel.shards import Shard
from oseg_video.types import Denoiser, Pipeline, TokenGrid

if TYPE_CHECKING:
    from torch import Tensor

_TEXT_TOKENS = 1024  # default max_sequence_length of the pipeline
_FPS = 24.0  # its default frame_rate
_AUDIO_LATENTS = 25.0  # a second: 16,000 samples, of which 160 make a spectrum and 4 spectra a latent


def _own_inputs(inputs: Mapping[str, Any], shard: Shard) -> dict[str, Any]:
    """Rotations, by head or not, and a timestep per token where some are given; every rank has the sound."""
    own: dict[str, Any] = {}
    for name in ("video_rotary_emb", "ca_video_rotary_emb"):
        own[name] = tuple(shard.take(x, x.ndim - 2) for x in inputs[name])
    for name in ("temb", "temb_ca_scale_shift", "temb_ca_gate"):
        if inputs[name].shape[1] > 1:
            own[name] = shard.take(inputs[name], 1)
    return own


class LTX2Sampling(Sampling):
    """One call for all rows; the pipeline combines denoised latents, with scales for video and for sound.

    Its own spatio-temporal and modality guidance is on by default, also at guidance_scale 1.
    """

    def schedulers(self, pipe: Pipeline) -> tuple[Any, ...]:
        # The pipelines copy the video's for the sound, where there is no other.
        return pipe.scheduler, getattr(pipe, "audio_scheduler", None) or pipe.scheduler


@register_adapter
class LTX2Adapter(ModelAdapter):
    """`LTX2VideoTransformer3DModel`: queries are normalised over all heads at once, in either stream."""

    family = "ltx2"
    text_to_video = "LTX2Pipeline"
    image_to_video = "LTX2ImageToVideoPipeline"
    other_pipelines = ("LTX2ConditionPipeline",)
    arguments: ClassVar[Mapping[str, str]] = {
        **ARGUMENTS,
        "fps": "frame_rate",
        "audio_guidance_scale": "audio_guidance_scale",
        "use_cross_timestep": "use_cross_timestep",
    }
    hub_repository = "Lightricks/LTX-2"
    size_multiple = 32
    spatial_compression = 32
    frame_multiple = 8
    sampling = LTX2Sampling(
        unconditional_hint="give it a guidance_scale or an audio_guidance_scale above 1",
        combines_denoised=True,
        own_guidance={
            "stg_scale": 0.0,
            "audio_stg_scale": 0.0,
            "modality_scale": 1.0,
            "audio_modality_scale": 1.0,
            "guidance_rescale": 0.0,
            "audio_guidance_rescale": 0.0,
        },
    )
    denoiser_class = "LTX2VideoTransformer3DModel"
    denoiser_call = DenoiserCall(
        rows=(
            *("hidden_states", "audio_hidden_states", "encoder_hidden_states", "audio_encoder_hidden_states"),
            *("timestep", "audio_timestep", "sigma", "audio_sigma"),
            *("encoder_attention_mask", "audio_encoder_attention_mask", "video_coords", "audio_coords"),
        ),
        audio_sample="audio_hidden_states",
        channel_dim=2,
        output="diffusers.models.transformers.transformer_ltx2.AudioVisualModelOutput",
    )
    block_outputs = ("hidden_states", "audio_hidden_states")
    site = Attention("attn1", norm_layout="BSC")
    audio = AudioStream(
        Attention("audio_attn1", norm_layout="BSC"),
        isolated={"use_a2v_cross_attention": False, "use_v2a_cross_attention": False},
        reads_video="video_to_audio_attn",
    )
    text_attention = (
        TextAttention(mask="encoder_attention_mask"),
        TextAttention("audio_attn2", "audio_encoder_attention_mask", "audio_encoder_hidden_states"),
    )
    token_inputs = TokenInputs({}, _own_inputs)

    def video_tokens(
        self, denoiser: Denoiser, arguments: Mapping[str, Any], address: BlockAddress
    ) -> VideoTokens:
        return VideoTokens(self.prediction_grid(arguments), behind=self.latents_behind(arguments))

    def prediction_grid(self, arguments: Mapping[str, Any]) -> TokenGrid:
        return TokenGrid(arguments["num_frames"], arguments["height"], arguments["width"])

    def latents_behind(self, arguments: Mapping[str, Any]) -> int:
        # The condition pipeline puts those of frames other than the first there.
        behind: int = arguments["hidden_states"].shape[1] - self.prediction_grid(arguments).tokens
        return behind

    def decoding_example(self, vae: Denoiser, clip: ClipSize, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().decoding_example(vae, clip, settings), **decoding_timestep(vae)}

    def example_arguments(self, denoiser: Denoiser, clip: ClipSize, rows: int) -> dict[str, Any]:
        import torch

        config, device = denoiser.config, denoiser.device
        frames, height, width = self.latent_size(clip)
        audio_frames = round(clip.frames / _FPS * _AUDIO_LATENTS)
        text, audio_text = _text_channels(config)
        level = torch.full((rows,), 500.0, device=device)
        mask = torch.ones(rows, _TEXT_TOKENS, device=device)
        return {
            "hidden_states": random_like(denoiser, rows, frames * height * width, config.in_channels),
            "audio_hidden_states": random_like(denoiser, rows, audio_frames, config.audio_in_channels),
            "encoder_hidden_states": random_like(denoiser, rows, _TEXT_TOKENS, text),
            "audio_encoder_hidden_states": random_like(denoiser, rows, _TEXT_TOKENS, audio_text),
            "timestep": level,
            "sigma": level,
            "encoder_attention_mask": mask,
            "audio_encoder_attention_mask": mask,
            "num_frames": frames,
            "height": height,
            "width": width,
            "audio_num_frames": audio_frames,
        }

    def configure(self, pipe: Pipeline, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """With what LTX-2.3 and later take; LTX-2.0, which has no modulated prompts, does not."""
        return {**settings, "use_cross_timestep": bool(pipe.transformer.config.cross_attn_mod)}

    def objection(self, settings: Mapping[str, Any], read: ReadJson) -> str | None:
        length = settings.get("max_sequence_length")
        if length is None:
            return None
        registers = read("connectors/config.json").get("video_connector_num_learnable_registers")
        if registers and length % registers:
            return f"max_sequence_length must be a multiple of {registers}, got {length}"
        return None

    def sound(self, pipe: Pipeline, output: Any) -> tuple[Tensor, int] | None:
        return output.audio[0], int(pipe.vocoder.config.output_sampling_rate)


def _text_channels(config: Any) -> tuple[int, int]:
    """Channels of the text for video and for sound."""
    if config.use_prompt_embeddings:
        return config.caption_channels, config.caption_channels
    heads = config.audio_num_attention_heads * config.audio_attention_head_dim
    return config.num_attention_heads * config.attention_head_dim, heads

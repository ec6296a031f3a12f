"""HunyuanVideo: joint attention of video and text in dual, then single blocks (tencent/HunyuanVideo)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from oseg_video.adapters.base import register_adapter
from oseg_video.adapters.blocks import Stacks
from oseg_video.adapters.denoiser import (
    Attention,
    DenoiserCall,
    JointText,
    PaddedText,
    TokenInputs,
    random_like,
)
from oseg_video.adapters.flow_shift import FLOW_SHIFT, shifted, unshiftable
from oseg_video.adapters.joint import JointAttentionAdapter
from oseg_video.adapters.sampling import Sampling
from oseg_video.adapters.settings import ARGUMENTS, ClipSize, ReadJson
from oseg_video.parallel.shards import Shard
from oseg_video.settings import Setting
from oseg_video.settings.kinds import FINITE
from oseg_video.types import Denoiser, Pipeline

if TYPE_CHECKING:
    import torch

_TEXT_TOKENS = 256  # default max_sequence_length of the pipelines


class _TrueCFG(Sampling):
    def runs_uncond(self, pipe: Pipeline, call: Mapping[str, Any]) -> bool:
        embeds = (call["negative_prompt_embeds"], call["negative_pooled_prompt_embeds"])
        negative = call["negative_prompt"] is not None or all(one is not None for one in embeds)
        return bool(call["true_cfg_scale"] > 1 and negative)

    def scale(self, pipe: Pipeline, call: Mapping[str, Any], denoiser: str) -> float:
        return float(call["true_cfg_scale"])


def _first_frame(inputs: Mapping[str, Any], shard: Shard) -> dict[str, Any]:
    """The number of tokens of the frame whose place an image has taken."""
    tokens = inputs.get("num_tokens")
    return {} if tokens is None else {"num_tokens": shard.local(tokens)}


@register_adapter
class HunyuanVideoAdapter(JointAttentionAdapter):
    """`HunyuanVideoTransformer3DModel`: the clip's tokens stand before those of the text.

    The released weights are guidance-distilled: `guidance_scale` is an input of the network, and there is
    one call per step, without an unconditional one. True CFG (`true_cfg_scale` above 1 and a negative
    prompt) makes a second call. Image to video concatenates the image along the channels ("latent_concat")
    or puts it in place of the clip's first latent frame ("token_replace"), so it changes no token grid; its
    text starts with tokens of the image.
    """

    family = "hunyuan"
    text_to_video = "HunyuanVideoPipeline"
    image_to_video = "HunyuanVideoImageToVideoPipeline"
    other_pipelines = ("HunyuanSkyreelsImageToVideoPipeline",)
    hub_repository = "hunyuanvideo-community/HunyuanVideo"
    image_repository = "hunyuanvideo-community/HunyuanVideo-I2V"
    size_multiple = 16
    frame_multiple = 4
    arguments: ClassVar[Mapping[str, str]] = {
        **ARGUMENTS,
        "guidance_scale": "true_cfg_scale",
        "embedded_guidance_scale": "guidance_scale",
    }
    own_settings: ClassVar[Mapping[str, Setting]] = {
        **FLOW_SHIFT,
        "embedded_guidance_scale": Setting(
            kind=FINITE,
            help="guidance that the distilled network was taught, one of its inputs (guidance_scale is that "
            "of two real branches)",
            default=None,
            low=0,
            high=1000,
        ),
    }
    denoiser_class = "HunyuanVideoTransformer3DModel"
    sampling = _TrueCFG(
        "give it a true_cfg_scale above 1 and a negative_prompt "
        "(its guidance_scale is an input of the network)",
        call_per_condition=True,
    )
    denoiser_call = DenoiserCall(
        rows=(
            *("hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask"),
            *("pooled_projections", "guidance"),
        )
    )
    blocks = Stacks(dual="transformer_blocks", single="single_transformer_blocks")
    site = Attention("attn", norm_layout="BSND")
    # Two names for the same rotation, one in each kind of block.
    token_inputs = TokenInputs({"freqs_cis": 0, "image_rotary_emb": 0}, _first_frame)
    # The pooled text, which changes the video as well, is that of the first one.
    text_attention = JointText(("encoder_hidden_states", "encoder_attention_mask"))
    # The mask comes after hidden_states, encoder_hidden_states, temb.
    padded_text = PaddedText((("encoder_hidden_states", "encoder_attention_mask"),), mask=3)

    def call_scale(self, call: Mapping[str, Any], read: ReadJson) -> float:
        scale: float = call["true_cfg_scale"]
        return scale

    def pipeline_arguments(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        arguments = super().pipeline_arguments(settings)
        if settings.get("guidance_scale", 1) > 1:  # without a negative prompt there is no second branch
            arguments.setdefault("negative_prompt", "")
        return arguments

    def objection(self, settings: Mapping[str, Any], read: ReadJson) -> str | None:
        return unshiftable(settings, read)

    def configure(self, pipe: Pipeline, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        settings = shifted(pipe, settings)
        if "image" not in settings or pipe.transformer.config.image_condition_type != "latent_concat":
            return settings
        # The pipeline cuts the image's own latent frame off the clip.
        return {**settings, "frames": settings["frames"] + self.frame_multiple}

    def component_dtype(self, component: str, dtype: torch.dtype) -> torch.dtype:
        # As the model card loads it: only the transformer needs the range of bfloat16.
        import torch

        return torch.float16 if dtype == torch.bfloat16 and component != "transformer" else dtype

    def example_arguments(self, denoiser: Denoiser, clip: ClipSize, rows: int) -> dict[str, Any]:
        import torch

        config, device = denoiser.config, denoiser.device
        return {
            "hidden_states": random_like(denoiser, rows, config.in_channels, *self.latent_size(clip)),
            "timestep": torch.full((rows,), 500.0, device=device),
            "encoder_hidden_states": random_like(denoiser, rows, _TEXT_TOKENS, config.text_embed_dim),
            "encoder_attention_mask": torch.ones(rows, _TEXT_TOKENS, device=device),
            "pooled_projections": random_like(denoiser, rows, config.pooled_projection_dim),
            "guidance": torch.full((rows,), 6000.0, device=device) if config.guidance_embeds else None,
        }

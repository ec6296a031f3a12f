"""HunyuanVideo 1.5: joint attention of video, image and texts in dual blocks (tencent/HunyuanVideo-1.5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, ClassVar

from oseg_video.adapters.base import register_adapter
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
from oseg_video.types import Denoiser, Pipeline

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

# What the pipelines pad to: the language model's text, the letters to be drawn, the image.
_TEXT_TOKENS, _GLYPH_TOKENS, _IMAGE_TOKENS = 1000, 256, 729
# The guider in the repository's weights.
_GUIDER = {"guidance_scale": 6.0, "use_original_formulation": False, "enabled": True}


class _Guider(Sampling):
    def refusal(self, pipe: Pipeline) -> str | None:
        name = type(pipe.guider).__name__
        if name == "ClassifierFreeGuidance":
            return None
        return (
            f"{type(pipe).__name__} with a {name} guider: it would combine the guided predictions once more; "
            f"set pipe.guider = ClassifierFreeGuidance(guidance_scale=...)"
        )

    def runs_uncond(self, pipe: Pipeline, call: Mapping[str, Any]) -> bool:
        return bool(pipe.guider.num_conditions > 1)

    def scale(self, pipe: Pipeline, call: Mapping[str, Any], denoiser: str) -> float:
        return _text_scale(pipe.guider.guidance_scale, pipe.guider.use_original_formulation)

    def rescale(self, pipe: Pipeline, call: Mapping[str, Any]) -> float:
        return float(pipe.guider.guidance_rescale)


@register_adapter
class HunyuanVideo15Adapter(JointAttentionAdapter):
    """`HunyuanVideo15Transformer3DModel`: the clip's tokens stand before those of image and texts.

    Text guidance is the pipeline's guider's, with one call per condition. Both latents and image are
    concatenated along the channels, so an image changes no token grid. Clips from text pad the image as well.
    """

    family = "hunyuan15"
    text_to_video = "HunyuanVideo15Pipeline"
    image_to_video = "HunyuanVideo15ImageToVideoPipeline"
    hub_repository = "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v"
    image_repository = "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_i2v"
    size_multiple = 16
    frame_multiple = 4
    spatial_compression = 16
    # The scale is the guider's, the length of the text the tokenizers'.
    arguments: ClassVar[Mapping[str, str]] = {
        name: argument
        for name, argument in ARGUMENTS.items()
        if name not in ("guidance_scale", "max_sequence_length")
    }
    own_settings = FLOW_SHIFT
    denoiser_class = "HunyuanVideo15Transformer3DModel"
    sampling = _Guider(
        "give its guider a guidance_scale above 1, enabled at every step: pipe.guider = pipe.guider.new(...)",
        call_per_condition=True,
        # The latents take on the dtype of the prediction, and go back into the network as they are.
        latents_take_prediction_dtype=True,
    )
    denoiser_call = DenoiserCall(
        rows=(
            *("hidden_states", "timestep", "timestep_r", "image_embeds"),
            *("encoder_hidden_states", "encoder_attention_mask"),
            *("encoder_hidden_states_2", "encoder_attention_mask_2"),
        )
    )
    site = Attention("attn", norm_layout="BSND")
    token_inputs = TokenInputs({"freqs_cis": 0})
    text_attention = JointText(
        (
            *("encoder_hidden_states", "encoder_attention_mask"),
            *("encoder_hidden_states_2", "encoder_attention_mask_2"),
        )
    )
    padded_text = PaddedText(
        (
            ("encoder_hidden_states", "encoder_attention_mask"),
            ("encoder_hidden_states_2", "encoder_attention_mask_2"),
        ),
        mask=3,  # after hidden_states, encoder_hidden_states, temb
        # Text tokens have no positions, and the network sorts the valid ones to the front, row by row.
        holes_kept=False,
        absent_if_zero="image_embeds",  # so the network knows that there is no image
    )

    def call_scale(self, call: Mapping[str, Any], read: ReadJson) -> float:
        guider = {**_GUIDER, **read("guider/guider_config.json")}
        if not guider["enabled"]:
            return 1.0
        return _text_scale(guider["guidance_scale"], guider["use_original_formulation"])

    def pipeline_arguments(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        arguments = super().pipeline_arguments(settings)
        if "image" not in settings:
            return arguments
        arguments["image"] = _with_a_margin(settings["image"])  # its shape tells the size of the clip
        return {name: value for name, value in arguments.items() if name not in ("height", "width")}

    def configure(self, pipe: Pipeline, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        if "guidance_scale" in settings:
            pipe.guider = pipe.guider.new(guidance_scale=settings["guidance_scale"])
        return shifted(pipe, settings)

    def objection(self, settings: Mapping[str, Any], read: ReadJson) -> str | None:
        return unshiftable(settings, read) or self._unlisted(settings, read)

    def _unlisted(self, settings: Mapping[str, Any], read: ReadJson) -> str | None:
        """What is wrong with the size of a clip that starts from an image."""
        if "image" not in settings:
            return None
        from diffusers.pipelines.hunyuan_video1_5.image_processor import generate_crop_size_list

        height, width = size = settings["height"], settings["width"]
        target = read("transformer/config.json").get("target_size", 640)
        sizes = generate_crop_size_list(base_size=target, patch_size=self.spatial_compression)
        if size in sizes:
            return None
        nearest = min(sizes, key=lambda other: abs(math.log(other[0] / other[1] * width / height)))
        return (
            f"height {height} and width {width}: image to video with this model has a list of sizes; "
            f"nearest: height {nearest[0]} and width {nearest[1]}"
        )

    def text_limit(self, pipe: Pipeline) -> int | None:
        return int(pipe.tokenizer_max_length)

    def changed_classes(self, denoiser: Denoiser) -> Iterable[tuple[object, type]]:
        processors = [block.attn.processor for block in denoiser.transformer_blocks]
        classes: list[Any] = [type(processor) for processor in processors]
        return [(one, _with_optional_mask(own)) for one, own in zip(processors, classes, strict=True)]

    def example_arguments(self, denoiser: Denoiser, clip: ClipSize, rows: int) -> dict[str, Any]:
        import torch

        config, device = denoiser.config, denoiser.device
        return {
            "hidden_states": random_like(denoiser, rows, config.in_channels, *self.latent_size(clip)),
            "timestep": random_like(denoiser, rows),
            "encoder_hidden_states": random_like(denoiser, rows, _TEXT_TOKENS, config.text_embed_dim),
            "encoder_attention_mask": torch.ones(rows, _TEXT_TOKENS, device=device),
            "encoder_hidden_states_2": random_like(denoiser, rows, _GLYPH_TOKENS, config.text_embed_2_dim),
            "encoder_attention_mask_2": torch.ones(rows, _GLYPH_TOKENS, device=device),
            "image_embeds": random_like(denoiser, rows, _IMAGE_TOKENS, config.image_embed_dim),
        }


def _with_a_margin(image: Image.Image) -> Image.Image:
    """An image with one row or column more along its longer side, which the pipeline crops off again.

    The pipeline takes the size of its list that comes next in shape towards the square. It compares rounded
    numbers, so that it passes over a third of the sizes for an image of exactly that size.
    """
    from PIL import Image

    width, height = image.size
    larger = Image.new(image.mode, (width + (width > height), height + (height > width)))
    larger.paste(image, (0, 0))
    return larger


def _text_scale(guidance_scale: float, original_formulation: bool) -> float:
    """The scale w of u + w (c - u), also of the original formulation: c + s (c - u) = u + (1 + s) (c - u)."""
    return guidance_scale + bool(original_formulation)


@cache  # compiled blocks are compiled anew for every new class
def _with_optional_mask(original: type) -> type:
    """A subclass of an attention processor's class that also takes no mask: then no text is padding.

    The model's own processor always builds a mask of S x S, text and video: 13 GB a row for 121 frames of
    720p. In its place there is one of the keys alone: what padding attends to is attended to by nothing.
    """
    import torch
    import torch.nn.functional as F
    from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
    from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15AttnProcessor2_0

    implementation: Callable[..., Any] = original.__call__

    @wraps(implementation)
    def __call__(
        self: Any,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        attend = implementation
        if original is HunyuanVideo15AttnProcessor2_0:
            attend = HunyuanVideoAttnProcessor2_0.__call__  # the same joint attention, its mask optional
            if attention_mask is not None:
                video = hidden_states.shape[1]
                attention_mask = F.pad(attention_mask.bool(), (video, 0), value=True)[:, None, None]
        elif attention_mask is None:
            attention_mask = torch.ones(
                encoder_hidden_states.shape[:2], dtype=torch.bool, device=hidden_states.device
            )
        return attend(self, attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)

    return type(original.__name__, (original,), {"__call__": __call__, "__module__": original.__module__})

"""Tiny HunyuanVideo and HunyuanVideo 1.5 pipelines: every component of its real class, nothing downloaded.

The tokenizers know single letters and the control tokens of the pipelines' prompt templates. What the
templates say to the language model is replaced by as many filler tokens as the pipelines cut off again, so
that a prompt of n letters fills n places of the text that the denoiser sees.
"""

from __future__ import annotations

import string
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanSkyreelsImageToVideoPipeline,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video, pipeline_hunyuan_video_image2video
from tokenizers import AddedToken, normalizers, pre_tokenizers
from torch import nn
from transformers import (
    ByT5Tokenizer,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaModel,
    LlamaTokenizerFast,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2Tokenizer,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

from tests.tiny.text import TEXT_CHANNELS, randomise

DUAL_BLOCKS = 2
SINGLE_BLOCKS = 3
BLOCKS_15 = 5

# Arguments of the pipeline calls. Height differs from width, so that a mix-up of the two shows.
HUNYUAN_SIZE = {"height": 64, "width": 48, "num_frames": 9}  # token grid 3 x 4 x 3
HUNYUAN15_SIZE = {"height": 64, "width": 48, "num_frames": 9}  # token grid 3 x 4 x 3
# Image to video of 1.5 takes its size from the image: 20 patches of 16 pixels or fewer at this shape.
HUNYUAN15_IMAGE_SIZE = {"height": 96, "width": 48}  # token grid 3 x 5 x 3

_LETTERS = string.ascii_letters + string.digits + string.punctuation
_FILLER = "■"  # the one character of the vocabulary that no prompt holds
_WIDTH = 16
_VISION = {
    "hidden_size": _WIDTH,
    "intermediate_size": _WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_LANGUAGE = {
    "hidden_size": TEXT_CHANNELS,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    # The pipelines take the hidden states before the last two layers.
    "num_hidden_layers": 3,
}


def tiny_hunyuan(*, seed: int = 0, **overrides: Any) -> HunyuanVideoPipeline:
    """A HunyuanVideoPipeline with 2 dual and 3 single blocks of 2 heads, distilled for embedded guidance.

    `overrides` go to the transformer's configuration.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = _llama_tokenizer(pipeline_hunyuan_video.DEFAULT_PROMPT_TEMPLATE)
        language = LlamaModel(LlamaConfig(vocab_size=len(tokenizer), **_LANGUAGE))
        components = _hunyuan_components(in_channels=4, **overrides)
    return HunyuanVideoPipeline(tokenizer=tokenizer, text_encoder=language.eval(), **components)


def tiny_hunyuan_image(
    image_condition_type: str = "latent_concat", *, seed: int = 0, **overrides: Any
) -> HunyuanVideoImageToVideoPipeline:
    """A HunyuanVideoImageToVideoPipeline, "latent_concat" or "token_replace", else as `tiny_hunyuan`.

    Its text starts with tokens of the image, of which the pipeline keeps every second (latent_concat) or
    every fourth (token_replace) out of 576.
    """
    template = pipeline_hunyuan_video_image2video.DEFAULT_PROMPT_TEMPLATE
    side = round(template["image_emb_len"] ** 0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = _llama_tokenizer(template)
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(image_size=side, patch_size=1, **_VISION),
            text_config=LlamaConfig(
                vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **_LANGUAGE
            ),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=side**2,
            pad_token_id=tokenizer.pad_token_id,
        )
        language = LlavaForConditionalGeneration(config)
        components = _hunyuan_components(
            # The clip, the image and a mask side by side, or the image in place of the clip's first frame.
            **{
                "in_channels": 9 if image_condition_type == "latent_concat" else 4,
                "image_condition_type": image_condition_type,
                **overrides,
            }
        )
    return HunyuanVideoImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=language.eval(),
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
        **components,
    )


def tiny_skyreels(*, seed: int = 0, **overrides: Any) -> HunyuanSkyreelsImageToVideoPipeline:
    """SkyReels V1: HunyuanVideo for text that sees the image's latents beside the clip's; not distilled."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = _llama_tokenizer(pipeline_hunyuan_video.DEFAULT_PROMPT_TEMPLATE)
        language = LlamaModel(LlamaConfig(vocab_size=len(tokenizer), **_LANGUAGE))
        components = _hunyuan_components(**{"in_channels": 8, "guidance_embeds": False, **overrides})
    return HunyuanSkyreelsImageToVideoPipeline(
        tokenizer=tokenizer, text_encoder=language.eval(), **components
    )


def tiny_hunyuan15(
    cls: type = HunyuanVideo15Pipeline, *, seed: int = 0, guidance_scale: float = 4.0, **overrides: Any
) -> Any:
    """A HunyuanVideo 1.5 pipeline of class `cls` with 5 blocks of 2 heads; `overrides` go to the transformer.

    Text guidance is the guider's, with `guidance_scale`. The text lengths are attributes of the pipeline;
    they are cut from 1000, 256 and 729 tokens to a few.
    """
    image_to_video = cls is HunyuanVideo15ImageToVideoPipeline
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer_2 = ByT5Tokenizer()
        glyph_config = T5Config(
            vocab_size=len(tokenizer_2),
            d_model=24,
            d_kv=8,
            d_ff=24,
            num_layers=1,
            num_heads=2,
            dropout_rate=0.0,
        )
        text_encoder_2 = T5EncoderModel(glyph_config)
        vision = SiglipVisionModel(SiglipVisionConfig(image_size=12, patch_size=4, **_VISION))
        transformer = HunyuanVideo15Transformer3DModel(
            **{
                "in_channels": 9,
                "out_channels": 4,
                **_attention_config(**overrides),
                "num_layers": BLOCKS_15,
                "num_refiner_layers": 1,
                "patch_size": 1,
                "text_embed_dim": TEXT_CHANNELS,
                "text_embed_2_dim": glyph_config.d_model,
                "image_embed_dim": _WIDTH,
                "target_size": 64,
                "task_type": "i2v" if image_to_video else "t2v",
                **overrides,
            }
        )
        vae = AutoencoderKLHunyuanVideo15(
            latent_channels=4, block_out_channels=(16, 16, 16, 32, 32), layers_per_block=1
        )
        tokenizer = _qwen_tokenizer()
        language = Qwen2_5_VLTextModel(
            Qwen2_5_VLTextConfig(
                vocab_size=len(tokenizer),
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
                **_LANGUAGE,
            )
        )
        _make_blocks_matter(transformer)
        randomise(vae)
    pipe = cls(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        vae=vae.eval(),
        text_encoder=language.eval(),
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2.eval(),
        tokenizer_2=tokenizer_2,
        transformer=transformer.eval(),
        guider=ClassifierFreeGuidance(guidance_scale=guidance_scale),
        **(
            {
                "image_encoder": vision.eval(),
                "feature_extractor": SiglipImageProcessorPil(size={"height": 12, "width": 12}),
            }
            if image_to_video
            else {}
        ),
    )
    pipe.tokenizer_max_length = 40
    pipe.tokenizer_2_max_length = 20
    pipe.vision_num_semantic_tokens = 9
    before = _chat_start(tokenizer, pipe.system_message)
    _fill(tokenizer, pipe.system_message, before, pipe.prompt_template_encode_start_idx)
    return pipe


def _hunyuan_components(**overrides: Any) -> dict[str, Any]:
    """What text to video and image to video have in common."""
    tokenizer_2 = _clip_tokenizer()
    text_encoder_2 = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer_2),
            eos_token_id=tokenizer_2.eos_token_id,
            bos_token_id=tokenizer_2.bos_token_id,
            pad_token_id=tokenizer_2.pad_token_id,
            projection_dim=_WIDTH,
            **_VISION,
        )
    )
    transformer = HunyuanVideoTransformer3DModel(
        **{
            "out_channels": 4,
            **_attention_config(**overrides),
            "num_layers": DUAL_BLOCKS,
            "num_single_layers": SINGLE_BLOCKS,
            "num_refiner_layers": 1,
            "text_embed_dim": TEXT_CHANNELS,
            "pooled_projection_dim": _WIDTH,
            **overrides,
        }
    )
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    _make_blocks_matter(transformer)
    randomise(vae)
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "vae": vae.eval(),
        "text_encoder_2": text_encoder_2.eval(),
        "tokenizer_2": tokenizer_2,
        "transformer": transformer.eval(),
    }


def _attention_config(attention_head_dim: int = 16, **_: Any) -> dict[str, Any]:
    """Heads, and rotary axes that share out their channels."""
    return {
        "num_attention_heads": 2,
        "attention_head_dim": attention_head_dim,
        "mlp_ratio": 2.0,
        "rope_axes_dim": (attention_head_dim // 4, *[attention_head_dim // 8 * 3] * 2),
    }


def _make_blocks_matter(transformer: nn.Module) -> None:
    """Wider gates, and query and key norms that differ, so that a mix-up of blocks or norms shows."""
    randomise(transformer)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if ".norm_q." in name or ".norm_k." in name or ".norm_added_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif ".norm1" in name or ".norm.linear" in name:
                parameter.mul_(3.0)


def _letters() -> dict[str, int]:
    return {letter: i for i, letter in enumerate(["<unk>", "<s>", "</s>", "▁", _FILLER, *_LETTERS])}


def _llama_tokenizer(template: dict[str, Any]) -> LlamaTokenizerFast:
    """A Llama 3 tokenizer of letters that spends `crop_start` tokens on the template before the prompt."""
    tokenizer = LlamaTokenizerFast(
        vocab=_letters(),
        pad_token="<pad>",
        add_prefix_space=False,
        padding_side="right",
        model_max_length=512,
    )
    control = ("start_header_id", "end_header_id", "eot_id")
    special = [*(f"<|{name}|>" for name in control), "<image>", "\n\n", "system", "user", "assistant"]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    before = template["template"].partition("{}")[0]
    instruction = before[before.index("Describe") : before.index("<|eot_id|>")]
    _fill(tokenizer, instruction, before, template["crop_start"])
    return tokenizer


def _qwen_tokenizer() -> Qwen2Tokenizer:
    """A Qwen 2 tokenizer of bytes with the chat template of Qwen2.5-VL, less what it does for images."""
    alphabet = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(vocab={token: i for i, token in enumerate(alphabet)}, model_max_length=2048)
    special = ["<|im_start|>", "<|im_end|>", "system\n", "user\n", "assistant\n"]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def _chat_start(tokenizer: Qwen2Tokenizer, system_message: str) -> str:
    """What the chat template puts before the prompt."""
    chat = [{"role": "system", "content": system_message}, {"role": "user", "content": _FILLER}]
    return tokenizer.apply_chat_template(chat, tokenize=False).partition(_FILLER)[0]


def _fill(tokenizer: Any, instruction: str, before: str, length: int) -> None:
    """Replace `instruction` by filler so that `before`, which contains it, takes exactly `length` tokens."""
    backend = tokenizer.backend_tokenizer
    original = backend.normalizer

    def tokens_with(count: int) -> int:
        replace = normalizers.Replace(instruction, _FILLER * count)
        backend.normalizer = normalizers.Sequence([replace, original] if original else [replace])
        return len(tokenizer(before).input_ids)

    fixed = tokens_with(0)
    each = tokens_with(1) - fixed  # a filler character is several tokens to a tokenizer of bytes
    assert tokens_with((length - fixed) // each) == length


def _clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer of single letters; the last letter of a word has a token of its own."""
    letters = [letter for letter in _LETTERS if not letter.isupper()]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, model_max_length=77)

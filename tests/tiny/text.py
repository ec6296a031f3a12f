"""Text encoders and small helpers that all tiny pipelines share."""

from __future__ import annotations

from typing import Any

import torch
from transformers import T5EncoderModel, T5Tokenizer

BLOCKS = 5
TEXT_LENGTH = 24
TEXT_CHANNELS = 32

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,-'"


def tiny_tokenizer() -> T5Tokenizer:
    """A unigram tokenizer of single letters; anything else is the unknown token."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary += [(letter, -3.0) for letter in _LETTERS]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=TEXT_LENGTH)


def tiny_text_encoder(tokenizer: T5Tokenizer, model_class: type = T5EncoderModel) -> Any:
    """One layer of `model_class`, an encoder of the T5 kind."""
    config = model_class.config_class(
        vocab_size=len(tokenizer),
        d_model=TEXT_CHANNELS,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
    )
    return model_class(config).eval()


def randomise(module: torch.nn.Module) -> None:
    """Draw anew, in place, every parameter that its class starts at zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1 if parameter.ndim == 1 else 1.0)

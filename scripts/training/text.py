"""The tokenizer: a sentencepiece model of the captions' words, wrapped as T5's."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from transformers import T5Tokenizer


def train_tokenizer(directory: Path, captions: Iterable[str], max_length: int) -> T5Tokenizer:
    """Train on captions with all words of a grammar, save `spiece.model` and the tokenizer's own files.

    Ids follow T5: 0 pads, 1 ends the text, 2 is unknown.
    """
    lower = [text.replace("gray", spelling) for text in captions for spelling in ("gray", "grey")]
    texts = [*lower, *(text[0].upper() + text[1:] + "." for text in lower)]
    words = sorted({f"▁{word.strip(',.')}" for text in texts for word in text.split()})
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=160,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        user_defined_symbols=words,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "spiece.model").write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(len(processor))]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=max_length)
    tokenizer.save_pretrained(directory)
    return tokenizer

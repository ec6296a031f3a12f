"""Which words of a caption the text encoder is taught to bind together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from training.text import train_tokenizer
from training.transformer import ONE_SHAPE, TWO_SHAPES, TextToVideo, binding_loss, draw_batch

from oseg_video.embedded import two_shapes
from oseg_video.embedded.two_shapes import SHAPE_VOCABULARIES, parse_caption

TASK = replace(TWO_SHAPES, batch=64)
WORDS = [*SHAPE_VOCABULARIES.values()]


def tokenizer(folder: Path):
    """As scripts/train_two.py trains it, on fewer captions."""
    captions = [
        two_shapes.caption(two_shapes.sample_attributes(0, index), phrasing)
        for index in range(100)
        for phrasing in range(len(two_shapes.PHRASINGS))
    ]
    return train_tokenizer(folder, captions, max_length=TASK.text_tokens)


def test_a_colour_and_a_kind_stand_for_their_shape_and_its_motion(tmp_path: Path) -> None:
    tokens = tokenizer(tmp_path)
    torch.manual_seed(0)
    batch = draw_batch(TASK, tokens, 3, torch.device("cpu"))
    rows = batch.words[:, 0].tolist()
    dropped = TASK.batch - len(set(rows))
    assert 0 < dropped < 20 and len(rows) == 4 * (TASK.batch - dropped)
    named: dict[int, set[str]] = {}
    for (row, column), bound in zip(batch.words.tolist(), batch.bound.tolist(), strict=True):
        caption = parse_caption(tokens.decode(batch.token_ids[row], skip_special_tokens=True))
        word = tokens.decode(batch.token_ids[row, column]).strip().lower()
        (shape,) = (one for one in caption.shapes if word in (one.colour, one.shape))
        assert [words[index] for words, index in zip(WORDS, bound, strict=True)] == [
            shape.colour,
            shape.shape,
            shape.motion,
        ]
        named.setdefault(row, set()).add(word)
    assert all(len(words) == 4 for words in named.values())


def test_the_loss_is_that_of_the_words_of_the_same_shape(tmp_path: Path) -> None:
    """An embedding that spells the answer has none; one of another shape has much."""
    tokens = tokenizer(tmp_path)
    torch.manual_seed(0)
    batch = draw_batch(TASK, tokens, 3, torch.device("cpu"))
    model = TextToVideo(len(tokens), TASK)
    width = model.binding.out_features
    with torch.no_grad():
        model.binding.weight.copy_(torch.eye(width, model.binding.in_features))
        model.binding.bias.zero_()
    embeddings = torch.zeros(*batch.token_ids.shape, model.binding.in_features)
    starts = [0, len(WORDS[0]), len(WORDS[0]) + len(WORDS[1])]
    for (row, column), bound in zip(batch.words.tolist(), batch.bound.tolist(), strict=True):
        for start, index in zip(starts, bound, strict=True):
            embeddings[row, column, start + index] = 50.0
    assert binding_loss(model, embeddings, batch) < 1e-6
    other = replace(batch, words=batch.words.roll(2, dims=0))
    assert binding_loss(model, embeddings, other) > 10
    assert TextToVideo(len(tokens), ONE_SHAPE).binding is None

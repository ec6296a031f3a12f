"""The procedural data set: the grammar and the drawing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oseg_video.embedded import dataset
from oseg_video.embedded.dataset import ClipAttributes
from oseg_video.embedded.drawing import MOTION_DIRECTION, ClipGeometry

attributes_strategy = st.sampled_from(dataset.all_attributes())
index_strategy = st.integers(0, 2**31)


def draw(attributes: ClipAttributes, index: int, seed: int = 5) -> tuple[torch.Tensor, ClipGeometry]:
    geometry = dataset.sample_geometry(seed, index, attributes)
    return dataset.draw_clip(attributes, geometry), geometry


def shape_mask(clip_FCHW: torch.Tensor, attributes: ClipAttributes) -> torch.Tensor:
    background = torch.tensor(dataset.BACKGROUND_RGB[attributes.background], dtype=torch.uint8)
    return (clip_FCHW != background[:, None, None]).any(dim=1)


def test_the_grammar_is_as_large_as_promised():
    assert len(dataset.COLOURS) >= 6
    assert len(dataset.SHAPES) == 4
    assert len(dataset.MOTIONS) == 8
    assert len(dataset.BACKGROUNDS) == 3
    assert len(dataset.PHRASINGS) >= 3
    assert len(set(dataset.all_captions())) == 6 * 4 * 8 * 3 * len(dataset.PHRASINGS)


def test_the_canonical_caption():
    attributes = ClipAttributes(colour="red", shape="circle", motion="left", background="white")
    assert dataset.caption(attributes) == "a red circle moving left on a white background"


def test_every_caption_maps_back_to_its_attributes():
    for attributes in dataset.all_attributes():
        for phrasing in range(len(dataset.PHRASINGS)):
            assert dataset.parse_caption(dataset.caption(attributes, phrasing)) == attributes


@given(attributes=attributes_strategy, index=index_strategy)
@settings(max_examples=200, derandomize=True)
def test_a_sampled_caption_maps_back_to_its_attributes(attributes, index):
    assert dataset.parse_caption(dataset.sample_caption(3, index, attributes)) == attributes


@pytest.mark.parametrize("text", ["", "a red cat moving left on a white background", "red circle"])
def test_text_outside_the_grammar_is_refused(text):
    with pytest.raises(ValueError, match="grammar"):
        dataset.parse_caption(text)


def test_unknown_words_and_phrasings_are_refused():
    with pytest.raises(ValueError, match="colour must be one of"):
        ClipAttributes(colour="mauve", shape="circle", motion="left", background="white")
    with pytest.raises(ValueError, match="phrasing must be in"):
        dataset.caption(dataset.all_attributes()[0], len(dataset.PHRASINGS))


def test_indices_follow_the_vocabularies():
    attributes = ClipAttributes(colour="blue", shape="cross", motion="up", background="black")
    assert attributes.indices() == (2, 3, 2, 1)


@pytest.mark.slow
@given(attributes=attributes_strategy, index=index_strategy)
@settings(max_examples=60, derandomize=True, deadline=None)
def test_colours_are_exact_inside_and_outside(attributes, index):
    clip_FCHW, geometry = draw(attributes, index)
    assert clip_FCHW.shape == (19, 3, 64, 64)
    assert clip_FCHW.dtype == torch.uint8
    row, column = int(geometry.start_y), int(geometry.start_x)
    assert tuple(clip_FCHW[0, :, row, column].tolist()) == dataset.COLOUR_RGB[attributes.colour]
    border = torch.ones(64, 64, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert not (shape_mask(clip_FCHW, attributes) & border).any(), "the shape touches the border"


@given(attributes=attributes_strategy, index=index_strategy)
@settings(max_examples=60, derandomize=True, deadline=None)
def test_the_shape_moves_as_the_caption_says(attributes, index):
    clip_FCHW, geometry = draw(attributes, index)
    centre_F2 = centroids(shape_mask(clip_FCHW, attributes))
    direction = np.array(MOTION_DIRECTION[attributes.motion])
    # The mask counts a faint edge pixel as much as a full one, so centroids are good to a pixel or so.
    np.testing.assert_allclose(centre_F2[-1] - centre_F2[0], direction * geometry.travel, atol=1.0)
    steps = np.diff(centre_F2, axis=0)
    expected = np.broadcast_to(direction * geometry.travel / 18, steps.shape)
    np.testing.assert_allclose(steps, expected, atol=1.0)


@pytest.mark.parametrize(
    ("motion", "sign_x", "sign_y"),
    [
        ("left", -1, 0),
        ("right", 1, 0),
        ("up", 0, -1),
        ("down", 0, 1),
        ("diagonally up and to the left", -1, -1),
        ("diagonally down and to the right", 1, 1),
    ],
)
def test_words_of_motion_mean_what_they_say_on_the_screen(motion, sign_x, sign_y):
    """Against literals, not the vocabulary's own table; row 0 is at the top."""
    attributes = ClipAttributes(colour="blue", shape="square", motion=motion, background="white")
    clip_FCHW, _ = draw(attributes, index=1)
    moved_x, moved_y = np.diff(centroids(shape_mask(clip_FCHW, attributes))[[0, -1]], axis=0)[0]
    assert np.sign(np.round(moved_x)) == sign_x
    assert np.sign(np.round(moved_y)) == sign_y


def centroids(mask_FHW: torch.Tensor) -> np.ndarray:
    """Mean position (x, y) of the set pixels of every frame, by a plain loop."""
    return np.array([np.argwhere(mask.numpy())[:, ::-1].mean(axis=0) for mask in mask_FHW])


@pytest.mark.parametrize(
    ("shape", "area"), [("circle", np.pi / 4), ("square", 0.81), ("triangle", 0.405), ("cross", 5 / 9)]
)
def test_shapes_have_the_area_of_their_outline(shape, area):
    """Anti-aliasing conserves area: the summed coverage is that of the ideal outline, to two percent."""
    attributes = ClipAttributes(colour="red", shape=shape, motion="right", background="black")
    geometry = ClipGeometry(diameter=28.0, start_x=20.3, start_y=31.7, travel=20.0)
    red = dataset.draw_clip(attributes, geometry)[:, 0].double() / dataset.COLOUR_RGB["red"][0]
    expected = torch.full((19,), area * 28.0**2, dtype=torch.float64)
    torch.testing.assert_close(red.sum(dim=(1, 2)), expected, rtol=0.02, atol=0)


def test_a_clip_depends_on_seed_and_index_alone():
    together, attributes = dataset.sample_clips(7, range(12))
    alone, attributes_alone = dataset.sample_clips(7, [9])
    assert torch.equal(together[9:10], alone)
    assert attributes[9] == attributes_alone[0]
    other_seed, _ = dataset.sample_clips(8, range(12))
    assert not torch.equal(together, other_seed)


def test_all_words_are_sampled_about_equally():
    drawn = [dataset.sample_attributes(11, index).indices() for index in range(2400)]
    for column, words in zip(np.array(drawn).T, dataset.VOCABULARIES.values(), strict=True):
        shares = np.bincount(column, minlength=len(words)) / len(drawn)
        np.testing.assert_allclose(shares, 1 / len(words), atol=0.04)

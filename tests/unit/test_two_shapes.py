"""The procedural data set of two shapes: the grammar and the drawing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oseg_video.embedded import two_shapes
from oseg_video.embedded.drawing import BACKGROUND_RGB, COLOUR_RGB, MOTION_DIRECTION, ClipGeometry
from oseg_video.embedded.two_shapes import MovingShape, TwoShapes

index_strategy = st.integers(0, 2**31)

RED_CIRCLE = MovingShape(colour="red", shape="circle", motion="left")
BLUE_SQUARE = MovingShape(colour="blue", shape="square", motion="up")


def test_the_canonical_caption():
    attributes = TwoShapes(first=RED_CIRCLE, second=BLUE_SQUARE, background="black")
    expected = "a red circle moving left and a blue square moving up on a black background"
    assert two_shapes.caption(attributes) == expected


@given(index=index_strategy)
@settings(max_examples=200, derandomize=True, deadline=None)
def test_every_caption_maps_back_to_its_attributes(index):
    attributes = two_shapes.sample_attributes(3, index)
    assert two_shapes.parse_caption(two_shapes.sample_caption(3, index, attributes)) == attributes
    for phrasing in range(len(two_shapes.PHRASINGS)):
        assert two_shapes.parse_caption(two_shapes.caption(attributes, phrasing)) == attributes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle moving left on a white background",
        "a red circle moving left and a blue cat moving up on a black background",
        "a red circle moving left and a blue square moving up on a black background, slowly",
    ],
)
def test_text_outside_the_grammar_is_refused(text):
    with pytest.raises(ValueError, match="grammar of two shapes"):
        two_shapes.parse_caption(text)


@pytest.mark.parametrize("name", ["colour", "shape", "motion"])
def test_two_shapes_that_share_a_word_are_refused(name):
    words = {"colour": "blue", "shape": "square", "motion": "up"} | {name: getattr(RED_CIRCLE, name)}
    with pytest.raises(ValueError, match=f"must differ in {name}"):
        TwoShapes(first=RED_CIRCLE, second=MovingShape(**words), background="black")
    text = f"a red circle moving left and a {words['colour']} {words['shape']} moving {words['motion']}"
    with pytest.raises(ValueError, match=f"must differ in {name}"):
        two_shapes.parse_caption(f"{text} on a black background")


def test_unknown_words_and_phrasings_are_refused():
    with pytest.raises(ValueError, match="colour must be one of"):
        MovingShape(colour="mauve", shape="circle", motion="left")
    with pytest.raises(ValueError, match="background must be one of"):
        TwoShapes(first=RED_CIRCLE, second=BLUE_SQUARE, background="green")
    with pytest.raises(ValueError, match="phrasing must be in"):
        two_shapes.caption(two_shapes.sample_attributes(0, 0), len(two_shapes.PHRASINGS))


def test_the_second_shape_is_drawn_over_the_first():
    attributes = TwoShapes(first=RED_CIRCLE, second=BLUE_SQUARE, background="black")
    behind = ClipGeometry(diameter=26.0, start_x=40.0, start_y=40.0, travel=16.0)
    front = ClipGeometry(diameter=26.0, start_x=32.0, start_y=48.0, travel=16.0)
    frame_CHW = two_shapes.draw_clips([attributes], [(behind, front)])[0, 0]
    assert tuple(frame_CHW[:, 42, 36].tolist()) == COLOUR_RGB["blue"], "both cover this pixel"
    assert tuple(frame_CHW[:, 32, 42].tolist()) == COLOUR_RGB["red"]
    assert tuple(frame_CHW[:, 2, 2].tolist()) == BACKGROUND_RGB["black"]


@given(index=index_strategy)
@settings(max_examples=60, derandomize=True, deadline=None)
def test_the_front_shape_moves_as_the_caption_says_and_the_frame_holds_both(index):
    attributes = two_shapes.sample_attributes(5, index)
    first, second = two_shapes.sample_geometry(5, index, attributes)
    clip_FCHW = two_shapes.draw_clips([attributes], [(first, second)])[0]
    colour = torch.tensor(COLOUR_RGB[attributes.second.colour], dtype=torch.uint8)
    mask_FHW = (clip_FCHW == colour[:, None, None]).all(dim=1)
    centre_F2 = np.array([np.argwhere(mask.numpy())[:, ::-1].mean(axis=0) for mask in mask_FHW])
    direction = np.array(MOTION_DIRECTION[attributes.second.motion])
    # Pixels on the edge are mixed and do not count, so centroids are good to a pixel or so.
    np.testing.assert_allclose(centre_F2[-1] - centre_F2[0], direction * second.travel, atol=1.0)

    background = torch.tensor(BACKGROUND_RGB[attributes.background], dtype=torch.uint8)
    drawn_FHW = (clip_FCHW != background[:, None, None]).any(dim=1)
    drawn_FHW[:, 1:-1, 1:-1] = False
    assert not drawn_FHW.any(), "a shape touches the border"


@given(index=index_strategy)
@settings(max_examples=60, derandomize=True, deadline=None)
def test_the_shapes_keep_their_distance(index):
    attributes = two_shapes.sample_attributes(5, index)
    first, second = two_shapes.sample_geometry(5, index, attributes)
    progress_F = np.linspace(0, 1, 19)
    distance_F2 = np.stack(
        [
            (second.start_x, second.start_y)[axis]
            - (first.start_x, first.start_y)[axis]
            + progress_F * second.travel * MOTION_DIRECTION[attributes.second.motion][axis]
            - progress_F * first.travel * MOTION_DIRECTION[attributes.first.motion][axis]
            for axis in (0, 1)
        ],
        axis=1,
    )
    least = two_shapes.LEAST_DISTANCE * (first.diameter + second.diameter) / 2
    assert np.linalg.norm(distance_F2, axis=1).min() >= least - 1e-9


def test_a_clip_depends_on_seed_and_index_alone():
    together, attributes = two_shapes.sample_clips(7, range(12))
    alone, attributes_alone = two_shapes.sample_clips(7, [9])
    assert together.shape == (12, 19, 3, 64, 64)
    assert together.dtype == torch.uint8
    assert torch.equal(together[9:10], alone)
    assert attributes[9] == attributes_alone[0]
    other_seed, _ = two_shapes.sample_clips(8, range(12))
    assert not torch.equal(together, other_seed)


def test_key_frames_are_those_of_the_whole_clip():
    whole, _ = two_shapes.sample_clips(7, range(4))
    assert torch.equal(two_shapes.sample_clips(7, range(4), frames=(0, 6, 12, 18))[0], whole[:, ::6])


def test_all_words_are_sampled_about_equally_in_both_places():
    sampled = [two_shapes.sample_attributes(11, index) for index in range(2400)]
    for place in (0, 1):
        for name, vocabulary in two_shapes.SHAPE_VOCABULARIES.items():
            words = [getattr(attributes.shapes[place], name) for attributes in sampled]
            shares = [words.count(word) / len(words) for word in vocabulary]
            np.testing.assert_allclose(shares, 1 / len(vocabulary), atol=0.04)

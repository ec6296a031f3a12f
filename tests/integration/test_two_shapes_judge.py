"""The shipped judge of two shapes: what it reads off drawn clips, and off others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from oseg_video.embedded import dataset, two_shapes
from oseg_video.embedded.drawing import COLOUR_RGB, ClipGeometry, colours_of, coverage
from oseg_video.embedded.two_shapes import MovingShape, TwoShapes
from oseg_video.embedded.two_shapes_judge import (
    FEATURE_DIM,
    WEIGHTS,
    SeenClip,
    agreement,
    load_two_shape_judge,
)

FRESH_SEED = 77_003
"""No stage of the training draws from this data set."""

RED_CIRCLE = MovingShape(colour="red", shape="circle", motion="left")
BLUE_SQUARE = MovingShape(colour="blue", shape="square", motion="up")
WANTED = TwoShapes(first=RED_CIRCLE, second=BLUE_SQUARE, background="black")


@pytest.fixture(scope="module")
def judge():
    return load_two_shape_judge()


def agreements(judge, clips_BFCHW: torch.Tensor, wanted: list[TwoShapes]) -> list[dict[str, bool]]:
    return [agreement(a, b) for a, b in zip(wanted, judge.judge(clips_BFCHW), strict=True)]


def test_it_is_small():
    assert WEIGHTS.stat().st_size <= 0.3e6


def test_it_reads_fresh_clips(judge):
    clips_BFCHW, wanted = two_shapes.sample_clips(FRESH_SEED, range(256))
    rows = agreements(judge, clips_BFCHW.float() / 255, wanted)
    for name in ("count", "colour", "shape", "motion", "background"):
        assert sum(row[name] for row in rows) / len(rows) >= 0.97, name
    assert sum(row["all"] for row in rows) / len(rows) >= 0.93


def test_the_stored_errors_are_within_what_was_asked_of_it():
    stored = Path(__file__).parents[2] / "scripts" / "training" / "two_shapes_judge.json"
    errors = json.loads(stored.read_text())
    assert errors["clips"] >= 2000
    assert min(errors["right"].values()) >= 0.97


def test_a_longer_clip_is_judged_by_frames_over_its_whole_length(judge):
    clips_BFCHW, wanted = two_shapes.sample_clips(FRESH_SEED, range(8))
    slow = (clips_BFCHW.float() / 255).repeat_interleave(2, dim=1)
    assert all(row["all"] for row in agreements(judge, slow, wanted))


def test_blur_and_noise_do_not_change_what_it_reads(judge):
    clips_BFCHW, wanted = two_shapes.sample_clips(FRESH_SEED, range(32))
    frames = clips_BFCHW.float().flatten(0, 1) / 255
    blurred = torch.nn.functional.avg_pool2d(frames, 5, stride=1, padding=2, count_include_pad=False)
    noisy = blurred + 0.03 * torch.randn(blurred.shape, generator=torch.Generator().manual_seed(0))
    rows = agreements(judge, noisy.clamp(0, 1).view(clips_BFCHW.shape), wanted)
    assert sum(row["all"] for row in rows) >= 29


def test_one_shape_is_counted_as_one(judge):
    clips_BFCHW, shown = dataset.sample_clips(FRESH_SEED, range(24))
    for attributes, seen in zip(shown, judge.judge(clips_BFCHW.float() / 255), strict=True):
        assert {shape.colour for shape in seen.shapes} == {attributes.colour}
        assert seen.background == attributes.background


def test_an_empty_clip_shows_nothing(judge):
    assert judge.judge(torch.zeros(1, 19, 3, 64, 64)) == [
        SeenClip(shapes=frozenset(), pieces=0, background="black")
    ]


def test_swapped_colours_are_seen_as_wrongly_bound(judge):
    places = [
        ClipGeometry(diameter=26.0, start_x=40.0, start_y=17.0, travel=16.0),
        ClipGeometry(diameter=26.0, start_x=40.0, start_y=48.0, travel=12.0),
    ]
    shown = TwoShapes(
        first=MovingShape(colour="blue", shape="circle", motion="left"),
        second=MovingShape(colour="red", shape="square", motion="up"),
        background="black",
    )
    clips_BFCHW = two_shapes.draw_clips([shown], [tuple(places)]).float() / 255
    (right,) = agreements(judge, clips_BFCHW, [WANTED])
    assert right == {
        **{"count": True, "colour": True, "shape": True, "motion": True, "background": True},
        **{"binding": False, "all": False},
    }


def test_agreement_of_clips_that_lack_or_add_a_shape():
    lacking = agreement(WANTED, SeenClip(shapes=frozenset([RED_CIRCLE]), pieces=1, background="black"))
    assert not any(lacking[name] for name in ("count", "colour", "shape", "motion", "binding", "all"))
    third = MovingShape(colour="green", shape="cross", motion="down")
    every = frozenset([RED_CIRCLE, BLUE_SQUARE, third])
    added = agreement(WANTED, SeenClip(shapes=every, pieces=3, background="black"))
    assert not any(added[name] for name in ("count", "colour", "shape", "motion", "binding", "all"))


def test_a_second_shape_of_the_same_colour_is_one_too_many(judge):
    places = [(44.0, 16.0), (44.0, 48.0), (16.0, 32.0)]
    clips = []
    for shown in (places[:2], places):
        clip_BFCHW = torch.zeros(1, 19, 3, 64, 64)
        looks = (("circle", "red"), ("square", "blue"), ("circle", "red"))
        for place, (kind, colour) in zip(shown, looks, strict=False):
            cover_BFHW = coverage([kind], [26.0], torch.tensor([[place] * 19]))
            colour_BC = colours_of([colour], COLOUR_RGB) / 255
            clip_BFCHW = clip_BFCHW.lerp(colour_BC[:, None, :, None, None], cover_BFHW[:, :, None])
        clips.append(clip_BFCHW)
    two, three = judge.judge(torch.cat(clips))
    assert (two.pieces, three.pieces) == (2, 3)
    assert {shape.colour for shape in three.shapes} == {"red", "blue"}


def test_the_count_is_a_part_of_all_right():
    seen = SeenClip(shapes=frozenset([RED_CIRCLE, BLUE_SQUARE]), pieces=3, background="black")
    right = agreement(WANTED, seen)
    assert right["binding"] and not right["count"] and not right["all"]


def test_agreement_tells_the_background_apart():
    right = agreement(
        WANTED, SeenClip(shapes=frozenset([RED_CIRCLE, BLUE_SQUARE]), pieces=2, background="white")
    )
    assert right["binding"] and not right["background"] and not right["all"]


def test_features_are_finite_and_tell_a_swap_of_colours(judge):
    clips_BFCHW, _ = two_shapes.sample_clips(FRESH_SEED, range(4))
    features_BD = judge.features(clips_BFCHW.float() / 255)
    assert features_BD.shape == (4, FEATURE_DIM)
    assert features_BD.isfinite().all()
    # Exchanging two channels exchanges colours and nothing else.
    swapped_BD = judge.features(clips_BFCHW[:, :, [2, 1, 0]].float() / 255)
    assert (features_BD - swapped_BD).abs().max() > 1


@pytest.mark.parametrize(
    "shape", [(1, 18, 3, 64, 64), (1, 19, 3, 32, 64), (1, 3, 19, 64, 64), (19, 3, 64, 64)]
)
def test_clips_of_another_layout_are_refused(judge, shape):
    with pytest.raises(ValueError, match="clips must be float"):
        judge.judge(torch.zeros(shape))


def test_integer_clips_are_refused(judge):
    with pytest.raises(ValueError, match="clips must be float"):
        judge.features(torch.zeros(1, 19, 3, 64, 64, dtype=torch.uint8))

"""Normalised scores and totals against VBench's leaderboard, and refusals."""

import pytest

from oseg_video.evaluation.vbench.scores import DIMENSIONS, members, normalise, tally, total
from oseg_video.types import OsegVideoError

# HunyuanVideo's row of VBench's leaderboard, in %: the dimensions in the order of DIMENSIONS, and its totals.
_ROW = (97.37, 97.76, 99.44, 98.99, 70.83, 60.36, 67.56, 86.10, 68.55, 94.40, 91.60, 68.68, 53.88)
_ROW += (19.80, 23.89, 26.44)
_TOTALS = {"quality": 85.09, "semantic": 75.82, "total": 83.24}


@pytest.fixture
def scores():
    return {dimension: score / 100 for dimension, score in zip(DIMENSIONS, _ROW, strict=True)}


@pytest.mark.parametrize("name", _TOTALS)
def test_totals_of_the_leaderboard(scores, name):
    assert round(100 * total(name, scores), 2) == _TOTALS[name]


def test_a_total_needs_all_of_its_dimensions(scores):
    del scores["scene"], scores["color"]
    with pytest.raises(OsegVideoError, match=r"semantic score needs all .* missing: color, scene$"):
        total("semantic", scores)
    with pytest.raises(OsegVideoError, match=r"missing: color, scene$"):
        total("total", scores)
    assert total("quality", scores) > 0.8
    assert len(members("quality")) == 7 and len(members("semantic")) == 9 and len(members("total")) == 16


def test_normalise_maps_the_published_range_to_0_and_1():
    assert normalise("scene", 0.8222) == 1
    assert normalise("subject_consistency", 0.1462) == 0
    assert normalise("motion_smoothness", 1.0) == pytest.approx(1 + 0.0025 / 0.2915)


@pytest.mark.parametrize(
    ("dimension", "entry", "added"),
    [
        ("imaging_quality", {"video_results": 50.0}, (0.5, 1)),
        ("subject_consistency", {"video_results": 0.5}, (2.0, 4)),
        ("background_consistency", {"video_results": 0.5, "video_sim": 1.5, "cnt_per_video": 3}, (1.5, 3)),
        ("scene", {"video_results": 0.25, "success_frame_count": 4, "frame_count": 16}, (4, 16)),
        ("appearance_style", {"video_results": 0.2, "frame_results": [0.1, 0.3], "cur_sim": 0.3}, (0.4, 2)),
        ("dynamic_degree", {"video_results": True}, (1, 1)),
        ("temporal_flickering", {"video_results": 0.9}, (0.9, 1)),
    ],
)
def test_what_a_clip_of_5_frames_adds(dimension, entry, added):
    assert tally(dimension, entry, 5) == pytest.approx(added)

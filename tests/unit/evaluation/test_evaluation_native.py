"""Temporal flickering against VBench's definition on OpenCV's frames; motion against closed forms."""

import itertools
import math
import tracemalloc

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional

from oseg_video.evaluation.clips import find_clips
from oseg_video.evaluation.metrics.base import EvaluationError, MetricOptions, build_metrics, check_fit
from oseg_video.evaluation.metrics.block_motion import block_lengths
from oseg_video.media import Frame, write_clip
from oseg_video.media.writing import run_ffmpeg
from oseg_video.types import OsegVideoError


def value_of(name, path):
    (metric,) = build_metrics([name], MetricOptions())
    clips = find_clips([path]).clips
    check_fit(metric, clips)
    return metric.compute(name, metric.observe(clips).rows, torch.tensor([0]))


def colourful(frames=8, height=48, width=64):
    """Smooth noise that changes a little from frame to frame."""
    noise = torch.rand(frames, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    noise = 0.8 * noise[:1] + 0.2 * noise
    large = functional.interpolate(noise, size=(height, width), mode="bicubic").clamp(0, 1)
    return (255 * large).to(torch.uint8)


def vbench_flickering(path):
    """What VBench 0.1.5 computes, written from its definition, on the frames that its reader sees."""
    video, frames = cv2.VideoCapture(str(path)), []
    while (read := video.read())[0]:
        frames.append(read[1].astype(np.float32))
    differences = [cv2.absdiff(one, other).mean() for one, other in itertools.pairwise(frames)]
    return (255.0 - np.mean(np.array(differences)).item()) / 255.0


ENCODINGS = {
    "ours": [],
    "full range": [*("-vf", "scale=out_range=pc,format=yuv420p"), *("-color_range", "pc")],
    "4:4:4": ["-pix_fmt", "yuv444p"],
    "10 bit": ["-pix_fmt", "yuv420p10le"],
    "RGB": ["-c:v", "libx264rgb", "-crf", "0"],
    "BT.2020": ["-vf", "scale=out_color_matrix=bt2020,format=yuv420p,setparams=colorspace=bt2020nc"],
    "odd size": ["-vf", "scale=65:47", "-pix_fmt", "yuv444p"],
    "uneven times": ["-vf", "select=not(between(n\\,3\\,4))", "-fps_mode", "vfr"],
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_flickering_is_vbenchs_on_the_same_file(tmp_path, encoding):
    source, path = tmp_path / "source.mp4", tmp_path / "a.mp4"
    write_clip(source, colourful(), 8, format="mp4")
    done = run_ffmpeg("-v", "error", "-i", str(source), *ENCODINGS[encoding], str(path))
    assert done.returncode == 0, done.stderr
    assert value_of("temporal_flickering", path) == pytest.approx(vbench_flickering(path), abs=1e-6)


def test_flickering_of_a_gif_is_vbenchs(tmp_path):
    write_clip(tmp_path / "a.gif", colourful(), 8, format="gif")
    expected = vbench_flickering(tmp_path / "a.gif")
    assert value_of("temporal_flickering", tmp_path / "a.gif") == pytest.approx(expected, abs=1e-6)


def shown(name, clip):
    """The value of a metric over frames in memory, uint8 [F, 3, H, W]."""
    (metric,) = build_metrics([name], MetricOptions())
    look = metric.look(None)
    for index, frame in enumerate(clip.permute(0, 2, 3, 1).contiguous().numpy()):
        look.add(Frame(index, lambda frame=frame: frame, lambda frame=frame: frame[..., ::-1]))
    return float(look.seen())


def block_motion(clip):
    return shown("block_motion", clip)


def levels(*values, size=16):
    return torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, size, size).contiguous()


def test_flickering_and_frame_difference_of_plain_frames(tmp_path):
    write_clip(tmp_path / "a", levels(10, 40, 40, 0), 8, format="png")
    assert value_of("temporal_flickering", tmp_path / "a") == pytest.approx((255 - (30 + 0 + 40) / 3) / 255)
    assert value_of("frame_difference", tmp_path / "a") == pytest.approx(70 / 3)
    assert shown("frame_difference", levels(255, 0)) == 255  # 8-bit numbers do not wrap around


@pytest.mark.parametrize("name", ["temporal_flickering", "frame_difference", "block_motion"])
def test_one_frame_has_no_motion(tmp_path, name):
    write_clip(tmp_path / "a", levels(3), 8, format="png")
    with pytest.raises(OsegVideoError, match="at least 2 frames; a has 1"):
        value_of(name, tmp_path / "a")


def textured(size):
    smooth = torch.rand(1, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(1))
    return (255 * functional.interpolate(smooth, size=(size, size), mode="bilinear")[0]).to(torch.uint8)


def moved(image, *offsets, crop):
    """Views of an image through a window whose corner is at each offset (y, x)."""
    return torch.stack([image[:, y : y + crop, x : x + crop] for y, x in offsets])


def test_block_motion_finds_a_known_translation():
    clip = moved(textured(128), (20, 20), (23, 18), (26, 16), crop=64)
    assert block_motion(clip) == pytest.approx(math.hypot(3, 2))


def test_block_motion_of_a_still_or_plain_clip_is_zero():
    assert block_motion(moved(textured(128), (5, 5), (5, 5), crop=64)) == 0
    assert block_motion(levels(9, 9, 9, size=64)) == 0


def test_block_motion_is_in_pixels_of_the_clip_also_where_it_is_scaled_down():
    clip = moved(textured(640), (20, 20), (28, 20), (36, 20), crop=512)
    assert block_motion(clip) == pytest.approx(8, abs=0.5)  # 2 pixels at a quarter of the size


@pytest.mark.parametrize("name", ["frame_difference", "temporal_flickering", "block_motion", "colours"])
def test_a_longer_clip_takes_no_more_memory(name):
    (metric,) = build_metrics([name], MetricOptions())
    chance = np.random.default_rng(0)
    size, peaks = (144, 256, 3), []
    for frames in (4, 40):
        look = metric.look(None)
        tracemalloc.start()
        for index in range(frames):
            pixels = chance.integers(0, 256, size, dtype=np.uint8)
            look.add(Frame(index, lambda pixels=pixels: pixels, lambda pixels=pixels: pixels[..., ::-1]))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + math.prod(size) / 2


def full_search(before_HW, after_HW):
    """Lengths of the best shifts of all blocks, by looking at every shift; integers, so exact."""
    rows, columns = ((side - 14) // 16 for side in before_HW.shape)
    lengths = np.zeros((rows, columns))
    for row, column in np.ndindex(rows, columns):
        y, x = 7 + 16 * row, 7 + 16 * column
        costs = {
            (dy, dx): abs(
                after_HW[y + dy : y + dy + 16, x + dx : x + dx + 16] - before_HW[y : y + 16, x : x + 16]
            ).sum()
            for dy in range(-7, 8)
            for dx in range(-7, 8)
        }
        lengths[row, column] = min((costs[shift], math.hypot(*shift)) for shift in costs)[1]
    return lengths


@pytest.mark.parametrize(("height", "width"), [(30, 30), (47, 80), (64, 45), (128, 61)])
def test_block_motion_is_that_of_a_full_search(height, width):
    chance = np.random.default_rng(height)
    for most in (2, 256):  # of two levels many shifts cost the same
        before, after = chance.integers(0, most, (2, height, width)).astype(np.float32)
        assert np.array_equal(block_lengths(before, after), full_search(before, after))
    # Large patches that move: here sums over cells say at once which shifts are none.
    patches = np.kron(chance.integers(0, 256, (50, 50)), np.ones((7, 7))).astype(np.float32)
    before = patches[7 : 7 + height, 7 : 7 + width]
    for y, x in ((3, -6), (0, 7), (-7, 1), (-2, 0)):
        after = patches[7 - y : 7 - y + height, 7 - x : 7 - x + width] + np.float32(10)
        lengths = block_lengths(before, after)
        assert np.array_equal(lengths, full_search(before, after))
        assert lengths.mean() == pytest.approx(math.hypot(y, x), abs=0.7)


def test_block_motion_needs_room_for_a_block_that_moves(tmp_path):
    write_clip(tmp_path / "a.gif", colourful(height=30, width=30), 8, format="gif")
    assert value_of("block_motion", tmp_path) >= 0
    write_clip(tmp_path / "a.gif", colourful(height=28, width=64), 8, format="gif")
    (metric,) = build_metrics(["block_motion"], MetricOptions())
    with pytest.raises(EvaluationError, match=r"needs 30 pixels along each side; a.gif has 28 x 64"):
        check_fit(metric, find_clips([tmp_path]).clips)


def test_every_statistic_is_what_its_name_says(tmp_path):
    clip = moved(textured(128), (20, 20), (23, 18), crop=64)
    write_clip(tmp_path / "a", clip, 8, format="png")
    expected = {
        "block_motion": pytest.approx(13**0.5),
        "frame_difference": pytest.approx((clip[1].double() - clip[0].double()).abs().mean()),
    }
    for metric in build_metrics(["block_motion", "frame_difference"], MetricOptions()):
        rows = metric.observe(find_clips([tmp_path / "a"]).clips).rows
        (value,) = metric.values
        assert metric.compute(value.name, rows, torch.tensor([0])) == expected[value.name]
        assert value.better is None and metric.per_clip(value.name, rows).tolist() == [expected[value.name]]

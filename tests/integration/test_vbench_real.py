"""The bridge with the real package `vbench`, where `oseg-video vbench setup` has been run; skipped elsewhere.

Only what needs no weights: temporal_flickering, the suite, and how other dimensions fail without them.
"""

from pathlib import Path

import pytest
import torch

from oseg_video.evaluation.clips import find_clips
from oseg_video.evaluation.metrics.base import MetricOptions, build_metrics
from oseg_video.evaluation.vbench.environment import find_environment
from oseg_video.evaluation.vbench.process import ask
from oseg_video.evaluation.vbench.scores import DIMENSIONS
from oseg_video.evaluation.vbench.suite import Suite
from oseg_video.media import write_clip
from oseg_video.types import OsegVideoError


@pytest.fixture(scope="module")
def environment():
    try:
        return find_environment()
    except OsegVideoError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Colours that move over noise, in two lengths and sizes."""
    folder = tmp_path_factory.mktemp("clips")
    generator = torch.Generator().manual_seed(0)
    for number, (frames, height, width) in enumerate([(7, 48, 64), (19, 64, 64), (4, 64, 32)]):
        noise = torch.rand(frames, 3, height, width, generator=generator) * 0.2 * number
        ramp = torch.linspace(0, 0.7, width).roll(3).expand(3, height, width)
        moving = torch.stack([ramp.roll(2 * frame, dims=-1) for frame in range(frames)])
        moving = moving * torch.tensor([0.3, 0.6, 1.0])[:, None, None]
        images = ((noise + moving).clamp(0, 1) * 255).round().to(torch.uint8)
        write_clip(folder / f"{number}.mp4", images, 8.0, format="mp4")
    return find_clips([folder]).clips


def observe(name, clips):
    (metric,) = build_metrics([name], MetricOptions())
    metric.check(clips)
    seen = metric.observe(clips)
    (wanted,) = metric.values
    every = torch.arange(len(clips))
    return metric.compute(wanted.name, seen.rows, every), metric.per_clip(wanted.name, seen.rows)


def test_temporal_flickering_equals_the_native_metric(environment, clips):
    value, per_clip = observe("vbench:temporal_flickering", clips)
    native, native_per_clip = observe("temporal_flickering", clips)
    torch.testing.assert_close(per_clip, native_per_clip, rtol=0, atol=1e-6)
    assert value == pytest.approx(native, abs=1e-6)
    assert per_clip.max() - per_clip.min() > 1e-3, "clips that are all alike would prove little"


def test_the_suite_is_the_one_that_the_checks_are_written_for(environment):
    about = ask(environment, {"task": "describe", "dimensions": ["temporal_flickering"]})
    suite = Suite.read(Path(about["suite"]))
    assert about["versions"]["vbench"] == "0.1.5"
    assert len(suite.entries) == 946 and len(suite.prompts(list(DIMENSIONS))) == 944
    counts = {dimension: len(suite.of(dimension)) for dimension in DIMENSIONS}
    assert (
        counts["temporal_flickering"] == 75 and counts["human_action"] == 100 and sum(counts.values()) == 1362
    )
    for dimension in DIMENSIONS:
        prompts = [entry["prompt_en"] for entry in suite.of(dimension)]
        assert len(prompts) == len(set(prompts)), "a clip would count twice"
        assert not any("/" in prompt for prompt in prompts), "no file can be called so"
    flickering = [entry["dimension"] for entry in suite.of("temporal_flickering")]
    assert all(dimensions == ["temporal_flickering"] for dimensions in flickering)


def test_weights_that_cannot_be_fetched_are_one_line(environment, clips, monkeypatch, tmp_path):
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(
        OsegVideoError, match=r"imaging_quality failed: its weights could not be fetched"
    ) as failed:
        observe("vbench:imaging_quality", clips)
    assert f"put the file at {tmp_path}/pyiqa_model/musiq_spaq_ckpt-358bb6af.pth" in str(failed.value)
    with pytest.raises(OsegVideoError, match=r"motion_smoothness failed: its weights could not be fetched"):
        observe("vbench:motion_smoothness", clips)
    with pytest.raises(OsegVideoError, match=r"dynamic_degree failed: its weights could not be fetched"):
        observe("vbench:dynamic_degree", clips)

"""Metrics with networks: small ones with random weights, made here, on the path that the real ones take."""

import dataclasses
import hashlib
import math
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from torch import nn
from torch.nn import functional
from torchmetrics.image.inception import InceptionScore as TorchmetricsInceptionScore
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification

from oseg_video.embedded import dataset, two_shapes
from oseg_video.embedded.classifier import load_classifier
from oseg_video.embedded.dataset import VOCABULARIES, sample_clips
from oseg_video.embedded.two_shapes_judge import SeenClip, agreement, load_two_shape_judge
from oseg_video.evaluation.clips import find_clips
from oseg_video.evaluation.evaluate import evaluate
from oseg_video.evaluation.features import judged, networks, protocols, real_clips
from oseg_video.evaluation.features.networks import VideoMAE
from oseg_video.evaluation.features.protocols import PROTOCOLS
from oseg_video.evaluation.features.real_clips import look_at_drawn
from oseg_video.evaluation.features.reference import load_reference
from oseg_video.evaluation.features.weights import load_torchscript
from oseg_video.evaluation.metrics.base import MetricOptions, build_metrics, check_fit
from oseg_video.evaluation.metrics.fvd import SHIPPED
from oseg_video.evaluation.metrics.inception import inception_score
from oseg_video.evaluation.observe import watch
from oseg_video.media import write_clip
from oseg_video.types import OsegVideoError
from tests.drawn import write_drawn, write_frames

pytestmark = pytest.mark.slow


class SmallI3D(nn.Module):
    """Called as StyleGAN-V's I3D is: uint8 [B, C, T, H, W] in, logits out; it scales and resizes itself."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv3d(3, 5, 3, stride=2)

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        assert rescale and resize and return_features
        x = x.float() / 127.5 - 1
        x = functional.interpolate(x, size=[x.shape[2], 24, 24], mode="trilinear", align_corners=False)
        return self.convolution(x).mean(dim=[2, 3, 4])


class SmallC3D(nn.Module):
    """Called as StyleGAN-V's C3D is; probabilities, or logits if `broken`."""

    def __init__(self, broken: bool = False):
        super().__init__()
        self.layer = nn.Linear(3 * 16, 7)
        self.broken = broken

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = 20 * self.layer(x.float().mean(dim=[3, 4]).flatten(1) / 255)
        return logits if self.broken else logits.softmax(dim=1)


def script(path, network, seed=0):
    torch.manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    torch.jit.save(torch.jit.script(network.eval()), str(path))
    return network


@pytest.fixture(scope="module")
def i3d(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "i3d.pt"
    return path, script(path, SmallI3D())


def write_noise(folder, count, *, seed, frames=18, sizes=((16, 20), (24, 16))):
    """Clips of low-frequency noise in different sizes, as PNG folders; uint8 tensors by name."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    clips = {}
    for index in range(count):
        noise = torch.rand(frames, 3, 4, 4, generator=generator) * torch.rand(1, 3, 1, 1, generator=generator)
        size = sizes[index % len(sizes)]
        clips[f"{index:02d}"] = (255 * functional.interpolate(noise, size=size)).to(torch.uint8)
        write_frames(folder / f"{index:02d}", clips[f"{index:02d}"])
    return clips


def eager(network, clips, frames=slice(0, 16)):
    rows = [
        network(c[frames].transpose(0, 1)[None], rescale=True, resize=True, return_features=True)
        for c in clips
    ]
    return torch.cat(rows).detach().double()


def closed_form(fake, real, ddof):
    """Fréchet distance by numpy's conventions, with eigenvalues of the plain product."""
    covariances = [torch.cov(x.T, correction=ddof) for x in (fake, real)]
    roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).sqrt().real.sum()
    step = (fake.mean(dim=0) - real.mean(dim=0)).square().sum()
    return float(step + covariances[0].trace() + covariances[1].trace() - 2 * roots)


def measure(name, folder, **options):
    """Value over all clips of a folder, with the metric and its rows."""
    (metric,) = build_metrics([name], MetricOptions(**options))
    clips = find_clips([folder]).clips
    warnings = check_fit(metric, clips)
    seen = metric.observe(clips)
    return metric.compute(name, seen.rows, torch.arange(len(seen.clips))), metric, seen, warnings


# Torchscript files


def test_a_torchscript_file_is_loaded_only_with_its_checksum_or_if_trusted(tmp_path, i3d):
    path, _ = i3d
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for expected, reason in ((None, "no checksum is known"), ("0" * 64, "not the expected 000")):
        with pytest.raises(OsegVideoError, match=rf"any code; its SHA-256 is {digest}, .*{reason}.*--trust"):
            load_torchscript(path, expected=expected, trusted=False, metric="m")
    for options in ({"expected": digest, "trusted": False}, {"expected": None, "trusted": True}):
        assert load_torchscript(path, metric="m", **options)[1] == digest
    changed = tmp_path / "changed.pt"
    changed.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(OsegVideoError, match="not the expected"):
        load_torchscript(changed, expected=digest, trusted=False, metric="m")


def test_a_file_that_is_no_torchscript_is_refused_in_one_line(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"nothing")
    torch.save({"state": torch.zeros(2)}, tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        with pytest.raises(OsegVideoError, match="is not a torchscript file"):
            load_torchscript(tmp_path / name, expected=None, trusted=True, metric="m")
    with pytest.raises(OsegVideoError, match=r"cannot read the weights of m, .*missing"):
        load_torchscript(tmp_path / "missing.pt", expected=None, trusted=True, metric="m")


def test_i3d_needs_no_trust_if_its_checksum_is_the_published_one(tmp_path, i3d, monkeypatch):
    path, _ = i3d
    write_noise(tmp_path / "real", 3, seed=0)
    options = {"weights": {"fvd:i3d_16f": str(path)}, "reference": tmp_path / "real"}
    with pytest.raises(OsegVideoError, match="trust"):
        build_metrics(["fvd:i3d_16f"], MetricOptions(**options))
    monkeypatch.setattr(networks, "I3D_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    assert build_metrics(["fvd:i3d_16f"], MetricOptions(**options))


def test_a_network_of_the_wrong_kind_is_refused_in_one_line(tmp_path):
    script(tmp_path / "c3d.pt", SmallC3D())
    write_noise(tmp_path / "real", 3, seed=0)
    with pytest.raises(OsegVideoError, match="torchscript network failed") as refused:
        measure(
            "fvd:i3d_16f",
            tmp_path / "real",
            weights={"fvd:i3d_16f": str(tmp_path / "c3d.pt")},
            trust_weights=True,
            reference=tmp_path / "real",
        )
    assert "\n" not in str(refused.value)


# Fréchet video distance


@pytest.fixture
def sets(tmp_path, i3d):
    """Folders of generated and real clips, their tensors, and options for the small network."""
    fake = write_noise(tmp_path / "fake", 9, seed=1)
    real = write_noise(tmp_path / "real", 12, seed=2, frames=20)
    options = {"trust_weights": True, "reference": tmp_path / "real"}
    return tmp_path, fake, real, options


def options_for(name, i3d, options):
    return {**options, "weights": {name: str(i3d[0])}}


def test_fvd_is_the_closed_form_of_the_networks_features(sets, i3d):
    folder, fake, real, options = sets
    value, metric, _, warnings = measure(
        "fvd:i3d_16f", folder / "fake", **options_for("fvd:i3d_16f", i3d, options)
    )
    expected = closed_form(eager(i3d[1], fake.values()), eager(i3d[1], real.values()), ddof=1)
    assert value == pytest.approx(expected, rel=1e-4)
    assert "9 clips of fake for 400 dimensions raise the distance" in warnings[0]
    protocol = metric.values[0].protocol
    assert protocol["frames"] == 16 and protocol["ddof"] == 1 and protocol["reference"]["clips"] == 12
    assert protocol["extractor"]["sha256"] == hashlib.sha256(i3d[0].read_bytes()).hexdigest()


def test_fvd_of_a_set_to_itself_is_zero_and_no_batch_or_name_matters(sets, i3d):
    folder, fake, _, options = sets
    options = options_for("fvd:i3d_16f", i3d, options)
    itself, *_ = measure("fvd:i3d_16f", folder / "fake", **{**options, "reference": folder / "fake"})
    assert itself == pytest.approx(0, abs=1e-9)
    values = [measure("fvd:i3d_16f", folder / "fake", **options, batch=batch)[0] for batch in (1, 4, 100)]
    for index, clip in enumerate(fake.values()):
        write_frames(folder / "renamed" / f"{9 - index}", clip)
    values.append(measure("fvd:i3d_16f", folder / "renamed", **options)[0])
    assert values == pytest.approx([values[0]] * 4, rel=1e-5) and values[0] > 0


def small_protocol(monkeypatch, name="fvd:fvd2048_16f", **changes):
    changed = dataclasses.replace(protocols.PROTOCOLS[name], **changes)
    monkeypatch.setitem(protocols.PROTOCOLS, name, changed)


def test_stylegan_vs_protocol_takes_exactly_its_number_of_clips_and_divides_by_it(sets, i3d, monkeypatch):
    folder, fake, real, options = sets
    name = "fvd:fvd2048_16f"
    options = options_for(name, i3d, options)
    with pytest.raises(OsegVideoError, match=r"needs 2048 real clips of at least 16 frames; \S+ has 12"):
        measure(name, folder / "fake", **options)
    small_protocol(monkeypatch, clips=9, real_start="first")
    value, metric, *_ = measure(name, folder / "fake", **options)
    chosen = sorted(real, key=lambda clip: hashlib.sha256(clip.encode()).digest())[:9]
    real_rows = eager(i3d[1], [real[clip] for clip in chosen])
    assert value == pytest.approx(closed_form(eager(i3d[1], fake.values()), real_rows, ddof=0), rel=1e-4)
    with pytest.raises(OsegVideoError, match="defined for 9 clips; fake has 8"):
        metric.check(find_clips([folder / "fake"]).clips[:8])


def chosen(plan, clip, *, real):
    """The frames of a clip that a protocol takes."""
    (frames,) = watch(clip, [plan.look(clip, real=real)])
    return frames


def test_real_clips_begin_anywhere_generated_ones_at_the_first_frame(sets, i3d, monkeypatch):
    folder, _, real, options = sets
    name = "fvd:fvd2048_16f"
    small_protocol(monkeypatch, clips=9)
    values = {measure(name, folder / "fake", **options_for(name, i3d, options))[0] for _ in range(2)}
    assert len(values) == 1
    plan = protocols.PROTOCOLS[name]
    clip = find_clips([folder / "real"]).clips[0]
    start = int.from_bytes(hashlib.sha256(b"00").digest()[:8], "big") % 5
    assert torch.equal(chosen(plan, clip, real=True), real["00"][start : start + 16])
    assert torch.equal(chosen(plan, clip, real=False), real["00"][:16])


def test_the_stride_decides_which_frames_and_how_many_are_needed(tmp_path):
    plan = protocols.PROTOCOLS["fvd:fvd2048_128f_subsample8f"]
    assert plan.span == 121
    clips = write_noise(tmp_path, 1, seed=0, frames=121, sizes=((8, 8),))
    (clip,) = find_clips([tmp_path]).clips
    assert torch.equal(chosen(plan, clip, real=False), clips["00"][::8])


def test_generated_clips_that_are_too_short_are_refused_real_ones_left_out(sets, i3d):
    folder, _, _, options = sets
    options = options_for("fvd:i3d_16f", i3d, options)
    write_noise(folder / "real" / "short", 2, seed=5, frames=15)
    _, metric, *_ = measure("fvd:i3d_16f", folder / "fake", **options)
    assert metric.values[0].protocol["reference"] | {"folder": ""} == {
        **{"folder": "", "clips": 12, "too_short": 2, "skipped": 0, "kinds": ["png"]}
    }
    write_noise(folder / "fake" / "short", 1, seed=5, frames=15)
    with pytest.raises(OsegVideoError, match="at least 16 frames; short/00 has 15"):
        measure("fvd:i3d_16f", folder / "fake", **options)


def test_real_clips_that_cannot_be_read_are_named(sets, i3d):
    folder, _, _, options = sets
    (folder / "real" / "bad.gif").write_bytes(b"junk")
    (folder / "real" / "03" / "00007.png").write_bytes(b"junk")
    _, metric, seen, _ = measure("fvd:i3d_16f", folder / "fake", **options_for("fvd:i3d_16f", i3d, options))
    assert set(seen.skipped) == {"real/bad.gif", "real/03"}
    assert metric.values[0].protocol["reference"]["clips"] == 11


def test_compression_of_one_side_only_is_told(sets, i3d):
    folder, fake, _, options = sets
    (folder / "lossy").mkdir()
    for name, clip in fake.items():
        write_clip(folder / "lossy" / f"{name}.mp4", clip, 8, format="mp4")
    *_, warnings = measure("fvd:i3d_16f", folder / "lossy", **options_for("fvd:i3d_16f", i3d, options))
    assert "compression alone raises the distance" in warnings[0]
    told = []
    for format in ("png", "mp4"):  # the shipped reference is of drawn clips
        write_drawn(folder / format, 3, format=format)
        told.append(measure("fvd:embedded", folder / format)[-1])
    assert [any("compression" in line for line in lines) for lines in told] == [False, True]


def test_half_of_the_clips_show_how_much_their_number_matters(sets, i3d):
    folder, fake, real, options = sets
    _, metric, seen, _ = measure("fvd:i3d_16f", folder / "fake", **options_for("fvd:i3d_16f", i3d, options))
    details = metric.details("fvd:i3d_16f", seen.rows, torch.arange(9))
    half = eager(i3d[1], list(fake.values())[::2])
    expected = closed_form(half, eager(i3d[1], real.values()), ddof=1)
    assert details["half"] == {"clips": 5, "value": pytest.approx(expected, rel=1e-4)}


def test_two_protocols_at_once_give_what_each_gives_alone(sets, i3d, monkeypatch, tmp_path):
    folder, fake, _, _ = sets
    small_protocol(monkeypatch, clips=len(fake))
    names = ["fvd:fvd2048_16f", "fvd:i3d_16f"]

    def values(names, work):
        weights = dict.fromkeys(names, str(i3d[0]))
        options = MetricOptions(reference=folder / "real", weights=weights, trust_weights=True, batch=2)
        evaluation = evaluate([folder / "fake"], names, options=options, work=work)
        return [result.value for result in evaluation.results["fake"]]

    alone = [value for name in names for value in values([name], None)]
    assert values(names, None) == pytest.approx(alone) == values(names, tmp_path / "work")
    assert alone[0] != pytest.approx(alone[1])


def test_a_reference_that_was_interrupted_goes_on_where_it_stopped(sets, i3d, monkeypatch, tmp_path):
    folder, _, real, options = sets
    options = MetricOptions(**options_for("fvd:i3d_16f", i3d, options), batch=2)
    looked = []

    def stopped(clip, looks):
        if len(looked) == 7:
            raise KeyboardInterrupt
        looked.append(clip.name)
        return watch(clip, looks)

    def value(work):
        found = evaluate([folder / "fake"], ["fvd:i3d_16f"], options=options, work=work)
        return found.results["fake"][0].value

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(real_clips, "watch", stopped)
        value(tmp_path / "work")
    monkeypatch.setattr(
        real_clips, "watch", lambda clip, looks: looked.append(clip.name) or watch(clip, looks)
    )
    expected = value(None)
    assert len(looked) == 7 + len(real), "without a folder nothing is kept"
    del looked[7:]
    assert value(tmp_path / "work") == pytest.approx(expected)
    assert len(looked) == 7 + len(real) - 6, "three batches of two were done"
    assert set(looked) == set(real)


def test_statistics_cannot_be_saved_where_there_is_no_folder(sets, i3d, tmp_path):
    *_, options = sets
    save = {
        **options_for("fvd:i3d_16f", i3d, options),
        "save_reference": tmp_path / "missing" / "r.safetensors",
    }
    with pytest.raises(OsegVideoError, match=r"cannot write .*r.safetensors: there is no folder"):
        build_metrics(["fvd:i3d_16f"], MetricOptions(**save))


def test_a_reference_is_asked_for(i3d):
    with pytest.raises(OsegVideoError, match="give --reference"):
        build_metrics(["fvd:i3d_16f"], MetricOptions())
    with pytest.raises(OsegVideoError, match="no such reference: nowhere"):
        build_metrics(["fvd:i3d_16f"], MetricOptions(reference=Path("nowhere")))


# Saved statistics


def test_saved_statistics_give_the_same_distance_without_the_clips(sets, i3d):
    folder, _, _, options = sets
    options = options_for("fvd:i3d_16f", i3d, options)
    file = folder / "real.safetensors"
    first, *_ = measure("fvd:i3d_16f", folder / "fake", **options, save_reference=file)
    again, metric, *_ = measure("fvd:i3d_16f", folder / "fake", **{**options, "reference": file})
    assert again == first and metric.values[0].protocol["reference"]["clips"] == 12
    with pytest.raises(OsegVideoError, match="has statistics of fvd:i3d_16f already"):
        measure("fvd:i3d_16f", folder / "fake", **options, save_reference=file)
    measure("fvd:i3d_16f", folder / "fake", **options, save_reference=file, overwrite=True)


def test_statistics_of_several_metrics_share_a_file(sets, i3d, monkeypatch):
    folder, _, _, options = sets
    small_protocol(monkeypatch, clips=9)
    file = folder / "real.safetensors"
    values = {}
    for name in ("fvd:i3d_16f", "fvd:fvd2048_16f"):
        values[name], *_ = measure(
            name, folder / "fake", **options_for(name, i3d, options), save_reference=file
        )
    for name, value in values.items():
        again = {**options_for(name, i3d, options), "reference": file}
        assert measure(name, folder / "fake", **again)[0] == value


def test_statistics_of_another_protocol_are_refused(sets, i3d, monkeypatch):
    folder, _, _, options = sets
    name, file = "fvd:i3d_16f", folder / "real.safetensors"
    measure(name, folder / "fake", **options_for(name, i3d, options), save_reference=file)
    other = folder / "other.pt"
    script(other, SmallI3D(), seed=1)
    saved = {**options, "reference": file}
    with pytest.raises(OsegVideoError, match=r"another protocol: extractor is .*sha256"):
        measure(name, folder / "fake", **saved, weights={name: str(other)})
    with pytest.raises(OsegVideoError, match="no statistics of fvd:fvd2048_16f; it has: fvd:i3d_16f"):
        measure("fvd:fvd2048_16f", folder / "fake", **options_for("fvd:fvd2048_16f", i3d, saved))
    small_protocol(monkeypatch, name, stride=2, frames=8)
    with pytest.raises(OsegVideoError, match="another protocol: frames is 16, and 8 is asked for"):
        measure(name, folder / "fake", **options_for(name, i3d, saved))


def test_a_damaged_or_foreign_file_of_statistics_is_refused(tmp_path):
    from safetensors.torch import save_file

    whole = SHIPPED.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    for name in ("cut", "junk", "foreign"):
        with pytest.raises(OsegVideoError, match=f"{name}.safetensors") as refused:
            build_metrics(["fvd:embedded"], MetricOptions(reference=tmp_path / f"{name}.safetensors"))
        assert "\n" not in str(refused.value)
    with pytest.raises(OsegVideoError, match="files, not a"):
        build_metrics(["fvd:embedded"], MetricOptions(save_reference=Path("a.npz")))


# VideoMAE

_TINY_VIDEOMAE = {
    **{"image_size": 32, "patch_size": 16, "num_frames": 16, "tubelet_size": 2, "hidden_size": 24},
    **{"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 5},
    **{"decoder_hidden_size": 24, "decoder_intermediate_size": 32, "decoder_num_attention_heads": 2},
    **{"decoder_num_hidden_layers": 1},
}


@pytest.fixture(scope="module")
def videomae(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("videomae")
    model = VideoMAEForVideoClassification(VideoMAEConfig(**_TINY_VIDEOMAE, use_mean_pooling=True)).eval()
    model.save_pretrained(path)
    return path, model


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_videomae_features_are_what_its_classifier_reads(videomae, tmp_path, file):
    folder, model = videomae
    if file.endswith(".bin"):
        shutil.copy(folder / "config.json", tmp_path)
        torch.save(model.state_dict(), tmp_path / file)
        folder = tmp_path
    clips = torch.randint(
        0, 256, (2, 16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    mean, deviation = (torch.tensor(x)[:, None, None] for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    read = []
    model.classifier.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.no_grad():
        model(pixel_values=(clips.float() / 255 - mean) / deviation)
        found = VideoMAE("m", MetricOptions(weights={"m": str(folder)})).features(clips)
    torch.testing.assert_close(found, read[0])


def test_fvd_with_videomae_runs_end_to_end_on_clips_of_any_size(tmp_path, videomae):
    options = {"weights": {"fvd:videomae_16f": str(videomae[0])}, "reference": tmp_path / "real"}
    write_noise(tmp_path / "fake", 4, seed=1)
    write_noise(tmp_path / "real", 5, seed=2)
    value, metric, *_ = measure("fvd:videomae_16f", tmp_path / "fake", **options)
    assert value > 0 and math.isfinite(value)
    assert metric.values[0].protocol["extractor"]["network"].startswith("VideoMAE, 2 layers of 24")
    same, *_ = measure("fvd:videomae_16f", tmp_path / "real", **options)
    assert same == pytest.approx(0, abs=1e-6 * value)


def test_a_videomae_without_a_fine_tuned_head_is_refused(tmp_path):
    VideoMAEForPreTraining(VideoMAEConfig(**_TINY_VIDEOMAE)).save_pretrained(tmp_path / "pretrained")
    last = VideoMAEForVideoClassification(VideoMAEConfig(**_TINY_VIDEOMAE, use_mean_pooling=False))
    last.save_pretrained(tmp_path / "last_token")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("pretrained", "no VideoMAE that was fine-tuned"),
        ("last_token", "no VideoMAE that was fine-tuned"),
        ("empty", "holds no model.safetensors"),
    ):
        with pytest.raises(OsegVideoError, match=message):
            VideoMAE("m", MetricOptions(weights={"m": str(tmp_path / name)}))


def test_weights_that_the_hub_cannot_give_are_asked_for_by_path(monkeypatch):
    def unreachable(*arguments, **options):
        raise ConnectionError("no network\nsecond line")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    for extractor, name in ((networks.I3D, "fvd:i3d_16f"), (VideoMAE, "fvd:videomae_16f")):
        with pytest.raises(OsegVideoError, match=rf"cannot fetch .* give --weights {name}=PATH") as refused:
            extractor(name, MetricOptions(weights={} if extractor is networks.I3D else {name: "none/such"}))
        assert "\n" not in str(refused.value)


# Inception score


def test_inception_score_of_known_probabilities():
    sure = torch.eye(6).repeat(20, 1)
    assert inception_score(sure, splits=1) == (pytest.approx(6), 0)  # six classes, never in doubt
    assert inception_score(torch.full((40, 6), 1 / 6)) == (pytest.approx(1), pytest.approx(0))
    assert inception_score(sure[:1].repeat(20, 1)) == (pytest.approx(1), pytest.approx(0))  # one class only


@pytest.mark.parametrize("splits", [1, 10])
def test_inception_score_is_that_of_torchmetrics(splits):
    logits = 3 * torch.randn(200, 9, generator=torch.Generator().manual_seed(2))
    oracle = TorchmetricsInceptionScore(feature=nn.Identity(), splits=splits)
    oracle.update(logits)
    torch.manual_seed(3)  # it shuffles
    mean, deviation = oracle.compute()
    torch.manual_seed(3)
    found = inception_score(logits[torch.randperm(200)].softmax(dim=1), splits)
    assert found[0] == pytest.approx(float(mean), rel=1e-5)
    if splits > 1:  # torchmetrics divides by splits - 1
        assert found[1] == pytest.approx(float(deviation) * math.sqrt((splits - 1) / splits), rel=1e-4)


def test_c3ds_score_is_that_of_its_probabilities_over_the_first_frames(tmp_path):
    network = script(tmp_path / "c3d.pt", SmallC3D())
    clips = write_noise(tmp_path / "clips", 30, seed=3)
    options = {"weights": {"is:c3d": str(tmp_path / "c3d.pt")}, "trust_weights": True}
    value, metric, seen, warnings = measure("is:c3d", tmp_path / "clips", **options)
    rows = torch.cat([network(clip[:16].transpose(0, 1)[None]) for clip in clips.values()]).detach().double()
    torch.testing.assert_close(seen.rows, rows, rtol=1e-5, atol=1e-6)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    expected = inception_score(rows[order])
    assert value == pytest.approx(expected[0], rel=1e-5) and value > 1.05
    details = metric.details("is:c3d", seen.rows, torch.arange(30))
    assert details == {"std over splits": pytest.approx(expected[1], rel=1e-4)}
    assert "30 clips of clips in 10 splits bound the score by 3" in warnings[0]
    with pytest.raises(OsegVideoError, match="has 10 splits; clips has 9 clips"):
        metric.check(find_clips([tmp_path / "clips"]).clips[:9])


def test_c3d_must_be_given_and_return_probabilities(tmp_path):
    with pytest.raises(OsegVideoError, match="give --weights is:c3d="):
        build_metrics(["is:c3d"], MetricOptions())
    script(tmp_path / "c3d.pt", SmallC3D(broken=True))
    write_noise(tmp_path / "clips", 10, seed=3)
    with pytest.raises(OsegVideoError, match="does not return probabilities"):
        measure(
            "is:c3d",
            tmp_path / "clips",
            weights={"is:c3d": str(tmp_path / "c3d.pt")},
            trust_weights=True,
        )


# The shipped classifier


@pytest.mark.parametrize("name", ["fvd:embedded", "fvd:two"])
def test_the_shipped_statistics_are_those_of_drawn_clips(monkeypatch, name):
    (metric,) = build_metrics([name], MetricOptions())
    # Refused if the classifier is another one.
    shipped = load_reference(SHIPPED, name, metric.real_protocol).moments
    assert shipped.count == real_clips.DRAWN_CLIPS == 2048
    monkeypatch.setattr(real_clips, "DRAWN_CLIPS", 192)
    extractor = PROTOCOLS[name].extractor("m", MetricOptions())
    some, about = look_at_drawn(extractor.features, PROTOCOLS[name].task)
    assert some.count == about["clips"] == 192
    deviation = shipped.covariance().diagonal().sqrt()
    errors = (some.mean_D - shipped.mean_D) / (deviation / math.sqrt(192))
    assert errors.abs().max() < 5
    ratio = some.covariance().diagonal().sqrt() / deviation
    assert (ratio - 1).abs().max() < 0.35


def test_statistics_of_another_classifier_are_drawn_again(monkeypatch, tmp_path):
    monkeypatch.setattr(judged, "_digest", lambda task: "0" * 64)
    monkeypatch.setattr(real_clips, "DRAWN_CLIPS", 64)
    write_drawn(tmp_path, 4)
    _, metric, *_ = measure("fvd:embedded", tmp_path)
    assert metric.values[0].protocol["reference"]["clips"] == 64


def test_embedded_distance_and_score_are_those_of_the_classifiers_outputs(tmp_path):
    write_drawn(tmp_path / "fake", 20, seed=1)
    write_drawn(tmp_path / "real", 24, seed=2)
    network = load_classifier()
    fake, real = (sample_clips(seed, range(n))[0].float() / 255 for seed, n in ((1, 20), (2, 24)))
    with torch.no_grad():
        rows = [network.features(clips).double() for clips in (fake, real)]
        heads = [network(fake)[name].double().softmax(dim=1) for name in VOCABULARIES]
    value, *_ = measure("fvd:embedded", tmp_path / "fake", reference=tmp_path / "real")
    assert value == pytest.approx(closed_form(*rows, ddof=1), rel=1e-3)
    joint = torch.stack(
        [torch.cartesian_prod(*(head[clip] for head in heads)).prod(dim=1) for clip in range(20)]
    )
    value, _, seen, _ = measure("is:embedded", tmp_path / "fake")
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    by_clip = joint[[clip.seed for clip in seen.clips]]
    assert value == pytest.approx(inception_score(by_clip[order])[0], rel=1e-5)


def test_alignment_counts_what_the_prompt_says(tmp_path):
    write_drawn(tmp_path, 24, seed=1, requests=0)
    (metric,) = build_metrics(["alignment:embedded"], MetricOptions())
    clips = find_clips([tmp_path]).clips
    assert check_fit(metric, clips) == ()
    rows = metric.observe(clips).rows
    shown, asked = (sample_clips(seed, range(24))[1] for seed in (1, 0))
    right = {
        name: [getattr(a, name) == getattr(b, name) for a, b in zip(shown, asked, strict=True)]
        for name in ("colour", "shape", "motion")
    }
    right["all"] = [all(parts) for parts in zip(*right.values(), strict=True)]
    by_seed = sorted(range(24), key=lambda place: clips[place].seed)
    for name, expected in right.items():
        name_of = f"alignment:embedded:{name}"
        assert metric.compute(name_of, rows, torch.arange(24)) == pytest.approx(sum(expected) / 24)
        assert metric.per_clip(name_of, rows)[by_seed].tolist() == expected
    assert 0 < sum(right["shape"]) < 24


def test_distance_of_two_shapes_is_that_of_the_judges_features(tmp_path):
    write_drawn(tmp_path / "fake", 20, seed=1, data=two_shapes)
    write_drawn(tmp_path / "real", 24, seed=2, data=two_shapes)
    judge = load_two_shape_judge()
    fake, real = (two_shapes.sample_clips(seed, range(n))[0].float() / 255 for seed, n in ((1, 20), (2, 24)))
    with torch.no_grad():
        rows = [judge.features(clips).double() for clips in (fake, real)]
    value, *_ = measure("fvd:two", tmp_path / "fake", reference=tmp_path / "real")
    assert value == pytest.approx(closed_form(*rows, ddof=1), rel=1e-3)


def test_alignment_of_two_shapes_counts_what_the_prompt_says(tmp_path):
    """The judge reads drawn clips without an error, so the truth is what was drawn."""
    write_drawn(tmp_path, 24, seed=1, requests=0, data=two_shapes)
    write_drawn(tmp_path, 8, seed=0, requests=0, guidance="none", data=two_shapes)
    (metric,) = build_metrics(["alignment:two"], MetricOptions())
    clips = find_clips([tmp_path]).clips
    assert check_fit(metric, clips) == ()
    rows = metric.observe(clips).rows
    shown, asked = (two_shapes.sample_clips(seed, range(24))[1] for seed in (1, 0))

    def truth(clip) -> dict[str, bool]:
        drawn = asked[clip.seed] if clip.method == "none" else shown[clip.seed]
        seen = SeenClip(shapes=frozenset(drawn.shapes), pieces=2, background=drawn.background)
        return agreement(asked[clip.seed], seen)

    for part in ("count", "colour", "shape", "motion", "binding", "all"):
        name = f"alignment:two:{part}"
        expected = [truth(clip)[part] for clip in clips]
        assert metric.per_clip(name, rows).tolist() == expected
        mean = metric.compute(name, rows, torch.arange(len(clips)))
        assert mean == pytest.approx(sum(expected) / len(clips))
    assert 8 <= sum(truth(clip)["all"] for clip in clips) < len(clips)


def test_clips_that_the_classifier_cannot_judge_are_refused(tmp_path):
    clip = torch.zeros(19, 3, 64, 64, dtype=torch.uint8)
    write_frames(tmp_path / "short" / "a", clip[:5])
    write_frames(tmp_path / "small" / "a", clip[:, :, :32])
    cases = {"short": "64 x 64 pixels and at least 19 frames; a has 64 x 64 and 5", "small": "a has 32 x 64"}
    for metric in ("alignment:embedded", "fvd:embedded", "is:embedded", "alignment:two", "fvd:two"):
        for name, message in cases.items():
            with pytest.raises(OsegVideoError, match=message):
                measure(metric, tmp_path / name)


@pytest.mark.parametrize(("name", "data"), [("alignment:embedded", dataset), ("alignment:two", two_shapes)])
def test_alignment_needs_prompts_of_the_data_set(tmp_path, name, data):
    (path,) = write_drawn(tmp_path, 1, data=data)
    manifest = tmp_path / f"{path.name}.json"
    manifest.write_text(manifest.read_text().replace("moving", "flying"))
    with pytest.raises(OsegVideoError, match=f"cannot judge {path.name}: not a caption"):
        measure(name, tmp_path)
    manifest.unlink()
    with pytest.raises(OsegVideoError, match=f"{path.name} has no manifest beside it"):
        measure(name, tmp_path)

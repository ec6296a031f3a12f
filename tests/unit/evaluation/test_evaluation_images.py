"""Metrics of images: against loops and closed forms, with stand-ins for networks of the extra `images`."""

from __future__ import annotations

import colorsys
import hashlib
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from oseg_video.comparison.planned import check_metrics
from oseg_video.evaluation.clips import ClipFile, find_clips, find_images
from oseg_video.evaluation.errors import EvaluationError
from oseg_video.evaluation.evaluate import evaluate
from oseg_video.evaluation.features.frechet import Moments, frechet_distance
from oseg_video.evaluation.features.stills import clean_resize
from oseg_video.evaluation.metrics import precision_recall
from oseg_video.evaluation.metrics.base import MetricOptions
from oseg_video.evaluation.metrics.colours import contrast, saturation
from oseg_video.evaluation.metrics.lpips import DistanceToUnguided
from oseg_video.evaluation.metrics.precision_recall import radii, within
from tests.drawn import write_manifest
from tests.tiny.unet import _tokenizer

HEIGHT, WIDTH = 24, 32


def pixels(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def write_images(folder: Path, seeds: range, guidance: str | None = None, shift: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        path = folder / f"{guidance or 'real'}-{seed}.png"
        Image.fromarray(pixels(seed + shift)).save(path)
        if guidance:
            write_manifest(path, prompts=["a red circle"], seeds=[seed], guidance=guidance)
    return folder


def values(folder: Path, metrics: list[str], **options: Any) -> Any:
    return evaluate([folder], metrics, options=MetricOptions(**options))


# -- no weights


def test_saturation_is_that_of_hsv() -> None:
    image = pixels(0)
    by_hand = [colorsys.rgb_to_hsv(*(float(c) / 255 for c in pixel))[1] for pixel in image.reshape(-1, 3)]
    assert saturation(image) == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-12)
    assert saturation(np.full((4, 4, 3), 7, np.uint8)) == 0 == saturation(np.zeros((4, 4, 3), np.uint8))


def test_contrast_is_the_spread_of_luminance() -> None:
    image = pixels(0).astype(float)
    light = 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]
    expected = ((light - light.mean()) ** 2).mean() ** 0.5 / 255
    assert contrast(pixels(0)) == pytest.approx(expected, abs=1e-12)
    halves = np.zeros((4, 4, 3), np.uint8)
    halves[:2] = 255
    assert contrast(halves) == pytest.approx(0.5)


def test_colours_of_images_and_clips(tmp_path: Path) -> None:
    write_images(tmp_path, range(3), "cfg")
    found = values(tmp_path, ["colours"]).results["cfg"]
    assert [one.name for one in found] == ["colours:saturation", "colours:contrast"] and found[0].clips == 3
    expected = sum(saturation(pixels(seed)) for seed in range(3)) / 3
    assert found[0].value == pytest.approx(expected) and found[0].interval is not None


# -- finding and resizing


def test_every_image_below_a_folder_is_a_real_one(tmp_path: Path) -> None:
    write_images(tmp_path / "a" / "b", range(2))
    write_images(tmp_path, range(3))
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / ".hidden").mkdir()
    write_images(tmp_path / ".hidden", range(1))
    found = find_images(tmp_path)
    assert [clip.name for clip in found.clips] == [
        *("a/b/real-0.png", "a/b/real-1.png"),
        *("real-0.png", "real-1.png", "real-2.png"),
    ]
    assert {clip.frames for clip in found.clips} == {1} and list(found.broken) == ["broken.png"]
    beside = write_images(tmp_path / "beside" / "real", range(2)).parent
    (tmp_path / "a" / "linked").symlink_to(beside / "real")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    (tmp_path / "copy.png").symlink_to(tmp_path / "real-1.png")
    linked = find_images(tmp_path)
    assert len(linked.clips) == 7 and "a/linked/real-1.png" in {clip.name for clip in linked.clips}
    assert linked.left_out == {
        "a/again": f"the same folder as {tmp_path.name}",
        "real-1.png": "the same image as copy.png",
        "beside/real": "the same folder as linked",
    }
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="no image that can be read"):
        find_images(tmp_path / "empty")


def test_clean_resizing_is_bicubic_with_antialiasing() -> None:
    images = torch.from_numpy(np.stack([pixels(seed).repeat(20, 0).repeat(20, 1) for seed in (0, 1)]))
    images = images.permute(0, 3, 1, 2)
    expected = F.interpolate(images.float(), (299, 299), mode="bicubic", antialias=True, align_corners=False)
    assert_close(clean_resize(images), expected.clamp(0, 255), rtol=0, atol=0.01)


# -- networks, by stand-ins of the same interface


class FakeInception(nn.Module):
    """Bytes in, (features,) out, as torch-fidelity's: colour means of quarters, behind a first layer."""

    def __init__(self, name: str, features: list[str], feature_extractor_weights_path: str) -> None:
        super().__init__()
        assert features == ["2048"]
        self.Conv2d_1a_3x3 = nn.Identity()

    def forward(self, images: Tensor) -> tuple[Tensor]:
        assert images.dtype == torch.uint8
        return (F.adaptive_avg_pool2d(self.Conv2d_1a_3x3((images.float() - 128) / 128), 2).flatten(1),)


@pytest.fixture
def inception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = FakeInception  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    return weights


def features_of(folder: Path) -> Tensor:
    images = [np.array(Image.open(path)) for path in sorted(folder.glob("*.png"))]
    return FakeInception("", ["2048"], "")(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))[0]


@pytest.mark.parametrize("name", ("fid:torch-fidelity", "fid:clean-fid"))
def test_fid_is_the_frechet_distance_of_the_features(name: str, tmp_path: Path, inception: Path) -> None:
    made = write_images(tmp_path / "made", range(12), "cfg")
    real = write_images(tmp_path / "real", range(15), shift=50)
    options = {"weights": {name: str(inception)}, "trust_weights": True, "reference": real}
    evaluation = values(made, [name], **options)
    (result,) = evaluation.results["cfg"]
    expected = frechet_distance(Moments.of(features_of(made)), Moments.of(features_of(real)))
    # Resizing before the colour means changes them a little.
    assert result.value == pytest.approx(expected, rel=0.2 if name == "fid:clean-fid" else 1e-5)
    assert result.protocol["extractor"]["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert result.protocol["reference"]["clips"] == 15 and result.clips == 12
    assert result.interval is not None


def test_weights_of_another_checksum_need_trust(tmp_path: Path, inception: Path) -> None:
    made = write_images(tmp_path / "made", range(4), "cfg")
    name = "fid:torch-fidelity"
    with pytest.raises(EvaluationError, match=r"is not weights-inception-2015-12-05-6726825d\.pth: its SHA"):
        values(made, [name], weights={name: str(inception)}, reference=made)
    with pytest.raises(EvaluationError, match="give --weights fid:torch-fidelity=PATH, or a hub repository"):
        values(made, [name], reference=made)


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write_images(tmp_path / "made", range(4), "cfg")
    for metric, package in (("fid:clean-fid", "torch_fidelity"), ("lpips:vgg", "lpips")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(EvaluationError, match=r"not fit: pip install 'oseg-video\[images\]'"):
            values(made, [metric], reference=made if metric.startswith("fid") else None)


def test_points_within_a_set_by_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(20, 3, dtype=torch.float64, generator=generator)
    others = torch.randn(15, 3, dtype=torch.float64, generator=generator)

    def apart(a: Tensor, b: Tensor) -> float:
        return float(sum((x - y) ** 2 for x, y in zip(a, b, strict=True))) ** 0.5

    expected = []
    for point in points:
        inside = False
        for one in others:
            radius = sorted(apart(one, other) for other in others)[3]  # the first is itself
            inside = inside or apart(point, one) <= radius
        expected.append(inside)
    assert 0 < sum(expected) < 20
    reach = radii(others)
    assert within(points, others, reach).tolist() == expected
    assert within(others, others, reach).all()
    monkeypatch.setattr(precision_recall, "_AT_ONCE", 4)  # a few at a time
    assert_close(radii(others), reach)
    assert within(points, others, reach).tolist() == expected


def test_precision_and_recall(tmp_path: Path, inception: Path) -> None:
    made = write_images(tmp_path / "made", range(12), "cfg")
    real = write_images(tmp_path / "real", range(15), shift=50)
    names = ["precision:inception", "recall:inception"]
    options = {"weights": {names[0]: str(inception)}, "trust_weights": True, "reference": real}
    precision, recall = values(made, names, **options).results["cfg"]
    ours, theirs = features_of(made), features_of(real)
    assert precision.value == pytest.approx(float(within(ours, theirs, radii(theirs)).float().mean()))
    assert recall.value == pytest.approx(float(within(theirs, ours, radii(ours)).float().mean()))
    assert precision.interval is not None and recall.interval is None  # repeats are their own neighbours
    same = values(made, names, **{**options, "reference": made}).results["cfg"]
    assert [one.value for one in same] == [1, 1]
    few = write_images(tmp_path / "few", range(3), "cfg")
    with pytest.raises(EvaluationError, match="needs more than 3 clips of cfg, got 3"):
        values(few, names, **options)


def test_pairs_too_few_for_a_value_have_no_difference_and_the_rest_is_there(
    tmp_path: Path, inception: Path
) -> None:
    for method, seeds in (("cfg", range(5)), ("seg", range(4, 9))):  # one seed in common
        write_images(tmp_path / "made", seeds, method, shift=len(method))
    real = write_images(tmp_path / "real", range(15), shift=50)
    names = ["fid:clean-fid", "recall:inception", "colours"]
    weights = {name: str(inception) for name in names[:2]}
    options = MetricOptions(weights=weights, trust_weights=True, reference=real)
    found = evaluate([tmp_path / "made"], names, options=options, baseline="cfg")
    assert {one.name: one.pairs for one in found.differences} == {
        "colours:saturation": 1,
        "colours:contrast": 1,
    }
    assert found.failed == {
        "seg minus cfg: fid:clean-fid": "fid:clean-fid needs at least 2 clips, got 1",
        "seg minus cfg: recall:inception": (
            "precision and recall need more than 3 clips and real images, got 1"
        ),
    }
    assert len(found.results["seg"]) == 4


@pytest.fixture
def lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    class LPIPS(nn.Module):
        def __init__(self, net: str, pnet_rand: bool, verbose: bool) -> None:
            super().__init__()
            self.factor = {"vgg": 1.0, "alex": 2.0}[net]

        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return self.factor * (first - second).abs().mean()

    module = types.ModuleType("lpips")
    module.LPIPS = LPIPS  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", module)


@pytest.mark.usefixtures("lpips")
def test_lpips_is_the_distance_to_the_unguided_image_of_the_seed(tmp_path: Path) -> None:
    write_images(tmp_path, range(3), "none")
    write_images(tmp_path, range(4), "seg", shift=10)
    found = values(tmp_path, ["lpips:vgg", "lpips:alex"])
    (vgg, alex), (own, _) = found.results["seg"], found.results["none"]
    apart = [np.abs(pixels(s).astype(float) - pixels(s + 10)).mean() / 127.5 for s in range(3)]
    assert vgg.value == pytest.approx(sum(apart) / 3, rel=1e-5) and alex.value == pytest.approx(2 * vgg.value)
    assert own.value == 0 and vgg.clips == 3
    assert found.skipped == {"seg-3.png": "lpips:alex: seg-3.png has no unguided clip of its prompt and seed"}


@pytest.mark.usefixtures("lpips")
def test_lpips_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, work = tmp_path / "images", tmp_path / "work"
    for method, shift in (("none", 0), ("seg", 10)):
        write_images(images, range(3), method, shift=shift)
    seen: list[str] = []
    stop_at = 2
    distance = DistanceToUnguided._distance

    def until_stopped(self: DistanceToUnguided, clip: ClipFile, other: ClipFile) -> float:
        if len(seen) == stop_at:
            raise RuntimeError("stopped")
        seen.append(clip.name)
        return distance(self, clip, other)

    monkeypatch.setattr(DistanceToUnguided, "_distance", until_stopped)
    with pytest.raises(RuntimeError, match="stopped"):
        evaluate([images], ["lpips:vgg"], work=work)
    stop_at = 4
    write_images(images, range(1), "none", shift=5)  # made anew meanwhile: its distance is measured again
    found = evaluate([images], ["lpips:vgg"], work=work)
    assert seen == ["seg-0.png", "seg-1.png", "seg-0.png", "seg-2.png"]
    shifts = ((0, 5), (1, 0), (2, 0))
    apart = [np.abs(pixels(s + by).astype(float) - pixels(s + 10)).mean() / 127.5 for s, by in shifts]
    assert found.results["seg"][0].value == pytest.approx(sum(apart) / 3, rel=1e-5)


@pytest.mark.usefixtures("lpips")
def test_lpips_compares_with_the_unguided_image_of_the_same_steps(tmp_path: Path) -> None:
    for steps, shift in ((8, 0), (20, 5)):
        for guidance, more in (("none", 0), ("seg", 10)):
            write_images(tmp_path / str(steps), range(2), guidance, shift=shift + more)
            for path in (tmp_path / str(steps)).glob(f"{guidance}-*.png"):
                seed = int(path.stem.partition("-")[2])
                asked = {"prompts": ["a red circle"], "seeds": [seed], "out": str(path)}
                write_manifest(path, guidance=guidance, steps=steps, **asked)
    found = values(tmp_path, ["lpips:vgg"])
    for steps, shift in ((8, 0), (20, 5)):
        apart = [
            np.abs(pixels(s + shift).astype(float) - pixels(s + shift + 10)).mean() / 127.5 for s in (0, 1)
        ]
        (value,) = (one for name, (one,) in found.results.items() if name.startswith(f"seg (steps={steps}"))
        assert value.value == pytest.approx(sum(apart) / 2, rel=1e-5)
    for path in tmp_path.rglob("none-0.json"):  # nothing tells them apart any more
        path.unlink()
    other = tmp_path / "20" / "none-1.json"
    other.write_text(other.read_text().replace('"steps": 20', '"steps": 8'))
    found = values(tmp_path, ["lpips:vgg"])
    said = "has 2 unguided clips of its prompt and seed, 2 of them with its settings"
    assert any(said in line for line in found.skipped.values())


@pytest.mark.usefixtures("lpips")
def test_lpips_needs_unguided_images(tmp_path: Path) -> None:
    write_images(tmp_path, range(2), "seg")
    there_are_none = "compares with clips of guidance 'none'; there are none"
    with pytest.raises(EvaluationError, match=there_are_none):
        values(tmp_path, ["lpips:vgg"])
    clips = find_clips([tmp_path]).clips
    with pytest.raises(EvaluationError, match=there_are_none):  # before a comparison makes any
        check_metrics(["lpips:vgg"], {("sdxl", "seg"): clips}, MetricOptions())
    write_images(tmp_path, range(2), "none")
    (tmp_path / "none-0.png").write_bytes(b"damaged")
    (tmp_path / "none-1.png").write_bytes(b"damaged")
    found = values(tmp_path, ["lpips:vgg", "colours"])
    assert found.failed == {"seg: lpips:vgg": f"lpips:vgg {there_are_none}"}
    assert found.results["seg"][0].name == "colours:saturation"


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP of transformers with random weights."""
    tokenizer = _tokenizer()
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 20,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config={**tower, **text},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    folder = tmp_path_factory.mktemp("clip")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(10)  # of the cosines below some are negative
        CLIPModel(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPProcessor(CLIPImageProcessor(**size), tokenizer).save_pretrained(folder)
    return folder


def test_clip_score_is_the_cosine_of_image_and_prompt(tmp_path: Path, clip_folder: Path) -> None:
    name = "clip_score:vit-b-32"
    write_images(tmp_path, range(6), "cfg")
    (result,) = values(tmp_path, [name], weights={name: str(clip_folder)}).results["cfg"]
    model = CLIPModel.from_pretrained(clip_folder).eval()
    processor = CLIPProcessor.from_pretrained(clip_folder)
    images = [Image.open(tmp_path / f"cfg-{seed}.png") for seed in range(6)]
    inputs = processor(text=["a red circle"], images=images, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    image, text = output.image_embeds.double(), output.text_embeds.double()
    cosines = ((image * text).sum(1) / image.norm(dim=1) / text.norm()).clamp(min=0)
    assert result.value == pytest.approx(float(cosines.mean()), abs=1e-5)
    assert 0 <= result.value <= 1 and len(set(result.per_clip.values())) > 1


def test_clip_scores_of_other_weights_are_not_gone_on_with(tmp_path: Path, clip_folder: Path) -> None:
    name, weights = "clip_score:vit-b-32", tmp_path / "weights"
    shutil.copytree(clip_folder, weights)
    write_images(tmp_path / "images", range(2), "cfg")

    def value() -> float:
        options = MetricOptions(weights={name: str(weights)})
        done = evaluate([tmp_path / "images"], [name], options=options, work=tmp_path / "work")
        return done.results["cfg"][0].value

    before = value()
    file = weights / "model.safetensors"
    changed = {key: x + 0.1 if "projection" in key else x for key, x in load_file(file).items()}
    save_file(changed, file, metadata={"format": "pt"})
    assert value() != before
    shutil.copytree(clip_folder, weights, dirs_exist_ok=True)
    assert value() == before


def test_clip_score_needs_a_prompt_and_weights(tmp_path: Path, clip_folder: Path) -> None:
    name = "clip_score:vit-b-32"
    image = write_images(tmp_path, range(1), "cfg") / "cfg-0.png"
    write_manifest(image, prompts=[""], seeds=[0], guidance="cfg")
    assert find_clips([tmp_path]).clips[0].prompt == ""
    with pytest.raises(EvaluationError, match=r"compares with the prompt; cfg-0.png has none"):
        values(tmp_path, [name], weights={name: str(clip_folder)})
    with pytest.raises(EvaluationError, match=r"cannot load CLIP from .*nowhere.* give --weights"):
        values(tmp_path, [name], weights={name: str(tmp_path / "nowhere")})

"""Measure guidance methods on the embedded model: attributes right, Fréchet distance, intervals.

    python scripts/measure_tiny.py --clips 1024 --seed 900 --out runs/measure/report

Every setting gets the same prompts and the same initial noise. A clip is right in colour, shape or motion
when the shipped classifier says what the prompt says. The Fréchet distance is taken in the classifier's
features against drawn clips. Results are kept after every batch; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import MochiPipeline
from torch import Tensor
from tqdm import tqdm

from oseg_video.embedded import MODEL_PATH
from oseg_video.embedded.classifier import ClipClassifier, load_classifier
from oseg_video.embedded.dataset import VOCABULARIES, caption, sample_attributes, sample_clips
from oseg_video.evaluation.bootstrap import bootstrap
from oseg_video.evaluation.frechet import Moments, frechet_distance
from oseg_video.guidance.methods import METHODS, Guidance
from oseg_video.runtime.denoiser import guided

JUDGED = ("colour", "shape", "motion")
REFERENCE_SEED = 77
REFERENCE_CLIPS = 2048


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", type=Path, default=Path(__file__).with_name("measure_tiny.yaml"))
    parser.add_argument("--only", nargs="*", help="labels of the settings to measure (default: all)")
    parser.add_argument("--clips", type=int, default=1024)
    parser.add_argument("--seed", type=int, required=True, help="decides prompts and noise")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--baseline", default=None, help="label that the others are compared with, paired")
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings: dict[str, dict[str, Any]] = yaml.safe_load(arguments.settings.read_text())
    if arguments.only:
        settings = {label: settings[label] for label in arguments.only}

    pipe = MochiPipeline.from_pretrained(MODEL_PATH, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    classifier = load_classifier()
    began = time.monotonic()
    results = {
        label: measure(pipe, classifier, setting, label, arguments) for label, setting in settings.items()
    }
    reference = Moments.of(reference_features(classifier))
    table = summarise(results, settings, reference, arguments)
    table["protocol"] = {
        "command": " ".join(["python", *sys.argv]),
        "clips": arguments.clips,
        "seed": arguments.seed,
        "steps": arguments.steps,
        "reference": f"{REFERENCE_CLIPS} drawn clips, seed {REFERENCE_SEED}",
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "seconds": round(time.monotonic() - began),
    }
    path = arguments.out / "table.json"
    path.with_suffix(".partial").write_text(json.dumps(table, indent=1))
    path.with_suffix(".partial").replace(path)
    print(as_markdown(table))


def build(setting: dict[str, Any]) -> Guidance:
    """The method of a setting such as {guidance: oseg, oseg_scale: 1, blocks: [3]}."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in setting.items() if k != "guidance"}
    return METHODS[setting["guidance"]](**values)


@torch.no_grad()
def measure(
    pipe: MochiPipeline, classifier: ClipClassifier, setting: dict, label: str, arguments: argparse.Namespace
) -> dict[str, Tensor]:
    """Features [clips, D] and, per attribute, whether it is right [clips]; kept on disk batch by batch."""
    key = json.dumps([setting, arguments.seed, arguments.steps, weights_digest()], sort_keys=True)
    path = arguments.out / f"{label}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    done: dict[str, Tensor] = torch.load(path) if path.exists() else {}
    start = len(done["features"]) if done else 0
    guidance = build(setting)
    batches = range(start, arguments.clips, arguments.batch)
    for first in tqdm(batches, desc=label, unit="batch", file=sys.stderr):
        indices = range(first, min(first + arguments.batch, arguments.clips))
        wanted = [sample_attributes(arguments.seed, i) for i in indices]
        clips = generate(pipe, guidance, [caption(a) for a in wanted], arguments, indices)
        logits = classifier(clips)
        truth = torch.tensor([a.indices() for a in wanted]).unbind(dim=1)
        new = {"features": classifier.features(clips)}
        for name, labels in zip(VOCABULARIES, truth, strict=True):
            new[name] = logits[name].argmax(dim=1) == labels
        done = {k: torch.cat([done[k], new[k]]) if done else new[k] for k in new}
        torch.save(done, path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)
    return {k: v[: arguments.clips] for k, v in done.items()}


def generate(
    pipe: MochiPipeline, guidance: Guidance, prompts: list[str], arguments: argparse.Namespace, indices: range
) -> Tensor:
    """Clips [B, F, C, H, W] in [0, 1], as 8-bit frames would hold them; noise by seed and index alone."""
    generators = [torch.Generator().manual_seed(arguments.seed * 1_000_003 + i) for i in indices]
    scale = guidance.guidance_scale
    with guided(pipe, guidance):
        clips = pipe(
            prompt=prompts,
            height=64,
            width=64,
            num_frames=19,
            num_inference_steps=arguments.steps,
            guidance_scale=2.0 if scale is None or scale != 1 else 1.0,
            generator=generators,
            max_sequence_length=32,
            output_type="pt",
        ).frames
    return (clips.clamp(0, 1) * 255).round() / 255


@torch.no_grad()
def reference_features(classifier: ClipClassifier) -> Tensor:
    parts = []
    for first in range(0, REFERENCE_CLIPS, 64):
        clips, _ = sample_clips(REFERENCE_SEED, range(first, first + 64))
        parts.append(classifier.features(clips.float() / 255))
    return torch.cat(parts)


def weights_digest() -> str:
    """Short digest of the embedded weights, so that results of other weights are never reused."""
    digest = hashlib.sha256()
    for path in sorted(Path(MODEL_PATH).rglob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def summarise(
    results: dict[str, dict[str, Tensor]], settings: dict, reference: Moments, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Shares right and Fréchet distances, each with its interval, and paired differences to the baseline."""
    rows = {}
    all_right = {k: torch.stack([r[name] for name in JUDGED]).all(dim=0).double() for k, r in results.items()}
    distances = {k: fast_distance(r["features"], reference) for k, r in results.items()}
    base = arguments.baseline
    for label, result in results.items():
        count = len(result["features"])
        row: dict[str, Any] = {"setting": settings[label]}
        row |= {name: round(float(result[name].double().mean()), 4) for name in VOCABULARIES}
        row["all"] = bootstrap(lambda rows, x=all_right[label]: float(x[rows].mean()), count)
        row["frechet"] = bootstrap(distances[label], count, resamples=200)
        if base is not None and label != base:
            difference = all_right[label] - all_right[base]
            row["all_minus_baseline"] = bootstrap(lambda rows, d=difference: float(d[rows].mean()), count)
            row["frechet_minus_baseline"] = bootstrap(
                lambda rows, a=distances[label], b=distances[base]: a(rows) - b(rows), count, resamples=200
            )
        rows[label] = row
    return {"baseline": base, "rows": rows}


def fast_distance(features: Tensor, reference: Moments) -> Any:
    features = features.double()
    return lambda rows: frechet_distance(Moments.of(features[rows]), reference)


def as_markdown(table: dict[str, Any]) -> str:
    lines = ["| setting | colour | shape | motion | all three | Fréchet |", "|---|---|---|---|---|---|"]
    for label, row in table["rows"].items():
        lines.append(
            f"| {label} | {row['colour']:.3f} | {row['shape']:.3f} | {row['motion']:.3f} "
            f"| {row['all'].value:.3f} [{row['all'].low:.3f}, {row['all'].high:.3f}] "
            f"| {row['frechet'].value:.1f} [{row['frechet'].low:.1f}, {row['frechet'].high:.1f}] |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

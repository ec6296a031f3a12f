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

from oseg_video.adapters import adapter_for
from oseg_video.embedded import MODEL_PATH
from oseg_video.embedded.classifier import ClipClassifier, load_classifier
from oseg_video.embedded.dataset import VOCABULARIES, caption, sample_attributes
from oseg_video.engine.guided import guided
from oseg_video.evaluation.bootstrap import bootstrap, share
from oseg_video.evaluation.features.classifier import ONE_SHAPE
from oseg_video.evaluation.features.frechet import Moments, frechet_distance, moments_of_rows
from oseg_video.evaluation.features.networks import EmbeddedClassifier
from oseg_video.evaluation.features.real_clips import DRAWN_CLIPS, DRAWN_SEED, look_at_drawn
from oseg_video.evaluation.metrics.alignment import ATTRIBUTES
from oseg_video.evaluation.metrics.base import MetricOptions
from oseg_video.guidance.flat import guidance_from_flat
from oseg_video.guidance.methods import Guidance

_WEIGHTS = {"text_encoder": "model.safetensors", "transformer": "diffusion_pytorch_model.safetensors"}


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
    parser.add_argument(
        "--fast", action="store_true", help="bfloat16 autocast and compiled blocks: about three times faster"
    )
    parser.add_argument("--sample-only", action="store_true", help="only sample and keep the latents")
    parser.add_argument("--baseline", default=None, help="label that the others are compared with, paired")
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings: dict[str, dict[str, Any]] = yaml.safe_load(arguments.settings.read_text())
    if arguments.only:
        settings = {label: settings[label] for label in arguments.only}

    pipe = MochiPipeline.from_pretrained(MODEL_PATH, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if arguments.fast:
        adapter_for(pipe).compile_blocks(pipe.transformer)
    classifier = load_classifier()
    began = time.monotonic()
    latents = {label: sample(pipe, setting, label, arguments) for label, setting in settings.items()}
    if arguments.sample_only:
        return
    results = {label: judge(pipe, classifier, sampled, arguments) for label, sampled in latents.items()}
    extractor = EmbeddedClassifier("measure_tiny", MetricOptions())
    reference, _ = look_at_drawn(extractor.features, ONE_SHAPE)
    table = summarise(results, settings, reference, arguments)
    table["protocol"] = {
        "command": " ".join(["python", *sys.argv]),
        "clips": arguments.clips,
        "seed": arguments.seed,
        "steps": arguments.steps,
        "fast (bfloat16 autocast, compiled blocks)": arguments.fast,
        "reference": f"{DRAWN_CLIPS} drawn clips, seed {DRAWN_SEED}",
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
    return guidance_from_flat(setting["guidance"], {k: v for k, v in setting.items() if k != "guidance"})


@torch.no_grad()
def sample(pipe: MochiPipeline, setting: dict[str, Any], label: str, arguments: argparse.Namespace) -> Tensor:
    """Final latents [clips, C, T, H, W] of a setting; kept on disk batch by batch."""
    key = json.dumps(
        [setting, arguments.seed, arguments.steps, arguments.fast, denoiser_digest()], sort_keys=True
    )
    path = arguments.out / f"{label}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    latents = [torch.load(path)] if path.exists() else []
    guidance = build(setting)
    start = len(latents[0]) if latents else 0
    batches = range(start, arguments.clips, arguments.batch)
    for first in tqdm(batches, desc=label, unit="batch", file=sys.stderr):
        indices = range(first, min(first + arguments.batch, arguments.clips))
        latents = [torch.cat([*latents, sample_batch(pipe, guidance, arguments, indices)])]
        torch.save(latents[0], path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)
    return latents[0][: arguments.clips]


def sample_batch(
    pipe: MochiPipeline, guidance: Guidance, arguments: argparse.Namespace, indices: range
) -> Tensor:
    """Final latents of some clips; prompt and noise depend on seed and index alone."""
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=arguments.fast),
        guided(pipe, guidance),
    ):
        return pipe(
            prompt=[caption(sample_attributes(arguments.seed, i)) for i in indices],
            height=64,
            width=64,
            num_frames=19,
            num_inference_steps=arguments.steps,
            # Above 1, so that the pipeline runs the unconditional branch; the guidance's own scale counts.
            guidance_scale=1.0 if guidance.largest_guidance_scale == 1 else 2.0,
            generator=[torch.Generator().manual_seed(arguments.seed * 1_000_003 + i) for i in indices],
            max_sequence_length=32,
            output_type="latent",
        ).frames.float()


@torch.no_grad()
def judge(
    pipe: MochiPipeline, classifier: ClipClassifier, latents: Tensor, arguments: argparse.Namespace
) -> dict[str, Tensor]:
    """Features [clips, D] and, per attribute, whether it is right [clips], of the decoded 8-bit frames."""
    parts: list[dict[str, Tensor]] = []
    for first in tqdm(range(0, len(latents), 32), desc="judging", unit="batch", file=sys.stderr):
        scaled = latents[first : first + 32] / pipe.vae.config.scaling_factor
        clips = pipe.vae.decode(scaled).sample.transpose(1, 2) / 2 + 0.5
        clips = (clips.clamp(0, 1) * 255).round() / 255
        features = classifier.features(clips)
        indices = range(first, first + len(clips))
        truth = torch.tensor([sample_attributes(arguments.seed, i).indices() for i in indices])
        right = {
            name: head(features).argmax(dim=1) == truth[:, column]
            for column, (name, head) in enumerate(classifier.heads.items())
        }
        parts.append({"features": features, **right})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def denoiser_digest() -> str:
    """Short digest of the weights that sampling uses, so that latents of other weights are never reused."""
    digest = hashlib.sha256()
    for part in ("text_encoder", "transformer"):
        digest.update((MODEL_PATH / part / _WEIGHTS[part]).read_bytes())
    return digest.hexdigest()[:12]


def summarise(
    results: dict[str, dict[str, Tensor]], settings: dict, reference: Moments, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Shares right and Fréchet distances, each with its interval, and paired differences to the baseline."""
    rows = {}
    all_right = {
        k: torch.stack([r[name] for name in ATTRIBUTES]).all(dim=0).double() for k, r in results.items()
    }
    distances = {k: fast_distance(r["features"], reference) for k, r in results.items()}
    base = arguments.baseline
    for label, result in results.items():
        count = len(result["features"])
        row: dict[str, Any] = {"setting": settings[label]}
        row |= {name: round(float(result[name].double().mean()), 4) for name in VOCABULARIES}
        row["all"] = share(int(all_right[label].sum()), count)
        row["frechet"] = bootstrap(distances[label], count, resamples=100)
        if base is not None and label != base:
            difference = all_right[label] - all_right[base]
            row["all_minus_baseline"] = bootstrap(lambda rows, d=difference: float(d[rows].mean()), count)
            row["frechet_minus_baseline"] = bootstrap(
                lambda rows, a=distances[label], b=distances[base]: a(rows) - b(rows), count, resamples=100
            )
        rows[label] = row
    return {"baseline": base, "rows": rows}


def fast_distance(features: Tensor, reference: Moments) -> Any:
    return lambda rows: frechet_distance(moments_of_rows(features, rows), reference)


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

"""The stages of the two-shape model's training, by name."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKLMochi
from torch import Tensor
from transformers import T5Tokenizer

from oseg_video.embedded import MODEL_PATH, two_shapes
from oseg_video.embedded.two_shapes import TwoShapes
from oseg_video.embedded.two_shapes_judge import WEIGHTS, agreement, load_two_shape_judge
from training.autoencoder import train_decoder_further
from training.export import build_pipeline, measure_samples, save_model, save_weights
from training.loop import load_average, load_kept, pack_checkpoint, save_contact_sheet, unpack_checkpoint
from training.text import train_tokenizer
from training.transformer import TWO_SHAPES, TextToVideo, train_transformer
from training.two_shapes_judge import save_errors, train_judge

logger = logging.getLogger(__name__)

SAMPLE_STEPS = 20
JUDGE_ERRORS = Path(__file__).with_name("two_shapes_judge.json")
JUDGED_CLIPS = 2048


def run(stage: str, arguments: argparse.Namespace, device: torch.device) -> None:
    """Run one stage; what it needs from earlier stages it reads from `arguments.run_dir`."""
    _STAGES[stage](arguments, device)


def _judge(arguments: argparse.Namespace, device: torch.device) -> None:
    """Train the shipped judge and count its errors."""
    judge = train_judge(arguments.run_dir, device).cpu()
    save_weights(judge, WEIGHTS)
    save_errors(judge, JUDGE_ERRORS, clips=JUDGED_CLIPS)


def _transformer(arguments: argparse.Namespace, device: torch.device) -> None:
    task = TWO_SHAPES
    if arguments.steps is not None:
        task = replace(task, loop=replace(task.loop, steps=arguments.steps))
    if arguments.seed is not None:
        task = replace(task, data_seed=arguments.seed, loop=replace(task.loop, seed=arguments.seed))
    train_transformer(task, _tokenizer(arguments.run_dir), arguments.run_dir, device)


def _decoder(arguments: argparse.Namespace, device: torch.device) -> None:
    train_decoder_further(arguments.run_dir, device)


def _export(arguments: argparse.Namespace, device: torch.device) -> None:
    """Write a diffusers directory from averaged weights, sample from it, and judge the samples."""
    run_dir: Path = arguments.run_dir
    if arguments.kept is None:
        state = torch.load(run_dir / "transformer.pt", map_location="cpu", weights_only=True)
        weights, step = state["average"], state["step"]
    else:
        weights, step = load_kept(arguments.kept)
    autoencoder = AutoencoderKLMochi.from_pretrained(MODEL_PATH / "vae", torch_dtype=torch.float32)
    if (run_dir / "decoder.pt").exists():
        autoencoder.decoder.load_state_dict(load_average(run_dir / "decoder.pt"))
    tokenizer = _tokenizer(run_dir)
    model = TextToVideo(len(tokenizer), TWO_SHAPES)
    model.load_state_dict(weights)
    pipeline = build_pipeline(TWO_SHAPES, autoencoder, tokenizer, model.eval(), torch.float16)
    # transformers loads weights in the type they are stored in, diffusers in float32: together, by default.
    pipeline.text_encoder.float()
    save_model(pipeline, run_dir / "tokenizer", run_dir / f"export-{step}")
    pipeline.to(dtype=torch.float32)

    judge = load_two_shape_judge()

    def agreements(clips_BFCHW: Tensor, wanted: list[TwoShapes]) -> list[dict[str, bool]]:
        return [agreement(a, b) for a, b in zip(wanted, judge.judge(clips_BFCHW), strict=True)]

    for scale in arguments.scales:
        shares, clips_BFCHW = measure_samples(
            pipeline, two_shapes, agreements, clips=arguments.clips, guidance_scale=scale, steps=SAMPLE_STEPS
        )
        row = {"step": step, "clips": arguments.clips, "sample_steps": SAMPLE_STEPS, "guidance_scale": scale}
        logger.info("export: %s", json.dumps(row | shares))
        save_contact_sheet(clips_BFCHW[:16], run_dir / f"samples-{step}-{scale:g}.png")


def _pack(arguments: argparse.Namespace, device: torch.device) -> None:
    pack_checkpoint(arguments.run_dir / "transformer.pt", arguments.packed)


def _unpack(arguments: argparse.Namespace, device: torch.device) -> None:
    unpack_checkpoint(arguments.packed, arguments.run_dir / "transformer.pt")


def _tokenizer(run_dir: Path) -> T5Tokenizer:
    """The same on every machine: trained on captions that hold every word in every phrasing."""
    captions = [
        two_shapes.caption(two_shapes.sample_attributes(0, index), phrasing)
        for index in range(500)
        for phrasing in range(len(two_shapes.PHRASINGS))
    ]
    return train_tokenizer(run_dir / "tokenizer", captions, max_length=TWO_SHAPES.text_tokens)


_STAGES: dict[str, Callable[[argparse.Namespace, torch.device], None]] = {
    "judge": _judge,
    "transformer": _transformer,
    "decoder": _decoder,
    "export": _export,
    "pack": _pack,
    "unpack": _unpack,
}

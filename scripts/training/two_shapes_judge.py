"""The judge of two shapes: its training, and its errors on fresh clips."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from oseg_video.embedded.drawing import COLOURS, FRAMES, MOTIONS, SHAPES
from oseg_video.embedded.two_shapes import TwoShapes, sample_clips
from oseg_video.embedded.two_shapes_judge import TwoShapeJudge, agreement, seen_frames
from training.judge import augment
from training.latents import POOL
from training.loop import LoopConfig, fit

logger = logging.getLogger(__name__)

TRAINING_SEED = 1
FIRST_CLIP = 10_000_000
"""The judge draws training clips that the transformer does not see."""
FRESH_SEED = 2
"""Data set on which its errors are counted."""
BATCH = 32
LOOP = LoopConfig(steps=600, learning_rate=2e-3, ema_decay=0.99, seed=5)


def train_judge(run_dir: Path, device: torch.device) -> TwoShapeJudge:
    """Train on drawn clips, many of them spoilt as a decoder or an imperfect sample would."""
    torch.manual_seed(TRAINING_SEED)
    judge = TwoShapeJudge().to(device)
    seen = seen_frames(FRAMES)

    def compute_losses(step: int) -> dict[str, Tensor]:
        first = FIRST_CLIP + BATCH * step
        frames_BTCHW, attributes = sample_clips(TRAINING_SEED, range(first, first + BATCH), seen)
        maps = judge.measure(soften(augment(frames_BTCHW.to(device).float() / 255)))
        rows, slots, shapes, motions = _targets(attributes, device)
        outline, path = judge.read(maps, rows, slots)
        losses = {
            "shape": F.cross_entropy(judge.shape(outline), shapes, label_smoothing=0.02),
            "motion": F.cross_entropy(judge.motion(path), motions, label_smoothing=0.02),
        }
        return {"loss": losses["shape"] + losses["motion"], **losses}

    return fit(judge, compute_losses, LOOP, run_dir / "judge.pt")


def soften(clips_BFCHW: Tensor) -> Tensor:
    """Draw half of the clips, at random, towards what their latents hold: averages over 4 x 4 pixels."""
    frames = clips_BFCHW.flatten(0, 1)
    soft = F.interpolate(F.avg_pool2d(frames, POOL), scale_factor=POOL, mode="bilinear")
    share = torch.rand(len(clips_BFCHW), device=frames.device) * (
        torch.rand(len(clips_BFCHW), device=frames.device) < 0.5
    )
    return clips_BFCHW.lerp(soft.view_as(clips_BFCHW), share[:, None, None, None, None])


def _targets(attributes: list[TwoShapes], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clip, place in the palette, kind and motion of every shape."""
    shapes = [(row, shape) for row, clip in enumerate(attributes) for shape in clip.shapes]
    numbers = [
        (row, COLOURS.index(s.colour), SHAPES.index(s.shape), MOTIONS.index(s.motion)) for row, s in shapes
    ]
    rows, slots, kinds, motions = torch.tensor(numbers, device=device).unbind(dim=1)
    return rows, slots, kinds, motions


@torch.no_grad()
def count_errors(judge: TwoShapeJudge, *, clips: int, seed: int = FRESH_SEED) -> dict[str, object]:
    """Share of right answers on fresh drawn clips, and what was taken for what, by shape."""
    right: Counter[str] = Counter()
    confused: Counter[str] = Counter()
    for first in range(0, clips, 32):
        drawn_BFCHW, attributes = sample_clips(seed, range(first, min(first + 32, clips)))
        for wanted, seen in zip(attributes, judge.judge(drawn_BFCHW.float() / 255), strict=True):
            right.update(name for name, hit in agreement(wanted, seen).items() if hit)
            by_colour = {shape.colour: shape for shape in seen.shapes}
            for shape in wanted.shapes:
                found = by_colour.get(shape.colour)
                for name in ("shape", "motion"):
                    word, answer = getattr(shape, name), found and getattr(found, name)
                    if answer != word:
                        confused[f"{word} read as {answer or 'absent'}"] += 1
    return {
        "seed": seed,
        "clips": clips,
        "right": {name: count / clips for name, count in right.items()},
        "confused": dict(confused.most_common()),
    }


def save_errors(judge: TwoShapeJudge, path: Path, *, clips: int) -> None:
    """`count_errors` as JSON."""
    errors = count_errors(judge, clips=clips)
    path.write_text(json.dumps(errors, indent=1) + "\n")
    logger.info("judge: right on fresh drawn clips %s", errors["right"])

"""A training loop that can be stopped at any moment and goes on where its last checkpoint left off."""

from __future__ import annotations

import copy
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

logger = logging.getLogger(__name__)

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How long a stage trains, and how often it reports."""

    steps: int
    learning_rate: float
    warmup_steps: int = 100
    """Steps in which the learning rate rises linearly."""
    decay_steps: int | None = None
    """Last steps, in which it falls along a cosine to zero; None takes all after the warm-up."""
    weight_decay: float = 0.01
    muon: tuple[str, ...] = ()
    """Submodules whose matrices are trained by Muon (its updates scaled to those of AdamW), not by AdamW."""
    ema_decay: float = 0.999
    """Decay per step of the moving average of the weights, shortened early in the training."""
    seed: int = 0
    log_every: int = 50
    """Steps."""
    save_every: float = 120.0
    """Seconds."""
    keep_every: int | None = None
    """Steps between copies of the averaged weights that stay: `NAME-STEP.safetensors` beside the last."""


def learning_rate(config: LoopConfig, step: int, warm_from: int = 0) -> float:
    """Linear warm-up from step `warm_from`, then constant, then a cosine to zero at `config.steps`."""
    warmup = min(1.0, (step - warm_from + 1) / max(config.warmup_steps, 1))
    decay_steps = config.steps - config.warmup_steps if config.decay_steps is None else config.decay_steps
    progress = (step - (config.steps - decay_steps)) / max(decay_steps, 1)
    return config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * max(progress, 0.0)))


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 where the device has it: a processor without it is ten times slower than in float32."""
    if device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def fit(
    module: ModuleT,
    compute_losses: Callable[[int], dict[str, Tensor]],
    config: LoopConfig,
    checkpoint: Path,
    *,
    on_save: Callable[[ModuleT], None] | None = None,
) -> ModuleT:
    """Train `module` in place and return it with its averaged (EMA) weights.

    `compute_losses(step)` returns named scalars, of which "loss" is minimised. Every step reseeds torch's
    generator, so a resumed run draws the same batches as one that was never stopped. `on_save` gets a copy
    of the module with the averaged weights after every checkpoint.
    """
    optimizers = _optimizers(module, config)
    average = {name: value.detach().clone() for name, value in module.state_dict().items()}
    start, warm_from = _resume(checkpoint, module, optimizers, average)
    began = saved = time.monotonic()
    sums: dict[str, float] = {}
    summed = 0
    for step in range(start, config.steps):
        torch.manual_seed(config.seed * 1_000_003 + step)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate(config, step, warm_from)
        losses = compute_losses(step)
        module.zero_grad(set_to_none=True)
        losses["loss"].backward()
        gradient_norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        _update_average(average, module, min(config.ema_decay, (step + 1) / (step + 10)))
        summed += 1
        for name, value in (losses | {"gradient": gradient_norm}).items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        done = step + 1
        if done % config.log_every == 0:
            seconds = (time.monotonic() - began) / (done - start)
            means = {name: value / summed for name, value in sums.items()}
            _log(checkpoint.stem, done, config, means, seconds)
            sums.clear()
            summed = 0
        if config.keep_every is not None and done % config.keep_every == 0:
            keep_average(average, checkpoint.with_name(f"{checkpoint.stem}-{done}.safetensors"), done)
        if time.monotonic() - saved > config.save_every or done == config.steps:
            state = {
                "module": module.state_dict(),
                "optimizers": [one.state_dict() for one in optimizers],
                "average": average,
            }
            save_atomically(state | {"step": done, "warm_from": warm_from}, checkpoint)
            if on_save is not None:
                on_save(_averaged(module, average))
            saved = time.monotonic()
    module.load_state_dict(average)
    return module.eval()


def save_atomically(value: Any, path: Path) -> None:
    """Write with `torch.save` beside `path`, then rename: a reader never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    torch.save(value, partial)
    os.replace(partial, path)


def load_average(checkpoint: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint of `fit`, on the CPU."""
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["average"]


def pack_checkpoint(checkpoint: Path, packed: Path) -> None:
    """Write weights and averaged weights in bfloat16, a quarter of the checkpoint.

    Rounding moves a weight less than one step of the training does. The optimiser's moments, which reach back
    a hundred steps, are left out: `unpack_checkpoint` warms up anew.
    """
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    tensors = {
        f"{part}.{name}": value for part in ("module", "average") for name, value in state[part].items()
    }
    _save_rounded(tensors, packed, state["step"])


def unpack_checkpoint(packed: Path, checkpoint: Path) -> None:
    """Write a checkpoint from which `fit` goes on; refuses to replace one."""
    if checkpoint.exists():
        raise SystemExit(f"{checkpoint} exists already: give a new --run-dir, or go on from it")
    with safe_open(packed, framework="pt") as file:
        step = int(file.metadata()["step"])
        state: dict[str, Any] = {"module": {}, "average": {}}
        for key in file.keys():
            part, _, name = key.partition(".")
            state[part][name] = _float32(file.get_tensor(key))
    save_atomically(state | {"optimizers": None, "step": step, "warm_from": step}, checkpoint)


def keep_average(average: dict[str, Tensor], path: Path, step: int) -> None:
    """Averaged weights in bfloat16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _save_rounded(average, path, step)


def load_kept(path: Path) -> tuple[dict[str, Tensor], int]:
    """The averaged weights that `keep_average` wrote, in float32, and their step."""
    with safe_open(path, framework="pt") as file:
        weights = {name: _float32(file.get_tensor(name)) for name in file.keys()}
        return weights, int(file.metadata()["step"])


def save_contact_sheet(clips_BFCHW: Tensor, path: Path, *, frames: int = 7, scale: int = 2) -> None:
    """PNG with one clip per row and `frames` evenly spaced frames per row; clips are float in [0, 1]."""
    chosen = torch.linspace(0, clips_BFCHW.shape[1] - 1, frames).round().long()
    rows = clips_BFCHW[:, chosen].clamp(0, 1).permute(0, 3, 1, 4, 2)  # B H F W C
    pixels = (rows.flatten(0, 1).flatten(1, 2).float().cpu().numpy() * 255).round().astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(path)


def _save_rounded(tensors: dict[str, Tensor], path: Path, step: int) -> None:
    """A safetensors file in bfloat16, whole or not at all."""
    rounded = {
        name: (value.bfloat16() if value.is_floating_point() else value).contiguous()
        for name, value in tensors.items()
    }
    partial = path.with_name(path.name + ".partial")
    save_file(rounded, partial, metadata={"step": str(step)})
    os.replace(partial, path)


def _float32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _optimizers(module: nn.Module, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for what the configuration leaves to it. Matrices decay, vectors do not."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    muon = [p for name in config.muon for p in module.get_submodule(name).parameters() if p.ndim == 2]
    chosen = {id(parameter) for parameter in muon}
    rest = [parameter for parameter in parameters if id(parameter) not in chosen]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), fused=True)
    ]
    if muon:
        optimizers.append(
            torch.optim.Muon(muon, lr=0.0, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    return optimizers


def _resume(
    checkpoint: Path,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: dict[str, Tensor],
) -> tuple[int, int]:
    """Load the checkpoint, if there is one; the next step, and the step from which the rate warms up."""
    if not checkpoint.exists():
        return 0, 0
    state = torch.load(checkpoint, map_location=next(module.parameters()).device, weights_only=True)
    module.load_state_dict(state["module"])
    for optimizer, kept in zip(optimizers, state["optimizers"] or (), strict=False):
        optimizer.load_state_dict(kept)
    average.update(state["average"])
    logger.info("%s: resumed at step %d", checkpoint.stem, state["step"])
    return state["step"], state["warm_from"]


@torch.no_grad()
def _update_average(average: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)


def _averaged(module: ModuleT, average: dict[str, Tensor]) -> ModuleT:
    clone = copy.deepcopy(module)
    clone.load_state_dict(average)
    return clone.eval()


def _log(stage: str, done: int, config: LoopConfig, losses: dict[str, float], seconds: float) -> None:
    values = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
    left = (config.steps - done) * seconds / 60
    logger.info("%s %d/%d  %s  %.3f s/step  %.1f min left", stage, done, config.steps, values, seconds, left)

"""Clips of a shipped model, many at a time, and what its judge says of them.

B clips of a batch, F frames, T latent frames, C channels, H W rows and columns, D features.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLMochi, MochiPipeline
from diffusers.models.attention import FeedForward
from diffusers.models.normalization import MochiRMSNorm
from diffusers.models.transformers.transformer_mochi import MochiModulatedRMSNorm, MochiRMSNormZero
from torch import Tensor
from tqdm import tqdm

from oseg_video.embedded import MODEL_PATH
from oseg_video.embedded.drawing import FRAMES, SIZE
from oseg_video.embedded.tasks import Judge, Task
from oseg_video.engine.guided import guided
from oseg_video.guidance.flat import guidance_from_flat
from oseg_video.guidance.reuse import EXACT, Reuse

CLIPS_PER_PROMPT = 2
"""How far apart the clips of one prompt are is their diversity."""
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the clips of an arm are made with, besides the model."""

    guidance: Mapping[str, Any]
    """Flat keys of a method, `guidance` among them."""
    steps: int
    seed: int
    """Decides prompts and noise."""
    reuse: Reuse = EXACT

    def key(self, model: str) -> str:
        """Name of the file of its rows."""
        reuse = [self.reuse.prefix, dict(self.reuse.refresh), self.reuse.cache]
        parts = [model, dict(self.guidance), self.steps, self.seed, reuse]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Rows:
    """What was seen of clips, one row each."""

    parts: tuple[str, ...]
    """Of the task."""
    right: Tensor
    """Whether each part is right, bool [clips, parts]."""
    features: Tensor
    """The judge's features, float16 [clips, D]."""
    flicker: Tensor
    """Mean absolute difference of neighbouring frames, of 255, float32 [clips]."""
    diversity: Tensor
    """Root mean square distance of the latents of a prompt's two clips, once for each, float32 [clips]."""
    passes: Tensor
    """Passes through the whole denoiser that a step took, float32 [clips]."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All but the names of the parts."""
        return {name: value for name, value in vars(self).items() if name != "parts"}

    def first(self, count: int) -> Rows:
        """The first so many."""
        return Rows(self.parts, **{name: value[:count] for name, value in self.tensors.items()})

    def and_then(self, more: Rows) -> Rows:
        """These and then those."""
        joined = {name: torch.cat([value, more.tensors[name]]) for name, value in self.tensors.items()}
        return Rows(self.parts, **joined)

    def part(self, name: str) -> Tensor:
        """Whether a part of each clip is right, float64 [clips]."""
        return self.right[:, self.parts.index(name)].double()


class Bench:
    """One set of weights, and the rows of every setting that clips were made with; they are kept on disk."""

    def __init__(
        self,
        task: Task,
        folder: Path,
        *,
        model: Path | None = None,
        float32: bool = False,
        compiled: bool = False,
    ) -> None:
        """folder: for rows. model: other weights than the task's own.

        float32: not bfloat16 autocast, for a CPU that has no instructions for it. compiled: norms and
        feed-forward layers by `torch.compile`, which needs a C++ compiler.
        """
        self.task = task
        self._model, self._folder = model or task.model, folder
        self._float32, self._compiled = float32, compiled
        folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def digest(self) -> str:
        """Of the weights that clips depend on."""
        found = hashlib.sha256()
        paths = [*self._model.rglob("*.safetensors"), *(MODEL_PATH / "vae").rglob("*.safetensors")]
        # In an order that does not depend on where the model's folder is.
        for path in sorted(paths, key=lambda path: (not path.is_relative_to(MODEL_PATH), path)):
            found.update(path.read_bytes())
        return found.hexdigest()[:16]

    def rows(self, setting: Setting, clips: int, label: str) -> Rows:
        """Of the first so many clips; those that are missing are made. label: for the progress bar."""
        path = self._folder / f"{setting.key(self.digest + ' float32' * self._float32)}.pt"
        there = Rows(self.task.parts, **torch.load(path, weights_only=True)) if path.exists() else None
        batches = range(len(there.right) if there else 0, clips, BATCH)
        for first in tqdm(batches, desc=label, unit="batch", file=sys.stderr, disable=not batches):
            made = self._made(setting, range(first, min(first + BATCH, clips)))
            there = there.and_then(made) if there else made
            partial = path.with_suffix(f".{os.getpid()}.partial")  # another run may make the same rows
            torch.save(there.tensors, partial)
            os.replace(partial, path)
        assert there is not None
        return there.first(clips)

    call_arguments: ClassVar[Mapping[str, Any]] = {
        "height": SIZE,
        "width": SIZE,
        "num_frames": FRAMES,
        "max_sequence_length": 32,
        "output_type": "latent",
    }

    @cached_property
    def pipe(self) -> MochiPipeline:
        """The pipeline."""
        vae = AutoencoderKLMochi.from_pretrained(MODEL_PATH / "vae", torch_dtype=torch.float32)
        pipe = MochiPipeline.from_pretrained(self._model, vae=vae, torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        if self._compiled:
            for layer in pipe.transformer.modules():
                if isinstance(layer, FeedForward | MochiRMSNormZero | MochiModulatedRMSNorm | MochiRMSNorm):
                    layer.compile()
        return pipe

    @cached_property
    def _judge(self) -> Judge:
        return self.task.load_judge()

    def captions(self, seed: int, places: Iterable[int]) -> list[str]:
        """The prompts of clips."""
        return [self.task.caption(self._wanted(seed, place)) for place in places]

    def clips(self, setting: Setting, indices: Sequence[int]) -> Tensor:
        """Clips of a setting by their place, 8-bit values in 0 ... 1: float32 [B, F, C, H, W]."""
        return self._decoded(self._sampled(setting, indices)[0])

    def _made(self, setting: Setting, indices: range) -> Rows:
        latents, passes = self._sampled(setting, indices)
        clips_BFCHW = self._decoded(latents)
        seen = self._judge.judge(clips_BFCHW)
        right = [
            self.task.agreement(self._wanted(setting.seed, index), one)
            for index, one in zip(indices, seen, strict=True)
        ]
        with torch.no_grad():
            features = self._judge.features(clips_BFCHW)
        return Rows(
            self.task.parts,
            right=torch.tensor([[one[part] for part in self.task.parts] for one in right]),
            features=features.half(),
            flicker=clips_BFCHW.diff(dim=1).abs().mean(dim=(1, 2, 3, 4)) * 255,
            diversity=_diversity(latents),
            passes=torch.full((len(indices),), passes),
        )

    def _wanted(self, seed: int, index: int) -> Any:
        return self.task.sample_attributes(seed, index // CLIPS_PER_PROMPT)

    @torch.no_grad()
    def _sampled(self, setting: Setting, indices: Sequence[int]) -> tuple[Tensor, float]:
        """Clean latents, and the passes of a step."""
        method = dict(setting.guidance)
        guidance = guidance_from_flat(method.pop("guidance"), method)
        torch.manual_seed(indices[0])  # for controls; the clips' own noise is theirs
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=not self._float32),
            guided(self.pipe, guidance, reuse=setting.reuse) as report,
        ):
            latents = self.pipe(
                prompt=self.captions(setting.seed, indices),
                num_inference_steps=setting.steps,
                # Above 1 the pipeline runs its unconditional branch; the scale is the guidance's own.
                guidance_scale=1.0 if guidance.largest_guidance_scale == 1 else 2.0,
                generator=[torch.Generator().manual_seed(setting.seed * 1_000_003 + i) for i in indices],
                **self.call_arguments,
            ).frames
        return latents.float(), report.block_passes / setting.steps

    @torch.no_grad()
    def _decoded(self, latents_BCTHW: Tensor) -> Tensor:
        vae = self.pipe.vae
        with torch.autocast("cpu", torch.bfloat16, enabled=not self._float32):
            decoded = vae.decode(latents_BCTHW / vae.config.scaling_factor).sample.float()
        return ((decoded.transpose(1, 2) / 2 + 0.5).clamp(0, 1) * 255).round() / 255


def _diversity(latents_BCTHW: Tensor) -> Tensor:
    pairs = latents_BCTHW.flatten(1).unflatten(0, (-1, CLIPS_PER_PROMPT))
    return (pairs[:, 0] - pairs[:, 1]).square().mean(dim=1).sqrt().repeat_interleave(CLIPS_PER_PROMPT)

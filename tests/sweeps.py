"""Sweeps for the tests: recipes of small clips, and a model that paints instead of sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from oseg_video.config.manifest import new_manifest
from oseg_video.files import write_text
from oseg_video.jobs.model import ClipResult, LoadedModel
from oseg_video.media import frames_sha256, write_clip
from oseg_video.sweeps.recipe import read_sweep
from oseg_video.sweeps.table import SweepItem, build_table, plan_variations

SMALL = {"frames": 7, "height": 32, "width": 32, "steps": 2, "device": "cpu"}
"""Settings of the shipped model's quickest clip."""
GIF = {**SMALL, "format": "gif"}
"""And of one that no other program has to write."""


def write_recipe(folder: Path, **content: Any) -> Path:
    """A recipe of two prompts, two seeds and two methods; `content` adds keys or replaces them."""
    recipe = {
        "prompts": ["a red circle", "a blue square"],
        "seeds": [0, 1],
        "methods": ["cfg", "oseg"],
        "settings": GIF,
        "out": str(folder / "out"),
        **content,
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def table(folder: Path, **content: Any) -> list[SweepItem]:
    """The items of `write_recipe`."""
    return build_table(plan_variations(read_sweep(write_recipe(folder, **content))))


class Painter(LoadedModel):
    """Paints noise of the clip's seed, with a true manifest. Counts what it does. Needs no pipeline."""

    loaded = 0
    painted: list[tuple[str, int, str]]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        type(self).loaded += 1

    def cut_prompts(self, job: Any) -> list[str]:
        return ["cut"] if len(job.prompts[0]) > 40 else []

    def paint(self, job: Any, seed: int) -> torch.Tensor:
        """Frames of a clip, uint8 [T, 3, H, W]."""
        noise = torch.Generator().manual_seed(seed)
        shape = (job.frames, 3, job.height, job.width)
        return torch.randint(0, 255, shape, generator=noise).to(torch.uint8)

    def make_clip(self, job: Any, plan: Any, start: Any) -> ClipResult:
        type(self).painted.append((plan.prompt, plan.seed, job.guidance.name))
        frames = self.paint(job, plan.seed)
        manifest = new_manifest(
            job,
            model={"name": job.model, **self._identity},
            clip={
                "frames": job.frames,
                "height": job.height,
                "width": job.width,
                "fps": job.fps,
                "sha256": frames_sha256(frames),
            },
            machine={"device": "cpu"},
        )
        write_clip(plan.path, frames, job.fps, format=plan.format, comment=manifest.comment)
        write_text(plan.manifest, manifest.text)
        return ClipResult(plan.path, plan.prompt, plan.seed, 0.5, 0.25, manifest)

"""The table of a sweep: one item a clip, named by a hash of all that determines the clip.

A setting at its default is not in the hash, so that a new setting makes no clip anew; who changes a default
of a method of their own gives the sweep another folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from oseg_video.config import GenerateJob, job_to_plain, resolve_job
from oseg_video.jobs.generate import check_job
from oseg_video.jobs.image import load_image
from oseg_video.jobs.loading.device import resolve_device
from oseg_video.jobs.loading.pipeline import (
    ModelSource,
    fingerprint,
    recipe_of,
    resolve_dtype,
)
from oseg_video.jobs.outputs import prompt_stem
from oseg_video.sweeps.recipe import Subject, SweepRecipe
from oseg_video.types import OsegVideoError

# Where a clip is made and written does not determine what it shows, nor do the names of model and image:
# their contents count instead.
_NOT_HASHED = ("out", "format", "device", "offload", "model", "revision", "image")
_KEY_LETTERS = 16
_STEM_LETTERS = 40
_SUFFIXES = {"mp4": ".mp4", "gif": ".gif", "png": "", "image": ".png"}


class SweepError(OsegVideoError):
    """A sweep that cannot be carried out as asked; the message says why."""


@dataclass(frozen=True)
class Variation:
    """A model with a method: all clips that differ by what they show and by seed only."""

    model: str
    """Name in the recipe."""
    method: str
    """Name in the recipe."""
    subjects: tuple[Subject, ...]
    """All with a prompt, all with an empty one or all without; all with an image or all without."""
    job: GenerateJob
    """The resolved settings, with every prompt, every seed, and the first image."""

    @property
    def count(self) -> int:
        """Number of clips."""
        return len(self.subjects) * len(self.job.seeds)


@dataclass(frozen=True)
class SweepItem:
    """One clip of a sweep."""

    key: str
    """Hash of everything that determines the clip."""
    model: str
    """Name in the recipe."""
    method: str
    """Name in the recipe."""
    job: GenerateJob
    """Resolved, with one prompt (or none) and one seed."""
    format: str
    """"mp4", "gif", "png" (a folder of images) or "image" (one PNG file)."""

    @property
    def prompt(self) -> str | None:
        """None where the model takes no text."""
        return self.job.prompts[0] if self.job.prompts else None

    @property
    def seed(self) -> int:
        """The clip's seed."""
        return self.job.seeds[0]

    @property
    def file(self) -> str:
        """Name of the clip in the sweep's folder; its manifest is beside it."""
        text = self.prompt if self.prompt is not None else Path(self.job.image or "").stem
        stem = prompt_stem(text)[:_STEM_LETTERS].strip("-") or "clip"
        return f"{stem}-{self.job.guidance.name}-seed{self.seed}-{self.key}{_SUFFIXES[self.format]}"


def plan_variations(recipe: SweepRecipe) -> list[Variation]:
    """Every model with every method, model by model. Looks at no model. Raises OsegVideoError."""
    groups: dict[tuple[bool, bool, bool], list[Subject]] = {}
    for subject in recipe.subjects:
        groups.setdefault(subject.kind, []).append(subject)
    variations = []
    for model, model_settings in recipe.models.items():
        for method, method_settings in recipe.methods.items():
            settings = {**recipe.settings, **model_settings, **method_settings, "seeds": list(recipe.seeds)}
            for group in groups.values():
                prompts = [subject.prompt for subject in group if subject.prompt is not None]
                shown = {"prompts": prompts, "image": group[0].image}
                job = resolve_job({**settings, **shown}, family_of=recipe_of)
                variations.append(Variation(model, method, tuple(group), job))
    return variations


def build_table(variations: Sequence[Variation], device: str | None = None) -> list[SweepItem]:
    """Every item of a sweep, model by model, so that each is loaded once.

    device: kind of device that will make the clips, "cpu" or "cuda", where that is not this machine; it
    decides what the dtype "auto" is. All that can be refused without weights is refused here. Raises
    OsegVideoError; SweepError for two items that are the same clip.
    """
    contents = _Contents()
    items: dict[str, SweepItem] = {}
    for variation in variations:
        for item in _items(variation, contents, device):
            twin = items.setdefault(item.key, item)
            if twin is not item:
                raise SweepError(f"{_describe(twin)} and {_describe(item)} are the same clip")
    return list(items.values())


def item_key(settings: Mapping[str, Any], format: str, model: str, image: str | None) -> str:
    """Hash of everything that determines a clip.

    settings: the job's, as plain values; those that are not set do not count, so that a new setting leaves
    old keys alone. model: commit of its repository, or fingerprint of its folder. image: SHA-256 of the
    image.
    """
    counted = {k: v for k, v in settings.items() if k not in _NOT_HASHED and v is not None}
    identity = {"settings": counted, "format": format, "model": model, "image": image}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:_KEY_LETTERS]


class _Contents:
    """Hashes of models and images, each read once."""

    def __init__(self) -> None:
        self._models: dict[Path, str] = {}
        self._images: dict[tuple[str, int, int], str] = {}

    def of_model(self, source: ModelSource) -> str:
        if source.directory is None:
            return str(source.commit)
        if source.directory not in self._models:
            self._models[source.directory] = fingerprint(source.directory)
        return self._models[source.directory]

    def of_image(self, job: GenerateJob) -> str | None:
        if job.image is None:
            return None
        place = job.image, job.height, job.width
        if place not in self._images:
            self._images[place] = load_image(Path(job.image), job.height, job.width).sha256
        return self._images[place]


def _items(variation: Variation, contents: _Contents, device: str | None) -> Iterator[SweepItem]:
    job = variation.job
    source = check_job(job)
    format = "image" if source.adapter.makes_images else job.format or "mp4"
    where = resolve_device(job.device) if device is None else torch.device(device)
    dtype = str(resolve_dtype(job.dtype, where)).removeprefix("torch.")
    # The commit of today: workers that load later must not get another one.
    job = dataclasses.replace(job, dtype=dtype, revision=source.commit or job.revision)
    for subject in variation.subjects:
        prompts = () if subject.prompt is None else (subject.prompt,)
        shown = dataclasses.replace(job, prompts=prompts, image=subject.image)
        image = contents.of_image(shown)
        for seed in job.seeds:
            one = dataclasses.replace(shown, seeds=(seed,))
            key = item_key(job_to_plain(one, defaults=False), format, contents.of_model(source), image)
            yield SweepItem(key, variation.model, variation.method, one, format)


def _describe(item: SweepItem) -> str:
    shown = item.job.image if item.prompt is None else repr(item.prompt[:30])
    return f"{shown} (seed {item.seed}) of {item.method} on {item.model}"

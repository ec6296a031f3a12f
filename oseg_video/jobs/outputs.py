"""Where a job's clips go: safe file names from prompts, and checks before any work."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from oseg_video.config import GenerateJob
from oseg_video.config.manifest import manifest_path
from oseg_video.files import check_place, check_writable, expanded
from oseg_video.types import OsegVideoError

_STEM_LETTERS = 60
# File systems limit a name to 255 bytes; method, seed, number and suffix need some of them.
_STEM_BYTES = 150
_FILE_FORMATS = {".mp4": "mp4", ".gif": "gif", ".png": "png"}
# Suffixes that mean a file to anyone who types them, and that we do not write.
_OTHER_FILES = {".avi", ".mov", ".mkv", ".webm", ".m4v", ".jpg", ".jpeg", ".webp", ".json", ".yaml"}


class OutputError(OsegVideoError):
    """An output that cannot or must not be written; the message names it."""


@dataclass(frozen=True)
class ClipPlan:
    """One clip of a job and its place."""

    prompt: str | None
    """None where the model takes no text."""
    seed: int
    path: Path
    """The file, or the folder of images."""
    format: str
    """"mp4", "gif", "png" (a folder of images) or "image" (one PNG file)."""

    @property
    def manifest(self) -> Path:
        """The clip's manifest, beside it."""
        return manifest_path(self.path)


def prompt_stem(prompt: str) -> str:
    """A file name's stem from a prompt: letters and digits of any script, single dashes between words.

    Never empty, no separator or dot, no dash at either end, at most 60 characters and 150 bytes of UTF-8.
    """
    text = unicodedata.normalize("NFKC", prompt).lower()
    # Marks belong to letters in many scripts; everything else that is no letter or digit parts words.
    kept = [c if c.isalnum() or unicodedata.category(c).startswith("M") else "-" for c in text]
    stem = re.sub("-+", "-", "".join(kept)).strip("-")[:_STEM_LETTERS]
    stem = stem.encode()[:_STEM_BYTES].decode(errors="ignore")
    return stem.strip("-") or "clip"


def clip_names(clips: Iterable[tuple[str, int]], method: str) -> list[str]:
    """A stem for every (text, seed), unique also where letter case does not count."""
    taken: set[str] = set()
    names = []
    for prompt, seed in clips:
        base = f"{prompt_stem(prompt)}-{method}-seed{seed}"
        name, number = base, 1
        while _folded(name) in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(_folded(name))
        names.append(name)
    return names


def plan_clips(job: GenerateJob, *, images: bool = False) -> list[ClipPlan]:
    """The clips of a job, prompt by prompt, and the place of each. Raises OutputError.

    A clip without a prompt is named after its image. images: each clip is one image, a PNG file.
    """
    clips = [(prompt, seed) for prompt in job.prompts or (None,) for seed in job.seeds]
    out = expanded(job.out)
    suffix = out.suffix.lower()
    formats = {".png": "image"} if images else _FILE_FORMATS
    names_folder = job.out.endswith(("/", os.sep)) or os.path.isdir(out)
    if not names_folder and suffix in formats:
        if len(clips) > 1:
            what = "images" if images else "clips"
            raise OutputError(f"{len(clips)} {what} do not fit into {job.out}; give --out a folder")
        if not images and job.format not in (None, formats[suffix]):
            raise OutputError(f"--format {job.format} does not fit {job.out}; leave one of them out")
        path = out.with_suffix("") if suffix == ".png" and not images else out
        return [ClipPlan(*clips[0], path, formats[suffix])]
    if not names_folder and suffix in {*_FILE_FORMATS, *_OTHER_FILES}:
        files = ".png" if images else ".mp4, .gif, .png (a folder of images)"
        raise OutputError(f"cannot write {suffix} files{' of images' * images}; use {files} or a folder")
    format = "image" if images else job.format or "mp4"
    ending = {"image": ".png", "png": ""}.get(format, f".{format}")
    shown = Path(job.image).stem if job.image else ""
    texts = [(shown if prompt is None else prompt, seed) for prompt, seed in clips]
    names = clip_names(texts, job.guidance.name)
    return [
        ClipPlan(prompt, seed, out / f"{name}{ending}", format)
        for (prompt, seed), name in zip(clips, names, strict=True)
    ]


def check_outputs(plans: Sequence[ClipPlan], *, overwrite: bool) -> None:
    """Refuse, before any work, outputs that exist (unless `overwrite`) or cannot be written."""
    try:
        existing = [path for plan in plans for path in (plan.path, plan.manifest) if path.exists()]
    except OSError as error:
        raise OutputError(f"cannot write {plans[0].path}: {error.strerror}") from None
    if existing and not overwrite:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise OutputError(f"{existing[0]} exists already{more}; --overwrite replaces it")
    for plan in plans:
        check_place(plan.path, folder=plan.format == "png")
        check_place(plan.manifest)
    for folder in {plan.path.parent for plan in plans}:
        check_writable(folder)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()

"""The job of `generate`: every setting that determines a clip, declared and checked in one place.

What a guidance method and a model family declare for themselves is not repeated here: a job holds the
guidance, and the values of the family's own settings. It imports no torch, so that `--help` stays instant.
"""

# `setting` returns a dataclass field, not a default.
from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oseg_video.adapters import family_settings
from oseg_video.guidance.methods import Guidance
from oseg_video.guidance.reuse import EXACT, Reuse
from oseg_video.settings import check_settings, setting
from oseg_video.settings.kinds import INTEGER, INTEGERS, NUMBER, SWITCH, TEXT, TEXTS
from oseg_video.types import SettingError

FORMATS = ("mp4", "gif", "png")
OFFLOADS = ("none", "model", "group", "sequential")
DTYPES = ("auto", "float32", "bfloat16", "float16")

# torch.Generator.manual_seed takes a signed 64-bit number.
LARGEST_SEED = 2**63 - 1
MOST_CLIPS = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateJob:
    """One call of `generate`: prompts x seeds, one clip each. Raises `SettingError` on a bad value."""

    prompts: tuple[str, ...] = setting(
        TEXTS,
        "what the clip shows; repeat the flag for several clips (svd: none)",
        default=(),
        flag="--prompt",
        group="clip",
    )
    negative_prompt: str | None = setting(
        TEXT, "text of the unconditional branch, to move away from", default=None, group="clip"
    )
    image: str | None = setting(
        TEXT,
        "start from this image (image to video): turned upright, on white where it is transparent, resized "
        "and centre-cropped to the size of the clip",
        default=None,
        group="clip",
    )
    seeds: tuple[int, ...] = setting(
        INTEGERS,
        "random seeds, one clip per prompt and seed: --seed 7 or --seed 1 2 3",
        default=(0,),
        flag="--seed",
        aliases=("--seeds",),
        low=0,
        high=LARGEST_SEED,
        group="clip",
    )
    steps: int = setting(
        INTEGER, "sampling steps", low=1, high=1000, aliases=("--num-inference-steps",), group="clip"
    )
    frames: int = setting(
        INTEGER,
        "pixel frames of the clip (of images: 1)",
        low=1,
        aliases=("--num-frames",),
        group="clip",
    )
    height: int = setting(INTEGER, "height in pixels", low=1, group="clip")
    width: int = setting(INTEGER, "width in pixels", low=1, group="clip")
    fps: float | None = setting(
        NUMBER,
        "frames per second; ltx, ltx2 and svd heed it as well",
        default=None,
        low=0.1,
        high=1000,
        group="clip",
    )

    model: str = setting(
        TEXT,
        "`embedded` or `embedded-two` (which ship with the package), a family name such as `mochi`, or the "
        "path or hub repository of a pipeline of a supported family",
        default="embedded",
        group="model",
    )
    revision: str | None = setting(
        TEXT, "branch, tag or commit of the hub repository", default=None, group="model"
    )
    variant: str | None = setting(
        TEXT, "variant of the weight files, such as bf16", default=None, group="model"
    )
    dtype: str = setting(
        TEXT,
        "dtype of the weights; auto: bfloat16 on a GPU, float32 on the CPU",
        default="auto",
        choices=DTYPES,
        group="model",
    )
    device: str = setting(TEXT, "auto, cpu, cuda, cuda:1, mps", default="auto", group="model")
    offload: str = setting(
        TEXT,
        "keep weights in main memory while they are not needed; from fast to frugal: model, group, "
        "sequential",
        default="none",
        choices=OFFLOADS,
        group="model",
    )
    vae_tiling: bool = setting(
        SWITCH, "decode in tiles: less memory, a little slower", default=False, group="model"
    )
    compile: bool = setting(
        SWITCH,
        "compile the transformer blocks: slow first step, faster ones after",
        default=False,
        group="model",
    )
    max_sequence_length: int | None = setting(
        INTEGER,
        "text tokens the prompt is cut to (default: the pipeline's)",
        default=None,
        low=1,
        group="model",
    )

    guidance: Guidance
    """The guidance method with its settings."""
    reuse: Reuse = EXACT
    """What a step takes over from the steps before it."""
    own: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    """Values of settings that only some model families have, by name, those that are not set left out."""

    out: str = setting(
        TEXT,
        "file (.mp4, .gif, or .png for a folder of images), or folder for several clips",
        default="outputs",
        group="output",
    )
    format: str | None = setting(
        TEXT,
        "format of the clips in a folder: mp4 where it is left out; models of images make png",
        default=None,
        choices=FORMATS,
        group="output",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if not isinstance(self.guidance, Guidance):
            raise SettingError(f"guidance must be a method such as OSEG(blocks=(3,)), got {self.guidance!r}")
        if not isinstance(self.reuse, Reuse):
            raise SettingError(f"reuse must be settings such as Reuse(cache=0.1), got {self.reuse!r}")
        object.__setattr__(self, "own", _read_own(self.own))
        if not self.seeds:
            raise SettingError("seeds must name at least one, got none")
        if len(set(self.seeds)) != len(self.seeds):
            raise SettingError(f"seeds must differ from each other, got {list(self.seeds)}")
        clips = max(1, len(self.prompts)) * len(self.seeds)
        if clips > MOST_CLIPS:
            prompts = f"{len(self.prompts)} prompts x {len(self.seeds)} seeds"
            raise SettingError(f"a job makes at most {MOST_CLIPS} clips, got {prompts} = {clips}")


def _read_own(values: Mapping[str, Any]) -> dict[str, Any]:
    known = family_settings()
    for name in values:
        if name not in known:
            raise SettingError(f"no model family has a setting {name!r}; known: {', '.join(known)}")
    return {name: known[name].setting.read(name, v) for name, v in values.items() if v is not None}

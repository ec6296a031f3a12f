"""The job of `generate`: every setting that determines a clip, documented and checked in one place.

The command line's flags, the YAML keys and the manifest are all derived from the fields of `GenerateJob`.
Standard library only, so that `--help` stays instant.
"""

# `setting` returns a dataclass field, not a default.
# ruff: noqa: RUF009
from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from oseg_video.config.kinds import (
    BLOCKS,
    INTEGER,
    INTEGERS,
    NUMBER,
    PAIR,
    SCALE,
    SIGMA,
    SWITCH,
    TEXT,
    TEXTS,
    Kind,
)
from oseg_video.config.schedules import Schedule
from oseg_video.config.suggest import known_or_nearest
from oseg_video.types import SettingError

GUIDANCE_NAMES = ("none", "cfg", "cfg-zero", "apg", "stg", "pag", "seg", "oseg")
TEXT_TREATMENTS = ("cfg", "apg", "cfg-zero")
STG_MODES = ("residual", "attention_skip", "attention_values")
FORMATS = ("mp4", "gif", "png")
OFFLOADS = ("none", "model", "sequential", "group")
DTYPES = ("auto", "float32", "bfloat16", "float16")

# torch.Generator.manual_seed takes a signed 64-bit number.
LARGEST_SEED = 2**63 - 1


def setting(
    kind: Kind,
    help: str,
    *,
    default: Any = MISSING,
    flag: str | None = None,
    group: str = "clip",
    choices: tuple[str, ...] | None = None,
    low: float = -math.inf,
    high: float = math.inf,
) -> Any:
    """A field of `GenerateJob`: what it is, its unit and its bounds, for validation, flags and help."""
    return dataclasses.field(
        default=default,
        metadata={
            "kind": kind,
            "help": help,
            "flag": flag,
            "group": group,
            "choices": choices,
            "low": low,
            "high": high,
        },
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateJob:
    """One call of `generate`: prompts x seeds, one clip each. Raises `SettingError` on a bad value.

    A guidance setting of None is left to the method's own default (`oseg_video.guidance.methods`).
    """

    prompts: tuple[str, ...] = setting(
        TEXTS,
        "what the clip shows; repeat the flag for several clips (svd: none)",
        default=(),
        flag="--prompt",
    )
    negative_prompt: str | None = setting(
        TEXT, "text of the unconditional branch, to move away from", default=None
    )
    image: str | None = setting(
        TEXT,
        "start from this picture (image to video): turned upright, on white where it is transparent, resized "
        "and centre-cropped to the size of the clip",
        default=None,
    )
    seeds: tuple[int, ...] = setting(
        INTEGERS,
        "random seeds, one clip per prompt and seed: --seed 7 or --seed 1 2 3",
        default=(0,),
        flag="--seed",
        low=0,
        high=LARGEST_SEED,
    )
    steps: int = setting(INTEGER, "sampling steps", low=1, high=1000)
    frames: int = setting(INTEGER, "pixel frames of the clip (sdxl: 1)", low=1)
    height: int = setting(INTEGER, "height in pixels", low=1)
    width: int = setting(INTEGER, "width in pixels", low=1)
    fps: float | None = setting(
        NUMBER, "frames per second; ltx and svd heed it as well", default=None, low=0.1, high=1000
    )

    embedded_guidance_scale: float | None = setting(
        NUMBER,
        "hunyuan: guidance that the distilled network was taught, one of its inputs (guidance_scale is that "
        "of two real branches)",
        default=None,
        group="family",
        low=0,
        high=1000,
    )
    guidance_scale_2: float | None = setting(
        NUMBER,
        "wan 2.2 with two experts: weight of the text in the second one",
        default=None,
        group="family",
        low=0,
        high=1000,
    )
    min_guidance_scale: float | None = setting(
        NUMBER,
        "svd: weight of the picture at the first frame, in place of guidance_scale",
        default=None,
        group="family",
        low=1,
        high=1000,
    )
    max_guidance_scale: float | None = setting(
        NUMBER,
        "svd: weight of the picture at the last frame",
        default=None,
        group="family",
        low=1,
        high=1000,
    )
    motion_bucket_id: int | None = setting(
        INTEGER, "svd: how much moves, 0 to 255", default=None, group="family", low=0, high=255
    )
    noise_aug_strength: float | None = setting(
        NUMBER,
        "svd: noise added to the picture; more of it, less likeness and more motion",
        default=None,
        group="family",
        low=0,
        high=100,
    )
    decode_chunk_size: int | None = setting(
        INTEGER, "svd: frames decoded at once; fewer, less memory", default=None, group="family", low=1
    )

    model: str = setting(
        TEXT,
        "`embedded` (ships with the package), a family name such as `mochi`, or the path or hub "
        "repository of a pipeline of a supported family",
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
        "number type of the weights; auto: bfloat16 on a GPU, float32 on the CPU",
        default="auto",
        group="model",
        choices=DTYPES,
    )
    device: str = setting(TEXT, "auto, cpu, cuda, cuda:1, mps", default="auto", group="model")
    offload: str = setting(
        TEXT,
        "keep weights in main memory while they are not needed; from fast to frugal: model, group, "
        "sequential",
        default="none",
        group="model",
        choices=OFFLOADS,
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
        group="model",
        low=1,
    )

    guidance: str = setting(TEXT, "guidance method", default="oseg", group="method", choices=GUIDANCE_NAMES)
    guidance_scale: float | Schedule | None = setting(
        SCALE,
        "weight of the text in U + w (C - U); 1 is off; like every scale a number, or numbers from a noise "
        "level down: 1.0:4,0.5:2",
        default=None,
        group="guidance",
    )
    oseg_scale: float | Schedule | None = setting(
        SCALE, "weight of cond - perturbed in oseg; 0 is off", default=None, group="guidance"
    )
    seg_scale: float | Schedule | None = setting(
        SCALE, "weight of cond - perturbed in seg; 0 is off", default=None, group="guidance"
    )
    stg_scale: float | Schedule | None = setting(
        SCALE, "weight of cond - perturbed in stg; 0 is off", default=None, group="guidance"
    )
    pag_scale: float | Schedule | None = setting(
        SCALE, "weight of cond - perturbed in pag; 0 is off", default=None, group="guidance"
    )
    blocks: tuple[int | str, ...] | Schedule | None = setting(
        BLOCKS,
        "blocks that are perturbed, by index or name, such as 1,3 or dual:2,single:17 (by noise level: in a "
        "YAML file)",
        default=None,
        group="guidance",
    )
    mode: str | None = setting(
        TEXT,
        "stg: what is skipped, the whole block or the mixing of its attention",
        default=None,
        group="guidance",
        choices=STG_MODES,
    )
    text: str | None = setting(
        TEXT,
        "how the text difference C - U is treated in a method with perturbation",
        default=None,
        group="guidance",
        choices=TEXT_TREATMENTS,
    )
    eta: float | None = setting(
        NUMBER,
        "apg: share of the text difference along cond that is kept, 0 to 1",
        default=None,
        group="guidance",
    )
    momentum: float | None = setting(
        NUMBER,
        "apg: weight of the differences of earlier steps, between -1 and 1; 0 is off",
        default=None,
        group="guidance",
    )
    norm_threshold: float | None = setting(
        NUMBER, "apg: largest norm of the text difference; 0 is off", default=None, group="guidance"
    )
    zero_steps: int | None = setting(
        INTEGER, "cfg-zero: how many first steps predict zero", default=None, group="guidance"
    )
    blur_sigma: float | tuple[float, float] | None = setting(
        SIGMA,
        "smoothing width in tokens, one number or frames,space; inf is the mean",
        default=None,
        group="guidance",
    )
    mix: float | None = setting(
        NUMBER, "oseg: share of the smoothed query, 0 to 1", default=None, group="guidance"
    )
    keep_parallel: float | None = setting(
        NUMBER,
        "oseg: share of the component along the key that stays, 0 to 1",
        default=None,
        group="guidance",
    )
    reference: str | None = setting(
        TEXT,
        "oseg: key that defines parallel: token, frame, clip, principal:R",
        default=None,
        group="guidance",
    )
    perturb_unconditional: bool | None = setting(
        SWITCH, "oseg: perturb the unconditional branch too", default=None, group="guidance"
    )
    rule: str | None = setting(
        TEXT, "oseg: how predictions are combined, slides or published", default=None, group="guidance"
    )
    published_skip: bool | None = setting(
        SWITCH,
        "oseg, published rule: the conditional branch skips the blocks",
        default=None,
        group="guidance",
    )
    boundary: str | None = setting(
        TEXT, "edges of the smoothing, symmetric or reflect", default=None, group="guidance"
    )
    rescale: float | Schedule | None = setting(
        SCALE, "pull the standard deviation back to that of cond, 0 to 1", default=None, group="guidance"
    )
    interval: tuple[float, float] | None = setting(
        PAIR,
        "fraction of the steps in which the method acts, such as 0.1,0.9",
        default=None,
        group="guidance",
    )

    out: str = setting(
        TEXT,
        "file (.mp4, .gif, or .png for a folder of pictures), or folder for several clips",
        default="outputs",
        group="output",
    )
    format: str | None = setting(
        TEXT,
        "format of the clips in a folder: mp4 where it is left out; sdxl makes png pictures",
        default=None,
        group="output",
        choices=FORMATS,
    )

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            _check(spec, getattr(self, spec.name))
        if not self.seeds:
            raise SettingError("seeds must name at least one, got none")
        if len(set(self.seeds)) != len(self.seeds):
            raise SettingError(f"seeds must differ from each other, got {list(self.seeds)}")


FIELDS: dict[str, dataclasses.Field[Any]] = {spec.name: spec for spec in dataclasses.fields(GenerateJob)}
"""The settings by name, in the order of the documentation."""

GUIDANCE_FIELDS = tuple(name for name, spec in FIELDS.items() if spec.metadata["group"] == "guidance")
"""The settings that are arguments of a guidance method."""

FAMILY_FIELDS = tuple(name for name, spec in FIELDS.items() if spec.metadata["group"] == "family")
"""The settings that only some model families have."""


def is_required(spec: dataclasses.Field[Any]) -> bool:
    """Whether the setting has no default: a recipe or the user must give it."""
    return spec.default is MISSING


def is_optional(spec: dataclasses.Field[Any]) -> bool:
    """Whether the setting may be None."""
    return spec.default is None


def _check(spec: dataclasses.Field[Any], value: Any) -> None:
    """Refuse a value of the wrong kind or out of bounds."""
    if value is None and is_optional(spec):
        return
    meta = spec.metadata
    try:
        read = meta["kind"].from_plain(value)
    except SettingError as error:
        raise SettingError(f"{spec.name} must be {error}") from None
    if read != value:
        raise SettingError(f"{spec.name} must be {meta['kind'].what}, got {value!r}")
    if meta["choices"] and value not in meta["choices"]:
        raise SettingError(f"{spec.name} must be one of {', '.join(meta['choices'])}, got {value!r}")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not meta["low"] <= number <= meta["high"]:
            low, high = meta["low"], meta["high"]
            bounds = f"at least {low}" if math.isinf(high) else f"from {low} to {high}"
            raise SettingError(f"{spec.name} must be {bounds}, got {number}")


def read_setting(name: str, value: Any) -> Any:
    """A setting's value from its plain (YAML or JSON) form. Raises `SettingError` naming the setting."""
    if name not in FIELDS:
        raise SettingError(f"unknown setting {name!r}; {known_or_nearest(name, FIELDS)}")
    spec = FIELDS[name]
    if value is None:
        if not is_optional(spec):
            raise SettingError(f"{name} must be {spec.metadata['kind'].what}, got null")
        return None
    try:
        return spec.metadata["kind"].from_plain(value)
    except SettingError as error:
        raise SettingError(f"{name} must be {error}") from None


def job_from_plain(settings: Mapping[str, Any]) -> GenerateJob:
    """The job of plain settings. Raises `SettingError` on an unknown, missing or wrong one."""
    values = {name: read_setting(name, value) for name, value in settings.items()}
    missing = [name for name, spec in FIELDS.items() if is_required(spec) and name not in values]
    if missing:
        raise SettingError(f"nothing sets {', '.join(missing)}")
    return GenerateJob(**values)


def job_to_plain(job: GenerateJob) -> dict[str, Any]:
    """Every setting as plain JSON types; `job_from_plain` gives the job back."""
    values = {name: getattr(job, name) for name in FIELDS}
    return {
        name: None if value is None else FIELDS[name].metadata["kind"].to_plain(value)
        for name, value in values.items()
    }

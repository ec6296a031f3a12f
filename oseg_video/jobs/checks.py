"""Does a model make what a job asks for? All of it is answered before any weights are read."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from oseg_video.adapters import ModelAdapter, all_adapters, family_settings
from oseg_video.config import GenerateJob
from oseg_video.engine.checks import check_sound
from oseg_video.guidance.reuse import no_chain
from oseg_video.jobs.loading.pipeline import ModelSource
from oseg_video.settings.schedule import Schedule
from oseg_video.types import SettingError

_CLIP_FIELDS = ("image", "height", "width", "frames", "steps", "fps")
_OWNED_FIELDS = ("negative_prompt", "max_sequence_length")
"""Settings of every job that not every family has."""


def clip_settings(job: GenerateJob) -> dict[str, Any]:
    """The settings that an adapter reads, by name, without those that are not set.

    `guidance_scale`, and that of the audio, is the largest that the guidance has at any noise level: it turns
    the pipeline's unconditional branch on or off, and beyond that the guidance's own scale counts.
    """
    values = {name: getattr(job, name) for name in (*_CLIP_FIELDS, *_OWNED_FIELDS)}
    values |= {**job.own, "guidance_scale": job.guidance.largest_guidance_scale}
    values["audio_guidance_scale"] = job.guidance.of_stream("audio").largest_guidance_scale
    return {name: value for name, value in values.items() if value is not None}


def check_fits(job: GenerateJob, source: ModelSource) -> None:
    """Refuse what this model cannot do, or would ignore, with a SettingError or LoadError."""
    adapter = source.adapter
    check_family(job, adapter)
    source.pipeline_for(image=job.image is not None)
    check_size(job, adapter, *adapter.multiples(source.read_json))
    settings = clip_settings(job)
    _check_negative_prompt(job, source, settings)
    if objection := adapter.objection(settings, source.read_json):
        raise SettingError(f"{adapter.family}: {objection}")


def check_family(job: GenerateJob, adapter: ModelAdapter) -> None:
    """Refuse, with a SettingError, what no model of the family can do, whatever its files say."""
    _check_owned(job, adapter)
    check_sound(adapter, job.guidance)
    _check_text(job, adapter)
    _check_kind(job, adapter)
    _check_scales(job, adapter)
    if job.reuse.cache and not adapter.blocks.chained:
        raise SettingError(no_chain(adapter.family))
    if job.image is not None and adapter.image_to_video is None:
        makers = _families(lambda other: other.image_to_video is not None)
        made = "images" if adapter.makes_images else "clips"
        raise SettingError(f"{adapter.family} makes {made} from text only; --image works with {makers}")
    if job.image is None and adapter.text_to_video is None:
        raise SettingError(f"{adapter.family} makes clips from an image; give it one with --image")


def check_size(job: GenerateJob, adapter: ModelAdapter, pixels: int, frames: int) -> None:
    """Refuse a frame count or a size that the model does not make, naming the nearest ones that it does.

    pixels, frames: what the size must be a multiple of, and the frame count less 1.
    """
    for name in ("height", "width"):
        value = getattr(job, name)
        allowed = nearest_sizes(value, pixels)
        if allowed != [value]:
            raise SettingError(
                f"{name} {value}: {adapter.family} needs a multiple of {pixels} pixels; "
                f"nearest: {' or '.join(map(str, allowed))}"
            )
    if job.steps < adapter.minimum_steps:
        raise SettingError(f"steps {job.steps}: {adapter.family} needs at least {adapter.minimum_steps}")
    allowed = nearest_frames(job.frames, frames)
    if allowed != [job.frames]:
        raise SettingError(
            f"frames {job.frames}: {adapter.family} makes {frames} k + 1 frames; "
            f"nearest: {' or '.join(map(str, allowed))}"
        )


def nearest_frames(frames: int, multiple: int) -> list[int]:
    """Allowed frame counts k * multiple + 1 around `frames`, or `frames` alone if it is allowed."""
    below = (frames - 1) // multiple * multiple + 1
    return [frames] if frames == below else [below, below + multiple]


def nearest_sizes(size: int, multiple: int) -> list[int]:
    """Allowed sizes around `size` pixels, or `size` alone if it is allowed."""
    below = size // multiple * multiple
    return [size] if size == below else [n for n in (below, below + multiple) if n]


def _families(serves: Callable[[ModelAdapter], bool]) -> str:
    return ", ".join(adapter.family for adapter in all_adapters() if serves(adapter))


def _check_owned(job: GenerateJob, adapter: ModelAdapter) -> None:
    for name in _OWNED_FIELDS:
        value = getattr(job, name)
        if value is not None and name not in adapter.arguments:
            owners = _families(lambda other, name=name: name in other.arguments)  # type: ignore[misc]
            raise SettingError(f"{name} has no effect with {adapter.family}; it belongs to {owners}")
    for name in job.own:
        if name not in adapter.own_settings:
            owners = ", ".join(family_settings()[name].families)
            raise SettingError(f"{name} has no effect with {adapter.family}; it belongs to {owners}")
        if name in adapter.image_settings and job.image is None:
            raise SettingError(f"{name} has no effect without an image; give one with --image")
    if job.vae_tiling and not adapter.vae_tiles:
        raise SettingError(
            f"vae_tiling: the VAE of {adapter.family} cannot decode in tiles; those of "
            f"{_families(lambda other: other.vae_tiles)} can"
        )


def _check_text(job: GenerateJob, adapter: ModelAdapter) -> None:
    if adapter.text == "none":
        if job.prompts:
            raise SettingError(
                f"{adapter.family} takes no text, got prompt {job.prompts[0][:30]!r}; leave it out, or use "
                f"a model of {_families(lambda other: other.text != 'none')}"
            )
    elif not job.prompts:
        raise SettingError("no prompt given; use --prompt TEXT or --prompts FILE")
    elif adapter.text == "needed" and any(not prompt.strip() for prompt in job.prompts):
        raise SettingError("a prompt must not be empty")
    else:
        _check_empty_prompts(job)


def _check_empty_prompts(job: GenerateJob) -> None:
    """Text guidance needs a text: a prompt, or one to move away from."""
    empty = [not prompt.strip() for prompt in job.prompts]
    if job.negative_prompt is not None or not any(empty) or not job.guidance.guides_by_text:
        return
    if not all(empty):
        raise SettingError(
            "some prompts are empty, where nothing guides by text, and others are not; make them in two "
            "runs, or give guidance_scale 1 or a negative_prompt"
        )
    scale = job.guidance.largest_guidance_scale
    given = "the pipeline's own guidance_scale" if scale is None else f"guidance_scale {scale:g}"
    raise SettingError(
        f"{given}: an empty prompt is no text to guide by; leave it out, or give it 1, or a negative_prompt"
    )


def _check_kind(job: GenerateJob, adapter: ModelAdapter) -> None:
    """Clip or image."""
    family = adapter.family
    if not adapter.makes_images:
        if job.fps is None:
            raise SettingError("nothing sets fps")
        return
    if job.frames != 1:
        raise SettingError(f"frames {job.frames}: {family} makes one image; frames must be 1")
    if job.fps is not None:
        raise SettingError(f"fps {job.fps:g} has no effect with {family}, which makes images")
    if job.format not in (None, "png"):
        raise SettingError(f"format {job.format}: {family} makes images; format must be png")


def _check_scales(job: GenerateJob, adapter: ModelAdapter) -> None:
    given = adapter.scales_set(job.own)
    if given and not job.guidance.follows_pipeline:
        raise SettingError(f"{given[0]} has no effect with guidance {job.guidance.name}")
    if given and isinstance(getattr(job.guidance, "guidance_scale", None), Schedule):
        raise SettingError(f"{given[0]} cannot go with a guidance_scale by noise level; give that one number")


def _check_negative_prompt(job: GenerateJob, source: ModelSource, settings: dict[str, Any]) -> None:
    if job.negative_prompt is None:
        return
    scale = settings.get("guidance_scale")
    argument = source.adapter.arguments.get("guidance_scale")
    if scale is None and argument:
        pipeline = source.adapter.pipeline_class(source.pipeline_for(image=job.image is not None))
        scale = inspect.signature(pipeline.__call__).parameters[argument].default
    heard = job.guidance.of_stream("audio").largest_guidance_scale
    if scale is not None and scale <= 1 and (heard is None or heard <= 1):
        raise SettingError(
            f"negative_prompt has no effect without text guidance; guidance_scale is {scale:g}, not above 1"
        )

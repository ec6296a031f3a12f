"""Denoisers and VAEs without weights, from their configuration alone: all on meta, so of any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from oseg_video.adapters import ModelAdapter
from oseg_video.adapters.settings import ReadJson
from oseg_video.jobs.loading.errors import LoadError
from oseg_video.jobs.loading.pipeline import ModelSource


def full_size_denoiser(adapter: ModelAdapter) -> nn.Module:
    """The denoiser of the family's published weights."""
    import diffusers

    denoiser_class = getattr(diffusers, adapter.denoiser_class)
    return _without_weights(lambda: denoiser_class(**adapter.full_size))


def empty_denoiser(source: ModelSource) -> nn.Module:
    """The denoiser of a model that was found. Raises LoadError or HubError."""
    # Of several denoisers some may be missing.
    present = [name for name in source.adapter.denoiser_attributes if _is_model(source.index.get(name))]
    try:
        return _empty(source.read_json, (present or source.adapter.denoiser_attributes)[0])
    except LoadError as error:
        raise LoadError(f"{source.name}: {error}") from error


def empty_vae(read: ReadJson) -> nn.Module:
    """The VAE of a model; `read` reads its files. Raises LoadError or HubError."""
    return _empty(read, "vae")


def _empty(read: ReadJson, component: str) -> nn.Module:
    import diffusers

    config = read(f"{component}/config.json")
    try:
        component_class = getattr(diffusers, read("model_index.json")[component][1])
        return _without_weights(lambda: component_class.from_config(config))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise LoadError(f"{component} is not described as a diffusers model ({error})") from error


def _without_weights(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        module = build()
    # Some layers (SVD's blend of space and time) make their parameter on the CPU all the same.
    return module.to("meta").eval()


def _is_model(entry: Any) -> bool:
    """Whether an entry of model_index.json names a (library, class)."""
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)

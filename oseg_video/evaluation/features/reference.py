"""Statistics of a set of real clips in a file, with the protocol that they follow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oseg_video.evaluation.errors import EvaluationError
from oseg_video.evaluation.features.frechet import Moments
from oseg_video.files import atomic_path

SCHEMA = 1
"""Version of the file's layout; a reader refuses another one."""
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Reference:
    """Moments of the features of real clips."""

    moments: Moments
    protocol: Mapping[str, Any]
    """All that the moments depend on besides the clips, as plain JSON types."""
    about: Mapping[str, Any]
    """What the clips were, as plain JSON types."""


def save_reference(path: Path, name: str, reference: Reference) -> None:
    """Add a metric's statistics to a safetensors file, whole or not at all, with its protocol."""
    from safetensors.torch import save

    references = {**(_read(path) if path.exists() else {}), name: reference}
    tensors, entries = {}, {}
    for key, entry in references.items():
        tensors[f"{key}/mean"] = entry.moments.mean_D.contiguous()
        tensors[f"{key}/scatter"] = entry.moments.scatter_DD.contiguous()
        entries[key] = {
            "protocol": dict(entry.protocol),
            "about": dict(entry.about),
            "clips": entry.moments.count,
        }
    metadata = {"made_by": "oseg-video", "schema": str(SCHEMA), "metrics": json.dumps(entries)}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))


def saved_names(path: Path) -> tuple[str, ...]:
    """The metrics that a file has statistics of; none if there is no file. Raises EvaluationError."""
    return tuple(_read(path)) if path.exists() else ()


def load_reference(path: Path, name: str, protocol: Mapping[str, Any]) -> Reference:
    """A metric's statistics from a file. Raises EvaluationError if they follow another protocol."""
    references = _read(path)
    if name not in references:
        raise EvaluationError(f"{path} has no statistics of {name}; it has: {', '.join(references)}")
    found = references[name]
    for key in dict.fromkeys([*protocol, *found.protocol]):
        asked, there = protocol.get(key), found.protocol.get(key)
        if asked != there:
            raise EvaluationError(
                f"the statistics of {name} in {path} follow another protocol: {key} is {_shown(there)}, "
                f"and {_shown(asked)} is asked for"
            )
    return found


def _read(path: Path) -> dict[str, Reference]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("made_by") != "oseg-video" or metadata.get("schema") != str(SCHEMA):
                raise EvaluationError(f"{path} holds no statistics of oseg-video that this version reads")
            return {
                name: Reference(
                    _moments(
                        path,
                        entry["clips"],
                        file.get_tensor(f"{name}/mean"),
                        file.get_tensor(f"{name}/scatter"),
                    ),
                    entry["protocol"],
                    entry["about"],
                )
                for name, entry in json.loads(metadata["metrics"]).items()
            }
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise EvaluationError(f"{path} is not a whole file of statistics: {error}") from None
    except OSError as error:
        raise EvaluationError(f"cannot read {path}: {error.strerror or error}") from None


def _moments(path: Path, count: int, mean_D: Tensor, scatter_DD: Tensor) -> Moments:
    fits = mean_D.ndim == 1 and scatter_DD.shape == (len(mean_D), len(mean_D)) and count >= 2
    if not fits or not (mean_D.isfinite().all() and scatter_DD.isfinite().all()):
        raise EvaluationError(f"{path} holds moments that are none: {list(mean_D.shape)}, {count} clips")
    return Moments(count, mean_D.to(torch.float64), scatter_DD.to(torch.float64))


def _shown(value: Any) -> str:
    return json.dumps(value)

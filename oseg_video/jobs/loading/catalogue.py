"""What `oseg-video models` says: families, pipelines, recipes, what was tested."""

from __future__ import annotations

from typing import Any

from oseg_video.adapters import all_adapters
from oseg_video.config import read_notes, recipe_names, recipe_path
from oseg_video.embedded import MODELS
from oseg_video.jobs.loading.pipeline import find_model
from oseg_video.types import OsegVideoError

_KINDS = ("text to video", "text to image", "image to video")


def catalogue() -> list[dict[str, Any]]:
    """One entry per name that --model takes besides paths and hub repositories."""
    return [*(_shipped(name) for name in MODELS), *(_family(adapter) for adapter in all_adapters())]


def describe(entry: dict[str, Any]) -> str:
    """An entry for the terminal."""
    lines = [f"{entry['name']}: {entry['about']}"]
    for key in ("weights", *_KINDS, "other pipelines", "recipes", "tested"):
        if entry.get(key):
            value = entry[key]
            lines.append(f"  {key + ':':<17}{', '.join(value) if isinstance(value, list) else value}")
    return "\n".join(lines)


def _shipped(name: str) -> dict[str, Any]:
    try:
        pipeline, weights = find_model(name).pipeline, f"in the package ({MODELS[name]})"
    except OsegVideoError as error:
        pipeline, weights = None, f"missing from this installation: {error}"
    return {"name": name, "weights": weights, "text to video": pipeline, **_notes(name)}


def _family(adapter: Any) -> dict[str, Any]:
    weights = f"{adapter.hub_repository} on the hub"
    if adapter.image_repository:
        weights += f"; for --image {adapter.image_repository}"
    return {
        "name": adapter.family,
        "weights": weights,
        "text to image" if adapter.makes_images else "text to video": adapter.text_to_video,
        "image to video": adapter.image_to_video,
        "other pipelines": list(adapter.other_pipelines),
        **_notes(adapter.family),
    }


def _notes(name: str) -> dict[str, Any]:
    path = recipe_path(name)
    notes = read_notes(path) if path else {}
    recipes = [recipe for recipe in recipe_names() if _model_of(recipe) == name]
    return {"about": notes.get("about", ""), "tested": notes.get("tested", "not tested"), "recipes": recipes}


def _model_of(recipe: str) -> str | None:
    """The model whose name a recipe's begins with, the longest."""
    names = [*MODELS, *(adapter.family for adapter in all_adapters())]
    return max((name for name in names if f"{recipe}-".startswith(f"{name}-")), key=len, default=None)

"""What `oseg-video models` says: families, pipelines, recipes, what was tested."""

from __future__ import annotations

from typing import Any

from oseg_video.adapters import all_adapters
from oseg_video.config import read_notes, recipe_names, recipe_path
from oseg_video.embedded import MODEL_PATH
from oseg_video.jobs.loading.pipeline import EMBEDDED, find_model
from oseg_video.types import OsegVideoError

_KINDS = ("text to video", "text to image", "image to video")


def catalogue() -> list[dict[str, Any]]:
    """One entry per name that --model takes besides paths and hub repositories."""
    return [_embedded(), *(_family(adapter) for adapter in all_adapters())]


def describe(entry: dict[str, Any]) -> str:
    """An entry for the terminal."""
    lines = [f"{entry['name']}: {entry['about']}"]
    for key in ("weights", *_KINDS, "other pipelines", "recipes", "tested"):
        if entry.get(key):
            value = entry[key]
            lines.append(f"  {key + ':':<17}{', '.join(value) if isinstance(value, list) else value}")
    return "\n".join(lines)


def _embedded() -> dict[str, Any]:
    try:
        source = find_model(EMBEDDED)
        pipeline, weights = source.pipeline, f"in the package ({MODEL_PATH})"
    except OsegVideoError as error:
        pipeline, weights = None, f"missing from this installation: {error}"
    return {"name": EMBEDDED, "weights": weights, "text to video": pipeline, **_notes(EMBEDDED)}


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
    recipes = [recipe for recipe in recipe_names() if recipe == name or recipe.startswith(f"{name}-")]
    return {"about": notes.get("about", ""), "tested": notes.get("tested", "not tested"), "recipes": recipes}

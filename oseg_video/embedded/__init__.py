"""Small text-to-video models of moving shapes that ship with the package, and the data they draw."""

from pathlib import Path

MODEL_PATH = Path(__file__).parent / "model"
"""diffusers directory of the model of one shape."""
MODEL_TWO_PATH = Path(__file__).parent / "model_two"
"""diffusers directory of the model of two shapes, but for its autoencoder, which is the other's."""
MODELS = {"embedded": MODEL_PATH, "embedded-two": MODEL_TWO_PATH}
"""The directories by the names of models and recipes."""


def shared_components(directory: Path) -> dict[str, Path]:
    """Components that the pipeline in `directory` has from another one, and their folders."""
    return {"vae": MODEL_PATH / "vae"} if directory.absolute() == MODEL_TWO_PATH else {}


def component_path(directory: Path, component: str) -> Path:
    """Folder of a component of the pipeline in `directory`: its own, or the one that it shares."""
    return shared_components(directory).get(component, directory / component)

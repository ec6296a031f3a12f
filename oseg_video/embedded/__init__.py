"""The model in the box: its weights, the clips that it was trained on, and the judge of what it draws."""

from pathlib import Path

MODEL_PATH = Path(__file__).parent / "model"
"""A diffusers `MochiPipeline` directory."""

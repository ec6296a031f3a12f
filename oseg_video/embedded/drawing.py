"""What the drawn clips of one shape and those of two share: words, colours, outlines, paths and spellings.

Tensor letters: B clips, F frames, C colour channels (RGB), H rows, W columns, P pixels of a side.
Frame coordinates are pixels, x to the right and y down, pixel (0, 0) covers the square [0, 1] x [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FRAMES = 19
SIZE = 64

COLOUR_RGB: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "green": (25, 150, 50),
    "blue": (35, 65, 225),
    "yellow": (250, 205, 20),
    "purple": (150, 40, 185),
    "cyan": (20, 190, 215),
}
BACKGROUND_RGB: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
}
MOTION_DIRECTION: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "diagonally up and to the left": (-1, -1),
    "diagonally up and to the right": (1, -1),
    "diagonally down and to the left": (-1, 1),
    "diagonally down and to the right": (1, 1),
}
"""Sign of the displacement in x (right) and y (down); a diagonal covers the same distance on both axes."""

COLOURS = tuple(COLOUR_RGB)
SHAPES = ("circle", "square", "triangle", "cross")
MOTIONS = tuple(MOTION_DIRECTION)
BACKGROUNDS = tuple(BACKGROUND_RGB)

MARGIN = 1.5
"""Least distance in pixels between the shape's bounding square and the border, in every frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipGeometry:
    """Where a shape is, in pixels. The caption leaves all of this open."""

    diameter: float
    """Side of the shape's bounding square."""
    start_x: float
    start_y: float
    """Centre of the bounding square in the first frame."""
    travel: float
    """Displacement per moving axis between the first and the last frame."""


def clip_generator(seed: int, index: int, stream: int) -> np.random.Generator:
    """Attributes (0), geometry (1) and caption (2) of one clip of a data set draw from separate streams."""
    return np.random.default_rng((seed, index, stream))


def sample_spelling(generator: np.random.Generator, text: str) -> str:
    """`text` with random spelling of "gray", capital and full stop."""
    british, capital, stop = generator.random(3) < (0.5, 0.15, 0.15)
    if british:
        text = text.replace("gray", "grey")
    if capital:
        text = text[0].upper() + text[1:]
    return text + "." if stop else text


def plain_spelling(text: str) -> str:
    """Undoes `sample_spelling`: lower case, "gray", single spaces, no final full stop."""
    return " ".join(text.lower().replace("grey", "gray").rstrip(" .").split())


def sample_shape_geometry(
    generator: np.random.Generator,
    motion: str,
    *,
    diameters: tuple[float, float],
    travels: tuple[float, float],
) -> ClipGeometry:
    """Uniform in both ranges and in every start that keeps the shape inside the frame in every frame."""
    diameter = generator.uniform(*diameters)
    travel = generator.uniform(*travels)
    start = []
    for sign in MOTION_DIRECTION[motion]:
        low = MARGIN + diameter / 2 + max(-sign, 0) * travel
        high = SIZE - MARGIN - diameter / 2 - max(sign, 0) * travel
        start.append(generator.uniform(low, high))
    return ClipGeometry(diameter=diameter, start_x=start[0], start_y=start[1], travel=travel)


def colours_of(names: Sequence[str], table: Mapping[str, tuple[int, int, int]]) -> Tensor:
    """The colours of a table by name: float [B, C] in 0 ... 255."""
    return torch.tensor([table[name] for name in names], dtype=torch.float32)


def centres(motions: Sequence[str], geometries: Sequence[ClipGeometry]) -> Tensor:
    """Centre (x, y) of one shape per clip in every frame: float [B, F, 2]."""
    start_B2 = torch.tensor([(g.start_x, g.start_y) for g in geometries])
    direction_B2 = torch.tensor([MOTION_DIRECTION[motion] for motion in motions], dtype=torch.float32)
    travel_B1 = torch.tensor([[g.travel] for g in geometries])
    progress_F1 = torch.linspace(0, 1, FRAMES)[:, None]
    return start_B2[:, None] + progress_F1 * (direction_B2 * travel_B1)[:, None]


def coverage(shapes: Sequence[str], diameters: Sequence[float], centre_BF2: Tensor) -> Tensor:
    """Share of every pixel that one shape per clip covers: float [B, F, H, W] in 0 ... 1."""
    axis_P = torch.arange(SIZE) + 0.5
    x_BFHW = (axis_P - centre_BF2[..., 0, None])[:, :, None, :].expand(-1, -1, SIZE, -1)
    y_BFHW = (axis_P - centre_BF2[..., 1, None])[:, :, :, None].expand(-1, -1, -1, SIZE)
    half_B = torch.tensor(diameters) / 2
    coverage_BFHW = torch.empty(*centre_BF2.shape[:2], SIZE, SIZE)
    for shape, signed_distance in _SIGNED_DISTANCE.items():
        rows = [row for row, name in enumerate(shapes) if name == shape]
        if rows:
            distance = signed_distance(x_BFHW[rows], y_BFHW[rows], half_B[rows, None, None, None])
            coverage_BFHW[rows] = (0.5 - distance).clamp_(0, 1)
    return coverage_BFHW


# Signed distances in pixels, negative inside. `x` and `y` run from the centre of the bounding square, whose
# half side is `half`; every shape touches at least two opposite sides of that square.


def _circle(x: Tensor, y: Tensor, half: Tensor) -> Tensor:
    return torch.hypot(x, y) - half


def _square(x: Tensor, y: Tensor, half: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.9 * half


def _triangle(x: Tensor, y: Tensor, half: Tensor) -> Tensor:
    """Apex up at (0, -half), base from (-half, half) to (half, half) pulled up to 0.8 half."""
    side = (2 * x.abs() - y - half) / 5**0.5
    return torch.maximum(side, y - 0.8 * half)


def _cross(x: Tensor, y: Tensor, half: Tensor) -> Tensor:
    """Two bars, each a third of the bounding square wide."""
    across = torch.maximum(x.abs() - half, y.abs() - half / 3)
    return torch.minimum(across, torch.maximum(x.abs() - half / 3, y.abs() - half))


_SIGNED_DISTANCE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
}

"""Procedural clips of one moving shape, with captions from a small grammar.

The embedded model is trained on these clips, and an evaluation can ask whether a generated clip shows what
its prompt says, because every caption maps back to the attributes that it names.

Tensor letters: B clips, F frames, C colour channels (RGB), H rows, W columns, P pixels of a frame.
Frame coordinates are pixels, x to the right and y down, pixel (0, 0) covers the square [0, 1] x [0, 1].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
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

PHRASINGS = (
    "a {colour} {shape} moving {motion} on a {background} background",
    "a {colour} {shape} moves {motion} on a {background} background",
    "on a {background} background, a {colour} {shape} is moving {motion}",
    "a {background} background with a {colour} {shape} moving {motion}",
    "{colour} {shape}, moving {motion}, {background} background",
    "the {colour} {shape} travels {motion} across a {background} background",
)
"""Templates of a caption; the first is the canonical one."""

DIAMETER_RANGE = (27.0, 33.0)
"""Side in pixels of the square that bounds the shape."""
TRAVEL_RANGE = (18.0, 26.0)
"""Displacement in pixels, per moving axis, between the first and the last frame."""
MARGIN = 1.5
"""Least distance in pixels between the shape's bounding square and the border, in every frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipAttributes:
    """What a caption says about a clip; every field is a word of the matching vocabulary."""

    colour: str
    shape: str
    motion: str
    background: str

    def __post_init__(self) -> None:
        for name, vocabulary in VOCABULARIES.items():
            if getattr(self, name) not in vocabulary:
                raise ValueError(f"{name} must be one of {vocabulary}, got {getattr(self, name)!r}")

    def indices(self) -> tuple[int, ...]:
        """Position of every word in its vocabulary, in the order of `VOCABULARIES`."""
        return tuple(words.index(getattr(self, name)) for name, words in VOCABULARIES.items())


VOCABULARIES: dict[str, tuple[str, ...]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "motion": MOTIONS,
    "background": BACKGROUNDS,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipGeometry:
    """Where the shape is, in pixels. The caption leaves all of this open."""

    diameter: float
    """Side of the shape's bounding square."""
    start_x: float
    start_y: float
    """Centre of the bounding square in the first frame."""
    travel: float
    """Displacement per moving axis between the first and the last frame."""


def all_attributes() -> tuple[ClipAttributes, ...]:
    """Every combination of attributes, in lexicographic order of the vocabularies."""
    return tuple(
        ClipAttributes(colour=colour, shape=shape, motion=motion, background=background)
        for colour, shape, motion, background in itertools.product(*VOCABULARIES.values())
    )


def caption(attributes: ClipAttributes, phrasing: int = 0) -> str:
    """The caption of a clip in the given phrasing (an index into `PHRASINGS`; 0 is canonical)."""
    if not 0 <= phrasing < len(PHRASINGS):
        raise ValueError(f"phrasing must be in 0..{len(PHRASINGS) - 1}, got {phrasing}")
    return PHRASINGS[phrasing].format(**{name: getattr(attributes, name) for name in VOCABULARIES})


def all_captions() -> tuple[str, ...]:
    """Every attribute combination in every phrasing."""
    return tuple(
        caption(attributes, phrasing) for attributes in all_attributes() for phrasing in range(len(PHRASINGS))
    )


def parse_caption(text: str) -> ClipAttributes:
    """The attributes that a caption of any phrasing names.

    Upper case, "grey" and a final full stop are accepted; text outside the grammar raises ValueError.
    """
    normalised = " ".join(text.lower().replace("grey", "gray").rstrip(" .").split())
    attributes = _CAPTION_TO_ATTRIBUTES.get(normalised)
    if attributes is None:
        raise ValueError(f"not a caption of the grammar, e.g. {caption(all_attributes()[0])!r}: {text!r}")
    return attributes


def sample_attributes(seed: int, index: int) -> ClipAttributes:
    """Attributes of clip `index` of the data set `seed`: uniform and independent."""
    words = _generator(seed, index, stream=0).integers(0, [len(v) for v in VOCABULARIES.values()])
    chosen = zip(VOCABULARIES.items(), words, strict=True)
    return ClipAttributes(**{name: vocabulary[word] for (name, vocabulary), word in chosen})


def sample_geometry(seed: int, index: int, attributes: ClipAttributes) -> ClipGeometry:
    """Geometry of clip `index` of the data set `seed`; the shape stays inside the frame in every frame."""
    generator = _generator(seed, index, stream=1)
    diameter = generator.uniform(*DIAMETER_RANGE)
    travel = generator.uniform(*TRAVEL_RANGE)
    start = []
    for sign in MOTION_DIRECTION[attributes.motion]:
        low = MARGIN + diameter / 2 + max(-sign, 0) * travel
        high = SIZE - MARGIN - diameter / 2 - max(sign, 0) * travel
        start.append(generator.uniform(low, high))
    return ClipGeometry(diameter=diameter, start_x=start[0], start_y=start[1], travel=travel)


def sample_caption(seed: int, index: int, attributes: ClipAttributes) -> str:
    """A caption in a random phrasing, with random spelling of "gray", capital and full stop."""
    generator = _generator(seed, index, stream=2)
    text = caption(attributes, int(generator.integers(len(PHRASINGS))))
    british, capital, stop = generator.random(3) < (0.5, 0.15, 0.15)
    if british:
        text = text.replace("gray", "grey")
    if capital:
        text = text[0].upper() + text[1:]
    return text + "." if stop else text


def draw_clips(
    attributes: Sequence[ClipAttributes],
    geometries: Sequence[ClipGeometry],
    frames: Sequence[int] = range(FRAMES),
) -> Tensor:
    """Draw anti-aliased clips: uint8 [B, F, C, H, W] with C = 3 (RGB) and H = W = 64.

    `frames` chooses among the 19 frames of a clip, all of them by default.

    A pixel that the shape covers entirely has exactly the shape's colour, one that it does not touch has
    exactly the background's, and one on the edge mixes both by the covered share.
    """
    centre_BF2 = _centres(attributes, geometries)[:, list(frames)]
    axis_P = torch.arange(SIZE) + 0.5
    x_BFHW = (axis_P - centre_BF2[..., 0, None])[:, :, None, :].expand(-1, -1, SIZE, -1)
    y_BFHW = (axis_P - centre_BF2[..., 1, None])[:, :, :, None].expand(-1, -1, -1, SIZE)
    half_B = torch.tensor([geometry.diameter / 2 for geometry in geometries])
    coverage_BFHW = torch.empty(len(attributes), len(frames), SIZE, SIZE)
    for shape, signed_distance in _SIGNED_DISTANCE.items():
        rows = [row for row, attribute in enumerate(attributes) if attribute.shape == shape]
        if rows:
            distance = signed_distance(x_BFHW[rows], y_BFHW[rows], half_B[rows, None, None, None])
            coverage_BFHW[rows] = (0.5 - distance).clamp_(0, 1)
    colour_BC = torch.tensor([COLOUR_RGB[a.colour] for a in attributes], dtype=torch.float32)
    background_BC = torch.tensor([BACKGROUND_RGB[a.background] for a in attributes], dtype=torch.float32)
    contrast_B1C11 = (colour_BC - background_BC)[:, None, :, None, None]
    clips_BFCHW = background_BC[:, None, :, None, None] + coverage_BFHW[:, :, None] * contrast_B1C11
    return clips_BFCHW.round_().to(torch.uint8)


def draw_clip(attributes: ClipAttributes, geometry: ClipGeometry) -> Tensor:
    """One clip of `draw_clips`: uint8 [F, C, H, W]."""
    return draw_clips([attributes], [geometry])[0]


def sample_clips(
    seed: int, indices: Sequence[int], frames: Sequence[int] = range(FRAMES)
) -> tuple[Tensor, list[ClipAttributes]]:
    """Clips `indices` of the data set `seed`: uint8 [B, F, C, H, W] and their attributes.

    A clip depends on `seed` and its own index only, never on the others in the batch.
    """
    attributes = [sample_attributes(seed, index) for index in indices]
    geometries = [sample_geometry(seed, index, a) for index, a in zip(indices, attributes, strict=True)]
    return draw_clips(attributes, geometries, frames), attributes


def _generator(seed: int, index: int, stream: int) -> np.random.Generator:
    """Attributes, geometry and caption of one clip draw from separate streams."""
    return np.random.default_rng((seed, index, stream))


def _centres(attributes: Sequence[ClipAttributes], geometries: Sequence[ClipGeometry]) -> Tensor:
    """Centre (x, y) of the shape in every frame: float [B, F, 2]."""
    start_B2 = torch.tensor([(g.start_x, g.start_y) for g in geometries])
    direction_B2 = torch.tensor([MOTION_DIRECTION[a.motion] for a in attributes], dtype=torch.float32)
    travel_B1 = torch.tensor([[g.travel] for g in geometries])
    progress_F1 = torch.linspace(0, 1, FRAMES)[:, None]
    return start_B2[:, None] + progress_F1 * (direction_B2 * travel_B1)[:, None]


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

_CAPTION_TO_ATTRIBUTES: dict[str, ClipAttributes] = {
    caption(attributes, phrasing): attributes
    for attributes in all_attributes()
    for phrasing in range(len(PHRASINGS))
}

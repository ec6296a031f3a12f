"""Procedural clips of two moving shapes, with captions from a small grammar.

The shapes differ in kind, colour and motion, so a clip is right only where every colour is bound to its shape
and every shape to its motion; the one that the caption names second passes in front of the first.

Tensor letters: B clips, F frames, C colour channels (RGB), H rows, W columns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from oseg_video.embedded.drawing import (
    BACKGROUND_RGB,
    BACKGROUNDS,
    COLOUR_RGB,
    COLOURS,
    FRAMES,
    MOTION_DIRECTION,
    MOTIONS,
    SHAPES,
    ClipGeometry,
    centres,
    clip_generator,
    colours_of,
    coverage,
    plain_spelling,
    sample_shape_geometry,
    sample_spelling,
)

PHRASINGS = (
    "a {colour_1} {shape_1} moving {motion_1} and a {colour_2} {shape_2} moving {motion_2}"
    " on a {background} background",
    "a {colour_1} {shape_1} moves {motion_1} and a {colour_2} {shape_2} moves {motion_2}"
    " on a {background} background",
    "on a {background} background, a {colour_1} {shape_1} is moving {motion_1}"
    " and a {colour_2} {shape_2} is moving {motion_2}",
    "a {background} background with a {colour_1} {shape_1} moving {motion_1}"
    " and a {colour_2} {shape_2} moving {motion_2}",
    "{colour_1} {shape_1}, moving {motion_1}, {colour_2} {shape_2}, moving {motion_2},"
    " {background} background",
    "the {colour_1} {shape_1} travels {motion_1} while the {colour_2} {shape_2} travels {motion_2}"
    " across a {background} background",
)
"""Templates of a caption; the first is the canonical one."""

DIAMETER_RANGE = (24.0, 28.0)
"""Side in pixels of the square that bounds a shape."""
TRAVEL_RANGE = (14.0, 18.0)
"""Displacement in pixels, per moving axis, between the first and the last frame."""
LEAST_DISTANCE = 0.6
"""Least distance between the two centres at any time, as a share of their mean diameter.

The front shape may pass over a part of the other but never hides what it is.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class MovingShape:
    """One of the shapes; every field is a word of the matching vocabulary."""

    colour: str
    shape: str
    motion: str

    def __post_init__(self) -> None:
        for name, vocabulary in SHAPE_VOCABULARIES.items():
            if getattr(self, name) not in vocabulary:
                raise ValueError(f"{name} must be one of {vocabulary}, got {getattr(self, name)!r}")


SHAPE_VOCABULARIES: dict[str, tuple[str, ...]] = {"colour": COLOURS, "shape": SHAPES, "motion": MOTIONS}


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoShapes:
    """What a caption says about a clip; the shapes differ in every word."""

    first: MovingShape
    second: MovingShape
    background: str

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ValueError(f"background must be one of {BACKGROUNDS}, got {self.background!r}")
        for name in SHAPE_VOCABULARIES:
            if getattr(self.first, name) == getattr(self.second, name):
                raise ValueError(
                    f"the two shapes must differ in {name}, got {getattr(self.first, name)!r} twice"
                )

    @property
    def shapes(self) -> tuple[MovingShape, MovingShape]:
        """Both, the one behind first."""
        return self.first, self.second


def caption(attributes: TwoShapes, phrasing: int = 0) -> str:
    """The caption of a clip in the given phrasing (an index into `PHRASINGS`; 0 is canonical)."""
    if not 0 <= phrasing < len(PHRASINGS):
        raise ValueError(f"phrasing must be in 0..{len(PHRASINGS) - 1}, got {phrasing}")
    words = {
        f"{field.name}_{number}": getattr(shape, field.name)
        for number, shape in enumerate(attributes.shapes, start=1)
        for field in fields(shape)
    }
    return PHRASINGS[phrasing].format(background=attributes.background, **words)


def parse_caption(text: str) -> TwoShapes:
    """The attributes that a caption of any phrasing names.

    Upper case, "grey" and a final full stop are accepted; text outside the grammar raises ValueError.
    """
    for pattern in _PATTERNS:
        if match := pattern.fullmatch(plain_spelling(text)):
            first, second = (
                MovingShape(**{name: match[f"{name}_{number}"] for name in SHAPE_VOCABULARIES})
                for number in (1, 2)
            )
            return TwoShapes(first=first, second=second, background=match["background"])
    example = caption(sample_attributes(0, 0))
    raise ValueError(f"not a caption of the grammar of two shapes, e.g. {example!r}: {text!r}")


def sample_attributes(seed: int, index: int) -> TwoShapes:
    """Attributes of clip `index` of the data set `seed`: uniform among all that differ in every word."""
    generator = clip_generator(seed, index, stream=0)
    pairs = {
        name: [words[number] for number in generator.permutation(len(words))[:2]]
        for name, words in SHAPE_VOCABULARIES.items()
    }
    first, second = (MovingShape(**{name: pair[number] for name, pair in pairs.items()}) for number in (0, 1))
    return TwoShapes(first=first, second=second, background=BACKGROUNDS[generator.integers(len(BACKGROUNDS))])


def sample_geometry(seed: int, index: int, attributes: TwoShapes) -> tuple[ClipGeometry, ClipGeometry]:
    """Geometry of clip `index` of the data set `seed`: uniform among pairs that keep `LEAST_DISTANCE`."""
    generator = clip_generator(seed, index, stream=1)
    while True:
        first, second = (
            sample_shape_geometry(generator, shape.motion, diameters=DIAMETER_RANGE, travels=TRAVEL_RANGE)
            for shape in attributes.shapes
        )
        needed = LEAST_DISTANCE * (first.diameter + second.diameter) / 2
        if _least_distance(attributes, first, second) >= needed:
            return first, second


def sample_caption(seed: int, index: int, attributes: TwoShapes) -> str:
    """A caption in a random phrasing, with random spelling of "gray", capital and full stop."""
    generator = clip_generator(seed, index, stream=2)
    return sample_spelling(generator, caption(attributes, int(generator.integers(len(PHRASINGS)))))


def draw_clips(
    attributes: Sequence[TwoShapes],
    geometries: Sequence[tuple[ClipGeometry, ClipGeometry]],
    frames: Sequence[int] = range(FRAMES),
) -> Tensor:
    """Draw anti-aliased clips: uint8 [B, F, C, H, W] with C = 3 (RGB) and H = W = 64.

    `frames` chooses among the 19 frames of a clip, all of them by default.
    """
    background_BC = colours_of([a.background for a in attributes], BACKGROUND_RGB)
    clips_BFCHW = background_BC[:, None, :, None, None]
    for number in (0, 1):
        shapes = [a.shapes[number] for a in attributes]
        places = [pair[number] for pair in geometries]
        centre_BF2 = centres([shape.motion for shape in shapes], places)[:, list(frames)]
        coverage_BFHW = coverage([shape.shape for shape in shapes], [p.diameter for p in places], centre_BF2)
        colour_BC = colours_of([shape.colour for shape in shapes], COLOUR_RGB)
        clips_BFCHW = clips_BFCHW.lerp(colour_BC[:, None, :, None, None], coverage_BFHW[:, :, None])
    return clips_BFCHW.round_().to(torch.uint8)


def sample_clips(
    seed: int, indices: Sequence[int], frames: Sequence[int] = range(FRAMES)
) -> tuple[Tensor, list[TwoShapes]]:
    """Clips `indices` of the data set `seed`: uint8 [B, F, C, H, W] and their attributes.

    A clip depends on `seed` and its own index only, never on the others in the batch.
    """
    attributes = [sample_attributes(seed, index) for index in indices]
    geometries = [sample_geometry(seed, index, a) for index, a in zip(indices, attributes, strict=True)]
    return draw_clips(attributes, geometries, frames), attributes


def _least_distance(attributes: TwoShapes, first: ClipGeometry, second: ClipGeometry) -> float:
    """Between the two centres at any time, in pixels."""
    start = complex(second.start_x - first.start_x, second.start_y - first.start_y)
    travel = second.travel * complex(*MOTION_DIRECTION[attributes.second.motion])
    travel -= first.travel * complex(*MOTION_DIRECTION[attributes.first.motion])
    nearest = -(start * travel.conjugate()).real / abs(travel) ** 2
    return abs(start + travel * min(max(nearest, 0.0), 1.0))


def _pattern(template: str) -> re.Pattern[str]:
    """The template as a regular expression with one named group per word."""
    vocabularies = {f"{name}_{n}": words for name, words in SHAPE_VOCABULARIES.items() for n in (1, 2)}
    groups = {
        name: f"(?P<{name}>{'|'.join(words)})"
        for name, words in {**vocabularies, "background": BACKGROUNDS}.items()
    }
    return re.compile(template.format(**groups))


_PATTERNS = [_pattern(template) for template in PHRASINGS]

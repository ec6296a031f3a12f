"""Procedural clips of one moving shape, with captions from a small grammar.

The embedded model is trained on these clips, and an evaluation can ask whether a generated clip shows what
its prompt says, because every caption maps back to the attributes that it names.

Tensor letters: B clips, F frames, C colour channels (RGB), H rows, W columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, uint8

from oseg_video.embedded.drawing import (
    BACKGROUND_RGB,
    BACKGROUNDS,
    COLOUR_RGB,
    COLOURS,
    FRAMES,
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
from oseg_video.embedded.drawing import (
    SIZE as SIZE,
)

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
    attributes = _CAPTION_TO_ATTRIBUTES.get(plain_spelling(text))
    if attributes is None:
        raise ValueError(f"not a caption of the grammar, e.g. {caption(all_attributes()[0])!r}: {text!r}")
    return attributes


def sample_attributes(seed: int, index: int) -> ClipAttributes:
    """Attributes of clip `index` of the data set `seed`: uniform and independent."""
    words = clip_generator(seed, index, stream=0).integers(0, [len(v) for v in VOCABULARIES.values()])
    chosen = zip(VOCABULARIES.items(), words, strict=True)
    return ClipAttributes(**{name: vocabulary[word] for (name, vocabulary), word in chosen})


def sample_geometry(seed: int, index: int, attributes: ClipAttributes) -> ClipGeometry:
    """Geometry of clip `index` of the data set `seed`; the shape stays inside the frame in every frame."""
    generator = clip_generator(seed, index, stream=1)
    return sample_shape_geometry(generator, attributes.motion, diameters=DIAMETER_RANGE, travels=TRAVEL_RANGE)


def sample_caption(seed: int, index: int, attributes: ClipAttributes) -> str:
    """A caption in a random phrasing, with random spelling of "gray", capital and full stop."""
    generator = clip_generator(seed, index, stream=2)
    return sample_spelling(generator, caption(attributes, int(generator.integers(len(PHRASINGS)))))


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
    centre_BF2 = centres([a.motion for a in attributes], geometries)[:, list(frames)]
    coverage_BFHW = coverage([a.shape for a in attributes], [g.diameter for g in geometries], centre_BF2)
    colour_BC = colours_of([a.colour for a in attributes], COLOUR_RGB)
    background_BC = colours_of([a.background for a in attributes], BACKGROUND_RGB)
    contrast_B1C11 = (colour_BC - background_BC)[:, None, :, None, None]
    clips_BFCHW = background_BC[:, None, :, None, None] + coverage_BFHW[:, :, None] * contrast_B1C11
    return clips_BFCHW.round_().to(uint8)


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


_CAPTION_TO_ATTRIBUTES: dict[str, ClipAttributes] = {
    caption(attributes, phrasing): attributes
    for attributes in all_attributes()
    for phrasing in range(len(PHRASINGS))
}

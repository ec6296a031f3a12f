"""VBench's 16 dimensions as data: how a clip counts, and how scores become normalised scores and totals.

Source: VBench, arXiv 2311.17982, and its repository Vchitect/VBench: `scripts/constant.py` and
`scripts/cal_final_score.py` for the normalisation and the weights, `vbench/*.py` (package 0.1.5) for how each
dimension averages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from oseg_video.evaluation.errors import EvaluationError

Group = Literal["quality", "semantic"]


@dataclass(frozen=True)
class Dimension:
    """One of VBench's dimensions."""

    group: Group
    summary: str
    lowest: float = 0.0
    """The score that normalises to 0."""
    highest: float = 1.0
    """The score that normalises to 1."""
    weight: float = 1.0
    """In the mean over its group."""
    custom: bool = True
    """Whether VBench computes it for prompts of one's own ("custom_input")."""
    documented: bool = True
    """Whether VBench's README lists it for custom input."""
    needs_prompt: bool = False
    """Whether custom input needs the prompt of each clip."""
    share: bool = False
    """A yes or no of every clip."""
    frames: int = 2
    """Least number of frames of a clip."""


DIMENSIONS: dict[str, Dimension] = {
    "subject_consistency": Dimension("quality", "DINO features stay alike over time", 0.1462),
    "background_consistency": Dimension("quality", "CLIP features stay alike over time", 0.2615),
    "temporal_flickering": Dimension(
        "quality", "pixels of static clips stay alike", 0.6293, documented=False
    ),
    "motion_smoothness": Dimension(
        "quality", "AMT-S can interpolate every other frame", 0.706, 0.9975, frames=3
    ),
    "dynamic_degree": Dimension("quality", "share of clips with large RAFT flow", weight=0.5, share=True),
    "aesthetic_quality": Dimension("quality", "LAION's aesthetic predictor"),
    "imaging_quality": Dimension("quality", "MUSIQ-SPAQ"),
    "object_class": Dimension("semantic", "GRiT finds the object", custom=False),
    "multiple_objects": Dimension("semantic", "GRiT finds both objects", custom=False),
    "human_action": Dimension(
        "semantic", "UMT recognises the action", documented=False, needs_prompt=True, share=True
    ),
    "color": Dimension("semantic", "GRiT's caption has the colour", custom=False),
    "spatial_relationship": Dimension("semantic", "GRiT's boxes lie as asked", custom=False),
    "scene": Dimension("semantic", "Tag2Text's caption has the scene", highest=0.8222, custom=False),
    "appearance_style": Dimension("semantic", "CLIP similarity to the style", 0.0009, 0.2855, custom=False),
    "temporal_style": Dimension(
        "semantic", "ViCLIP similarity to the prompt", highest=0.364, documented=False, needs_prompt=True
    ),
    "overall_consistency": Dimension(
        "semantic", "ViCLIP similarity to the prompt", highest=0.364, documented=False, needs_prompt=True
    ),
}
"""In the order of VBench's tables."""

TOTALS: tuple[str, ...] = ("quality", "semantic", "total")
_QUALITY_WEIGHT, _SEMANTIC_WEIGHT = 4, 1


def tally(dimension: str, entry: Mapping[str, Any], frames: int) -> tuple[float, float]:
    """What one clip adds to (numerator, denominator) of the dimension's score, which is their quotient.

    Most dimensions average over clips; some over frames, so that longer clips count for more there. These are
    the rules of a run in one process; a run on several GPUs of VBench's own averages some of them otherwise
    (subject_consistency over clips, appearance_style over last frames), which is not reproduced.

    entry: the clip's entry in VBench's results.
    frames: frames of the clip.
    """
    score = float(entry["video_results"])
    match dimension:
        case "imaging_quality":
            return score / 100, 1.0
        case "subject_consistency":
            return score * (frames - 1), frames - 1.0
        case "background_consistency":
            return float(entry["video_sim"]), float(entry["cnt_per_video"])
        case "object_class" | "multiple_objects" | "scene":
            return float(entry["success_frame_count"]), float(entry["frame_count"])
        case "spatial_relationship" | "appearance_style":
            return float(sum(entry["frame_results"])), float(len(entry["frame_results"]))
        case _:
            return score, 1.0


def normalise(dimension: str, score: float) -> float:
    """The score on the scale where VBench's lowest is 0 and its highest is 1; not cut off at either end."""
    scale = DIMENSIONS[dimension]
    return (score - scale.lowest) / (scale.highest - scale.lowest)


def total(name: str, scores: Mapping[str, float]) -> float:
    """`quality`, `semantic` or `total` from the scores of the standard suite, before normalisation.

    Raises EvaluationError naming the dimensions that are missing. (VBench's own script takes 0 for those,
    which normalises to a negative number.)
    """
    needed = members(name)
    if missing := [dimension for dimension in needed if dimension not in scores]:
        raise EvaluationError(
            f"VBench's {name} score needs all of its dimensions; missing: {', '.join(missing)}"
        )
    if name == "total":
        quality, semantic = total("quality", scores), total("semantic", scores)
        weights = _QUALITY_WEIGHT + _SEMANTIC_WEIGHT
        return (_QUALITY_WEIGHT * quality + _SEMANTIC_WEIGHT * semantic) / weights
    weighted = sum(DIMENSIONS[d].weight * normalise(d, scores[d]) for d in needed)
    return weighted / sum(DIMENSIONS[d].weight for d in needed)


def members(name: str) -> tuple[str, ...]:
    """The dimensions that a total is made of."""
    return tuple(d for d, entry in DIMENSIONS.items() if name in ("total", entry.group))

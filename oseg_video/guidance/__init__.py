"""The mathematics of guidance: pure functions on tensors. torch and the standard library only."""

from oseg_video.guidance.combine import (
    apg_update,
    cfg,
    extrapolate,
    oseg_published,
    projection_scale,
    push_away,
    rescale,
    zero_star_difference,
)
from oseg_video.guidance.projection import parse_reference, split_by_key, split_by_reference
from oseg_video.guidance.queries import oseg_queries, published_queries, seg_queries
from oseg_video.guidance.schedule import Breakpoints, Interval, value_at, values_of
from oseg_video.guidance.smoothing import (
    smooth_queries,
    smoothing_matrix,
    validate_blur_sigma,
    validate_boundary,
)
from oseg_video.guidance.validation import validate_fraction

__all__ = [
    "Breakpoints",
    "Interval",
    "apg_update",
    "cfg",
    "extrapolate",
    "oseg_published",
    "oseg_queries",
    "parse_reference",
    "projection_scale",
    "published_queries",
    "push_away",
    "rescale",
    "seg_queries",
    "smooth_queries",
    "smoothing_matrix",
    "split_by_key",
    "split_by_reference",
    "validate_blur_sigma",
    "validate_boundary",
    "validate_fraction",
    "value_at",
    "values_of",
    "zero_star_difference",
]

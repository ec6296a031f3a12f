"""The mathematics of guidance: pure functions on tensors. torch and the standard library only."""

from oseg_video.guidance.combine import (
    cfg,
    oseg_published,
    oseg_slides,
    perturbed_guidance,
    projection_scale,
    rescale,
)
from oseg_video.guidance.projection import parse_reference, split_by_key, split_by_reference
from oseg_video.guidance.queries import oseg_queries, published_queries, seg_queries
from oseg_video.guidance.schedule import Breakpoints, Interval, value_at
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
    "cfg",
    "oseg_published",
    "oseg_queries",
    "oseg_slides",
    "parse_reference",
    "perturbed_guidance",
    "projection_scale",
    "published_queries",
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
]

"""Improved precision and recall (arXiv 1904.06991) of images, in the features of the Inception of 2015.

N generated and M real images, D feature dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.errors import EvaluationError
from oseg_video.evaluation.features.protocols import PROTOCOLS
from oseg_video.evaluation.features.real_clips import find_real, look_at
from oseg_video.evaluation.features.stills import Inception, middle_frame
from oseg_video.evaluation.metrics.base import MetricOptions, MetricValue, register_metrics
from oseg_video.evaluation.observe import ClipMetric, Look
from oseg_video.evaluation.rows import RowStore, file_state

PRECISION, RECALL = "precision:inception", "recall:inception"
NEIGHBOURS = 3


_AT_ONCE = 512
"""Points whose distances to all of a set are in memory together."""


def radii(set_MD: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Distance of each point of a set to its k-th neighbour: [M].

    Raises EvaluationError for a set of no more than `neighbours` points.
    """
    if len(set_MD) <= neighbours:
        raise EvaluationError(
            f"precision and recall need more than {neighbours} clips and real images, got {len(set_MD)}"
        )
    some = (torch.cdist(points, set_MD) for points in set_MD.split(_AT_ONCE))
    return torch.cat([one.kthvalue(neighbours + 1, dim=1).values for one in some])  # the first is itself


def within(points_ND: Tensor, set_MD: Tensor, radius_M: Tensor) -> Tensor:
    """Which points lie in a ball around a point of the set: bool [N]."""
    some = (torch.cdist(points, set_MD) for points in points_ND.split(_AT_ONCE))
    return torch.cat([(one <= radius_M).any(dim=1) for one in some])


class PrecisionRecall(ClipMetric):
    """Shares of generated images among the real ones, and of real ones among the generated."""

    def __init__(self, names: Sequence[str], options: MetricOptions) -> None:
        self.plan = PROTOCOLS["fid:torch-fidelity"]
        if options.reference is None or not options.reference.is_dir():
            raise EvaluationError(f"{names[0]} needs every real image: give --reference FOLDER")
        self.real = find_real(names[0], self.plan, options.reference)
        weighed = next((name for name in names if name in options.weights), names[0])
        self.extractor = Inception(weighed, options)
        self.options, self.batch = options, options.batch
        self._real_radius_M: Tensor | None = None
        self.row_protocol = {"metric": "precision and recall", **self.extractor.protocol}
        protocol = {**self.extractor.protocol, "neighbours": NEIGHBOURS, "real": len(self.real.clips)}
        known = {
            PRECISION: MetricValue(
                name=PRECISION, better="higher", protocol=protocol, share=True, least=0.0, most=1.0
            ),
            RECALL: MetricValue(name=RECALL, better="higher", protocol=protocol, least=0.0, most=1.0),
        }
        self.values = tuple(known[name] for name in names)

    def check(self, clips: Sequence[ClipFile]) -> Sequence[str]:
        for what, count in (
            ("real images", len(self.real.clips)),
            (f"clips of {clips[0].method}", len(clips)),
        ):
            if count <= NEIGHBOURS:
                raise EvaluationError(
                    f"{self.values[0].name} needs more than {NEIGHBOURS} {what}, got {count}"
                )
        return ()

    def begin(self) -> Mapping[str, str]:
        store = RowStore(
            self.options.work, {"reference": str(self.real.folder.resolve()), **self.row_protocol}
        )
        *_, skipped = look_at(
            self.real, self.values[0].name, self.plan, self.rows, store=store, batch=self.batch
        )
        states = [state for clip in self.real.clips if (state := file_state(clip.path)) in store]
        self._real_MD, self._real_radius_M = store.take(states).float(), None
        return skipped

    def look(self, clip: ClipFile) -> Look:
        return middle_frame(clip)

    def rows(self, seen: Tensor) -> Tensor:
        return self.extractor.features(seen)

    def compute(self, name: str, rows: Tensor, index: Tensor) -> float:
        if name == PRECISION:
            return float(self._among_real(rows[index]).mean())
        if len(index.unique()) < len(index):  # a repeated image has itself for a neighbour
            raise EvaluationError(f"{name} has no bootstrap interval")
        generated_ND = rows[index].float()
        return float(within(self._real_MD, generated_ND, radii(generated_ND)).float().mean())

    def per_clip(self, name: str, rows: Tensor) -> Tensor | None:
        return self._among_real(rows) if name == PRECISION else None

    def _among_real(self, rows: Tensor) -> Tensor:
        if self._real_radius_M is None:
            self._real_radius_M = radii(self._real_MD)
        return within(rows.float(), self._real_MD, self._real_radius_M).double()

    def details(self, name: str, rows: Tensor, index: Tensor) -> Mapping[str, Any]:
        return {"real": len(self._real_MD)}


register_metrics(
    {
        PRECISION: "share of images among the real ones (arXiv 1904.06991); needs weights, extra images",
        RECALL: "share of real images among the generated ones; likewise",
    },
    PrecisionRecall,
    reads=("reference", "weights", "trust_weights", "device", "batch"),
    needs_reference=True,
)

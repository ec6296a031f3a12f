"""Fréchet video distance (arXiv 1812.01717) under named protocols.

Numbers of different protocols cannot be compared, and neither can those of the same protocol over different
numbers of clips: the fewer clips, the higher the distance of equal sets.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.errors import EvaluationError
from oseg_video.evaluation.features.frechet import frechet_distance, moments_of_rows
from oseg_video.evaluation.features.protocols import PROTOCOLS
from oseg_video.evaluation.features.real_clips import RealClips, find_real, look_at, look_at_drawn
from oseg_video.evaluation.features.reference import (
    SUFFIX,
    Reference,
    load_reference,
    save_reference,
    saved_names,
)
from oseg_video.evaluation.metrics.base import MetricOptions, MetricValue, register_metrics
from oseg_video.evaluation.observe import ClipMetric, Look
from oseg_video.evaluation.rows import RowStore
from oseg_video.files import check_file

SHIPPED = Path(__file__).with_name(f"embedded_reference{SUFFIX}")
"""Statistics of the drawn clips that `fvd:embedded` and `fvd:two` compare with where no reference is given.
Made by `oseg-video evaluate FOLDER --metrics NAME --save-reference FILE` with this file out of the way."""

_LOSSLESS = frozenset({"drawn", "png", "apng", "bmp", "tif", "tiff"})
"""Kinds of clips."""


class FrechetVideoDistance(ClipMetric):
    """The distance of one protocol to the statistics of real clips."""

    def __init__(self, names: Sequence[str], options: MetricOptions) -> None:
        (self.name,) = names
        self.options = options
        self.plan = PROTOCOLS[self.name]
        self.batch = options.batch
        self._check_options()
        self.extractor = self.plan.extractor(self.name, options)
        self._seen: dict[str, Any] = {
            "frames": self.plan.frames or self.extractor.protocol["frames"],
            "stride": self.plan.stride,
            "extractor": dict(self.extractor.protocol),
        }
        # Protocols with the same features keep rows of their own.
        self.row_protocol = {"metric": self.name, **self._seen}
        self._reference: Reference | None = None
        self._real: RealClips | None = None
        given = options.reference
        if given is not None and given.suffix == SUFFIX:
            self._reference = load_reference(given, self.name, self.real_protocol)
        elif given is None:
            with contextlib.suppress(EvaluationError):  # of another classifier: the clips are drawn again
                self._reference = load_reference(SHIPPED, self.name, self.real_protocol)
        else:
            self._real = find_real(self.name, self.plan, given)

    @property
    def real_protocol(self) -> dict[str, Any]:
        """What statistics of real clips depend on besides the clips."""
        return {**self._seen, "clips": self.plan.clips or "any", "start": self.plan.real_start}

    @property
    def values(self) -> Sequence[MetricValue]:  # type: ignore[override]
        about = dict(self._reference.about) if self._reference else {}
        protocol = {
            **self._seen,
            "clips": self.plan.clips or "any",
            "start": {"clips": "first", "reference": self.plan.real_start},
            "ddof": self.plan.ddof,
            "reference": about,
            "interval": "over clips, the reference fixed",
        }
        return [
            MetricValue(
                name=self.name,
                better="lower",
                protocol=protocol,
                least=0.0,
                clips=self.plan.clips,
                resamples=self.plan.resamples,
            )
        ]

    def refuses(self, clip: ClipFile) -> str | None:
        return self.plan.refuses(self.name, clip)

    def check(self, clips: Sequence[ClipFile]) -> Sequence[str]:
        """Number of clips; for few clips the effect."""
        method, count, wanted = clips[0].method, len(clips), self.plan.clips
        if wanted is not None and count != wanted:
            raise EvaluationError(
                f"{self.name} is defined for {wanted} clips; {method} has {count} "
                "(fvd:i3d_16f takes any number)"
            )
        if count < 2:
            raise EvaluationError(f"{self.name} needs at least 2 clips; {method} has {count}")
        warnings = list(self._other_coding(clips))
        if count < 10 * self.extractor.width:
            warnings.append(
                f"{self.name}: {count} clips of {method} for {self.extractor.width} dimensions raise the "
                "distance; compare it only with distances over as many clips (its details have it for half)"
            )
        return warnings

    def begin(self) -> Mapping[str, str]:
        """Look at the reference, unless its statistics were given; save them if asked to."""
        skipped: Mapping[str, str] = {}
        if self._reference is None:
            if self._real is None:
                assert self.plan.task is not None, "others are refused without a reference"
                moments, about = look_at_drawn(self.rows, self.plan.task)
            else:
                # Where a clip begins may follow from its name, and names from the folder.
                about = {"reference": self.name, "folder": str(self._real.folder.resolve())}
                store = RowStore(self.options.work, {**about, **self.real_protocol})
                moments, about, skipped = look_at(
                    self._real, self.name, self.plan, self.rows, store=store, batch=self.batch
                )
            self._reference = Reference(moments, self.real_protocol, about)
        self._save()
        return skipped

    def _save(self) -> None:
        """Save the statistics if asked to, and note in the work folder that they are this run's own."""
        path = self.options.save_reference
        if path is None:
            return
        if self.options.work is not None:
            self.options.work.mkdir(parents=True, exist_ok=True)
            self._note().touch()
        assert self._reference is not None
        save_reference(path, self.name, self._reference)

    def _note(self) -> Path:
        assert self.options.work is not None and self.options.save_reference is not None
        what = f"{self.name}|{self.options.save_reference.absolute()}"
        return self.options.work / f"saving-{hashlib.sha256(what.encode()).hexdigest()[:16]}"

    def _saved_before(self) -> bool:
        """Whether an earlier part of this run, which was stopped, has saved or begun to save statistics."""
        return self.options.work is not None and self._note().exists()

    def look(self, clip: ClipFile) -> Look:
        return self.plan.look(clip, real=False)

    def rows(self, seen: Tensor) -> Tensor:
        return _without_tf32(self.extractor.features, seen)

    def compute(self, name: str, rows: Tensor, index: Tensor) -> float:
        assert self._reference is not None, "begin comes first"
        if rows.shape[1] != len(self._reference.moments.mean_D):
            raise EvaluationError(f"{name}: features of clips and reference have different dimensions")
        return self._distance(rows, index)

    def details(self, name: str, rows: Tensor, index: Tensor) -> Mapping[str, Any]:
        """The distance over every other clip shows how much it depends on their number."""
        half = index[::2]
        return {"half": {"clips": len(half), "value": self._distance(rows, half)}} if len(half) > 1 else {}

    def _distance(self, rows: Tensor, index: Tensor) -> float:
        assert self._reference is not None
        if len(index) < 2:
            raise EvaluationError(f"{self.name} needs at least 2 clips, got {len(index)}")
        return frechet_distance(moments_of_rows(rows, index), self._reference.moments, ddof=self.plan.ddof)

    def _other_coding(self, clips: Sequence[ClipFile]) -> Sequence[str]:
        real = self._real.kinds if self._real else self._reference.about["kinds"] if self._reference else None
        if real is None or _LOSSLESS.issuperset(real) == _LOSSLESS.issuperset(clip.kind for clip in clips):
            return ()
        return [
            f"{self.name}: one of the two sets is lossless (drawn, PNG and the like) and the other is not; "
            "compression alone raises the distance"
        ]

    def _check_options(self) -> None:
        """What can be refused before anything is loaded."""
        given, save = self.options.reference, self.options.save_reference
        if given is not None and not given.exists():
            raise EvaluationError(f"no such reference: {given}")
        if save is not None and save.suffix != SUFFIX:
            raise EvaluationError(f"statistics are saved as {SUFFIX} files, not {save}")
        if save is not None:
            check_file(save, overwrite=True)
        replace = save is not None and (self.options.overwrite or self._saved_before())
        if save is not None and not replace and self.name in saved_names(save):
            raise EvaluationError(f"{save} has statistics of {self.name} already; --overwrite replaces them")


def _without_tf32(features: Callable[[Tensor], Tensor], clips: Tensor) -> Tensor:
    """Features in float32 also where a GPU's convolutions would round to TF32."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False):
        return features(clips)


for _name, _protocol in PROTOCOLS.items():
    register_metrics(
        {_name: _protocol.summary},
        partial(FrechetVideoDistance),  # a builder each: two protocols do not share what they look at
        reads=("reference", "save_reference", "device", "batch")
        + (("weights", "trust_weights") if _protocol.task is None else ()),
        needs_reference=_protocol.task is None,
    )

"""The named protocols of Fréchet video distances, and which frames of a clip they take.

T frames that a network sees, C colour channels (RGB), H rows, W columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from oseg_video.embedded.drawing import FRAMES
from oseg_video.embedded.tasks import ONE_SHAPE, TWO_SHAPES, Task
from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.features.judged import no_embedded
from oseg_video.evaluation.features.networks import I3D, Extractor, JudgeFeatures, VideoMAE
from oseg_video.evaluation.features.stills import Inception, middle_frame
from oseg_video.evaluation.metrics.base import MetricOptions
from oseg_video.evaluation.observe import ChosenFrames, Look, too_short


@dataclass(frozen=True, kw_only=True)
class FvdProtocol:
    """What has to be the same for two distances to be comparable."""

    summary: str
    clips: int | None
    """Exact number of clips on both sides, or None for any number."""
    frames: int | None
    """Frames that the network sees; None for the network's own choice over the whole clip."""
    stride: int = 1
    """Every how many frames one is taken."""
    real_start: str = "first"
    """Where real clips begin: "first" or "random" (drawn from the clip's name); others begin at the first."""
    task: Task | None = None
    """Whose clips are drawn where no real ones are given, and read by a judge that chooses frames itself."""
    ddof: int
    """Covariances are divided by clips - ddof."""
    resamples: int = 200
    """Bootstrap resamples of the interval."""
    still: bool = False
    """Whether it is about images: of a clip the middle frame, of a folder of real ones every image."""
    extractor: Callable[[str, MetricOptions], Extractor]

    @property
    def span(self) -> int:
        """Least number of frames of a clip."""
        return FRAMES if self.frames is None else (self.frames - 1) * self.stride + 1

    def refuses(self, metric: str, clip: ClipFile) -> str | None:
        """As of `Metric`."""
        return no_embedded(metric, clip) if self.task is not None else too_short(metric, clip, self.span)

    def look(self, clip: ClipFile, *, real: bool) -> Look:
        """Takes the frames of a clip that the network sees: [T, C, H, W]."""
        if self.task is not None:
            return ChosenFrames(clip, self.task.seen_frames(clip.frames))
        if self.still:
            return middle_frame(clip)
        random = real and self.real_start == "random"
        start = _drawn(clip.name, clip.frames - self.span + 1) if random else 0
        return ChosenFrames(clip, range(start, start + self.span, self.stride))


def _drawn(name: str, count: int) -> int:
    """A number below `count` that depends on the name alone, so that no order of clips matters."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % count


def _stylegan_v(summary: str, frames: int, stride: int = 1) -> FvdProtocol:
    """A metric of StyleGAN-V (arXiv 2112.14683), `src/metrics/metric_main.py`."""
    return FvdProtocol(
        summary=f"FVD of StyleGAN-V: I3D, 2048 clips, {summary}",
        clips=2048,
        frames=frames,
        stride=stride,
        real_start="random",
        ddof=0,
        extractor=I3D,
    )


def _inception(resize: Literal["tensorflow", "clean"], summary: str) -> FvdProtocol:
    """FID (arXiv 1706.08500) over any number of images, in the features of the Inception of 2015."""
    return FvdProtocol(
        summary=f"FID {summary}; needs weights and the extra images",
        clips=None,
        frames=1,
        ddof=1,
        resamples=20,  # each takes the eigenvalues of 2048 x 2048 numbers
        still=True,
        extractor=partial(Inception, resize=resize),
    )


PROTOCOLS: dict[str, FvdProtocol] = {
    "fid:torch-fidelity": _inception(
        "tensorflow", "as torch-fidelity has it: bilinear resizing of TensorFlow"
    ),
    "fid:clean-fid": _inception("clean", "as clean-fid has it: resized as Pillow does, not rounded"),
    "fvd:fvd2048_16f": _stylegan_v("the first 16 frames", 16),
    "fvd:fvd2048_128f": _stylegan_v("the first 128 frames", 128),
    "fvd:fvd2048_128f_subsample8f": _stylegan_v("every 8th of the first 128 frames", 16, 8),
    "fvd:i3d_16f": FvdProtocol(
        summary="FVD with I3D over any number of clips, first 16 frames",
        clips=None,
        frames=16,
        ddof=1,
        extractor=I3D,
    ),
    "fvd:videomae_16f": FvdProtocol(
        summary="FVD with VideoMAE over any number of clips, first 16 frames",
        clips=None,
        frames=16,
        ddof=1,
        extractor=VideoMAE,
    ),
    "fvd:embedded": FvdProtocol(
        summary="Fréchet distance in the shipped classifier's features (shipped model's data set)",
        clips=None,
        frames=None,
        task=ONE_SHAPE,
        ddof=1,
        extractor=partial(JudgeFeatures, ONE_SHAPE),
    ),
    "fvd:two": FvdProtocol(
        summary="Fréchet distance in the features of the shipped judge of two shapes",
        clips=None,
        frames=None,
        task=TWO_SHAPES,
        ddof=1,
        extractor=partial(JudgeFeatures, TWO_SHAPES),
    ),
}

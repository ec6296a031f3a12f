"""LPIPS (arXiv 1801.03924) between a clip and the unguided one of the same prompt and seed.

How far guidance moves an image from what the model draws without it. The slides (tables 1 and 2) do not say
what their LPIPS compares; this is how we read it. Lower is nearer; 0 is the same image.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from oseg_video import console
from oseg_video.evaluation.clips import SHOWN_NOWHERE, ClipFile, varying_settings
from oseg_video.evaluation.errors import EvaluationError
from oseg_video.evaluation.features.stills import library, middle_frame
from oseg_video.evaluation.features.weights import file_sha256
from oseg_video.evaluation.metrics.base import (
    Metric,
    MetricOptions,
    MetricValue,
    Observations,
    register_metrics,
)
from oseg_video.evaluation.observe import unfit_methods, watch
from oseg_video.evaluation.rows import RowStore, file_state
from oseg_video.types import OsegVideoError

UNGUIDED = "none"
NETWORKS = {"lpips:vgg": "vgg", "lpips:alex": "alex"}


class DistanceToUnguided(Metric):
    """LPIPS of middle frames by the package lpips, version 0.1 of its weights."""

    def __init__(self, names: Sequence[str], options: MetricOptions) -> None:
        (self.name,) = names
        package = library("lpips", self.name)
        backbone = options.weights.get(self.name)
        with contextlib.redirect_stdout(io.StringIO()):  # it says what it does
            try:
                network = package.LPIPS(
                    net=NETWORKS[self.name], pnet_rand=backbone is not None, verbose=False
                )
                if backbone is not None:
                    _load_backbone(network, Path(backbone))
            except Exception as error:  # torchvision fetches the backbone where no file is given
                line = next(iter(str(error).splitlines()), type(error).__name__)
                raise EvaluationError(
                    f"cannot make the network of {self.name} ({line}); give torchvision's weights of it with "
                    f"--weights {self.name}=FILE.pth"
                ) from None
        self.network = network.eval().to(options.device)
        self.options = options
        protocol = {
            "metric": self.name,
            "network": f"{NETWORKS[self.name]}, linear layers of lpips 0.1",
            "backbone": file_sha256(Path(backbone)) if backbone else "torchvision's, ImageNet",
            "reference": f"the clip of guidance {UNGUIDED!r} with the same model, prompt, image and seed",
            "image": "the middle frame of a clip, at its own size, scaled to -1 ... 1",
        }
        self.values = (MetricValue(name=self.name, better="lower", protocol=protocol, least=0.0),)

    def check_together(self, clips: Sequence[ClipFile]) -> Sequence[str]:
        if all(clip.guidance != UNGUIDED for clip in clips):
            raise EvaluationError(f"{self.name} compares with clips of guidance {UNGUIDED!r}; there are none")
        return ()

    @torch.no_grad()
    def observe(self, clips: Sequence[ClipFile]) -> Observations:
        unguided: dict[tuple[str, str, int], list[ClipFile]] = {}
        for clip in clips:
            if clip.guidance == UNGUIDED:
                unguided.setdefault(_request(clip), []).append(clip)
        store = RowStore(self.options.work, self.values[0].protocol)
        found: list[tuple[ClipFile, str]] = []
        skipped: dict[str, str] = {}
        for clip in console.bar(clips, self.name):
            try:
                reference = self._reference(clip, unguided.get(_request(clip), []))
                state = f"{file_state(clip.path)}|{file_state(reference.path)}"
                if state not in store:
                    distance = 0.0 if reference is clip else self._distance(clip, reference)
                    store.append([state], torch.tensor([[distance]]))
                found.append((clip, state))
            except OsegVideoError as error:
                skipped[clip.name] = str(error)
        rows = store.take([state for _, state in found])
        unfit = unfit_methods(self, clips, skipped)
        return Observations(tuple(clip for clip, _ in found), rows, skipped, unfit)

    def compute(self, name: str, rows: Tensor, index: Tensor) -> float:
        return float(rows[index, 0].mean())

    def per_clip(self, name: str, rows: Tensor) -> Tensor | None:
        return rows[:, 0]

    def _reference(self, clip: ClipFile, unguided: Sequence[ClipFile]) -> ClipFile:
        """The unguided clip of a request; of several, the one that was made as the clip was."""
        varying = [name for name in varying_settings(unguided) if name not in SHOWN_NOWHERE]
        same = [
            one
            for one in unguided
            if all(one.made_with.get(name) == clip.made_with.get(name) for name in varying)
        ]
        if len(same) == 1:
            return same[0]
        prefix = f"{self.name}: {clip.name} has"
        if not unguided:
            raise EvaluationError(f"{prefix} no unguided clip of its prompt and seed")
        raise EvaluationError(
            f"{prefix} {len(unguided)} unguided clips of its prompt and seed, {len(same)} of them with its "
            f"{', '.join(varying) or 'settings'}"
        )

    def _distance(self, clip: ClipFile, other: ClipFile) -> float:
        first, second = (self._image(one) for one in (clip, other))
        if first.shape != second.shape:
            raise EvaluationError(f"{self.name}: {clip.name} and {other.name} have different sizes")
        return float(self.network(first, second))

    def _image(self, clip: ClipFile) -> Tensor:
        """[1, C, H, W], -1 to 1."""
        (seen,) = watch(clip, [middle_frame(clip)])
        if isinstance(seen, OsegVideoError):
            raise seen
        return seen.to(self.options.device).float() / 127.5 - 1


def _request(clip: ClipFile) -> tuple[str, str, int]:
    return (str(clip.settings.get("model")), *clip.key)


def _load_backbone(network: torch.nn.Module, path: Path) -> None:
    """torchvision's file names its layers `features.N`; lpips spreads them over `net.sliceK.N`."""
    weights = torch.load(path, map_location="cpu", weights_only=True)
    own = network.net.state_dict()  # type: ignore[union-attr]
    chosen = {key: weights[f"features.{key.partition('.')[2]}"] for key in own}
    network.net.load_state_dict(chosen)  # type: ignore[union-attr]


for _name in NETWORKS:
    register_metrics(
        {_name: f"LPIPS ({NETWORKS[_name]}) to the unguided clip of the same seed; needs the extra images"},
        partial(DistanceToUnguided),
        reads=("weights", "device"),
    )

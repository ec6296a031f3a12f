"""Networks that turn a clip into a feature vector, for Fréchet distances.

B clips, T frames of a clip, C colour channels (RGB), H rows, W columns, D feature dimensions, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from oseg_video.embedded.tasks import Task
from oseg_video.evaluation.errors import EvaluationError
from oseg_video.evaluation.features.judged import judge_protocol
from oseg_video.evaluation.features.weights import fetch, file_sha256, load_torchscript
from oseg_video.evaluation.metrics.base import MetricOptions

I3D_REPOSITORY, I3D_FILE = "flateon/FVD-I3D-torchscript", "i3d_torchscript.pt"
I3D_SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"
"""Of StyleGAN-V's file and of its mirror on the hub."""
VIDEOMAE_REPOSITORY = "MCG-NJU/videomae-base-finetuned-ssv2"
# The second is read by torch.load, which takes nothing but tensors from it.
_VIDEOMAE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class Extractor(Protocol):
    """A network and how clips are made to fit it."""

    @property
    def protocol(self) -> Mapping[str, Any]:
        """What the features depend on: the network, its weights' SHA-256, resizing, scaling."""
        ...

    @property
    def width(self) -> int:
        """D of the published network."""
        ...

    def features(self, clips_BTCHW: Tensor) -> Tensor:
        """Features [B, D] of uint8 clips that have the protocol's frames."""
        ...


class I3D:
    """I3D (arXiv 1705.07750) trained on Kinetics-400, its 400 logits, as StyleGAN-V's torchscript file.

    The file itself scales pixels to -1 ... 1 and resizes frames to 224 x 224, whatever their aspect ratio.
    """

    width = 400

    def __init__(self, metric: str, options: MetricOptions) -> None:
        given = options.weights.get(metric)
        path = Path(given) if given else fetch(I3D_REPOSITORY, I3D_FILE, metric=metric)
        network, digest = load_torchscript(
            path, expected=I3D_SHA256, trusted=options.trust_weights, metric=metric
        )
        self.network = network.to(options.device)
        self.device = options.device
        self.protocol = {
            "network": "I3D, Kinetics-400, logits (torchscript)",
            "sha256": digest,
            "resize": "224 x 224, trilinear, aspect ratio not kept, inside the network",
            "scale": "-1 ... 1",
        }

    def features(self, clips_BTCHW: Tensor) -> Tensor:
        video_BCTHW = clips_BTCHW.transpose(1, 2).contiguous().to(self.device)
        return call_script(self.network, video_BCTHW, rescale=True, resize=True, return_features=True)


class VideoMAE:
    """VideoMAE (arXiv 2203.12602) fine-tuned for classification, through transformers: what its head reads.

    The mean over all tokens of the last layer, normalised. Content-debiased FVD (arXiv 2404.12391) does so
    with a larger network that transformers does not have, so its numbers are other ones.
    """

    def __init__(self, metric: str, options: MetricOptions) -> None:
        given = options.weights.get(metric, VIDEOMAE_REPOSITORY)
        folder, weights = _videomae_files(given, metric)
        from transformers import VideoMAEForVideoClassification

        try:
            model, report = VideoMAEForVideoClassification.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise EvaluationError(f"{given} is no VideoMAE classifier that can be loaded: {reason}") from None
        if model.fc_norm is None or report["missing_keys"]:
            raise EvaluationError(f"{given} is no VideoMAE that was fine-tuned with mean pooling")
        self.model = model.to(options.device).eval()
        self.device = options.device
        self.size = int(model.config.image_size)
        self.frames = int(model.config.num_frames)
        self.width = int(model.config.hidden_size)
        self.protocol = {
            "network": f"VideoMAE, {model.config.num_hidden_layers} layers of {self.width}, mean of tokens",
            "sha256": file_sha256(weights),
            "resize": f"{self.size} x {self.size}, bilinear, aspect ratio not kept, before scaling",
            "scale": "mean and deviation of ImageNet",
        }

    def features(self, clips_BTCHW: Tensor) -> Tensor:
        if clips_BTCHW.shape[1] != self.frames:
            raise EvaluationError(
                f"this VideoMAE sees {self.frames} frames; the protocol has {clips_BTCHW.shape[1]}"
            )
        video_BTCHW = clips_BTCHW.to(self.device).float() / 255
        scaled_NCHW = functional.interpolate(
            video_BTCHW.flatten(0, 1), (self.size, self.size), mode="bilinear", align_corners=False
        )
        mean_C11 = torch.tensor([0.485, 0.456, 0.406], device=self.device)[:, None, None]
        deviation_C11 = torch.tensor([0.229, 0.224, 0.225], device=self.device)[:, None, None]
        scaled_BTCHW = ((scaled_NCHW - mean_C11) / deviation_C11).unflatten(0, video_BTCHW.shape[:2])
        tokens_BLD = self.model.videomae(scaled_BTCHW).last_hidden_state
        features_BD: Tensor = self.model.fc_norm(tokens_BLD.mean(dim=1))
        return features_BD


class JudgeFeatures:
    """The features of a shipped judge, for clips of its task."""

    def __init__(self, task: Task, metric: str, options: MetricOptions) -> None:
        self.judge = task.load_judge().to(options.device)
        self.device, self.width = options.device, task.width
        self.protocol = judge_protocol(task)

    def features(self, clips_BTCHW: Tensor) -> Tensor:
        return self.judge.frame_features(clips_BTCHW.to(self.device).float() / 255)


def call_script(network: Any, video: Tensor, **arguments: Any) -> Tensor:
    """Call a torchscript network. Raises EvaluationError if it does not take or return what it should."""
    try:
        output = network(video, **arguments)
    except RuntimeError as error:  # also what a wrong signature raises
        if isinstance(error, torch.OutOfMemoryError):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise EvaluationError(f"the torchscript network failed on {list(video.shape)}: {lines[-1]}") from None
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(video):
        raise EvaluationError("the torchscript network did not return one vector a clip")
    return output


def _videomae_files(given: str, metric: str) -> tuple[Path, Path]:
    """Folder of configuration and weights, and the file of weights."""
    if Path(given).exists():
        held = [Path(given) / name for name in _VIDEOMAE_WEIGHTS if (Path(given) / name).is_file()]
        if not held:
            raise EvaluationError(f"{given} holds no {' or '.join(_VIDEOMAE_WEIGHTS)}")
        return Path(given), held[0]
    try:
        weights = fetch(given, _VIDEOMAE_WEIGHTS[0], metric=metric)
    except EvaluationError as first:
        try:
            weights = fetch(given, _VIDEOMAE_WEIGHTS[1], metric=metric)
        except EvaluationError:
            raise first from None
    return fetch(given, "config.json", metric=metric).parent, weights

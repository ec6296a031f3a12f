"""What metrics of images share: which frame of a clip they see, optional libraries, the Inception of 2015.

B images, C colour channels (RGB), H rows, W columns, D feature dimensions.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.errors import EvaluationError
from oseg_video.evaluation.features.weights import fetch, file_sha256
from oseg_video.evaluation.metrics.base import MetricOptions
from oseg_video.evaluation.observe import ChosenFrames

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
"""torch-fidelity's file (its release 0.2.0); its name ends in the first digits of its SHA-256."""
_SIDE = 299
_RESIZING = {
    "tensorflow": "299 x 299, bilinear without antialiasing, corners as in TensorFlow 1, in the network",
    "clean": "299 x 299, Pillow's bicubic with antialiasing, each channel in float, clipped and not rounded",
}


def middle_frame(clip: ClipFile) -> ChosenFrames:
    """Sees the one frame that stands for a clip, [1, C, H, W]: an image itself, of a clip frame F // 2."""
    return ChosenFrames(clip, [clip.frames // 2])


def library(name: str, metric: str) -> Any:
    """A module of the extra `images`. Raises EvaluationError saying how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EvaluationError(
            f"{metric} needs {error.name or name}, which is missing or does not fit: "
            f"pip install 'oseg-video[images]' (it brings torchvision, which must fit torch)"
        ) from None


class Inception:
    """The 2048 features of the last pooling of TensorFlow's Inception of 2015-12-05, by torch-fidelity."""

    width = 2048

    def __init__(
        self, metric: str, options: MetricOptions, *, resize: Literal["tensorflow", "clean"] = "tensorflow"
    ) -> None:
        fidelity = library("torch_fidelity.feature_extractor_inceptionv3", metric)
        path = self._file(metric, options)
        digest = file_sha256(path)
        stated = Path(INCEPTION_FILE).stem.rpartition("-")[2]
        if not digest.startswith(stated) and not options.trust_weights:
            raise EvaluationError(
                f"{path} is not {INCEPTION_FILE}: its SHA-256 is {digest}, not {stated}...; use it all the "
                f"same with --trust-weights (torch-fidelity reads it as a pickle, which can run any code)"
            )
        try:
            network = fidelity.FeatureExtractorInceptionV3(
                metric, ["2048"], feature_extractor_weights_path=str(path)
            )
        except Exception as error:  # of pickles and state dicts: many types
            line = next(iter(str(error).splitlines()), type(error).__name__)
            raise EvaluationError(f"cannot read {path} as the weights of {metric}: {line}") from None
        self._network: nn.Module = network.to(options.device)
        self._resize = resize
        self.protocol = {
            "network": "Inception of 2015-12-05 (torch-fidelity's conversion), features 2048 (last pooling)",
            "sha256": digest,
            "resize": _RESIZING[resize],
            "scale": "(x - 128) / 128",
            "image": "the middle frame of a clip",
        }
        self._device = options.device

    def features(self, clips_BTCHW: Tensor) -> Tensor:
        images_BCHW = clips_BTCHW[:, 0]
        if self._resize == "tensorflow":
            (features_BD,) = self._network(images_BCHW.to(self._device))
            return features_BD  # type: ignore[no-any-return]
        resized_BCHW = clean_resize(images_BCHW).to(self._device)
        # The network takes bytes only, so floats are put in their place where its first layer takes them.
        first: nn.Module = self._network.Conv2d_1a_3x3  # type: ignore[assignment]
        handle = first.register_forward_pre_hook(lambda *_: ((resized_BCHW - 128) / 128,))
        try:
            (features_BD,) = self._network(torch.zeros_like(resized_BCHW, dtype=torch.uint8))
        finally:
            handle.remove()
        return features_BD  # type: ignore[no-any-return]

    def _file(self, metric: str, options: MetricOptions) -> Path:
        given = options.weights.get(metric)
        if given is None:
            raise EvaluationError(
                f"{metric} needs {INCEPTION_FILE} of torch-fidelity: give --weights {metric}=PATH, or a hub "
                f"repository that has a file of this name"
            )
        return Path(given) if Path(given).exists() else fetch(given, INCEPTION_FILE, metric=metric)


def clean_resize(images_BCHW: Tensor) -> Tensor:
    """uint8 images at 299 x 299, float32, by Pillow's bicubic filter over each channel, within 0 to 255."""
    resized = [
        np.stack([_channel(channel.numpy()) for channel in image_CHW]) for image_CHW in images_BCHW.cpu()
    ]
    return torch.from_numpy(np.stack(resized)).clamp(0, 255)


def _channel(levels_HW: Any) -> Any:
    image = Image.fromarray(levels_HW.astype(np.float32), mode="F")
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))

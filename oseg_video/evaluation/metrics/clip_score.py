"""CLIPScore (arXiv 2104.08718): how near an image is to its prompt, in the space of CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.errors import EvaluationError
from oseg_video.evaluation.features.stills import middle_frame
from oseg_video.evaluation.features.weights import file_sha256
from oseg_video.evaluation.metrics.base import MetricOptions, MetricValue, register_metrics
from oseg_video.evaluation.observe import Look, MeanMetric
from oseg_video.media import Frame

REPOSITORIES = {
    "clip_score:vit-b-32": "openai/clip-vit-base-patch32",
    "clip_score:vit-l-14": "openai/clip-vit-large-patch14",
}


class CLIPScore(MeanMetric):
    """`max(cos(image, prompt), 0)` by transformers' CLIP, of the middle frame; without the factor 2.5."""

    def __init__(self, names: Sequence[str], options: MetricOptions) -> None:
        (self.name,) = names
        given = options.weights.get(self.name, REPOSITORIES[self.name])
        self.model, self.processor = _load(self.name, given)
        self.model.to(options.device)
        self.device = options.device
        config = self.model.config.vision_config
        self.row_protocol = {
            "metric": self.name,
            "model": given,
            "weights": _weights_of(self.model, given),
            "network": f"CLIP, {config.num_hidden_layers} layers of {config.hidden_size}",
            "definition": "max(cosine, 0); times 2.5 in arXiv 2104.08718, times 100 in torchmetrics",
            "image": "the middle frame of a clip, as the model's own processor resizes it",
            "text": "the prompt as it is, cut to the model's length",
        }
        self.values = (
            MetricValue(name=self.name, better="higher", protocol=self.row_protocol, least=0.0, most=1.0),
        )

    def refuses(self, clip: ClipFile) -> str | None:
        if clip.prompt and clip.prompt.strip():
            return None
        return f"{self.name} compares with the prompt; {clip.name} has none"

    def look(self, clip: ClipFile) -> Look:
        return _Scored(self, clip)

    def score(self, image_CHW: Tensor, prompt: str) -> float:
        """Of a uint8 image."""
        inputs = self.processor(
            text=[prompt], images=[image_CHW], return_tensors="pt", padding=True, truncation=True
        ).to(self.device)
        output = self.model(**inputs)
        image_D, text_D = output.image_embeds[0].double(), output.text_embeds[0].double()
        return max(0.0, float(torch.nn.functional.cosine_similarity(image_D, text_D, dim=0)))


class _Scored(Look):
    def __init__(self, metric: CLIPScore, clip: ClipFile) -> None:
        self._metric, self._clip, self._frame = metric, clip, middle_frame(clip)

    def add(self, frame: Frame) -> None:
        self._frame.add(frame)
        self.done = self._frame.done

    def seen(self) -> Tensor:
        score = self._metric.score(self._frame.seen()[0], self._clip.prompt or "")
        return torch.tensor([score], dtype=torch.float64)


def _weights_of(model: Any, given: str) -> str:
    """What tells the weights apart: the commit of a hub repository, SHA-256 of the files of a folder."""
    if commit := getattr(model.config, "_commit_hash", None):
        return str(commit)
    files = sorted(file for file in Path(given).iterdir() if file.suffix in (".safetensors", ".bin"))
    return ", ".join(map(file_sha256, files))


def _load(metric: str, given: str) -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPProcessor

    try:
        local = Path(given).exists()
        model = CLIPModel.from_pretrained(given, local_files_only=local).eval()
        return model, CLIPProcessor.from_pretrained(given, local_files_only=local)
    except Exception as error:  # transformers raises many types
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise EvaluationError(
            f"cannot load CLIP from {given} for {metric} ({lines[0] if lines else type(error).__name__}); "
            f"give --weights {metric}=FOLDER of transformers' CLIPModel"
        ) from None


for _name, _repository in REPOSITORIES.items():
    register_metrics(
        {_name: f"CLIPScore with {_repository}: cosine of the middle frame and the prompt; needs weights"},
        partial(CLIPScore),
        reads=("weights", "device"),
    )

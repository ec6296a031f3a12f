"""A small clip classifier: the judge of generated clips, and the feature extractor of their statistics.

Tensor letters: B clips, F frames, C colour channels (RGB), H rows, W columns, D feature dim.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from .dataset import FRAMES, SIZE, VOCABULARIES, ClipAttributes

WEIGHTS = Path(__file__).parent / "classifier.safetensors"
FEATURE_DIM = 96


class ClipClassifier(nn.Module):
    """Reads colour, shape, motion and background off a clip: a 3D convolutional network of 0.5 M parameters.

    Clips are float [B, F, C, H, W] in [0, 1] with H = W = 64 and at least 19 frames. A longer clip is judged
    by 19 frames spread evenly over its length.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_stage(3, 32, kernel=(3, 6, 6), stride=(2, 4, 4)),
            *_stage(32, 64, kernel=(3, 3, 3), stride=(1, 2, 2)),
            *_stage(64, 96, kernel=(3, 3, 3), stride=(2, 2, 2)),
            *_stage(96, FEATURE_DIM, kernel=(3, 3, 3), stride=(1, 1, 1)),
        )
        self.heads = nn.ModuleDict(
            {name: nn.Linear(FEATURE_DIM, len(words)) for name, words in VOCABULARIES.items()}
        )

    def features(self, clips_BFCHW: Tensor) -> Tensor:
        """Activations before the heads, averaged over time and space: [B, D] with D = 96."""
        shape = tuple(clips_BFCHW.shape)
        fits = len(shape) == 5 and shape[1] >= FRAMES and shape[2:] == (3, SIZE, SIZE)
        if not fits or not clips_BFCHW.is_floating_point():
            raise ValueError(
                f"clips must be float [B, F >= {FRAMES}, 3, {SIZE}, {SIZE}] in [0, 1], "
                f"got {clips_BFCHW.dtype} {list(shape)}"
            )
        chosen = torch.linspace(0, shape[1] - 1, FRAMES, device=clips_BFCHW.device).round().long()
        return self.layers(clips_BFCHW[:, chosen].transpose(1, 2) * 2 - 1).mean(dim=(2, 3, 4))

    def forward(self, clips_BFCHW: Tensor) -> dict[str, Tensor]:
        """Logits [B, words] for every vocabulary of `dataset.VOCABULARIES`, by its name."""
        features_BD = self.features(clips_BFCHW)
        return {name: head(features_BD) for name, head in self.heads.items()}

    @torch.no_grad()
    def judge(self, clips_BFCHW: Tensor) -> list[ClipAttributes]:
        """The most likely attributes of every clip."""
        words = {name: logits.argmax(dim=1).tolist() for name, logits in self(clips_BFCHW).items()}
        return [
            ClipAttributes(**{name: VOCABULARIES[name][words[name][row]] for name in VOCABULARIES})
            for row in range(len(clips_BFCHW))
        ]


def load_classifier() -> ClipClassifier:
    """The shipped classifier, in float32 on the CPU and in evaluation mode."""
    from safetensors.torch import load_file

    classifier = ClipClassifier()
    classifier.load_state_dict(load_file(WEIGHTS))
    return classifier.eval()


def _stage(
    channels_in: int, channels_out: int, *, kernel: tuple[int, int, int], stride: tuple[int, int, int]
) -> tuple[nn.Module, ...]:
    return (
        nn.Conv3d(channels_in, channels_out, kernel, stride, padding=1, bias=False),
        nn.GroupNorm(8, channels_out),
        nn.GELU(),
    )

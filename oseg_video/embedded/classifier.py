"""A small clip classifier: the judge of generated clips, and the feature extractor of their statistics.

Tensor letters: B clips, F frames, C colour channels (RGB), H rows, W columns, D feature dim, T seen
frames, N all frames of a batch.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from oseg_video.embedded.dataset import VOCABULARIES, ClipAttributes
from oseg_video.embedded.drawing import FRAMES, SIZE

WEIGHTS = Path(__file__).parent / "classifier.safetensors"
SEEN_FRAMES = 7
WINDOW = 40
"""Pixels per side; the largest shape measures 33."""
LEAST_CONTRAST = 0.15
"""Mean difference from the border, for colours in -1 ... 1, below which a pixel counts as background."""
WINDOW_DIM, PATH_DIM, BORDER_DIM = 64, 16, 16
FEATURE_DIM = WINDOW_DIM + PATH_DIM + BORDER_DIM


class ClipClassifier(nn.Module):
    """Reads colour, shape, motion and background off a clip.

    It finds what stands out from the border's colour, follows its centre, and looks at a window around it
    with a small convolutional network, frame by frame.

    Clips are float [B, F, C, H, W] in [0, 1] with H = W = 64 and at least 19 frames. The network looks at
    seven frames spread evenly over the clip: of 19 frames, the first and every third.
    """

    def __init__(self) -> None:
        super().__init__()
        self.window = nn.Sequential(
            *_stage(4, 24, kernel=5, stride=2),
            *_stage(24, 48, kernel=3, stride=2),
            *_stage(48, 96, kernel=3, stride=2),
            nn.Conv2d(96, WINDOW_DIM, WINDOW // 8),
        )
        self.path = nn.Sequential(nn.Linear(2 * (SEEN_FRAMES - 1), 2 * PATH_DIM), nn.ReLU())
        self.path.append(nn.Linear(2 * PATH_DIM, PATH_DIM))
        self.border = nn.Linear(3, BORDER_DIM)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(FEATURE_DIM, len(words)) for name, words in VOCABULARIES.items()}
        )

    def features(self, clips_BFCHW: Tensor) -> Tensor:
        """What the heads read: [B, D] with D = 96; window (64), path of the centre (16), border (16)."""
        shape = tuple(clips_BFCHW.shape)
        fits = len(shape) == 5 and shape[1] >= FRAMES and shape[2:] == (3, SIZE, SIZE)
        if not fits or not clips_BFCHW.is_floating_point():
            raise ValueError(
                f"clips must be float [B, F >= {FRAMES}, 3, {SIZE}, {SIZE}] in [0, 1], "
                f"got {clips_BFCHW.dtype} {list(shape)}"
            )
        return self.frame_features(clips_BFCHW[:, seen_frames(shape[1])])

    def frame_features(self, frames_BTCHW: Tensor) -> Tensor:
        """`features` of clips that hold the T = 7 seen frames only."""
        frames_NCHW = frames_BTCHW.flatten(0, 1) * 2 - 1
        border_NC = _border(frames_NCHW)
        contrast_NHW = (frames_NCHW - border_NC[:, :, None, None]).abs().mean(dim=1)
        contrast_NHW = (contrast_NHW - LEAST_CONTRAST).clamp(min=0)
        centre_N2 = _centre(contrast_NHW)
        windows = _windows(torch.cat([frames_NCHW, contrast_NHW[:, None]], dim=1), centre_N2)
        window_BTD = self.window(windows).flatten(1).unflatten(0, frames_BTCHW.shape[:2])
        steps = centre_N2.unflatten(0, frames_BTCHW.shape[:2]).diff(dim=1)
        border_BTC = border_NC.unflatten(0, frames_BTCHW.shape[:2])
        path_BD = self.path(10 * steps.flatten(1))
        return torch.cat([window_BTD.mean(dim=1), path_BD, self.border(border_BTC.mean(dim=1))], dim=1)

    def forward(self, clips_BFCHW: Tensor) -> dict[str, Tensor]:
        """Logits [B, words] for every vocabulary of `dataset.VOCABULARIES`, by its name."""
        return self.read(self.features(clips_BFCHW))

    def read(self, features_BD: Tensor) -> dict[str, Tensor]:
        """Logits from features."""
        return {name: head(features_BD) for name, head in self.heads.items()}

    @torch.no_grad()
    def judge(self, clips_BFCHW: Tensor) -> list[ClipAttributes]:
        """The most likely attributes of every clip."""
        return self._named(self.features(clips_BFCHW))

    @torch.no_grad()
    def judge_frames(self, frames_BTCHW: Tensor) -> list[ClipAttributes]:
        """`judge` of the seen frames only."""
        return self._named(self.frame_features(frames_BTCHW))

    def _named(self, features_BD: Tensor) -> list[ClipAttributes]:
        words = {name: logits.argmax(dim=1).tolist() for name, logits in self.read(features_BD).items()}
        return [
            ClipAttributes(**{name: VOCABULARIES[name][words[name][row]] for name in VOCABULARIES})
            for row in range(len(features_BD))
        ]


def agreement(wanted: ClipAttributes, seen: ClipAttributes) -> dict[str, bool]:
    """What of a caption a clip shows: each attribute, and `all`, which leaves the background out."""
    right = {name: getattr(wanted, name) == getattr(seen, name) for name in VOCABULARIES}
    return {**right, "all": right["colour"] and right["shape"] and right["motion"]}


def seen_frames(frames: int) -> list[int]:
    """Indices of the frames that the classifier looks at in a clip of `frames` frames."""
    return torch.linspace(0, frames - 1, SEEN_FRAMES).round().int().tolist()


def load_classifier() -> ClipClassifier:
    """The shipped classifier, in float32 on the CPU and in evaluation mode."""
    from safetensors.torch import load_file

    classifier = ClipClassifier()
    classifier.load_state_dict(load_file(WEIGHTS))
    return classifier.eval()


def _border(frames_NCHW: Tensor) -> Tensor:
    """Mean colour of the outermost ring of pixels, [N, C]; a drawn shape never reaches it."""
    rows = frames_NCHW[:, :, [0, -1], :].mean(dim=(2, 3))
    columns = frames_NCHW[:, :, :, [0, -1]].mean(dim=(2, 3))
    return (rows + columns) / 2


def _centre(contrast_NHW: Tensor) -> Tensor:
    """Centre of gravity (x, y) of every frame, [N, 2] in -1 ... 1; the middle where there is no contrast."""
    axis = torch.linspace(-1, 1, SIZE, device=contrast_NHW.device)
    total = contrast_NHW.sum(dim=(1, 2)).clamp(min=1e-6)
    x = (contrast_NHW.sum(dim=1) * axis).sum(dim=1) / total
    y = (contrast_NHW.sum(dim=2) * axis).sum(dim=1) / total
    return torch.stack([x, y], dim=1)


def _windows(frames_NCHW: Tensor, centre_N2: Tensor) -> Tensor:
    """The window of 40 x 40 pixels around every centre, zero beyond the frame: [N, C, 40, 40]."""
    offset = (torch.arange(WINDOW, device=centre_N2.device) - (WINDOW - 1) / 2) * 2 / (SIZE - 1)
    x_NHW = (centre_N2[:, :1] + offset)[:, None, :].expand(-1, WINDOW, -1)
    y_NHW = (centre_N2[:, 1:] + offset)[:, :, None].expand(-1, -1, WINDOW)
    grid = torch.stack([x_NHW, y_NHW], dim=-1)
    return functional.grid_sample(frames_NCHW, grid, align_corners=True)


def _stage(channels_in: int, channels_out: int, *, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )

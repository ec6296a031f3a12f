"""The judge of clips of two shapes, and the feature extractor of their statistics.

Colours need no network: a pixel of a drawn clip mixes the background with one colour of the palette, so the
share of every colour in every pixel is read off directly. What is left, the outline and the path of each
colour where shapes hide parts of each other, small networks read.

Tensor letters: B clips, F frames, C colour channels (RGB), H rows, W columns, T seen frames, N all frames of
a batch, K colours of the palette, D feature dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from oseg_video.embedded.drawing import (
    BACKGROUND_RGB,
    BACKGROUNDS,
    COLOUR_RGB,
    COLOURS,
    FRAMES,
    MOTIONS,
    SHAPES,
    SIZE,
    colours_of,
)
from oseg_video.embedded.two_shapes import SHAPE_VOCABULARIES, MovingShape, TwoShapes

WEIGHTS = Path(__file__).parent / "two_shapes_judge.safetensors"
SEEN_FRAMES = 10
POOL = 2
"""Pixels per side that one value of a map of shares averages."""
WINDOW = 20
"""Side of the window around a shape, in values of a map: 40 pixels; the largest shape measures 28."""
LEAST_SHARE = 0.3
"""Below this share of its best colour, a pixel counts as background: edges, blur and noise."""
LEAST_AREA = 80.0
"""Mean area in pixels over the seen frames, below which a colour counts as absent.

Edges between two shapes look like thin shapes of a third colour; the smallest visible shape has twice that.
"""
LEAST_PIECE = 40.0
"""Area in pixels of a piece that counts: half of what the smallest visible shape shows."""
OUTLINE_DIM, PATH_DIM = 8, 8
FEATURE_DIM = len(COLOURS) * (OUTLINE_DIM + PATH_DIM + 2) + 3 + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenClip:
    """What a clip shows."""

    shapes: frozenset[MovingShape]
    """One of every colour, as if no two had the same."""
    pieces: int
    """Separate areas of one colour, in most frames: a second red circle is one more."""
    background: str


def agreement(wanted: TwoShapes, seen: SeenClip) -> dict[str, bool]:
    """What of a caption a clip shows.

    `count`: two shapes. `colour`, `shape`, `motion`: the two words, whichever shape has them. `binding`: the
    colour, kind and motion of each shape belong together. `all`: these, the count and the background.
    """
    right = {"count": seen.pieces == 2}
    for name in SHAPE_VOCABULARIES:
        words = sorted(getattr(shape, name) for shape in seen.shapes)
        right[name] = words == sorted(getattr(shape, name) for shape in wanted.shapes)
    right["binding"] = seen.shapes == frozenset(wanted.shapes)
    right["background"] = seen.background == wanted.background
    right["all"] = right["count"] and right["binding"] and right["background"]
    return right


@dataclass(frozen=True, kw_only=True, slots=True)
class ColourMaps:
    """What the judge measures without a network."""

    border_BC: Tensor
    """Colour of the border, in 0 ... 1."""
    share_BTKHW: Tensor
    """Share of every colour in every pixel, at half the resolution of the clip."""
    residual_BT: Tensor
    """Mean distance of the pixels from any such mixture."""
    area_BTK: Tensor
    """In pixels of the clip."""
    centre_BTK2: Tensor
    """Centre of gravity (x, y) in -1 ... 1; the middle where there is no share."""


class TwoShapeJudge(nn.Module):
    """Reads how many shapes a clip shows, of which kind, colour and motion, and the background.

    Clips are float [B, F, C, H, W] in [0, 1] with H = W = 64 and at least 19 frames, of which ten are read,
    spread evenly: of 19 frames, the first and every second.
    """

    palette_KC: Tensor
    backgrounds_GC: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.outline = nn.Sequential(
            nn.Conv2d(2, 16, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 32, WINDOW // 4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, OUTLINE_DIM),
        )
        self.path = nn.Sequential(nn.Linear(5 * SEEN_FRAMES - 2, 64), nn.ReLU(), nn.Linear(64, PATH_DIM))
        self.shape = nn.Linear(OUTLINE_DIM, len(SHAPES))
        self.motion = nn.Linear(PATH_DIM, len(MOTIONS))
        self.register_buffer("palette_KC", colours_of(COLOURS, COLOUR_RGB) / 255, persistent=False)
        backgrounds = colours_of(BACKGROUNDS, BACKGROUND_RGB) / 255
        self.register_buffer("backgrounds_GC", backgrounds, persistent=False)

    def features(self, clips_BFCHW: Tensor) -> Tensor:
        """Statistics of a clip, [B, D]: outline, path and area of every colour, border, off-palette colours.

        An absent colour's are zero, so the binding of colours, kinds and motions is in their covariance.
        """
        return self.frame_features(_seen(clips_BFCHW))

    def frame_features(self, frames_BTCHW: Tensor) -> Tensor:
        """`features` of the seen frames only."""
        maps = self.measure(frames_BTCHW)
        mean_area_BK = maps.area_BTK.mean(dim=1)
        rows, slots = (mean_area_BK > LEAST_AREA).nonzero(as_tuple=True)
        areas = torch.stack([mean_area_BK, maps.area_BTK.std(dim=1)], dim=-1)[rows, slots] / 100
        colours_BKD = frames_BTCHW.new_zeros(*mean_area_BK.shape, OUTLINE_DIM + PATH_DIM + 2)
        colours_BKD[rows, slots] = torch.cat([*self.read(maps, rows, slots), areas], dim=1)
        residual_B1 = 10 * maps.residual_BT.mean(dim=1, keepdim=True)
        return torch.cat([colours_BKD.flatten(1), maps.border_BC, residual_B1], dim=1)

    def measure(self, frames_BTCHW: Tensor) -> ColourMaps:
        """Unmix every pixel of the seen frames into the border's colour and one colour of the palette."""
        ring = torch.cat(
            [frames_BTCHW[..., [0, -1], :].flatten(3), frames_BTCHW[..., [0, -1]].flatten(3)], dim=3
        )
        border_BC = ring.transpose(1, 2).flatten(2).median(dim=2).values
        small = functional.avg_pool2d(frames_BTCHW.flatten(0, 1), POOL).unflatten(0, frames_BTCHW.shape[:2])
        offset_BTCHW = small - border_BC[:, None, :, None, None]
        direction_BKC = self.palette_KC - border_BC[:, None]
        square_BK = direction_BKC.square().sum(dim=2).clamp(min=1e-3)
        along_BTKHW = torch.einsum("btchw,bkc->btkhw", offset_BTCHW, direction_BKC)
        share_BTKHW = (along_BTKHW / square_BK[:, None, :, None, None]).clamp(0, 1.1)
        # |offset - share * direction|^2, without a tensor of all colours and channels.
        distance_BTKHW = (
            offset_BTCHW.square().sum(dim=2, keepdim=True)
            - 2 * share_BTKHW * along_BTKHW
            + share_BTKHW.square() * square_BK[:, None, :, None, None]
        )
        least, best = distance_BTKHW.min(dim=2, keepdim=True)
        chosen = torch.zeros_like(share_BTKHW).scatter_(2, best, 1.0)
        share_BTKHW = share_BTKHW * chosen * (share_BTKHW > LEAST_SHARE)
        total = share_BTKHW.sum(dim=(3, 4))
        axis = torch.linspace(-1, 1, share_BTKHW.shape[-1], device=share_BTKHW.device)
        x = (share_BTKHW.sum(dim=3) * axis).sum(dim=3) / total.clamp(min=1e-3)
        y = (share_BTKHW.sum(dim=4) * axis).sum(dim=3) / total.clamp(min=1e-3)
        return ColourMaps(
            border_BC=border_BC,
            share_BTKHW=share_BTKHW,
            residual_BT=least.clamp(min=0).sqrt().mean(dim=(2, 3, 4)),
            area_BTK=total * POOL**2,
            centre_BTK2=torch.stack([x, y], dim=-1),
        )

    def read(self, maps: ColourMaps, rows: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Outline and path features of colours `slots` in clips `rows`, both [len(rows), dim]."""
        own = maps.share_BTKHW[rows, :, slots]
        others = maps.share_BTKHW.sum(dim=2)[rows] - own
        centre, area = maps.centre_BTK2[rows, :, slots], maps.area_BTK[rows, :, slots]
        windows = _windows(torch.stack([own, others], dim=2).flatten(0, 1), centre.flatten(0, 1))
        outlines = self.outline(windows).unflatten(0, area.shape)
        # A frame that shows more of the shape says more about its kind.
        weight = area / area.sum(dim=1, keepdim=True).clamp(min=1e-3)
        all_area = maps.area_BTK.sum(dim=2)[rows]
        all_centre = (maps.centre_BTK2 * maps.area_BTK[..., None]).sum(dim=2)[rows]
        others_centre = (all_centre - centre * area[..., None]) / (all_area - area).clamp(min=1.0)[..., None]
        seen = [10 * centre.diff(dim=1).flatten(1), area / 400, (others_centre - centre).flatten(1)]
        return (outlines * weight[..., None]).sum(dim=1), self.path(torch.cat(seen, dim=1))

    def judge(self, clips_BFCHW: Tensor) -> list[SeenClip]:
        """What every clip shows; every colour with enough area is a shape."""
        return self.judge_frames(_seen(clips_BFCHW))

    @torch.no_grad()
    def judge_frames(self, frames_BTCHW: Tensor) -> list[SeenClip]:
        """`judge` of the seen frames only."""
        maps = self.measure(frames_BTCHW)
        rows, slots = (maps.area_BTK.mean(dim=1) > LEAST_AREA).nonzero(as_tuple=True)
        outline, path = self.read(maps, rows, slots)
        shapes = self.shape(outline).argmax(dim=1).tolist()
        motions = self.motion(path).argmax(dim=1).tolist()
        seen: list[set[MovingShape]] = [set() for _ in range(len(frames_BTCHW))]
        pieces = [0] * len(frames_BTCHW)
        for row, slot, shape, motion in zip(rows.tolist(), slots.tolist(), shapes, motions, strict=True):
            seen[row].add(MovingShape(colour=COLOURS[slot], shape=SHAPES[shape], motion=MOTIONS[motion]))
            pieces[row] += _pieces(maps.share_BTKHW[row, :, slot])
        background = torch.cdist(maps.border_BC, self.backgrounds_GC).argmin(dim=1).tolist()
        return [
            SeenClip(shapes=frozenset(found), pieces=count, background=BACKGROUNDS[number])
            for found, count, number in zip(seen, pieces, background, strict=True)
        ]


def seen_frames(frames: int) -> list[int]:
    """Indices of the frames that the judge looks at in a clip of `frames` frames."""
    return torch.linspace(0, frames - 1, SEEN_FRAMES).round().int().tolist()


def load_two_shape_judge() -> TwoShapeJudge:
    """The shipped judge, in float32 on the CPU and in evaluation mode."""
    from safetensors.torch import load_file

    judge = TwoShapeJudge()
    judge.load_state_dict(load_file(WEIGHTS))
    return judge.eval()


def _seen(clips_BFCHW: Tensor) -> Tensor:
    """The frames that the judge looks at, [B, T, C, H, W]. Raises ValueError for clips of another layout."""
    if not (
        clips_BFCHW.ndim == 5
        and clips_BFCHW.is_floating_point()
        and clips_BFCHW.shape[1] >= FRAMES
        and clips_BFCHW.shape[2:] == (3, SIZE, SIZE)
    ):
        raise ValueError(
            f"clips must be float [B, at least {FRAMES}, 3, {SIZE}, {SIZE}], got {clips_BFCHW.dtype} "
            f"{tuple(clips_BFCHW.shape)}"
        )
    return clips_BFCHW[:, seen_frames(clips_BFCHW.shape[1])]


def _pieces(share_THW: Tensor) -> int:
    """Separate areas of a colour: their lower median over the frames, at least one."""
    from scipy.ndimage import label

    counts = []
    for share_HW in share_THW > 0:
        labels, _ = label(share_HW.cpu().numpy())
        areas = torch.from_numpy(labels).flatten().bincount()[1:] * POOL**2
        counts.append(int((areas >= LEAST_PIECE).sum()))
    return max(1, sorted(counts)[(len(counts) - 1) // 2])


def _windows(maps_NCHW: Tensor, centre_N2: Tensor) -> Tensor:
    """The window around every centre, zero beyond the frame: [N, C, WINDOW, WINDOW]."""
    side = maps_NCHW.shape[-1]
    offset = (torch.arange(WINDOW, device=centre_N2.device) - (WINDOW - 1) / 2) * 2 / (side - 1)
    x_NHW = (centre_N2[:, :1] + offset)[:, None, :].expand(-1, WINDOW, -1)
    y_NHW = (centre_N2[:, 1:] + offset)[:, :, None].expand(-1, -1, WINDOW)
    return functional.grid_sample(maps_NCHW, torch.stack([x_NHW, y_NHW], dim=-1), align_corners=True)

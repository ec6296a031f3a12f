"""Energy and attention over the tokens of one block, with its queries as they are and smoothed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oseg_video.adapters import adapter_for
from oseg_video.guidance.methods import TextGuidance
from oseg_video.guidance.methods.cfg import CFG
from oseg_video.guidance.methods.oseg import OSEG
from oseg_video.guidance.numerics import upcast
from oseg_video.guidance.perturbations import AttentionView, ObserveAttention, QueryTransform
from oseg_video.parallel.mesh import ONE_RANK, Mesh
from oseg_video.probing.method import Probing
from oseg_video.probing.probe import check_probe, query_transforms, run_probing
from oseg_video.probing.result import AS_IT_IS
from oseg_video.types import Pipeline, SettingError

_QUERIES_AT_ONCE = 256


@dataclass(frozen=True)
class Landscape:
    """Maps over the token grid, [F, H, W] each, mean over heads; frames may be rows of the batch."""

    block: str
    """Full name of the block."""
    noise_level: float
    """Of the step that was looked at."""
    token: tuple[int, int, int]
    """Frame, row and column of the token whose attention is shown."""
    energy: dict[str, Tensor]
    """By kind of queries (`AS_IT_IS`, "oseg 5"): `-logsumexp(s_i)` of each token's query."""
    attention: dict[str, Tensor]
    """By kind of queries: what the token's query attends to, of the clip's tokens."""


def landscape(
    pipe: Pipeline,
    *,
    block: int | str,
    noise_level: float = 0.5,
    sigmas: Sequence[float] = (3.0, 15.0, float("inf")),
    token: tuple[int, int, int] | None = None,
    seed: int = 0,
    text: TextGuidance | None = None,
    mesh: Mesh = ONE_RANK,
    **arguments: Any,
) -> Landscape:
    """What the slides draw, measured: energy and attention before and after SEG and OSEG change the queries.

    block: one, by index or name. noise_level: looked at in the first step at or below it. sigmas: widths of
    smoothing, in tokens. token: frame, row and column; by default the middle. text: the guidance of the
    sampling until then. The rest is as for `probe`, and so is what is raised.
    """
    check_probe(noise_level=noise_level, sigmas=sigmas)
    adapter = adapter_for(pipe)
    found = adapter.resolve_blocks(adapter.denoisers(pipe)[0], (block,))
    if len(found) != 1:
        raise SettingError(f"block must name one block, got {block}, which are {len(found)}")
    transforms = query_transforms(sigmas)
    surveyor = _Surveyor(transforms, token)
    probing = Probing(
        base=text if text is not None else CFG(),
        blocks=(found[0].index,),
        change=OSEG(blocks=(0,)).change,
        observe=ObserveAttention(surveyor.see, tuple(transforms)),
        noise_levels=(noise_level,),
        take_step=surveyor.take_step,
        take_effects=lambda *_: None,
    )
    run_probing(pipe, probing, seed, arguments, mesh)
    assert surveyor.token is not None
    return Landscape(found[0].path, surveyor.noise_level, surveyor.token, surveyor.energy, surveyor.attention)


class _Surveyor:
    """Makes maps of what it is shown."""

    def __init__(self, transforms: dict[QueryTransform, str], token: tuple[int, int, int] | None) -> None:
        self._transforms = transforms
        self.token = token
        self.noise_level = 1.0
        self.energy: dict[str, Tensor] = {}
        self.attention: dict[str, Tensor] = {}

    def take_step(self, noise_level: float) -> None:
        self.noise_level = noise_level

    def see(self, block: int, transform: QueryTransform | None, view: AttentionView) -> None:
        name = AS_IT_IS if transform is None else self._transforms[transform]
        batch, grid = len(view.query_BNSD), view.grid
        shape = (batch * grid.frames, grid.height, grid.width)
        if self.token is None:
            self.token = (shape[0] // 2, shape[1] // 2, shape[2] // 2)
        if not all(0 <= place < size for place, size in zip(self.token, shape, strict=True)):
            raise SettingError(f"token must be inside frames, rows, columns {shape}, got {self.token}")
        frame, row, column = self.token
        in_clip = (frame % grid.frames * grid.height + row) * grid.width + column
        mine = frame // grid.frames
        self.energy[name] = torch.stack([_energy(view, one) for one in range(batch)]).view(shape)
        attention = torch.zeros(shape)
        attention[mine * grid.frames : (mine + 1) * grid.frames] = _attention(view, mine, in_clip).view(
            grid.shape
        )
        self.attention[name] = attention


def _energy(view: AttentionView, row: int) -> Tensor:
    """Energy of every query of one row of the batch, mean over heads: [S]."""
    parts = [
        -_logits(view, row, slice(first, first + _QUERIES_AT_ONCE)).logsumexp(dim=-1).mean(dim=0)
        for first in range(0, view.query_BNSD.shape[2], _QUERIES_AT_ONCE)
    ]
    return torch.cat(parts).float().cpu()


def _attention(view: AttentionView, row: int, token: int) -> Tensor:
    """What one query attends to of the clip's tokens, mean over heads: [S]."""
    weights_NT = _logits(view, row, slice(token, token + 1)).softmax(dim=-1)[:, 0]
    return weights_NT.mean(dim=0)[view.own].float().cpu()


def _logits(view: AttentionView, row: int, queries: slice) -> Tensor:
    """[N, Q, T]; minus infinity where a key is padding."""
    query_NQD, key_NTD = upcast(view.query_BNSD[row][:, queries]), upcast(view.key_BNTD[row])
    logits_NQT = view.scale * query_NQD @ key_NTD.transpose(1, 2)
    if view.valid_BT is not None:
        logits_NQT = logits_NQT.masked_fill(~view.valid_BT[row], float("-inf"))
    return logits_NQT

"""What diffusers' UNets share: stages that are replayed whole, blocks inside them, token sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from oseg_video.adapters.base import ModelAdapter
from oseg_video.adapters.blocks import BlockAddress
from oseg_video.adapters.denoiser import Attention
from oseg_video.adapters.sampling import Sampling
from oseg_video.types import Denoiser

if TYPE_CHECKING:
    from torch import Tensor


class UNetAdapter(ModelAdapter):
    """Down stages, a middle and up stages; every stage after the first reads outputs of several others.

    Blocks are the transformer blocks of all stages, in order of execution; stages are "down.0", "down.1",
    ..., "mid", "up.0", ... A perturbed pass replays whole stages, each with its own output: the hidden
    states, and from a down stage also the residuals that the up stages take.
    """

    denoiser_attributes = ("unet",)
    sampling = Sampling(latents_take_prediction_dtype=True)
    site = Attention("attn1", norm_layout="BNSD")
    token_inputs = None

    def attention_maps(self, denoiser: Denoiser) -> list[BlockAddress]:
        return [block for block in self.blocks(denoiser) if block.kind != "temporal"]


class Stages:
    """Blocks in the attention modules of a UNet's stages; each stage is a unit.

    (kind, attribute of an attention module that holds its blocks of this kind); the module runs the first
    block of each kind in this order, then the second of each, and so on.
    """

    chained = False

    def __init__(self, *block_lists: tuple[str, str]) -> None:
        self._block_lists = block_lists

    def __call__(self, denoiser: Denoiser) -> list[BlockAddress]:
        found: list[BlockAddress] = []
        for unit, (path, stage) in enumerate(_stages(denoiser)):
            counts: Counter[str] = Counter()
            for kind, block in self._blocks_of(denoiser.get_submodule(path)):
                found.append(BlockAddress(len(found), f"{path}.{block}", stage, counts[kind], unit, kind))
                counts[kind] += 1
        return found

    def units(self, denoiser: Denoiser) -> list[str]:
        return [path for path, _ in _stages(denoiser)]

    def beside(self, denoiser: Denoiser) -> list[str]:
        return []

    def _blocks_of(self, stage: Any) -> Iterator[tuple[str, str]]:
        """(kind, name inside the stage) of a stage's blocks, in order of execution."""
        for i, attention in enumerate(getattr(stage, "attentions", ())):
            # An attention module has equally many blocks of every kind.
            for j in range(len(getattr(attention, self._block_lists[0][1]))):
                yield from ((kind, f"attentions.{i}.{blocks}.{j}") for kind, blocks in self._block_lists)


def level_size(denoiser: Denoiser, sample: Tensor, stage: str) -> tuple[int, int]:
    """Height and width of the tokens in a stage, for latents `sample` of shape [..., height, width].

    Every down stage but the last halves them, rounding up; the middle and up stage 0 work at the size of the
    last down stage, and each further up stage at that of the down stage whose residuals it takes.
    """
    name, _, number = stage.partition(".")
    last = len(denoiser.down_blocks) - 1
    level = {"down": int(number or 0), "mid": last, "up": last - int(number or 0)}[name]
    height, width = sample.shape[-2:]
    # Integer ceil(size / 2^level): a stride of 2 with padding keeps the odd row.
    return -(-height >> level), -(-width >> level)


def _stages(denoiser: Denoiser) -> list[tuple[str, str]]:
    """(full name, stage) of every stage, in order of execution."""
    down = [(f"down_blocks.{i}", f"down.{i}") for i in range(len(denoiser.down_blocks))]
    mid = [] if denoiser.mid_block is None else [("mid_block", "mid")]
    up = [(f"up_blocks.{i}", f"up.{i}") for i in range(len(denoiser.up_blocks))]
    return down + mid + up

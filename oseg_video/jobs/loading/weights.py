"""Models larger than one device: weights that ranks share, and encoders that only the first rank loads."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from oseg_video.adapters.base import ModelAdapter
from oseg_video.parallel.group import ParallelError
from oseg_video.parallel.mesh import device_type
from oseg_video.parallel.sequence import SequenceGroup
from oseg_video.types import Pipeline

_ENCODER = re.compile(r"(text|image)_encoder(_\d+)?")


def encoder_components(index: Iterable[str]) -> list[str]:
    """Names of the components that encode prompts and images, of those in a pipeline's model_index.json.

    Under `guided` they run on the first rank of a clip only (`first_rank`), so the others can do without:
    `from_pretrained(..., **dict.fromkeys(encoder_components(index)))`. Tokenizers and image processors are
    small and stay.
    """
    return [name for name in index if _ENCODER.fullmatch(name)]


def check_shareable(adapter: ModelAdapter, ranks: int, offload: str = "none") -> None:
    """Whether `share_weights` can do it. Raises ParallelError; reads nothing.

    ranks: those that share the token sequence, ring x ulysses. Only they run the same blocks at the same
    time; ranks of other branches or clips run other passes, and would wait for each other for ever.
    """
    if not adapter.sequence_parallel:
        raise ParallelError(
            f"weights can be shared among ranks of the ulysses and ring axes only, which {adapter.family} "
            f"does not have"
        )
    if ranks == 1:
        raise ParallelError(
            "weights can be shared among ranks of the ulysses and ring axes only, and there is one of them; "
            "give, for example, --parallel ulysses=2"
        )
    if offload != "none":
        raise ParallelError(f"weights are shared among ranks or offloaded, not both; got offload {offload}")


def share_weights(
    pipe: Pipeline, adapter: ModelAdapter, sequence: SequenceGroup, device: torch.device
) -> None:
    """Share the denoisers' weights out among the ranks that share the token sequence, in place, for good.

    Each rank holds its part of every tensor, on `device`. Whole are only the weights outside of the blocks
    while the denoiser runs, and those of one block at a time (FSDP2: torch.distributed.fsdp.fully_shard).
    Call it before `guided`, with the denoisers still in main memory if they do not fit on the device: one
    block after the other is moved. For inference only: the weights take no gradient from here on. Raises
    ParallelError as `check_shareable`.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    check_shareable(adapter, sequence.size)
    assert sequence.whole.process_group is not None
    mesh = DeviceMesh.from_group(sequence.whole.process_group, device_type(device))
    for denoiser in adapter.denoisers(pipe):
        # Of weights in several dtypes, as Wan's are, FSDP2 takes those only that are not trained.
        denoiser.requires_grad_(False)
        blocks = [denoiser.get_submodule(address.path) for address in adapter.blocks(denoiser)]
        for module in (*blocks, denoiser):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)

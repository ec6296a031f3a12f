"""What the first rank does for all that make a clip together: encoded prompts and images, first latents."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from oseg_video.engine.patching import replaced
from oseg_video.parallel.group import Group
from oseg_video.types import Pipeline

_ENCODERS = (
    *("encode_prompt", "encode_image", "_encode_image"),
    *("_encode_vae_image", "prepare_cond_latents_and_mask"),
)
"""Methods of pipelines that turn prompts and images into embeddings and latents, and draw no noise."""
_LATENTS = ("prepare_latents", "prepare_audio_latents")


@contextmanager
def inputs_of_first_rank(pipe: Pipeline, clip: Group) -> Iterator[None]:
    """Run the encoders on the first rank only, and start every rank from its latents, while this is open.

    So the other ranks need no encoders at all, and a pipeline that is called without a generator starts from
    one noise, whatever the random state of each rank.
    """
    with ExitStack() as stack:
        for name in (*_ENCODERS, *_LATENTS) if clip.size > 1 else ():
            if hasattr(pipe, name):
                # Preparing latents advances a generator, which has to stand alike on all ranks.
                everywhere = name in _LATENTS
                value = partial(_of_first_rank, pipe, getattr(pipe, name), clip, everywhere)
                stack.enter_context(replaced(pipe, name, value))
        yield


def _of_first_rank(
    pipe: Pipeline, method: Callable[..., Any], clip: Group, everywhere: bool, *args: Any, **kwargs: Any
) -> Any:
    """The method's value on the first rank: tensors, and small values around them."""
    value = method(*args, **kwargs) if everywhere or clip.rank == 0 else None
    outline = clip.broadcast_object(tree_map_only(Tensor, _Outline.of, value))
    if clip.rank == 0:
        return tree_map_only(Tensor, clip.broadcast, value)
    return tree_map_only(
        _Outline, lambda tensor: clip.broadcast(tensor.empty(pipe._execution_device)), outline
    )


@dataclass(frozen=True)
class _Outline:
    """A tensor without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor) -> "_Outline":
        return cls(tuple(x.shape), x.dtype)

    def empty(self, device: torch.device) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device=device)

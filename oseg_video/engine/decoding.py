"""VAE decoding shared by the ranks that make a clip together.

A decoder works on parts that know nothing of each other: tiles, stretches of frames (LTX, HunyuanVideo), for
SVD chunks of frames. diffusers decodes part after part and then puts the clip together from them. Here each
rank decodes some of the parts, and diffusers' own code puts together those of all ranks, so the clip is that
of one process bit for bit. A clip in one part (a causal VAE without tiling) keeps the first rank busy only.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from oseg_video.engine.patching import replaced
from oseg_video.parallel.group import Group
from oseg_video.types import Pipeline


@contextmanager
def spread_decoding(pipe: Pipeline, clip: Group, method: str | None) -> Iterator[None]:
    """Share the VAE decoding of the pipeline's calls among the ranks of `clip`, while this is open.

    Every rank calls the pipeline alike, and each gets the whole clip. Latents are decoded as the first rank
    has them. VAEs other than those with a `decoder` are left alone. method: of the pipeline, which decodes a
    whole clip; None where its call of the VAE does.
    """
    vae = pipe.vae
    if clip.size == 1 or not isinstance(getattr(vae, "decoder", None), nn.Module):
        yield
        return
    owner, name = (vae, "decode") if method is None else (pipe, method)
    with replaced(owner, name, partial(_decode_together, vae, clip, getattr(owner, name))):
        yield


def _decode_together(vae: Any, clip: Group, decode: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`decode(*args, **kwargs)`, the decoder's work in it shared.

    diffusers' code runs twice: to find the parts, of which this rank decodes its own, and once all ranks have
    all of them to put them together.
    """
    args, kwargs = tree_map_only(Tensor, clip.broadcast, (args, kwargs))
    parts = _Parts(vae, clip)
    with replaced(vae.decoder, "forward", partial(parts.decode_own, vae.decoder.forward)):
        decode(*args, **kwargs)
    parts.exchange()
    with replaced(vae.decoder, "forward", parts.hand_out):
        return decode(*args, **kwargs)


class _Parts:
    """What the decoder is called for in one decoding, in the order of its calls, which all ranks share."""

    def __init__(self, vae: Any, clip: Group) -> None:
        self._clip = clip
        self._channels = vae.config.out_channels
        # In diffusers, a decoder that takes a cache returns it too.
        self._returns_cache = "conv_cache" in inspect.signature(type(vae.decoder).forward).parameters
        self._count = 0
        self._ranks: list[int] = []
        self._outputs: deque[Tensor] = deque()
        self._device = torch.device("cpu")

    def decode_own(self, decode: Callable[..., Any], latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Decode if the part is this rank's: parts are dealt out in turn.

        latents: [B, C, F, H, W], or [B, C, H, W] of images and SVD's frames. The caller gets one value per
        channel: it will put parts together for nothing, and so in no time.
        """
        self._count += _starts_part(**kwargs)
        self._ranks.append((self._count - 1) % self._clip.size)
        self._device = latents.device
        cache = "not kept on this rank"
        if self._ranks[-1] == self._clip.rank:
            output = decode(latents, *args, **kwargs)
            output, cache = output if self._returns_cache else (output, cache)
            self._outputs.append(output)
        blank = latents.new_zeros(latents.shape[0], self._channels, *(1 for _ in latents.shape[2:]))
        return (blank, cache) if self._returns_cache else blank

    def exchange(self) -> None:
        """Every part to every rank."""
        outlines = self._clip.gather_objects([(x.shape, x.dtype) for x in self._outputs])
        own, self._outputs = self._outputs, deque()
        for rank in self._ranks:
            shape, dtype = outlines[rank].pop(0)
            mine = rank == self._clip.rank
            x = own.popleft() if mine else torch.empty(shape, dtype=dtype, device=self._device)
            self._outputs.append(self._clip.broadcast(x, rank))

    def hand_out(self, *_: Any, **__: Any) -> Any:
        """What the decoder's next call gives."""
        output = self._outputs.popleft()
        return (output, None) if self._returns_cache else output


def _starts_part(conv_cache: Any = None, feat_cache: Any = None, first_chunk: bool = False, **_: Any) -> bool:
    """Whether a decoder call with these arguments begins a part, or goes on where the call before ended.

    Mochi and CogVideoX hand on a `conv_cache`; Wan has a `feat_cache` always, and says where it begins.
    """
    return conv_cache is None and (feat_cache is None or first_chunk)

"""What the meta device lacks so that denoisers run on it: autocast, masks that say something, attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from oseg_video.engine.patching import replaced


@contextmanager
def runnable_on_meta() -> Iterator[None]:
    """Denoisers run on tensors without values; every token of their text counts as valid."""
    autocast = torch.autocast

    def autocast_elsewhere(device_type: str, *args: Any, **kwargs: Any) -> Any:
        # diffusers opens autocast regions for the tensors' device, and meta has none.
        return nullcontext() if device_type == "meta" else autocast(device_type, *args, **kwargs)

    with replaced(torch, "autocast", autocast_elsewhere), torch.no_grad(), ValidMasks():
        yield


class FusedAttention(TorchFunctionMode):
    """Attention as a fused kernel has it: nothing but its result. On the meta device torch has none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        query: Tensor = named["query"]
        return query.new_empty(*query.shape[:-1], named["value"].shape[-1])


class ValidMasks(TorchDispatchMode):
    """Gives masks on the meta device, which hold no values, the one meaning "every token is valid".

    Selecting by a mask takes everything, selecting by its negation nothing, and a condition on a value holds.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._negated: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            if func is torch.ops.aten.nonzero.default:
                return self._chosen(args[0])
            if func is torch.ops.aten._local_scalar_dense.default:
                return True
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], self._as_integers(args[1]))
        out = func(*args, **kwargs)
        if func is torch.ops.aten.bitwise_not.default and out.is_meta:
            self._negated.append(out)
        return out

    def _chosen(self, mask: Tensor) -> Tensor:
        rows = 0 if any(mask is one for one in self._negated) else mask.numel()
        return torch.empty(rows, mask.ndim, dtype=torch.int64, device=mask.device)

    def _as_integers(self, indices: list[Tensor | None]) -> list[Tensor | None]:
        whole: list[Tensor | None] = []
        for index in indices:
            if index is not None and index.dtype == torch.bool and index.is_meta:
                whole += self._chosen(index).unbind(1)
            else:
                whole.append(index)
        return whole

"""What the meta device lacks so that denoisers run on it: autocast, and masks that say something."""

from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def autocast_nowhere() -> Any:
    """Make autocast regions do nothing: diffusers opens them for the tensors' device, and meta has none."""
    return patch.object(torch, "autocast", lambda *_, **__: nullcontext())


class ValidMasks(TorchDispatchMode):
    """Gives masks on the meta device, which hold no values, the one meaning "every token is valid".

    Selecting by a mask takes everything, selecting by its negation nothing, and a condition on a value holds.
    """

    def __init__(self) -> None:
        super().__init__()
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

"""Bytes of tensors that live at once, counted on any device: on meta tensors, of any model size."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class FusedAttention(TorchFunctionMode):
    """Attention as a fused kernel has it: nothing but its result. On the meta device torch has none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        query: Tensor = named["query"]
        return query.new_empty(*query.shape[:-1], named["value"].shape[-1])


class LiveBytes(TorchDispatchMode):
    """Counts the storages that are made inside, for as long as something holds them.

    Tensors that were there before (weights, inputs) do not count, nor what a kernel needs for itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        """The most bytes that lived at once."""
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._before: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in self._live:
                self._before.add(x.untyped_storage()._cdata)
        out = func(*args, **kwargs)
        self._live = {key: one for key, one in self._live.items() if not one[0].expired()}
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                if storage._cdata not in self._before:
                    self._live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return out

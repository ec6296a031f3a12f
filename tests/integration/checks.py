"""What tests of several families look at in the same way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from oseg_video.adapters import adapter_for

# Batches of different sizes take other summation orders; over a few steps float32 rounding grows to this.
ACROSS_BATCHES = {"rtol": 1e-4, "atol": 1e-4}


def state_of(pipe: Any) -> list[tuple]:
    """Everything that guiding might leave behind on the pipeline and its denoisers' modules."""
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    modules = [entry for denoiser in adapter_for(pipe).denoisers(pipe) for entry in denoiser.named_modules()]
    return [("", id(pipe), type(pipe), sorted(vars(pipe)), [])] + [
        (name, id(module), type(module), sorted(vars(module)), [len(getattr(module, hook)) for hook in hooks])
        for name, module in modules
    ]


def assert_off_key(
    plain: tuple[Tensor, Tensor, Tensor],
    perturbed: tuple[Tensor, Tensor, Tensor],
    clip: slice,
    tolerance: float,
) -> None:
    """Two calls of attention, (query, key, value) as [B, N, S, D], differ in the queries of the `clip` alone.

    Those are the part of the plain query that is orthogonal to its own key.
    """
    assert torch.equal(plain[1], perturbed[1]) and torch.equal(plain[2], perturbed[2])
    outside = torch.ones(plain[0].shape[2], dtype=torch.bool)
    outside[clip] = False
    assert torch.equal(plain[0][:, :, outside], perturbed[0][:, :, outside])
    query, key, changed = (x[:, :, clip] for x in (plain[0], plain[1], perturbed[0]))
    off_key = query - (query * key).sum(-1, keepdim=True) / (key * key).sum(-1, keepdim=True) * key
    assert_close(changed, off_key, rtol=tolerance, atol=1e-5)
    alignment = (changed * key).sum(-1).abs().max()
    assert alignment < tolerance < (query * key).sum(-1).abs().max()

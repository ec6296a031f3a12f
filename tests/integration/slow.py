"""Parts of slow float64 references: attention written out, and what a guided run handed to its scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from oseg_video import CFG, OSEG, PAG, SEG, STG
from oseg_video.guidance.methods import Guidance
from oseg_video.types import TokenGrid

WEIGHT = 1.5
"""Weight of the push away from the perturbed prediction."""
BLUR = 0.8

QueryChange = Callable[[Tensor, Tensor], Tensor]
"""New video queries from video queries and keys, [B, S, N, D]."""
Change = Literal["skip", "values", "input"] | QueryChange
"""What a reference does in its perturbed block: skip it, replace what its attention mixes, or its queries."""


def linear(x: Tensor, layer: Any) -> Tensor:
    """`layer` without its forward, in float64."""
    out = torch.einsum("...i,oi->...o", x, layer.weight.double())
    return out if layer.bias is None else out + layer.bias.double()


def layer_norm(x: Tensor, norm: Any) -> Tensor:
    """Over the last dimension."""
    centred = x - x.mean(-1, keepdim=True)
    out = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return out if norm.weight is None else out * norm.weight.double() + norm.bias.double()


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def rotated(x_BSND: Tensor, angles_SP: Tensor) -> Tensor:
    """Pairs of neighbouring channels turned by angles [S, D / 2]."""
    even, odd = x_BSND[..., 0::2], x_BSND[..., 1::2]
    cos, sin = angles_SP.cos()[:, None], angles_SP.sin()[:, None]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """[B, S, N, D] each -> [B, S, N * D]; mask: which keys a query sees, [..., S, S]."""
    logits = torch.einsum("bind,bjnd->bnij", query, key) / math.sqrt(query.shape[-1])
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf)
    return torch.einsum("bnij,bjnd->bind", logits.softmax(-1), value).flatten(2)


def mean_everywhere(query: Tensor, key: Tensor) -> Tensor:
    """SEG with an infinite blur."""
    return query.mean(dim=1, keepdim=True).expand_as(query)


def off_key(query: Tensor, key: Tensor) -> Tensor:
    """What of each query is orthogonal to its own key."""
    unit = key / key.norm(dim=-1, keepdim=True)
    return query - (query * unit).sum(-1, keepdim=True) * unit


def off_key_mean_per_frame(grid: TokenGrid, mix: float) -> QueryChange:
    """OSEG with an infinite blur in space, none in time."""

    def change(query: Tensor, key: Tensor) -> Tensor:
        frames = off_key(query, key).unflatten(1, (grid.frames, -1))
        smooth = frames.mean(dim=2, keepdim=True).expand_as(frames).flatten(1, 2)
        return (1 - mix) * query + mix * smooth

    return change


def off_key_blurred(grid: TokenGrid, sigma: float) -> QueryChange:
    """OSEG with a Gaussian blur of `sigma` tokens along each axis, the grid mirrored at its edges."""

    def smooth(x: Tensor, dim: int) -> Tensor:
        n = x.shape[dim]
        kernel = torch.zeros(n, n, dtype=torch.float64)
        for i in range(n):
            for j in range(-10 * n, 11 * n):
                folded = j % (2 * n)
                place = folded if folded < n else 2 * n - 1 - folded
                kernel[i, place] += math.exp(-((i - j) ** 2) / (2 * sigma**2))
        kernel /= kernel.sum(1, keepdim=True)
        return torch.tensordot(kernel, x, dims=([1], [dim])).movedim(0, dim)

    def change(query: Tensor, key: Tensor) -> Tensor:
        changed = off_key(query, key).unflatten(1, grid.shape)
        for dim in (1, 2, 3):
            changed = smooth(changed, dim)
        return changed.flatten(1, 3)

    return change


def reference_methods(
    grid: TokenGrid, block: int, guidance_scale: float | None
) -> dict[str, tuple[Guidance, Change | None]]:
    """Methods of weight `WEIGHT` with one perturbed block, and what the reference does in that block."""
    shared: dict[str, Any] = {"guidance_scale": guidance_scale, "blocks": (block,)}
    weighted = {"scale": WEIGHT, "blur_sigma": (0.0, math.inf), "mix": 0.75} | shared
    per_frame = off_key_mean_per_frame(grid, 0.75)
    return {
        "cfg": (CFG(guidance_scale=guidance_scale), None),
        "stg": (STG(scale=WEIGHT, **shared), "skip"),
        "stg-values": (STG(scale=WEIGHT, mode="attention_values", **shared), "values"),
        "stg-input": (STG(scale=WEIGHT, mode="attention_skip", **shared), "input"),
        "pag": (PAG(scale=WEIGHT, **shared), "values"),
        "seg": (SEG(scale=WEIGHT, **shared), mean_everywhere),
        "oseg": (OSEG(**weighted), per_frame),
        "oseg-blur": (
            OSEG(scale=WEIGHT, blur_sigma=BLUR, **shared),
            off_key_blurred(grid, BLUR),
        ),
        "oseg-cond": (OSEG(perturb="cond", **weighted), per_frame),
        "stg-both": (STG(scale=WEIGHT, perturb="both", **shared), "skip"),
        "stg-uncond": (STG(scale=WEIGHT, perturb="uncond", **shared), "skip"),
        "pag-uncond": (PAG(scale=WEIGHT, perturb="uncond", **shared), "values"),
        "seg-uncond": (SEG(scale=WEIGHT, perturb="uncond", **shared), mean_everywhere),
        "oseg-uncond": (OSEG(perturb="uncond", **weighted), per_frame),
    }


REFERENCE_METHODS = tuple(reference_methods(TokenGrid(1, 1, 1), 0, None))
"""Names of the methods."""


def guided_prediction(
    method: str,
    scale: float,
    plain: Callable[[dict[str, Any]], Tensor],
    weak: Callable[[dict[str, Any]], Tensor] | None,
    *,
    cond: dict[str, Any],
    uncond: dict[str, Any],
) -> Tensor:
    """The formula of a method in `reference_methods`; `plain` and `weak` run a call's arguments."""
    c, u = plain(cond), plain(uncond)
    if weak is None:
        return u + scale * (c - u)
    if method.endswith("-uncond"):
        return weak(uncond) + scale * (c - weak(uncond))
    push = WEIGHT * (c - weak(cond))
    if method in ("oseg", "oseg-blur", "stg-both"):
        return c + (scale - 1) * (c - weak(uncond)) + push
    return u + scale * (c - u) + push


def doubled(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a denoiser call, its floating tensors (those in tuples too) in float64."""

    def cast(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(cast, value))
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    return {name: cast(value) for name, value in arguments.items() if name != "return_dict"}


@dataclass
class SampledStep:
    """One sampling step of a run."""

    calls: list[tuple[nn.Module, dict[str, Any]]] = field(default_factory=list)
    """Every pass that a denoiser ran, with its arguments."""
    given: list[Tensor] = field(default_factory=list)
    """What the pipeline gave to its scheduler, or to those of single frames."""

    @property
    def prediction(self) -> Tensor:
        """The whole of it; of diffusion forcing, the frames that went on."""
        return self.given[0] if self.given[0].ndim == 5 else torch.stack(self.given, dim=2)


@contextmanager
def recorded(pipe: Any, denoisers: Sequence[nn.Module]) -> Iterator[list[SampledStep]]:
    """Passes of `denoisers` and predictions handed to the scheduler, step by step."""
    steps: list[SampledStep] = []
    scheduler: Any = type(pipe.scheduler)  # of which diffusion forcing makes copies
    real_step = scheduler.step

    def note(denoiser: nn.Module, _: Any, kwargs: dict[str, Any]) -> None:
        if not steps or steps[-1].given:
            steps.append(SampledStep())
        steps[-1].calls.append((denoiser, dict(kwargs)))

    def step(self: Any, prediction: Tensor, *args: Any, **kwargs: Any) -> Any:
        steps[-1].given.append(prediction.clone())
        return real_step(self, prediction, *args, **kwargs)

    handles = [denoiser.register_forward_pre_hook(note, with_kwargs=True) for denoiser in denoisers]
    scheduler.step = step
    try:
        yield steps
    finally:
        scheduler.step = real_step
        for handle in handles:
            handle.remove()


@contextmanager
def recorded_attention(tokens: int) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """(query, key, value) as [B, N, S, D] of every self-attention over at least `tokens` tokens."""
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    real = nn.functional.scaled_dot_product_attention

    def record(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if query.shape[2] >= tokens and key.shape == query.shape:
            calls.append((query.clone(), key.clone(), value.clone()))
        return real(query, key, value, *args, **kwargs)

    nn.functional.scaled_dot_product_attention = record
    try:
        yield calls
    finally:
        nn.functional.scaled_dot_product_attention = real

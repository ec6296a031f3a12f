"""Parallel and orthogonal component of each query against a reference direction or subspace made of the keys.

`parallel + orthogonal = query`, and a query orthogonal to its reference has no parallel part. All of it is
per head, over the last dimension, computed and returned in float32 (float64 stays). A rotation that is the
same for query and key of one token (RoPE) keeps the split against `token`; the other references mix tokens
and hold only where the split is made, before RoPE.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from oseg_video.guidance.numerics import upcast, without_autocast
from oseg_video.guidance.validation import check_same_shape, check_tokens, parse_reference
from oseg_video.types import ShapeError, TokenGrid

# B batch, N heads, S video tokens = F*H*W, D head dim, R rank; X any leading dimensions


def split_by_key(query_XD: Tensor, key_XD: Tensor) -> tuple[Tensor, Tensor]:
    """Splits each query along the last dimension against its own key (OSEG, WACV 2026).

    `parallel = (q . k^) k^` with `k^ = k / ||k||`, `orthogonal = q - parallel`; a zero key gives parallel 0.
    Both in the query's shape. Raises ShapeError unless query and key have the same shape.
    """
    check_same_shape(query=query_XD, key=key_XD)
    return _split_by_direction(query_XD, key_XD)


def split_by_reference(
    query_BNSD: Tensor, key_BNSD: Tensor, grid: TokenGrid, reference: str = "token"
) -> tuple[Tensor, Tensor]:
    """Splits each query against a reference made of the keys of its batch row and head.

    Args:
        query_BNSD, key_BNSD: [B, N, S, D], video tokens only.
        reference: "token", the token's own key; "frame", the mean key of its latent frame; "clip", the mean
            key of all video tokens; "principal:r", the span of the top-r right singular vectors of the
            centred keys (directions that carry no more than rounding noise are left out).

    Returns:
        (parallel, orthogonal), each [B, N, S, D].

    Raises:
        ShapeError: query and key differ, do not fit the grid, or have fewer dimensions than the rank.
        SettingError: unknown reference.
    """
    kind = parse_reference(reference)
    check_tokens("query", query_BNSD, grid)
    check_same_shape(query=query_BNSD, key=key_BNSD)
    if kind.rank > key_BNSD.shape[-1]:
        raise ShapeError(
            f"reference {reference} needs a head dim of at least {kind.rank}, got {key_BNSD.shape[-1]}"
        )
    if kind.kind == "principal":
        return _split_by_subspace(upcast(query_BNSD), _principal_directions(upcast(key_BNSD), kind.rank))
    return _split_by_direction(query_BNSD, _reference_key(key_BNSD, grid, kind.kind))


def _reference_key(key_BNSD: Tensor, grid: TokenGrid, kind: str) -> Tensor:
    """The direction of each token, [B, N, S or 1, D]."""
    if kind == "frame":
        mean_BNFD: Tensor = upcast(key_BNSD).unflatten(2, (grid.frames, -1)).mean(dim=3)
        return mean_BNFD.repeat_interleave(grid.height * grid.width, dim=2)
    if kind == "clip":
        return upcast(key_BNSD).mean(dim=2, keepdim=True)
    return key_BNSD


def _split_by_direction(query_XD: Tensor, key_XD: Tensor) -> tuple[Tensor, Tensor]:
    # Of large tensors no more copies in the working precision live at once than must. A query in a lower one
    # is cast by the products with keys that are in it.
    parallel_XD = _component(query_XD, _unit(key_XD))
    return parallel_XD, query_XD - parallel_XD


def _component(query_XD: Tensor, unit_XD: Tensor) -> Tensor:
    return (query_XD * unit_XD).sum(dim=-1, keepdim=True) * unit_XD


def _unit(key_XD: Tensor) -> Tensor:
    """Keys of length 1 in the working precision; a zero key stays."""
    key = upcast(key_XD)
    # Largest entry first: the square of a very small or large key would leave the range of float32.
    largest = torch.linalg.vector_norm(key, ord=math.inf, dim=-1, keepdim=True)
    unit_XD: Tensor = key / largest.where(largest > 0, 1.0)
    del key
    norm: Tensor = torch.linalg.vector_norm(unit_XD, dim=-1, keepdim=True)
    unit_XD = unit_XD / norm.where(norm > 0, 1.0)
    return unit_XD


def _split_by_subspace(query_BNSD: Tensor, basis_BNDR: Tensor) -> tuple[Tensor, Tensor]:
    with without_autocast(query_BNSD):
        parallel_BNSD = (query_BNSD @ basis_BNDR) @ basis_BNDR.mT
    return parallel_BNSD, query_BNSD - parallel_BNSD


def _principal_directions(key_BNSD: Tensor, rank: int) -> Tensor:
    """Top right singular vectors of the centred keys, [B, N, D, R], via the D x D scatter matrix."""
    centred_BNSD = key_BNSD - key_BNSD.mean(dim=2, keepdim=True)
    with without_autocast(key_BNSD):
        scatter_BNDD = centred_BNSD.mT @ centred_BNSD
    scatter_BND, basis_BNDD = torch.linalg.eigh(scatter_BNDD)  # ascending
    # Rounding leaves noise of eps * largest in the scatter matrix, and of (eps * key)^2 from centring.
    eps, dim = torch.finfo(key_BNSD.dtype).eps, key_BNSD.shape[-1]
    noise_BN1 = dim * eps * scatter_BND[..., -1:]
    noise_BN1 = noise_BN1 + dim * eps**2 * key_BNSD.square().sum(dim=(-2, -1)).unsqueeze(-1)
    kept_BN1R = (scatter_BND[..., -rank:] > noise_BN1).unsqueeze(-2)
    directions_BNDR: Tensor = basis_BNDD[..., -rank:].where(kept_BN1R, 0.0)
    return directions_BNDR

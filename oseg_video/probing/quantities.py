"""What one attention row says about its query: entropy, energy, and how curved the energy is there.

One head, one query q, keys k_j: logits `s_j = c q . k_j` (c the softmax scale), attention `a = softmax(s)`,
energy `E = -logsumexp(s)`. Up to its sign the Hessian of E in q is `c^2 Cov_a(k)`, the covariance of the keys
under a. Its largest eigenvalue, the curvature, is at most `c^2 ||K||_2^2 ||diag(a) - a a^T||_2`,
and that last norm is at most 1/2 (OSEG's slides, with `c^2 = 1/d`).

N heads, Q queries, T keys, D head dim
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

KEYS_AT_ONCE = 4096
"""Keys that are in float64 at a time, so that memory does not grow with the attention map."""
_HALVINGS = 60


@dataclass(frozen=True)
class RowQuantities:
    """Quantities of attention rows, float64 [N, Q] each."""

    entropy: Tensor
    """Of the attention row, in nats; log T is uniform attention."""
    energy: Tensor
    """`-logsumexp(s)`."""
    covariance_norm: Tensor
    """`||diag(a) - a a^T||_2`."""
    curvature: Tensor
    """Largest eigenvalue of `c^2 Cov_a(k)`."""
    bound: Tensor
    """What the curvature cannot exceed: `c^2 ||K||_2^2 ||diag(a) - a a^T||_2`."""
    orthogonal: Tensor
    """Share of the query's norm that is orthogonal to its own key, 0 to 1."""


NAMES = tuple(field.name for field in fields(RowQuantities))


def row_quantities(
    query_NQD: Tensor, key_NTD: Tensor, own_key_NQD: Tensor, scale: float, key_norm_N: Tensor
) -> RowQuantities:
    """Quantities of the rows of some queries, in float64, query by query.

    query_NQD: as attention has them (normalised, rotated). key_NTD: all that they attend to. own_key_NQD: the
    key of each query's own token. scale: c, the factor of the logits. key_norm_N: `spectral_norm(key_NTD)`.
    """
    columns = []
    for index in range(query_NQD.shape[1]):
        query_ND, own_ND = query_NQD[:, index].double(), own_key_NQD[:, index].double()
        logits_NT = torch.cat(
            [torch.einsum("nd,ntd->nt", scale * query_ND, keys.double()) for keys in _parts(key_NTD)], dim=1
        )
        log_sum_N = logits_NT.logsumexp(dim=1)
        log_row_NT = logits_NT - log_sum_N[:, None]
        row_NT = log_row_NT.exp()
        covariance_norm_N = covariance_norm(row_NT)
        columns.append(
            (
                -(row_NT * log_row_NT).sum(dim=1),
                -log_sum_N,
                covariance_norm_N,
                scale**2 * _largest_covariance(row_NT, key_NTD),
                scale**2 * key_norm_N**2 * covariance_norm_N,
                _orthogonal_share(query_ND, own_ND),
            )
        )
    return RowQuantities(*(torch.stack(values, dim=1) for values in zip(*columns, strict=True)))


def spectral_norm(key_NTD: Tensor) -> Tensor:
    """`||K||_2` of each head's keys, float64 [N]."""
    heads, _, dim = key_NTD.shape
    gram_NDD = torch.zeros(heads, dim, dim, dtype=torch.float64, device=key_NTD.device)
    for part in _parts(key_NTD):
        gram_NDD += part.double().transpose(1, 2) @ part.double()
    return _largest_eigenvalue(gram_NDD).sqrt()


def covariance_norm(row_NT: Tensor) -> Tensor:
    """`||diag(a) - a a^T||_2` of probability rows [.., T], float64 [..].

    The largest eigenvalue lies between the two largest entries, and is the root of
    `sum_j a_j^2 / (a_j - x) = 1` there (secular equation of a diagonal matrix less one of rank 1); found by
    halving.
    """
    row = row_NT.double()
    if row.shape[-1] == 1:
        return torch.zeros_like(row[..., 0])
    top = row.topk(2, dim=-1).values
    low, high = top[..., 1], top[..., 0]
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = (row.square() / (row - middle[..., None])).sum(dim=-1) < 1  # rises from -inf to inf
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def _largest_covariance(row_NT: Tensor, key_NTD: Tensor) -> Tensor:
    """Largest eigenvalue of the covariance of the keys under each head's row, [N]."""
    rows = row_NT.split(KEYS_AT_ONCE, dim=1)
    heads, _, dim = key_NTD.shape
    mean_ND = row_NT.new_zeros(heads, dim)
    for row, part in zip(rows, _parts(key_NTD), strict=True):
        mean_ND += torch.einsum("nt,ntd->nd", row, part.double())
    covariance_NDD = row_NT.new_zeros(heads, dim, dim)
    for row, part in zip(rows, _parts(key_NTD), strict=True):
        centred = part.double() - mean_ND[:, None]
        covariance_NDD += (row[..., None] * centred).transpose(1, 2) @ centred
    return _largest_eigenvalue(covariance_NDD)


def _largest_eigenvalue(matrix_NDD: Tensor) -> Tensor:
    """Of positive semidefinite matrices."""
    values_ND: Tensor = torch.linalg.eigvalsh(matrix_NDD)
    return values_ND[:, -1].clamp(min=0)


def _orthogonal_share(query_ND: Tensor, own_ND: Tensor) -> Tensor:
    cosine_N = torch.nn.functional.cosine_similarity(query_ND, own_ND, dim=1, eps=1e-300)
    return (1 - cosine_N.square()).clamp(min=0).sqrt()


def _parts(key_NTD: Tensor) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = key_NTD.split(KEYS_AT_ONCE, dim=1)
    return parts

"""Quantities of attention rows against dense matrices in float64, and the bounds that hold between them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oseg_video.probing import quantities
from oseg_video.probing.quantities import NAMES, covariance_norm, row_quantities, spectral_norm


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def energy(query_D: Tensor, key_TD: Tensor, scale: float) -> Tensor:
    return -torch.logsumexp(scale * key_TD @ query_D, dim=0)


def dense(query_D: Tensor, key_TD: Tensor, own_D: Tensor, scale: float) -> list[float]:
    """By whole matrices; the Hessian by automatic differentiation."""
    row = (scale * key_TD @ query_D).softmax(0)
    covariance = torch.diag(row) - torch.outer(row, row)
    hessian = torch.autograd.functional.hessian(lambda q: energy(q, key_TD, scale), query_D)
    norm = torch.linalg.matrix_norm(covariance, 2)
    unit = own_D / own_D.norm()
    return [
        float(-(row * row.log()).sum()),
        float(energy(query_D, key_TD, scale)),
        float(norm),
        float(torch.linalg.eigvalsh(hessian).abs().max()),
        float(scale**2 * torch.linalg.matrix_norm(key_TD, 2) ** 2 * norm),
        float((query_D - (query_D @ unit) * unit).norm() / query_D.norm()),
    ]


@pytest.mark.parametrize("at_once", [3, 4096])
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 6.0])
def test_they_are_those_of_whole_matrices(
    monkeypatch: pytest.MonkeyPatch, at_once: int, sharpness: float
) -> None:
    monkeypatch.setattr(quantities, "KEYS_AT_ONCE", at_once)
    heads, queries, keys, dim, scale = 2, 3, 11, 5, 0.4
    query, key = normal(heads, queries, dim, seed=1, scale=sharpness), normal(heads, keys, dim, seed=2)
    own = key[:, 4 : 4 + queries]
    found = row_quantities(query, key, own, scale, spectral_norm(key))
    for head in range(heads):
        for index in range(queries):
            wanted = dense(query[head, index], key[head], own[head, index], scale)
            values = [float(getattr(found, name)[head, index]) for name in NAMES]
            assert values == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=8).filter(lambda row: sum(row) > 1e-3),
    st.integers(0, 7),
)
@settings(deadline=None)
def test_the_norm_of_the_covariance_of_any_row(weights: list[float], repeats: int) -> None:
    row = torch.tensor(weights + weights[:repeats], dtype=torch.float64)
    row = row / row.sum()
    wanted = torch.linalg.eigvalsh(torch.diag(row) - torch.outer(row, row))[-1]
    found = covariance_norm(row)
    assert float(found) == pytest.approx(float(wanted), abs=1e-12)
    assert float(found) <= 0.5 + 1e-12


@pytest.mark.parametrize(
    ("row", "norm"),
    [
        ([1.0], 0.0),
        ([1.0, 0.0, 0.0], 0.0),
        ([0.5, 0.5, 0.0, 0.0], 0.5),
        ([0.25] * 4, 0.25),
        ([0.4, 0.4, 0.2], 0.4),
    ],
)
def test_the_norm_of_rows_whose_norm_is_known(row: list[float], norm: float) -> None:
    assert float(covariance_norm(torch.tensor(row))) == pytest.approx(norm, abs=1e-7)


@given(st.integers(0, 1000), st.floats(0.01, 30), st.integers(1, 40))
@settings(deadline=None, max_examples=50)
def test_the_curvature_never_exceeds_its_bound(seed: int, sharpness: float, keys: int) -> None:
    query, key = normal(2, 3, 6, seed=seed, scale=sharpness), normal(2, keys, 6, seed=seed + 1)
    found = row_quantities(query, key, query, 6**-0.5, spectral_norm(key))
    assert bool((found.curvature <= found.bound * (1 + 1e-9) + 1e-12).all())
    assert bool((found.entropy <= math.log(keys) + 1e-9).all())


def test_a_query_orthogonal_to_all_keys_attends_to_all_alike() -> None:
    query, key = torch.zeros(1, 1, 4, dtype=torch.float64), normal(1, 9, 4)
    query[..., 3], key[..., 3] = 5.0, 0.0
    found = row_quantities(query, key, key[:, :1], 0.5, spectral_norm(key))
    assert float(found.entropy) == pytest.approx(math.log(9))
    assert float(found.covariance_norm) == pytest.approx(1 / 9)
    assert float(found.energy) == pytest.approx(-math.log(9))
    assert float(found.orthogonal) == pytest.approx(1)


def test_the_spectral_norm() -> None:
    key = normal(3, 10, 4)
    assert torch.allclose(spectral_norm(key), torch.linalg.matrix_norm(key, 2))
    assert float(spectral_norm(torch.zeros(1, 3, 2))) == 0

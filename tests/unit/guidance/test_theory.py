"""What the papers claim about energy, curvature and attention, on the functions as shipped."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from oseg_video.guidance.projection import split_by_key
from oseg_video.guidance.smoothing import smooth_queries
from oseg_video.types import TokenGrid

# B batch, N heads, S video tokens = F*H*W, D head dim, T tokens of the keys (video and text)

GRID = TokenGrid(3, 4, 2)
SEEDS = st.integers(0, 2**31 - 1)
SIGMAS = st.floats(0.05, 20) | st.just(math.inf)
PAIRS = st.tuples(SIGMAS, SIGMAS)


def random_tensor(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention_logits(query_BNSD, key_BNTD):
    return torch.einsum("bnsd,bntd->bnst", query_BNSD, key_BNTD) / math.sqrt(query_BNSD.shape[-1])


def rotate(x_BNSD, positions_S3):
    """Rotary embedding over (frame, row, column), pair by pair as complex numbers."""
    x = x_BNSD.numpy()
    out = np.empty_like(x)
    for pair in range(x.shape[-1] // 2):
        frequency = 0.7 ** np.array([pair + 1, pair + 2, pair + 3])
        turned = (x[..., 2 * pair] + 1j * x[..., 2 * pair + 1]) * np.exp(1j * positions_S3 @ frequency)
        out[..., 2 * pair], out[..., 2 * pair + 1] = turned.real, turned.imag
    return torch.from_numpy(out)


@given(SEEDS, PAIRS, st.sampled_from(["symmetric", "reflect"]))
def test_blurring_queries_is_blurring_logits_over_the_query_axis(seed, sigma, boundary):
    query, key = (
        random_tensor(2, 2, GRID.tokens, 6, seed=seed),
        random_tensor(2, 2, GRID.tokens + 5, 6, seed=seed + 1),
    )
    # Logits are [B, N, queries, keys]: the keys stand where the head dim does, so the same call blurs them.
    blurred_logits = smooth_queries(attention_logits(query, key), GRID, sigma, boundary=boundary)
    assert_close(attention_logits(smooth_queries(query, GRID, sigma, boundary=boundary), key), blurred_logits)


@given(SEEDS, PAIRS)
def test_smoothing_keeps_the_mean_and_never_raises_the_variance_over_queries(seed, sigma):
    query, key = (
        random_tensor(2, 2, GRID.tokens, 6, seed=seed),
        random_tensor(2, 2, GRID.tokens, 6, seed=seed + 1),
    )
    before = attention_logits(query, key)
    after = attention_logits(smooth_queries(query, GRID, sigma), key)
    assert_close(after.mean(dim=2), before.mean(dim=2))
    assert (after.var(dim=2) <= before.var(dim=2) * (1 + 1e-12)).all()


def test_the_reference_boundary_gives_no_such_guarantee():
    field = torch.zeros(1, 1, 4, 1, dtype=torch.float64)
    field[0, 0, 1] = 1.0
    line = TokenGrid(1, 1, 4)
    assert_close(smooth_queries(field, line, 0.5).mean(), field.mean())
    assert abs(smooth_queries(field, line, 0.5, boundary="reflect").mean() - field.mean()) > 0.01


@given(SEEDS, PAIRS)
def test_smoothing_never_lowers_the_mean_energy(seed, sigma):
    query, key = (
        random_tensor(1, 2, GRID.tokens, 6, seed=seed),
        random_tensor(1, 2, GRID.tokens, 6, seed=seed + 1),
    )
    energy = -attention_logits(query, key).logsumexp(dim=-1)
    smoothed_energy = -attention_logits(smooth_queries(query, GRID, sigma), key).logsumexp(dim=-1)
    assert (smoothed_energy.mean(dim=2) >= energy.mean(dim=2) - 1e-12).all()


@given(SEEDS)
def test_orthogonal_component_has_no_logit_with_its_own_key_before_and_after_rope(seed):
    query, key = (
        random_tensor(2, 2, GRID.tokens, 8, seed=seed),
        random_tensor(2, 2, GRID.tokens, 8, seed=seed + 1),
    )
    parallel, orthogonal = split_by_key(query, key)
    positions_S3 = np.array(list(np.ndindex(*GRID.shape)), dtype=float)
    zero = torch.zeros(2, 2, GRID.tokens, dtype=torch.float64)
    for q, k in ((orthogonal, key), (rotate(orthogonal, positions_S3), rotate(key, positions_S3))):
        own_logit = attention_logits(q, k).diagonal(dim1=-2, dim2=-1)
        assert_close(own_logit, zero, rtol=0, atol=1e-12)
    # The rotation commutes with the split, and is a real one: other logits do change.
    rotated_parallel, _ = split_by_key(rotate(query, positions_S3), rotate(key, positions_S3))
    assert_close(rotated_parallel, rotate(parallel, positions_S3))
    rotated_logits = attention_logits(rotate(query, positions_S3), rotate(key, positions_S3))
    assert not torch.allclose(rotated_logits, attention_logits(query, key))


@given(SEEDS, st.integers(1, 12), st.floats(0.1, 30))
def test_softmax_covariance_has_norm_at_most_one_half(seed, tokens, temperature):
    row = (temperature * random_tensor(tokens, seed=seed)).softmax(dim=0)
    norm = torch.linalg.matrix_norm(torch.diag(row) - torch.outer(row, row), 2)
    assert norm <= 0.5 + 1e-12


def test_softmax_covariance_reaches_its_bounds():
    two = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64)
    assert_close(torch.linalg.matrix_norm(torch.diag(two) - torch.outer(two, two), 2).item(), 0.5)
    uniform = torch.full((7,), 1 / 7, dtype=torch.float64)
    norm = torch.linalg.matrix_norm(torch.diag(uniform) - torch.outer(uniform, uniform), 2)
    assert_close(norm.item(), 1 / 7)


@given(SEEDS)
def test_energy_curvature_is_the_covariance_of_the_keys_and_bounded(seed):
    query_D, key_SD = random_tensor(5, seed=seed), random_tensor(9, 5, seed=seed + 1)

    def energy(q):
        return -torch.logsumexp(key_SD @ q / math.sqrt(5), dim=0)

    row = (key_SD @ query_D / math.sqrt(5)).softmax(dim=0)
    covariance = torch.diag(row) - torch.outer(row, row)
    hessian = torch.autograd.functional.hessian(energy, query_D)
    assert_close(-hessian, key_SD.T @ covariance @ key_SD / 5)
    key_norm = torch.linalg.matrix_norm(key_SD, 2)
    bound = key_norm**2 * torch.linalg.matrix_norm(covariance, 2) / 5
    assert torch.linalg.eigvalsh(-hessian).max() <= bound + 1e-12 <= key_norm**2 / 10 + 2e-12


@given(SEEDS, st.integers(1, 5))
def test_a_query_orthogonal_to_every_key_attends_uniformly(seed, rank):
    span_RD = random_tensor(rank, 8, seed=seed)
    key_SD = random_tensor(6, rank, seed=seed + 1) @ span_RD
    query = random_tensor(8, seed=seed + 2)
    orthogonal = query - span_RD.T @ torch.linalg.lstsq(span_RD.T, query).solution
    assert orthogonal.norm() > 1e-6
    row = (key_SD @ orthogonal / math.sqrt(8)).softmax(dim=0)
    assert_close(row, torch.full((6,), 1 / 6, dtype=torch.float64))


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0, 4.0, 8.0])
def test_wider_smoothing_approaches_the_mean_monotonically(sigma):
    query = random_tensor(1, 1, GRID.tokens, 4)
    mean = query.mean(dim=2, keepdim=True)
    distances = [(smooth_queries(query, GRID, s) - mean).norm() for s in (sigma, 1.3 * sigma)]
    assert distances[1] <= distances[0]

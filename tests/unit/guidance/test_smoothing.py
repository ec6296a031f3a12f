"""Smoothing against loops over the extended axis, SEG's convolution, and the laws of a heat kernel."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from oseg_video.guidance import smoothing
from oseg_video.guidance.smoothing import (
    smooth_queries,
    smoothing_matrix,
    validate_blur_sigma,
    validate_boundary,
)
from oseg_video.types import OsegVideoError, TokenGrid

# B batch, N heads, S video tokens = F*H*W, D head dim; L tokens along one axis

BOUNDARIES = ("symmetric", "reflect")
LENGTHS = st.integers(1, 24)
SIGMAS = st.one_of(st.floats(0.01, 200), st.sampled_from([0.0, 1e-300, 1e9, math.inf]))
GRIDS = st.builds(TokenGrid, st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
SEEDS = st.integers(0, 2**31 - 1)


def random_queries(grid, seed=0, dtype=torch.float64, batch=2, heads=3, dim=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, heads, grid.tokens, dim, generator=generator, dtype=torch.float64).to(dtype)


def heat_kernel_by_loops(length, sigma):
    """Every tap of the sampled Gaussian walked over the mirrored axis .. 1 0 | 0 1 .. L-1 | L-1 .. ."""
    reach = math.ceil(9 * sigma) + 1
    taps = [math.exp(-0.5 * (t / sigma) ** 2) for t in range(-reach, reach + 1)]
    rows = [[0.0] * length for _ in range(length)]
    for i in range(length):
        for t, weight in zip(range(-reach, reach + 1), taps, strict=True):
            position = (i + t) % (2 * length)
            rows[i][position if position < length else 2 * length - 1 - position] += weight / sum(taps)
    return torch.tensor(rows, dtype=torch.float64)


def seg_reference(query_BNSD, grid, sigma):
    """SEG on each frame of a square grid: a depthwise 2-D convolution over a reflect-padded image."""
    batch, heads, _, dim = query_BNSD.shape
    side = grid.height
    image = query_BNSD.reshape(batch, heads, grid.frames, side, side, dim).permute(0, 2, 1, 5, 3, 4)
    image = image.reshape(batch * grid.frames, heads * dim, side, side)
    if sigma > 9999:
        image = image.mean((2, 3), keepdim=True).expand_as(image)
    else:
        size = math.ceil(6 * sigma)
        size = size if size % 2 else size + 1
        size = min(size, side if side % 2 else side + 1)
        half = size // 2
        taps = [math.exp(-(t**2) / (2 * sigma**2)) for t in range(-half, half + 1)]
        kernel = torch.outer(*[torch.tensor(taps, dtype=torch.float64)] * 2)
        kernel = (kernel / kernel.sum()).expand(heads * dim, 1, size, size)
        image = F.conv2d(F.pad(image, (half,) * 4, mode="reflect"), kernel, groups=heads * dim)
    image = image.reshape(batch, grid.frames, heads, dim, side, side).permute(0, 2, 1, 4, 5, 3)
    return image.reshape(batch, heads, grid.tokens, dim)


@given(st.integers(1, 12), st.floats(0.05, 15))
def test_symmetric_matrix_is_the_gaussian_walked_over_the_mirrored_axis(length, sigma):
    assert_close(smoothing_matrix(length, sigma), heat_kernel_by_loops(length, sigma), rtol=0, atol=1e-14)


@given(LENGTHS, SIGMAS)
def test_symmetric_matrix_is_symmetric_and_doubly_stochastic(length, sigma):
    matrix_LL = smoothing_matrix(length, sigma)
    assert torch.equal(matrix_LL, matrix_LL.T)
    assert matrix_LL.min() >= 0
    assert_close(matrix_LL.sum(dim=1), torch.ones(length, dtype=torch.float64), rtol=0, atol=1e-14)
    assert_close(matrix_LL.sum(dim=0), torch.ones(length, dtype=torch.float64), rtol=0, atol=1e-14)


@given(LENGTHS, SIGMAS)
def test_reflect_rows_sum_to_one(length, sigma):
    matrix_LL = smoothing_matrix(length, sigma, "reflect")
    assert matrix_LL.min() >= 0
    assert_close(matrix_LL.sum(dim=1), torch.ones(length, dtype=torch.float64), rtol=0, atol=1e-14)


@given(st.integers(2, 16), st.floats(0.3, 8), st.floats(1.05, 3))
def test_cosines_are_eigenvectors_and_decay_with_frequency_and_sigma(length, sigma, factor):
    position = torch.arange(length, dtype=torch.float64) + 0.5
    narrow, wide = smoothing_matrix(length, sigma), smoothing_matrix(length, factor * sigma)
    decays = []
    for matrix_LL in (narrow, wide):
        decay = []
        for frequency in range(length):
            wave = torch.cos(math.pi * frequency * position / length)
            decay.append(float((matrix_LL @ wave) @ wave / (wave @ wave)))
            assert_close(matrix_LL @ wave, decay[-1] * wave, rtol=0, atol=1e-13)
        assert all(after <= before + 1e-14 for before, after in itertools.pairwise(decay))
        decays.append(decay)
    assert all(b <= a + 1e-14 for a, b in zip(*decays, strict=True))
    assert decays[1][1] < decays[0][1] or decays[0][1] < 1e-14


@pytest.mark.parametrize("length", [2, 5, 24])
def test_there_is_no_step_where_the_kernel_becomes_the_mean(length):
    mean = torch.full((length, length), 1 / length, dtype=torch.float64)
    assert_close(smoothing_matrix(length, 2.999999 * length), mean, rtol=0, atol=1e-15)
    assert torch.equal(smoothing_matrix(length, 3.0 * length), mean)


@given(GRIDS, SEEDS, st.sampled_from(BOUNDARIES))
def test_sigma_zero_is_exactly_the_identity(grid, seed, boundary):
    query = random_queries(grid, seed)
    assert torch.equal(smooth_queries(query, grid, 0.0, boundary=boundary), query)
    assert torch.equal(smooth_queries(query, grid, (0, 0.0), boundary=boundary), query)


@given(GRIDS, SEEDS, st.sampled_from(BOUNDARIES))
def test_sigma_infinity_is_the_mean_over_all_tokens(grid, seed, boundary):
    query = random_queries(grid, seed)
    mean = query.mean(dim=2, keepdim=True).expand_as(query)
    assert_close(smooth_queries(query, grid, math.inf, boundary=boundary), mean)


@given(GRIDS, st.floats(0, 20), st.floats(0, 20), st.sampled_from(BOUNDARIES), SEEDS)
def test_three_axis_products_are_the_dense_kronecker_matrix(grid, frame_sigma, space_sigma, boundary, seed):
    query = random_queries(grid, seed)
    frames, height, width = (
        smoothing_matrix(length, sigma, boundary)
        for length, sigma in zip(grid.shape, (frame_sigma, space_sigma, space_sigma), strict=True)
    )
    dense_SS = torch.kron(torch.kron(frames, height), width)
    expected = torch.einsum("st,bntd->bnsd", dense_SS, query)
    assert_close(smooth_queries(query, grid, (frame_sigma, space_sigma), boundary=boundary), expected)


@given(
    st.integers(1, 3), st.integers(1, 9), st.floats(0.1, 30) | st.sampled_from([9999.0, 1e5, math.inf]), SEEDS
)
def test_reflect_equals_the_seg_reference_on_square_frames(frames, side, sigma, seed):
    grid = TokenGrid(frames, side, side)
    query = random_queries(grid, seed, batch=1, heads=2, dim=2)
    smoothed = smooth_queries(query, grid, (0, sigma), boundary="reflect")
    assert_close(smoothed, seg_reference(query, grid, sigma))


@given(st.integers(2, 20), st.floats(0.2, 12))
def test_reflect_limits_the_kernel_by_each_axis_own_length(length, sigma):
    size = min(math.ceil(6 * sigma) // 2 * 2 + 1, length // 2 * 2 + 1)
    axis = torch.eye(length, dtype=torch.float64).unsqueeze(1)
    taps = torch.exp(-0.5 * (torch.linspace(-(size // 2), size // 2, size).double() / sigma) ** 2)
    padded = F.pad(axis, (size // 2, size // 2), mode="reflect")
    expected = F.conv1d(padded, (taps / taps.sum()).view(1, 1, -1)).squeeze(1).T
    assert_close(smoothing_matrix(length, sigma, "reflect"), expected)


@given(SEEDS, st.floats(0.1, 9), st.sampled_from(BOUNDARIES))
def test_without_frame_sigma_smoothing_commutes_with_shuffling_frames(seed, sigma, boundary):
    grid = TokenGrid(5, 3, 4)
    query = random_queries(grid, seed)
    order = torch.randperm(grid.frames, generator=torch.Generator().manual_seed(seed))

    def shuffled(x):
        return x.unflatten(2, (grid.frames, -1))[:, :, order].flatten(2, 3)

    smoothed = smooth_queries(query, grid, (0.0, sigma), boundary=boundary)
    assert_close(smooth_queries(shuffled(query), grid, (0.0, sigma), boundary=boundary), shuffled(smoothed))


def test_each_axis_has_its_own_sigma():
    grid = TokenGrid(4, 3, 5)
    query = random_queries(grid)
    over_frames = query.unflatten(2, (4, 15)).mean(dim=2, keepdim=True).expand(-1, -1, 4, -1, -1)
    over_space = query.unflatten(2, (4, 15)).mean(dim=3, keepdim=True).expand(-1, -1, -1, 15, -1)
    assert_close(smooth_queries(query, grid, (math.inf, 0)), over_frames.flatten(2, 3))
    assert_close(smooth_queries(query, grid, (0, math.inf)), over_space.flatten(2, 3))


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_constant_field_is_unchanged(boundary):
    grid = TokenGrid(3, 4, 5)
    field = torch.full((1, 1, grid.tokens, 2), 0.7, dtype=torch.float64)
    assert_close(smooth_queries(field, grid, 2.0, boundary=boundary), field)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_in_float32(dtype):
    grid = TokenGrid(4, 16, 16)
    query = random_queries(grid, dtype=dtype)
    smoothed = smooth_queries(query, grid, 3.0)
    assert smoothed.dtype == dtype
    assert torch.equal(smoothed, smooth_queries(query.float(), grid, 3.0).to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(smooth_queries(query, grid, 3.0), smoothed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_input_is_not_written_and_layout_does_not_matter(dtype):
    grid = TokenGrid(2, 3, 4)
    query_BSND = random_queries(grid, dtype=dtype).transpose(1, 2).contiguous()
    query = query_BSND.transpose(1, 2)
    before = query.clone()
    smoothed = smooth_queries(query, grid, 1.5)
    assert torch.equal(query, before) and query_BSND._version == 0
    assert torch.equal(smoothed, smooth_queries(before, grid, 1.5))


@pytest.mark.parametrize("first_in_inference_mode", [True, False])
def test_cached_matrices_serve_inference_mode_and_autograd(first_in_inference_mode):
    grid = TokenGrid(2, 3, 4)
    smoothing._cached_axis_matrix.cache_clear()

    def infer():
        with torch.inference_mode():
            return smooth_queries(random_queries(grid), grid, 1.25)

    def differentiate():
        query = random_queries(grid).requires_grad_()
        smooth_queries(query, grid, 1.25).sum().backward()
        return query.grad

    calls = (infer, differentiate) if first_in_inference_mode else (differentiate, infer)
    results = [call() for call in calls]
    # Columns sum to 1, so the sum's gradient is 1 everywhere.
    assert_close(results[calls.index(differentiate)], torch.ones(2, 3, grid.tokens, 4, dtype=torch.float64))


def test_matrices_are_built_once_per_setting():
    grid = TokenGrid(2, 5, 5)
    smoothing._cached_axis_matrix.cache_clear()
    for _ in range(3):
        smooth_queries(random_queries(grid), grid, 1.25)
    info = smoothing._cached_axis_matrix.cache_info()
    assert (info.misses, info.hits) == (2, 7)
    assert info.maxsize is not None


@pytest.mark.slow
def test_compiles_into_one_graph():
    grid = TokenGrid(2, 3, 4)
    query = random_queries(grid, dtype=torch.float32)
    for boundary in BOUNDARIES:
        torch.compiler.reset()
        compiled = torch.compile(smooth_queries, backend="aot_eager", fullgraph=True)
        with torch.inference_mode():
            assert_close(
                compiled(query, grid, 1.5, boundary=boundary),
                smooth_queries(query, grid, 1.5, boundary=boundary),
            )


@pytest.mark.parametrize("sigma", [-1, -0.5, math.nan, (1, -2), (1, 2, 3), (1,), "5", None, True, (1, "2")])
def test_bad_sigma_is_refused_by_name_and_value(sigma):
    with pytest.raises(OsegVideoError, match=r"^blur sigma must be a number >= 0 .*, got ") as error:
        smooth_queries(random_queries(TokenGrid(1, 2, 2)), TokenGrid(1, 2, 2), sigma)
    assert repr(sigma) in str(error.value) and "\n" not in str(error.value)


def test_validators_return_what_they_accept():
    assert validate_blur_sigma(5) == (5.0, 5.0)
    assert validate_blur_sigma([2, math.inf]) == (2.0, math.inf)
    assert validate_boundary("reflect") == "reflect"


def test_unknown_boundary_is_refused_even_where_nothing_is_smoothed():
    with pytest.raises(OsegVideoError, match=r"^boundary must be one of symmetric, reflect, got 'zeros'$"):
        smooth_queries(random_queries(TokenGrid(1, 2, 2)), TokenGrid(1, 2, 2), 0, boundary="zeros")


def test_wrong_token_count_is_refused():
    with pytest.raises(OsegVideoError, match="query has 8 tokens, expected 2x2x3 = 12"):
        smooth_queries(random_queries(TokenGrid(2, 2, 2)), TokenGrid(2, 2, 3), 1.0)
    with pytest.raises(OsegVideoError, match="query must have dimensions"):
        smooth_queries(torch.zeros(2, 12, 4), TokenGrid(2, 2, 3), 1.0)

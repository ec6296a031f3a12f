"""Query transforms against token-by-token NumPy loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from oseg_video.guidance.queries import oseg_queries, released_queries, seg_queries
from oseg_video.types import OsegVideoError, TokenGrid

# B batch, N heads, S video tokens = F*H*W, D head dim, C channels

GRID = TokenGrid(2, 3, 4)
SEEDS = st.integers(0, 2**31 - 1)
FRACTIONS = st.floats(0, 1)


def random_pair(seed=0, dtype=torch.float64, shape=(2, 2, GRID.tokens, 5)):
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return query.to(dtype), (key + 0.5).to(dtype)


def blur_by_loops(x_SD, grid, sigma):
    """One Gaussian walked over the mirrored extension of each axis; infinite sigma is the mean."""
    x = x_SD.reshape(*grid.shape, -1)
    for axis, length in enumerate(grid.shape):
        if math.isinf(sigma):
            x = np.broadcast_to(x.mean(axis=axis, keepdims=True), x.shape)
            continue
        moved = np.moveaxis(x, axis, 0)
        out = np.zeros_like(moved)
        reach = math.ceil(9 * sigma) + 1
        weights = {t: math.exp(-0.5 * (t / sigma) ** 2) for t in range(-reach, reach + 1)}
        for i in range(length):
            for t, weight in weights.items():
                position = (i + t) % (2 * length)
                out[i] += weight * moved[min(position, 2 * length - 1 - position)]
        x = np.moveaxis(out / sum(weights.values()), 0, axis)
    return x.reshape(x_SD.shape)


def oseg_by_loops(query, key, grid, sigma, mix, keep_parallel):
    out = np.zeros(query.shape)
    for b, n in np.ndindex(*query.shape[:2]):
        q, k = query[b, n].numpy(), key[b, n].numpy()
        parallel = np.stack([np.dot(q[s], k[s]) / np.dot(k[s], k[s]) * k[s] for s in range(grid.tokens)])
        perturbed = keep_parallel * parallel + blur_by_loops(q - parallel, grid, sigma)
        out[b, n] = (1 - mix) * q + mix * perturbed
    return torch.from_numpy(out)


def published_by_loops(query, key, mix):
    out = np.zeros(query.shape)
    weights = {(y, x): math.exp(-(y * y + x * x) / 2) for y in range(-2, 3) for x in range(-2, 3)}
    total = sum(weights.values())
    for b, s in np.ndindex(*query.shape[:2]):
        q, k = query[b, s].numpy(), key[b, s].numpy()
        q = q - q.mean()
        image = (q - np.dot(q, k) / np.dot(k, k) * k).reshape(64, -1)
        blurred = np.zeros_like(image)
        for (y, x), weight in weights.items():
            for row, column in np.ndindex(*image.shape):
                if 0 <= row + y < image.shape[0] and 0 <= column + x < image.shape[1]:
                    blurred[row, column] += weight / total * image[row + y, column + x]
        out[b, s] = (1 - mix) * q + mix * blurred.reshape(-1)
    return torch.from_numpy(out)


@given(SEEDS, st.floats(0.1, 6) | st.just(math.inf))
def test_seg_blurs_the_whole_query(seed, sigma):
    query, _ = random_pair(seed, shape=(1, 1, GRID.tokens, 3))
    expected = torch.from_numpy(blur_by_loops(query[0, 0].numpy(), GRID, sigma))
    assert_close(seg_queries(query, GRID, sigma)[0, 0], expected)
    assert torch.equal(seg_queries(query, GRID, 0), query)


@given(SEEDS, st.floats(0.1, 6) | st.just(math.inf), FRACTIONS, FRACTIONS)
def test_oseg_blurs_only_the_orthogonal_component(seed, sigma, mix, keep_parallel):
    query, key = random_pair(seed)
    result = oseg_queries(query, key, GRID, blur_sigma=sigma, mix=mix, keep_parallel=keep_parallel)
    assert_close(result, oseg_by_loops(query, key, GRID, sigma, mix, keep_parallel))


def test_oseg_defaults_are_sigma_five_full_mix_and_no_parallel_component():
    query, key = random_pair()
    assert_close(oseg_queries(query, key, GRID), oseg_by_loops(query, key, GRID, 5.0, 1.0, 0.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_mix_zero_returns_the_input_exactly(dtype):
    query, key = random_pair(dtype=dtype)
    assert torch.equal(oseg_queries(query, key, GRID, mix=0.0, keep_parallel=0.3), query)


@given(SEEDS, FRACTIONS)
def test_no_blur_and_the_whole_parallel_component_is_the_identity(seed, mix):
    query, key = random_pair(seed)
    assert_close(oseg_queries(query, key, GRID, blur_sigma=0, mix=mix, keep_parallel=1.0), query)


@pytest.mark.parametrize("reference", ["token", "frame", "clip", "principal:2"])
def test_every_reference_and_boundary_reaches_the_result(reference):
    query, key = random_pair()
    result = oseg_queries(query, key, GRID, reference=reference)
    assert (reference == "token") == torch.equal(result, oseg_queries(query, key, GRID))
    assert not torch.allclose(result, oseg_queries(query, key, GRID, reference=reference, boundary="reflect"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_at_the_end(dtype):
    query, key = random_pair(dtype=dtype)
    options = {"blur_sigma": 0.7, "mix": 0.67, "keep_parallel": 0.5}
    half = oseg_queries(query, key, GRID, **options)
    assert half.dtype == dtype
    assert torch.equal(half, oseg_queries(query.float(), key.float(), GRID, **options).to(dtype))
    channels = random_pair(dtype=dtype, shape=(2, 3, 128))
    half = released_queries(*channels, mix=0.67)
    assert half.dtype == dtype
    assert torch.equal(half, released_queries(*(x.float() for x in channels), mix=0.67).to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(released_queries(*channels, mix=0.67), half)


@given(SEEDS, FRACTIONS)
def test_published_smooths_the_channels_of_each_token(seed, mix):
    query, key = random_pair(seed, shape=(1, 2, 192))
    assert_close(released_queries(query, key, mix=mix), published_by_loops(query, key, mix))


def test_tensors_without_data_keep_their_shape():
    query, key = (x.to("meta") for x in random_pair(dtype=torch.bfloat16))
    assert oseg_queries(query, key, GRID).shape == query.shape


def test_published_rows_do_not_touch_each_other():
    query, key = random_pair(shape=(3, 4, 128))
    one = released_queries(query[1:2, 2:3], key[1:2, 2:3], mix=1.0)
    assert_close(released_queries(query, key, mix=1.0)[1:2, 2:3], one)


def test_inputs_are_not_written():
    query, key = random_pair(shape=(1, 1, GRID.tokens, 64))
    copies = query.clone(), key.clone()
    seg_queries(query, GRID, 2.0)
    oseg_queries(query, key, GRID, mix=0.5, keep_parallel=0.5)
    released_queries(query[0], key[0], mix=0.5)
    assert torch.equal(query, copies[0]) and torch.equal(key, copies[1])


@pytest.mark.parametrize("name", ["mix", "keep_parallel"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, "1", True, None])
def test_fractions_outside_the_unit_interval_are_refused(name, value):
    query, key = random_pair()
    with pytest.raises(OsegVideoError, match=rf"^{name} must be a number in \[0, 1\], got ") as error:
        oseg_queries(query, key, GRID, **{name: value})
    assert repr(value) in str(error.value)


def test_other_bad_arguments_are_refused():
    query, key = random_pair()
    with pytest.raises(OsegVideoError, match="query has 24 tokens, expected 1x2x3 = 6"):
        oseg_queries(query, key, TokenGrid(1, 2, 3))
    with pytest.raises(OsegVideoError, match="must have the shape of query"):
        oseg_queries(query, key[:, :1], GRID)
    with pytest.raises(OsegVideoError, match=r"channels a multiple of 64, got \(1, 2, 65\)"):
        released_queries(torch.zeros(1, 2, 65), torch.zeros(1, 2, 65), mix=1.0)
    with pytest.raises(OsegVideoError, match=r"mix must be a number in \[0, 1\], got 2"):
        released_queries(torch.zeros(1, 2, 64), torch.zeros(1, 2, 64), mix=2)

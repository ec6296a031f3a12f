"""Parallel and orthogonal components against scalar loops, least squares and NumPy's SVD."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from oseg_video.guidance.projection import split_by_key, split_by_reference
from oseg_video.guidance.validation import Reference, parse_reference
from oseg_video.types import OsegVideoError, TokenGrid

# B batch, N heads, S video tokens = F*H*W, D head dim

GRID = TokenGrid(3, 2, 4)
SEEDS = st.integers(0, 2**31 - 1)
REFERENCES = ("token", "frame", "clip", "principal:1", "principal:3")


def random_pair(seed=0, dtype=torch.float64, grid=GRID, dim=6):
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, 2, 3, grid.tokens, dim, generator=generator, dtype=torch.float64)
    return query.to(dtype), (key + 0.5).to(dtype)


def dot(a, b):
    return (a * b).sum(dim=-1)


def reference_bases(key_SD, grid, reference):
    """For each token an array [D, r] whose columns span its reference, by loops and NumPy's SVD."""
    tokens_per_frame = grid.height * grid.width
    bases = []
    for token in range(grid.tokens):
        if reference == "token":
            basis = key_SD[token][:, None]
        elif reference == "frame":
            start = token // tokens_per_frame * tokens_per_frame
            basis = sum(key_SD[start : start + tokens_per_frame])[:, None]
        elif reference == "clip":
            basis = sum(key_SD)[:, None]
        else:
            rank = int(reference.removeprefix("principal:"))
            basis = np.linalg.svd(key_SD - key_SD.mean(axis=0))[2][:rank].T
        bases.append(basis)
    return bases


@given(SEEDS, st.sampled_from(REFERENCES))
def test_parallel_part_is_the_least_squares_fit_by_the_reference(seed, reference):
    query, key = random_pair(seed)
    expected = np.zeros(query.shape)
    for b, n in np.ndindex(*query.shape[:2]):
        for token, basis in enumerate(reference_bases(key[b, n].numpy(), GRID, reference)):
            coefficients = np.linalg.lstsq(basis, query[b, n, token].numpy(), rcond=None)[0]
            expected[b, n, token] = basis @ coefficients
    parallel, orthogonal = split_by_reference(query, key, GRID, reference)
    assert_close(parallel, torch.from_numpy(expected), rtol=1e-8, atol=1e-8)
    assert_close(parallel + orthogonal, query)


@given(SEEDS, st.sampled_from(REFERENCES))
def test_the_projection_is_idempotent(seed, reference):
    query, key = random_pair(seed)
    parallel, orthogonal = split_by_reference(query, key, GRID, reference)
    assert_close(split_by_reference(parallel, key, GRID, reference)[0], parallel)
    assert_close(split_by_reference(orthogonal, key, GRID, reference)[1], orthogonal)
    assert_close(
        dot(parallel, orthogonal), torch.zeros(2, 3, GRID.tokens, dtype=torch.float64), rtol=0, atol=1e-12
    )


@given(SEEDS, st.integers(-120, 120))
def test_orthogonal_part_has_no_product_with_its_key_at_any_scale(seed, exponent):
    query, key = random_pair(seed)
    key = key * 10.0**exponent
    parallel, orthogonal = split_by_key(query, key)
    cosine = dot(orthogonal, key / 10.0**exponent)
    assert_close(cosine, torch.zeros_like(cosine), rtol=0, atol=1e-12)
    assert_close(parallel + orthogonal, query)
    assert_close(parallel, split_by_key(query, -key)[0])


def test_keys_beyond_the_square_root_of_float32_still_split():
    query, key = random_pair(dtype=torch.float32)
    for scale in (1e-30, 1e30):
        assert_close(split_by_key(query, key * scale), split_by_key(query, key))


@pytest.mark.parametrize("reference", ["token", "frame", "clip", "principal:2"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_zero_keys_have_no_parallel_part(reference, dtype):
    query, key = random_pair(dtype=dtype)
    parallel, orthogonal = split_by_reference(query, torch.zeros_like(key), GRID, reference)
    assert torch.equal(parallel, torch.zeros_like(query))
    assert torch.equal(orthogonal, query)


def test_one_zero_key_leaves_the_other_tokens_alone():
    query, key = random_pair()
    with_zero = key.clone()
    with_zero[0, 0, 5] = 0
    parallel, _ = split_by_key(query, with_zero)
    expected, _ = split_by_key(query, key)
    expected[0, 0, 5] = 0
    assert torch.equal(parallel, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_keys_span_no_principal_direction(dtype):
    query, key = random_pair(dtype=dtype)
    equal = key[:, :, :1].expand_as(key)
    parallel, _ = split_by_reference(query, equal, GRID, "principal:2")
    assert torch.equal(parallel, torch.zeros_like(query))


def test_principal_directions_beyond_the_rank_of_the_keys_are_left_out():
    query, key = random_pair()
    generator = torch.Generator().manual_seed(1)
    plane = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    key = key[..., :2] @ plane  # rank 2
    two, _ = split_by_reference(query, key, GRID, "principal:2")
    five, _ = split_by_reference(query, key, GRID, "principal:5")
    assert_close(five, two)
    assert two.norm() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reference", REFERENCES)
def test_half_precision_is_computed_in_float32(dtype, reference):
    query, key = random_pair(dtype=dtype)
    half = split_by_reference(query, key, GRID, reference)
    single = split_by_reference(query.float(), key.float(), GRID, reference)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = split_by_reference(query, key, GRID, reference)
    for a, b, c in zip(half, single, autocast, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b) and torch.equal(a, c)
    assert_close(half[0] + half[1], query.float())


@pytest.mark.parametrize("reference", REFERENCES)
def test_inputs_are_not_written(reference):
    query, key = random_pair()
    copies = query.clone(), key.clone()
    split_by_reference(query, key, GRID, reference)
    assert torch.equal(query, copies[0]) and torch.equal(key, copies[1])


def test_split_by_key_takes_any_leading_dimensions():
    query, key = random_pair()
    assert_close(split_by_key(query[0, 0], key[0, 0])[0], split_by_key(query, key)[0][0, 0])


def test_reference_names():
    assert parse_reference("token") == Reference("token")
    assert parse_reference("principal:12") == Reference("principal", 12)


@pytest.mark.parametrize(
    "reference",
    ["", "Token", "token:1", "clip:", "principal", "principal:", "principal:0", "principal:-1",
     "principal:1.5", "principal:²", "svd:2", 3, None],
)  # fmt: skip
def test_unknown_references_are_refused(reference):
    with pytest.raises(
        OsegVideoError, match=r"^reference must be token, frame, clip or principal:r"
    ) as error:
        parse_reference(reference)
    assert repr(reference) in str(error.value)


def test_shapes_that_do_not_fit_are_refused():
    query, key = random_pair()
    with pytest.raises(
        OsegVideoError, match=r"key \(2, 3, 23, 6\) must have the shape of query \(2, 3, 24, 6\)"
    ):
        split_by_key(query, key[:, :, :23])
    with pytest.raises(OsegVideoError, match="query has 24 tokens, expected 1x1x2 = 2"):
        split_by_reference(query, key, TokenGrid(1, 1, 2))
    with pytest.raises(OsegVideoError, match="needs a head dim of at least 7, got 6"):
        split_by_reference(query, key, GRID, "principal:7")

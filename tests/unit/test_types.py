import pytest

from oseg_video.types import OsegVideoError, TokenGrid


def test_token_grid_counts_its_tokens_and_reads_as_a_size():
    grid = TokenGrid(4, 8, 16)
    assert (grid.tokens, grid.shape, str(grid)) == (512, (4, 8, 16), "4x8x16")


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, -2, 1), (1, 1, 2.0), (True, 1, 1), ("1", 1, 1)])
def test_token_grid_refuses_what_is_not_a_positive_integer(sizes):
    with pytest.raises(OsegVideoError, match="must be a positive integer, got"):
        TokenGrid(*sizes)


def test_errors_are_value_errors():
    assert issubclass(OsegVideoError, ValueError)

"""BSR: zeros inside of a block are padding, a block of zeros is a mistake."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from scipy import sparse

from numba_sparse_attn import FormatError
from numba_sparse_attn.formats import from_bsr, from_mask, to_bsr, to_mask
from numba_sparse_attn.testing import strategies


@given(st.data())
def test_every_blocksize_makes_the_round_trip(data):
    height, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    rows, columns = height * data.draw(st.integers(0, 6)), width * data.draw(st.integers(0, 6))
    mask = data.draw(strategies.bool_masks(rows, columns))
    matrix = to_bsr(from_mask(mask), (height, width))
    assert matrix.format == "bsr" and matrix.dtype == bool and matrix.blocksize == (height, width)
    np.testing.assert_array_equal(matrix.toarray(), mask)
    event("padded" if matrix.data.size > mask.sum() else "blocks are full")
    np.testing.assert_array_equal(to_mask(from_bsr(matrix)), mask)


def test_repeated_blocks_are_united():
    blocks = np.array([[[1, 0], [0, 0]], [[0, 0], [0, 1]], [[1, 1], [1, 1]]])
    matrix = sparse.bsr_array((blocks, [1, 1, 0], [0, 2, 3]), shape=(4, 4))
    expected = np.zeros((4, 4), bool)
    expected[[0, 1], [2, 3]] = True
    expected[2:, :2] = True
    np.testing.assert_array_equal(to_mask(from_bsr(matrix)), expected)
    assert matrix.indices.tolist() == [1, 1, 0] and matrix.data.sum() == 6


def test_what_comes_out_shares_nothing_with_the_frozen_arrays():
    csr = from_mask(np.eye(4, dtype=bool))
    matrix = to_bsr(csr, (1, 1))
    matrix.indices[:] = 0
    matrix.data[:] = False
    assert csr.indices.tolist() == [0, 1, 2, 3]


def broken(**changes):
    matrix = sparse.bsr_array((np.ones((2, 2, 3)), [0, 1], [0, 1, 2]), shape=(4, 6))
    for name, value in changes.items():
        setattr(matrix, name, np.asarray(value))
    return matrix


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (broken(indices=[0, 2]), r"indices\[1\] = 2 with 2 block columns"),
        (broken(indices=[0, -1]), r"indices\[1\] = -1"),
        (broken(indices=[0, 1, 1]), r"data of shape \(2, 2, 3\) for 3 indices"),
        (broken(indptr=[0, 3, 2]), r"indptr\[2\] = 2 after indptr\[1\] = 3"),
        (broken(indptr=[0, 1, 3]), "an indptr that ends at 3 for 2 indices"),
        (broken(indptr=[0, 2]), "an indptr of 2 entries for 2 rows"),
        (broken(indptr=np.array([0.0, 1.0, 2.0])), "indptr of float64"),
        (broken(data=np.zeros((2, 2, 3))), r"data\[0\], a block of zeros"),
        (broken(data=np.full((2, 2, 3), np.nan)), r"data\[0, 0, 0\] = nan"),
        (broken(data=np.ones((2, 3, 3))), "blocks of 3 x 3 in a shape of 4 x 6"),
    ],
)
def test_broken_arrays_are_refused(matrix, words):
    with pytest.raises(FormatError, match=f"^given: {words}"):
        from_bsr(matrix)


@pytest.mark.parametrize("blocksize", [(3, 1), (1, 5), (0, 1), (-2, 1), (2,), 2, (1.0, 1), (8, 4)])
def test_blocks_that_do_not_fit_are_refused(blocksize):
    with pytest.raises(FormatError, match=r"^given: blocksize="):
        to_bsr(from_mask(np.eye(4, dtype=bool)), blocksize)

"""COO and boolean masks: what goes in comes out, in canonical form, and nothing of the caller's changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from scipy import sparse

from numba_sparse_attn import FormatError
from numba_sparse_attn.formats import Csr, from_coo, from_mask, from_scipy, to_coo, to_mask
from numba_sparse_attn.formats.coo import entry_rows, from_pairs
from numba_sparse_attn.testing import strategies

shapes = st.tuples(st.integers(0, 40), st.integers(0, 40))


def assert_canonical(csr: Csr) -> None:
    n_q, n_k = csr.shape
    assert csr.indptr.dtype == np.int64 and csr.indices.dtype == np.int32
    assert not csr.indptr.flags.writeable and not csr.indices.flags.writeable
    assert csr.indptr.shape == (n_q + 1,) and csr.indptr[0] == 0 and csr.indptr[-1] == csr.nnz
    for begin, end in zip(csr.indptr[:-1], csr.indptr[1:], strict=True):
        row = csr.indices[begin:end]
        assert (np.diff(row) > 0).all() and (0 <= row).all() and (row < n_k).all()


@given(st.data())
def test_any_scipy_array_means_its_mask(data):
    mask = data.draw(strategies.bool_masks(*data.draw(shapes)))
    matrix = data.draw(strategies.scipy_arrays(mask))
    event(matrix.format)
    before = [array.copy() for array in parts(matrix)]
    csr = from_scipy(matrix)
    assert_canonical(csr)
    np.testing.assert_array_equal(to_mask(csr), mask)
    for array, kept in zip(parts(matrix), before, strict=True):
        np.testing.assert_array_equal(array, kept)
        assert not np.may_share_memory(array, csr.indices)


def parts(matrix):
    if matrix.format == "coo":
        return matrix.row, matrix.col, matrix.data
    return matrix.indptr, matrix.indices, matrix.data


@given(st.data())
def test_masks_and_coo_arrays_make_the_round_trip(data):
    mask = data.draw(strategies.bool_masks(*data.draw(shapes)))
    csr = from_mask(mask)
    assert_canonical(csr)
    np.testing.assert_array_equal(to_mask(csr), mask)
    coo = to_coo(csr)
    assert coo.has_canonical_format and coo.data.dtype == bool and coo.data.all()
    np.testing.assert_array_equal(coo.toarray(), mask)
    again = from_coo(coo)
    np.testing.assert_array_equal(again.indptr, csr.indptr)
    np.testing.assert_array_equal(again.indices, csr.indices)
    np.testing.assert_array_equal(entry_rows(csr), coo.row)


def test_conversions_share_nothing_with_the_frozen_arrays():
    csr = from_mask(np.eye(4, dtype=bool))
    coo = to_coo(csr)
    coo.col[:] = 0
    to_mask(csr)[:] = True
    assert csr.indices.tolist() == [0, 1, 2, 3]


def test_strided_and_transposed_masks():
    mask = np.random.default_rng(0).random((12, 14)) < 0.4
    for view in (mask.T, mask[::-2, ::3], np.broadcast_to(mask[:1], (5, 14))):
        np.testing.assert_array_equal(to_mask(from_mask(view)), view)


def test_pairs_beyond_int32():
    row, column = np.array([3, 0]), np.array([2**40, 7])
    csr = from_pairs((4, 2**41), row, column)
    assert csr.indices.dtype == np.int64 and csr.indices.tolist() == [7, 2**40]


def broken(**changes):
    coo = sparse.coo_array((np.ones(3), (np.array([0, 1, 2]), np.array([2, 1, 0]))), shape=(3, 3))
    for name, value in changes.items():
        setattr(coo, name, np.asarray(value))
    return coo


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (broken(row=[0, 1, 3]), r"row\[2\] = 3 with 3 rows"),
        (broken(row=[0, -1, 2]), r"row\[1\] = -1"),
        (broken(col=[0, 1, 9]), r"col\[2\] = 9 with 3 columns"),
        (broken(row=[0, 1]), "2 row numbers and 3 column numbers"),
        (broken(data=[1.0, 0.0, 1.0]), r"data\[1\] = 0.0"),
        (broken(data=[1.0, 1.0]), r"data of shape \(2,\) for 3 indices"),
        (broken(data=np.array([1j, 1j, 1j])), "data of complex128"),
        (sparse.coo_array(np.ones(3)), r"a COO array of shape \(3,\)"),
        (sparse.coo_array(np.ones((2, 2, 2))), r"a COO array of shape \(2, 2, 2\)"),
    ],
)
def test_broken_coordinates_are_refused(matrix, words):
    with pytest.raises(FormatError, match=f"^given: {words}"):
        from_coo(matrix)


def test_other_formats_with_explicit_zeros_are_refused():
    diagonals = sparse.dia_array((np.array([[1.0, 0.0, 2.0]]), [0]), shape=(3, 3))
    listed = sparse.lil_array(np.eye(3))
    np.testing.assert_array_equal(to_mask(from_scipy(listed)), np.eye(3, dtype=bool))
    # SciPy itself drops a diagonal's zeros: they are padding there, as in a BSR block.
    np.testing.assert_array_equal(to_mask(from_scipy(diagonals)), np.diag([True, False, True]))
    keyed = sparse.dok_array((3, 3))
    keyed[0, 0] = 1.0
    keyed._dict[1, 1] = 0.0
    with pytest.raises(FormatError, match=r"data\[1\] = 0.0"):
        from_scipy(keyed)

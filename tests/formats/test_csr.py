"""CSR: canonical form of anything valid, the transpose, and the way back to SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from numba_sparse_attn.formats import Csr, canonical, to_csr


@st.composite
def row_lists(draw):
    """A shape and lists in any order, with repetitions, some of them longer than what insertion sorts."""
    n_q, n_k = draw(st.integers(0, 12)), draw(st.integers(0, 90))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = rng.choice([0, 0, 1, 5, 40, 120], n_q) if n_k else np.zeros(n_q, int)
    rows = [rng.integers(0, n_k, length) if length else np.zeros(0, int) for length in lengths]
    if draw(st.booleans()):
        rows = [np.unique(row) for row in rows]
    return (n_q, n_k), rows


def parts(rows, pointer=np.int64, index=np.int64):
    indptr = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(pointer)
    return indptr, np.concatenate([np.zeros(0, int), *rows]).astype(index)


def rows_of(csr):
    return [csr.indices[a:b].tolist() for a, b in zip(csr.indptr[:-1], csr.indptr[1:], strict=True)]


def assert_frozen(csr):
    assert csr.indptr.dtype == np.int64
    assert csr.indices.dtype == (np.int32 if csr.shape[1] < 2**31 else np.int64)
    for array in (csr.indptr, csr.indices):
        assert array.flags.c_contiguous and not array.flags.writeable
    assert csr.indptr.shape == (csr.shape[0] + 1,)
    assert csr.nnz == csr.indptr[-1] == csr.indices.size


@given(row_lists(), st.sampled_from([np.int32, np.uint64, np.int64]), st.sampled_from([np.int16, np.uint32]))
def test_canonical_is_the_sorted_set(case, pointer, index):
    shape, rows = case
    indptr, indices = parts(rows, pointer, index)
    before = indptr.tobytes(), indices.tobytes()
    csr = canonical(shape, indptr, indices)
    assert_frozen(csr)
    assert csr.shape == shape
    assert rows_of(csr) == [sorted(set(row.tolist())) for row in rows]
    assert (indptr.tobytes(), indices.tobytes()) == before
    assert not np.may_share_memory(csr.indices, indices) and not np.may_share_memory(csr.indptr, indptr)


@given(row_lists())
def test_transpose(case):
    shape, rows = case
    csr = canonical(shape, *parts(rows))
    by_key = csr.transposed
    assert_frozen(by_key)
    assert by_key.shape == shape[::-1]
    queries = [[] for _ in range(shape[1])]
    for query, row in enumerate(rows_of(csr)):
        for key in row:
            queries[key].append(query)
    assert rows_of(by_key) == queries
    assert rows_of(by_key.transposed) == rows_of(csr)
    assert csr.transposed is by_key


@given(row_lists())
def test_scipy_round_trip(case):
    csr = canonical(case[0], *parts(case[1]))
    matrix = to_csr(csr)
    assert isinstance(matrix, sparse.csr_array) and matrix.dtype == np.bool_
    assert matrix.has_canonical_format and matrix.indices.dtype == matrix.indptr.dtype == np.int32
    matrix.check_format(full_check=True)
    assert matrix.data.all()
    again = canonical(matrix.shape, matrix.indptr, matrix.indices)
    assert again.shape == csr.shape and rows_of(again) == rows_of(csr)
    matrix.indices[:] = 0
    assert not np.may_share_memory(matrix.indices, csr.indices)


@pytest.mark.parametrize("order", ["descending", "organ pipe", "random", "one value", "sawtooth"])
def test_long_rows(order):
    """A list of 100,000, in orders that are bad for one sort or the other."""
    count = 100_000
    values = {
        "descending": np.arange(count)[::-1],
        "organ pipe": np.minimum(np.arange(count), np.arange(count)[::-1]),
        "random": np.random.default_rng(0).integers(0, count, count),
        "one value": np.full(count, 17),
        "sawtooth": np.arange(count) % 1000,
    }[order]
    csr = canonical((3, count), np.array([0, 0, count, count]), values)
    np.testing.assert_array_equal(csr.indices, np.unique(values))
    assert csr.indptr.tolist() == [0, 0, csr.nnz, csr.nnz]


def test_more_keys_than_int32_counts():
    """The transpose of such a shape would not fit into memory; nothing makes it unasked."""
    size = 2**40
    csr = canonical((2, size), np.array([0, 3, 4]), np.array([size - 1, 5, 2**31, 0]))
    assert csr.indices.dtype == np.int64
    assert rows_of(csr) == [[5, 2**31, size - 1], [0]]
    assert canonical((1, 2**31 - 1), np.array([0, 1]), np.array([2**31 - 2])).indices.dtype == np.int32
    assert canonical((1, 2**31), np.array([0, 1]), np.array([2**31 - 1])).indices.dtype == np.int64


def test_sizes():
    csr = canonical((3, 5), np.array([0, 2, 2, 3]), np.array([4, 0, 1]))
    assert csr.nbytes == 4 * 8 + 3 * 4
    assert isinstance(csr, Csr) and isinstance(csr.nnz, int)
    with pytest.raises(ValueError, match="read-only"):
        csr.indices[0] = 1

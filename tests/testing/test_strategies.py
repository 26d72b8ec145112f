"""The strategies draw what they promise, and reach the cases that they are there for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from numba_sparse_attn.testing import DTYPES, strategies

SMALL = np.random.default_rng(1).random((6, 8)) < 0.4


@given(strategies.views(np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)))
def test_views_are_equal_and_writing_to_them_stays_inside(view):
    np.testing.assert_array_equal(view, np.arange(24).reshape(2, 3, 4))
    view[...] = 0


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_views_reach_negative_strides_gaps_and_other_orders(dtype):
    array = np.ones((3, 5), dtype)
    for wanted in (
        lambda view: view.strides[1] < 0,
        lambda view: abs(view.strides[1]) == 2 * dtype.itemsize,
        lambda view: abs(view.strides[0]) < abs(view.strides[1]),
        lambda view: view.flags.c_contiguous,
    ):
        assert wanted(find(strategies.views(array), wanted))


@given(strategies.problems(largest=40))
def test_problems_fit_together(problem):
    heads, n_q, head_dim = problem.q.shape[-3:]
    assert problem.q.dtype in DTYPES.values()
    assert {array.dtype for array in problem.arrays} == {problem.dtype}
    assert heads % problem.k.shape[-3] == 0 and problem.k.shape[-1] == head_dim
    assert problem.v.shape[:-1] == problem.k.shape[:-1]
    assert problem.dout.shape == (*problem.q.shape[:-1], problem.v.shape[-1])
    assert problem.selected.shape == (*problem.q.shape[:-1], problem.k.shape[-2])
    assert all(np.isfinite(array.astype(float)).all() for array in problem.arrays)


@pytest.mark.parametrize(
    "wanted",
    [
        lambda problem: problem.q.shape[-2] == 0 and problem.k.shape[-2] > 0,
        lambda problem: problem.k.shape[-2] == 129,
        lambda problem: problem.mask.ndim == 3 and problem.q.shape[-3] > problem.k.shape[-3] > 1,
        lambda problem: bool((~problem.selected.any(axis=-1)).any() and problem.selected.any()),
        lambda problem: bool(problem.mask.size and problem.mask.all()),
        lambda problem: 0 in problem.k.strides and problem.k.size > 1,
        lambda problem: problem.q.size > 0 and min(problem.q.strides) < 0,
    ],
    ids=["no queries", "ragged", "per head and grouped", "empty rows", "full", "stride 0", "backwards"],
)
def test_problems_reach_the_rare_cases(wanted):
    quick = strategies.problems(names=["float32"], largest=129)
    assert wanted(find(quick, wanted, settings=settings(max_examples=2000, phases=[Phase.generate])))


@given(st.data())
def test_scipy_arrays_and_index_tables_hold_the_mask(data):
    matrix = data.draw(strategies.scipy_arrays(SMALL))
    entries, stored = matrix.tocoo(), np.zeros_like(SMALL)
    pairs = entries.data != 0  # BSR pads with zeros
    stored[entries.row[pairs], entries.col[pairs]] = True
    np.testing.assert_array_equal(stored, SMALL)
    table = data.draw(strategies.index_tables(SMALL))
    seen = np.zeros_like(SMALL)
    for row, keys in enumerate(table):
        seen[row, keys[keys >= 0]] = True
    np.testing.assert_array_equal(seen, SMALL)


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "bsr"])
def test_scipy_arrays_of_every_format(kind):
    found = find(strategies.scipy_arrays(SMALL), lambda matrix: matrix.format == kind)
    assert found.format == kind


def test_csr_arrays_come_unsorted_and_repeated():
    found = find(
        strategies.scipy_arrays(SMALL, ["csr"]),
        lambda matrix: matrix.nnz > SMALL.sum() and (np.diff(matrix.indices[: matrix.indptr[1]]) <= 0).any(),
    )
    assert found.nnz > SMALL.sum()


@pytest.mark.parametrize("wanted", [128, 129, 0, 1, 255])
def test_lengths_reach_the_edges(wanted):
    assert find(strategies.lengths(), lambda length: length == wanted) == wanted


def test_dtypes_are_all_four():
    for dtype in DTYPES.values():
        assert find(strategies.dtypes(), lambda drawn, dtype=dtype: drawn == dtype) == dtype

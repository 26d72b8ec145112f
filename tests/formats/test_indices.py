"""Index arrays: keys of a row in any order, -1 anywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from numba_sparse_attn import FormatError
from numba_sparse_attn.formats import from_indices, from_mask, to_indices, to_mask
from numba_sparse_attn.testing import strategies


@given(st.data())
def test_any_table_means_its_mask(data):
    mask = data.draw(strategies.bool_masks(data.draw(st.integers(0, 30)), data.draw(st.integers(0, 30))))
    table = data.draw(strategies.index_tables(mask))
    before = table.copy()
    table.setflags(write=False)
    csr = from_indices(table, mask.shape[1])
    if table.size and (np.diff((table >= 0).astype(int), axis=1) > 0).any():
        event("padding in front of keys")
    np.testing.assert_array_equal(to_mask(csr), mask)
    np.testing.assert_array_equal(table, before)


@given(st.data())
def test_the_round_trip_gives_ascending_keys_and_the_least_padding(data):
    mask = data.draw(strategies.bool_masks(data.draw(st.integers(0, 30)), data.draw(st.integers(0, 30))))
    table = to_indices(from_mask(mask))
    assert table.dtype == np.int64 and table.shape == (len(mask), mask.sum(axis=1).max(initial=0))
    for keys, seen in zip(table, mask, strict=True):
        expected = np.flatnonzero(seen)
        np.testing.assert_array_equal(keys[: expected.size], expected)
        assert (keys[expected.size :] == -1).all()
    np.testing.assert_array_equal(to_mask(from_indices(table, mask.shape[1])), mask)


def test_more_keys_than_queries_and_the_other_way_round():
    np.testing.assert_array_equal(
        to_mask(from_indices([[5], [-1]], n_k=6)), [[False] * 5 + [True], [False] * 6]
    )
    assert from_indices(np.zeros((4, 1), int), n_k=1).shape == (4, 1)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([[0, 3]], "an index array with 3 in row 0, place 1, and 3 keys"),
        ([[0, 1], [0, -2]], "an index array with -2 in row 1, place 1"),
        ([[0.0, 1.0]], "an index array of float64"),
        ([[True, False]], "an index array of bool"),
        (np.array([[None]]), "an index array of object"),
        ([0, 1], r"an index array of shape \(2,\)"),
    ],
)
def test_broken_tables_are_refused(table, words):
    with pytest.raises(FormatError, match=f"^given: {words}"):
        from_indices(table, n_k=3)

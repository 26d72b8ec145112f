"""Every check lets the good through untouched and refuses the bad with one sentence that names it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from numba_sparse_attn import FormatError
from numba_sparse_attn.formats import checks

INDEX_TYPES = [np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64]


def refused(sentence):
    """The start of the message: what was given."""
    return pytest.raises(FormatError, match="^" + re.escape(f"given: {sentence}"))


def frozen(values, dtype):
    array = np.array(values, dtype)
    array.setflags(write=False)
    return array


@pytest.mark.parametrize("shape", [(3, 4), (0, 0), (np.int64(5), np.uint8(7))])
def test_shapes(shape):
    assert checks.check_shape(shape) == shape
    assert {type(size) for size in checks.check_shape(shape)} == {int}


@pytest.mark.parametrize("shape", [(3,), (3, 4, 5), (-1, 4), (2.0, 3), 7, "ab"])
def test_bad_shapes(shape):
    with refused(f"a pattern of shape {shape}; supported: two axes"):
        checks.check_shape(shape)


@pytest.mark.parametrize("dtype", INDEX_TYPES)
def test_good_indptr(dtype):
    indptr = frozen([0, 0, 3, 3, 5], dtype)
    assert checks.check_indptr(indptr, rows=4, entries=5) is indptr
    assert checks.check_indptr(frozen([0], dtype), rows=0, entries=0).size == 1


@pytest.mark.parametrize("dtype", INDEX_TYPES)
@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([0, 2, 5], "an indptr of 3 entries for 3 rows"),
        ([], "an indptr of 0 entries for 3 rows"),
        ([1, 2, 3, 5], "indptr[0] = 1"),
        ([0, 4, 2, 5], "indptr[2] = 2 after indptr[1] = 4"),
        ([0, 2, 3, 4], "an indptr that ends at 4 for 5 indices"),
        ([0, 2, 3, 6], "an indptr that ends at 6 for 5 indices"),
    ],
)
def test_bad_indptr(dtype, values, sentence):
    with refused(sentence):
        checks.check_indptr(frozen(values, dtype), rows=3, entries=5)


@pytest.mark.parametrize("dtype", INDEX_TYPES)
def test_indices(dtype):
    indices = frozen([3, 0, 3, 1], dtype)
    assert checks.check_indices(indices, size=4) is indices
    assert checks.check_indices(frozen([], dtype), size=0).size == 0
    with refused("indices[0] = 3 with 3 columns"):
        checks.check_indices(indices, size=3)
    with refused("row[3] = 1 with 1 rows"):
        checks.check_indices(frozen([0, 0, 0, 1], dtype), size=1, name="row", axis="rows")


def test_negative_and_huge_indices():
    with refused("indices[1] = -1"):
        checks.check_indices([0, -1], size=4)
    with refused(f"indices[1] = {2**64 - 1} with 4 columns"):
        checks.check_indices(np.array([0, 2**64 - 1], np.uint64), size=4)
    with refused(f"indices[0] = {2**40} with 4 columns"):
        checks.check_indices([2**40], size=4)


@pytest.mark.parametrize("dtype", ["f4", "f8", "c16", "O", "?", "U3", "M8[s]"])
def test_index_arrays_of_other_types(dtype):
    array = np.zeros(3).astype(dtype)
    for check, name in (
        (lambda: checks.check_indices(array, 3), "indices"),
        (lambda: checks.check_indptr(array, 2, 0), "indptr"),
        (lambda: checks.check_index_array(array[None], 3), "an index array"),
    ):
        with refused(f"{name} of {array.dtype}"):
            check()


def test_index_arrays_of_other_axes():
    with refused("indices with 2 axes"):
        checks.check_indices([[0, 1]], 3)
    with refused("indptr with 0 axes"):
        checks.check_indptr(0, 0, 0)
    for array in ([0, 1], [[[0, 1]]]):
        with refused(f"an index array of shape {np.shape(array)}"):
            checks.check_index_array(array, 3)


@pytest.mark.parametrize("dtype", ["?", "i1", "u8", "f2", "f4", "f8", "g"])
def test_stored_values(dtype):
    ones = frozen([1, 1, 1], dtype)
    assert checks.check_entries(ones, 3) is ones
    holed = frozen([1, 0, 1], dtype)
    with refused(f"data[1] = {holed[1]}; supported: stored entries that are not zero"):
        checks.check_entries(holed, 3)
    with refused("data of shape (3,) for 4 indices"):
        checks.check_entries(ones, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_stored_values_that_mean_forbidden(value, dtype):
    with refused(f"data[2] = {value}; supported: finite entries"):
        checks.check_entries(np.array([1, 1, value], dtype), 3)
    with refused(f"data[0, 1, 0] = {value}"):
        checks.check_blocks(np.array([[[1, 1], [value, 1]]], dtype), 1)
    with refused("data[1] = -0.0"):
        checks.check_entries(np.array([1, -0.0], dtype), 2)


@pytest.mark.parametrize("dtype", ["c8", "O", "U1", "V4"])
def test_stored_values_of_other_types(dtype):
    with refused(f"data of {np.dtype(dtype)}"):
        checks.check_entries(np.zeros(2, dtype), 2)


def test_blocks():
    data = frozen(np.eye(3)[None].repeat(2, axis=0), "f4")
    assert checks.check_blocks(data, 2) is data
    for shape in ((2, 3), (3, 3, 3), (2, 0, 3), (2, 3, 0)):
        with refused(f"data of shape {shape} for 2 indices"):
            checks.check_blocks(np.ones(shape), 2)
    empty = np.ones((2, 2, 2), bool)
    empty[1] = False
    with refused("data[1], a block of zeros"):
        checks.check_blocks(empty, 2)


def test_masks():
    mask = frozen(np.eye(3), bool)
    assert checks.check_mask(mask) is mask
    for dtype in ("i8", "f4", "O"):
        with refused(f"a mask of {np.dtype(dtype)}"):
            checks.check_mask(np.eye(3).astype(dtype))
    with refused("a mask of shape (3,)"):
        checks.check_mask(np.ones(3, bool))


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_index_tables(dtype):
    table = frozen([[2, -1, 0], [-1, 1, -1]], dtype)
    assert checks.check_index_array(table, 3) is table
    with refused("an index array with 2 in row 0, place 0, and 2 keys"):
        checks.check_index_array(table, 2)
    with refused("an index array with -2 in row 1, place 2"):
        checks.check_index_array(frozen([[2, -1, 0], [-1, 1, -2]], dtype), 3)
    for shape in ((0, 4), (4, 0)):
        assert checks.check_index_array(np.zeros(shape, dtype), 0).shape == shape


def test_unsigned_index_tables_have_no_padding():
    assert checks.check_index_array(np.array([[0, 2]], np.uint8), 3).size == 2
    with refused(f"an index array with {2**64 - 1} in row 0, place 1"):
        checks.check_index_array(np.array([[0, 2**64 - 1]], np.uint64), 3)


def test_a_refusal_has_its_three_clauses():
    with pytest.raises(ValueError) as caught:
        checks.check_indices([5], size=4)
    error = caught.value
    assert str(error) == (
        "given: indices[0] = 5 with 4 columns; supported: entries of indices below the number of columns; "
        "what to do: drop the entry, or enlarge the shape."
    )
    assert (error.given, error.advice) == (
        "indices[0] = 5 with 4 columns",
        "drop the entry, or enlarge the shape",
    )

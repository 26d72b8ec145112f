"""What makes a sparse structure malformed: one check and one sentence per failure.

Every check looks at whole arrays, names the first offending entry, changes nothing, and raises
:class:`~numba_sparse_attn.errors.FormatError`. The front doors of the formats are sequences of these.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError

__all__ = [
    "check_blocks",
    "check_entries",
    "check_index_array",
    "check_indices",
    "check_indptr",
    "check_mask",
    "check_shape",
    "check_vector",
]

_Integers = npt.NDArray[np.integer[Any]]


def check_shape(shape: Any, given: str = "a pattern") -> tuple[int, int]:
    """The shape as two Python integers, neither of them negative.

    Examples
    --------
    >>> check_shape((4, 6))
    (4, 6)
    """
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        sizes = ()
    if len(sizes) != 2 or min(sizes) < 0:
        raise FormatError(
            f"{given} of shape {shape}",
            "two axes, (n_q, n_k), neither of them negative",
            "give the numbers of queries and of keys; stack per-head patterns in a list",
        )
    return sizes[0], sizes[1]


def check_vector(array: Any, name: str) -> _Integers:
    """`array` as a one-dimensional integer array, not copied.

    Examples
    --------
    >>> check_vector([0, 2, 5], "indptr")
    array([0, 2, 5])
    """
    vector = np.asarray(array)
    if vector.ndim != 1:
        raise FormatError(f"{name} with {vector.ndim} axes", f"{name} with one axis", "pass a flat array")
    _require_integers(vector, name)
    return vector


def check_indptr(indptr: Any, rows: int, entries: int) -> _Integers:
    """Row boundaries: ``rows + 1`` integers that start at 0, never decrease and end at `entries`.

    Examples
    --------
    >>> check_indptr([0, 2, 2], rows=2, entries=2)
    array([0, 2, 2])
    >>> check_indptr([0, 2, 1], rows=2, entries=1)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    numba_sparse_attn.errors.FormatError: given: indptr[2] = 1 after indptr[1] = 2; supported: ...
    """
    pointer = check_vector(indptr, "indptr")
    if pointer.size != rows + 1:
        raise FormatError(
            f"an indptr of {pointer.size} entries for {rows} rows",
            "one entry per row and one more",
            f"make it {rows + 1} entries long, or correct the shape",
        )
    if pointer[0] != 0:
        raise FormatError(
            f"indptr[0] = {pointer[0]}",
            "an indptr that starts at 0",
            "subtract the first entry, and cut the indices to match",
        )
    decreasing = pointer[1:] < pointer[:-1]
    if decreasing.any():
        where = int(np.argmax(decreasing))
        raise FormatError(
            f"indptr[{where + 1}] = {pointer[where + 1]} after indptr[{where}] = {pointer[where]}",
            "an indptr that never decreases",
            "rebuild it as the running sum of the row lengths",
        )
    if pointer[-1] != entries:
        raise FormatError(
            f"an indptr that ends at {pointer[-1]} for {entries} indices",
            "an indptr whose last entry is the number of indices",
            "cut the indices, or correct the indptr",
        )
    return pointer


def check_indices(indices: Any, size: int, name: str = "indices", axis: str = "columns") -> _Integers:
    """Indices into an axis of `size` elements, in any order, repeated or not.

    Examples
    --------
    >>> check_indices([3, 0, 3], size=4)
    array([3, 0, 3])
    """
    vector = check_vector(indices, name)
    if vector.size == 0:
        return vector
    if vector.min() < 0:
        where = int(np.argmax(vector < 0))
        raise FormatError(
            f"{name}[{where}] = {vector[where]}",
            f"entries of {name} that are at least 0",
            "drop the entry; negative numbers do not count from the end here",
        )
    if vector.max() >= size:
        where = int(np.argmax(vector >= size))
        raise FormatError(
            f"{name}[{where}] = {vector[where]} with {size} {axis}",
            f"entries of {name} below the number of {axis}",
            "drop the entry, or enlarge the shape",
        )
    return vector


def check_entries(data: Any, entries: int, name: str = "data") -> npt.NDArray[Any]:
    """Stored values: as many as indices, and none of them says "not a pair".

    A stored entry is a pair whatever its value, so a value that means the opposite is refused: an
    explicit zero (or False), and NaN or infinity, which additive masks use for "forbidden".

    Examples
    --------
    >>> check_entries([True, True], entries=2)
    array([ True,  True])
    """
    values = np.asarray(data)
    if values.ndim != 1 or values.size != entries:
        raise FormatError(
            f"{name} of shape {values.shape} for {entries} indices",
            "one value per index",
            "rebuild the array from matching data and indices",
        )
    _require_values(values, name)
    _refuse_where(
        values == 0, values, name, "stored entries that are not zero", "call eliminate_zeros() first"
    )
    return values


def check_blocks(data: Any, blocks: int, name: str = "data") -> npt.NDArray[Any]:
    """Stored blocks, ``(blocks, height, width)``, each with at least one value that is not zero.

    Zeros inside of a block are what BSR pads with, and are no pairs. A block of nothing but zeros
    was stored on purpose, like an explicit zero in CSR, and is refused like one.

    Examples
    --------
    >>> check_blocks([[[1, 0], [0, 1]]], blocks=1).shape
    (1, 2, 2)
    """
    values = np.asarray(data)
    if values.ndim != 3 or len(values) != blocks or 0 in values.shape[1:]:
        raise FormatError(
            f"{name} of shape {values.shape} for {blocks} indices",
            "data of shape (blocks, height, width), one block per index, none of its sides empty",
            "rebuild the array from matching data and indices",
        )
    _require_values(values, name)
    empty = ~values.astype(bool, copy=False).any(axis=(1, 2))
    if empty.any():
        where = int(np.argmax(empty))
        raise FormatError(
            f"{name}[{where}], a block of zeros",
            "stored blocks with at least one entry that is not zero",
            "call eliminate_zeros() first",
        )
    return values


def check_mask(mask: Any, name: str = "a mask") -> npt.NDArray[np.bool_]:
    """A boolean array with two axes.

    Examples
    --------
    >>> check_mask([[True, False]]).shape
    (1, 2)
    """
    array = np.asarray(mask)
    if array.dtype != np.bool_:
        raise FormatError(
            f"{name} of {array.dtype}",
            "a boolean mask, True where the query sees the key",
            "compare it with something (scores > 0), or pass an index array or a SciPy sparse array",
        )
    check_shape(array.shape, name)
    return array


def check_index_array(array: Any, n_k: int, name: str = "an index array") -> _Integers:
    """Key numbers per query, ``(n_q, width)``; -1, anywhere in a row, is no key.

    Examples
    --------
    >>> check_index_array([[2, -1], [0, 1]], n_k=3).shape
    (2, 2)
    """
    table = np.asarray(array)
    _require_integers(table, name)
    if table.ndim != 2:
        raise FormatError(
            f"{name} of shape {table.shape}",
            "two axes, (n_q, width), rows padded with -1",
            "pad the rows to one length; stack per-head arrays in a list",
        )
    if table.size == 0:
        return table
    if table.min() < -1:
        row, place = _first(table < -1)
        raise FormatError(
            f"{name} with {table[row, place]} in row {row}, place {place}",
            "key numbers of at least 0, and -1 for padding",
            "write -1 where there is no key; other negative numbers do not count from the end here",
        )
    if table.max() >= n_k:
        row, place = _first(table >= n_k)
        raise FormatError(
            f"{name} with {table[row, place]} in row {row}, place {place}, and {n_k} keys",
            "key numbers below the number of keys",
            "drop the entry by writing -1 there",
        )
    return table


def _require_integers(array: npt.NDArray[Any], name: str) -> None:
    if array.dtype.kind not in "iu":
        raise FormatError(
            f"{name} of {array.dtype}", f"{name} of integers", "convert it with astype(numpy.int64)"
        )


def _require_values(values: npt.NDArray[Any], name: str) -> None:
    """Booleans, integers or floats, and none of them NaN or infinite."""
    if values.dtype.kind not in "biuf":
        raise FormatError(
            f"{name} of {values.dtype}",
            "boolean, integer or float entries",
            "convert it with astype(bool): only which entries are stored matters",
        )
    if values.dtype.kind == "f":
        _refuse_where(
            ~np.isfinite(values),
            values,
            name,
            "finite entries: a stored entry is an allowed pair",
            "store only the allowed pairs; an additive mask of -inf has to be turned around",
        )


def _refuse_where(
    wrong: npt.NDArray[np.bool_], values: npt.NDArray[Any], name: str, supported: str, advice: str
) -> None:
    if wrong.any():
        where = _first(wrong)
        place = ", ".join(str(index) for index in where)
        raise FormatError(f"{name}[{place}] = {values[where]}", supported, advice)


def _first(wrong: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(index) for index in np.unravel_index(np.argmax(wrong), wrong.shape))

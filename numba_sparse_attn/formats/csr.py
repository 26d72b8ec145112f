"""CSR: the pairs of a pattern, row by row, in canonical form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from ..jit import inlined, kernel

__all__ = ["Csr", "canonical", "entries_of", "to_csr"]

_INT32_MAX = np.iinfo(np.int32).max

#: Rows up to this length are sorted by insertion, longer ones as a heap.
_INSERTION_LIMIT = 32


@dataclass(frozen=True, eq=False)
class Csr:
    """A set of (query, key) pairs, row by row; canonical and frozen.

    Canonical means: ``indptr`` starts at 0 and never decreases, the indices of each row are strictly
    increasing and in range, and both arrays are contiguous and read-only. There are no data: an entry is
    a pair.

    Attributes
    ----------
    shape : (n_q, n_k)
    indptr : int64 [n_q + 1]
    indices : int32 [nnz]
        int64 where n_k exceeds what int32 can hold.
    """

    shape: tuple[int, int]
    indptr: npt.NDArray[np.int64]
    indices: npt.NDArray[Any]

    @property
    def nnz(self) -> int:
        """Number of pairs."""
        return int(self.indices.size)

    @property
    def nbytes(self) -> int:
        """Memory of both arrays."""
        return int(self.indptr.nbytes + self.indices.nbytes)

    @cached_property
    def transposed(self) -> Csr:
        """The same pairs by key: row j lists the queries that see key j; computed once.

        Examples
        --------
        >>> import numpy as np
        >>> by_key = canonical((2, 3), np.array([0, 2, 3]), np.array([2, 0, 2])).transposed
        >>> by_key.indptr.tolist(), by_key.indices.tolist()
        ([0, 1, 1, 3], [0, 0, 1])
        """
        n_q, n_k = self.shape
        indptr = np.zeros(n_k + 1, np.int64)
        indices = np.empty(self.nnz, _index_type(n_q))
        _transpose(self.indptr, self.indices, indptr, indices)
        return _frozen((n_k, n_q), indptr, indices)

    @cached_property
    def entries_by_key(self) -> npt.NDArray[np.int64]:
        """For every entry of :attr:`transposed`, which entry of these rows it is; computed once.

        Examples
        --------
        >>> import numpy as np
        >>> canonical((2, 3), np.array([0, 2, 3]), np.array([2, 0, 2])).entries_by_key.tolist()
        [0, 1, 2]
        """
        numbers = np.empty(self.nnz, np.int64)
        _number_by_key(self.indptr, self.indices, self.transposed.indptr, numbers)
        numbers.flags.writeable = False
        return numbers


def entries_of(csr: Csr, indptr: npt.NDArray[Any], indices: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """For every pair of valid row lists, in any order, its number among the entries of `csr`, or -1.

    Examples
    --------
    >>> import numpy as np
    >>> csr = canonical((2, 4), np.array([0, 2, 3]), np.array([1, 3, 0]))
    >>> entries_of(csr, np.array([0, 3, 4]), np.array([3, 0, 1, 0])).tolist()
    [1, -1, 0, 2]
    """
    found = np.empty(len(indices), np.int64)
    _find_entries(csr.indptr, csr.indices, indptr, indices, found)
    return found


def canonical(shape: tuple[int, int], indptr: npt.NDArray[Any], indices: npt.NDArray[Any]) -> Csr:
    """Canonical form of row lists that are known to be valid; the arguments are copied, never kept.

    Parameters
    ----------
    shape : (n_q, n_k)
    indptr : integers [n_q + 1]
        Starts at 0, never decreases, and ends at ``indices.size``.
    indices : integers [nnz]
        In range; within a row in any order, and repeated or not.

    Returns
    -------
    Csr

    Examples
    --------
    >>> import numpy as np
    >>> csr = canonical((2, 4), np.array([0, 3, 4]), np.array([3, 1, 3, 0]))
    >>> csr.indptr.tolist(), csr.indices.tolist()
    ([0, 2, 3], [1, 3, 0])
    """
    own_indptr = np.array(indptr, np.int64)
    own_indices = np.array(indices, _index_type(shape[1]))
    if not _rows_ascend(own_indptr, own_indices):
        own_indices = own_indices[: _sort_rows(own_indptr, own_indices)].copy()
    return _frozen(shape, own_indptr, own_indices)


def to_csr(csr: Csr) -> sparse.csr_array:
    """The pairs as a new SciPy CSR array of True.

    Examples
    --------
    >>> import numpy as np
    >>> to_csr(canonical((2, 2), np.array([0, 1, 2]), np.array([1, 0]))).toarray().tolist()
    [[False, True], [True, False]]
    """
    index = np.int32 if max(csr.nnz, *csr.shape) <= _INT32_MAX else np.int64
    parts = (np.ones(csr.nnz, np.bool_), csr.indices.astype(index), csr.indptr.astype(index))
    result = sparse.csr_array(parts, shape=csr.shape)
    result.has_canonical_format = True
    return result


def _index_type(size: int) -> type[np.int32] | type[np.int64]:
    return np.int32 if size <= _INT32_MAX else np.int64


def _frozen(shape: tuple[int, int], indptr: npt.NDArray[np.int64], indices: npt.NDArray[Any]) -> Csr:
    indptr.flags.writeable = indices.flags.writeable = False
    return Csr((int(shape[0]), int(shape[1])), indptr, indices)


@kernel
def _transpose(indptr, indices, new_indptr, new_indices):
    """Counting sort by column; `new_indptr` comes zeroed. Rows are read in order, so lists ascend."""
    for position in range(len(indices)):
        new_indptr[indices[position] + 1] += 1
    for column in range(1, len(new_indptr)):
        new_indptr[column] += new_indptr[column - 1]
    # new_indptr[j] serves as the cursor of list j and ends where list j + 1 begins: shift it back.
    for row in range(len(indptr) - 1):
        for position in range(indptr[row], indptr[row + 1]):
            column = indices[position]
            new_indices[new_indptr[column]] = row
            new_indptr[column] += 1
    for column in range(len(new_indptr) - 1, 0, -1):
        new_indptr[column] = new_indptr[column - 1]
    if len(new_indptr) > 0:
        new_indptr[0] = 0


@kernel
def _number_by_key(indptr, indices, new_indptr, numbers):
    """For every entry of the transposed rows, which entry of the rows it is; as :func:`_transpose`."""
    cursor = new_indptr.copy()
    for position in range(len(indices)):
        column = indices[position]
        numbers[cursor[column]] = position
        cursor[column] += 1


@kernel
def _find_entries(indptr, indices, wanted_indptr, wanted, found):
    """Binary search of every wanted index in its row."""
    for row in range(len(indptr) - 1):
        for position in range(wanted_indptr[row], wanted_indptr[row + 1]):
            index = wanted[position]
            low, high = indptr[row], indptr[row + 1]
            while low < high:
                middle = (low + high) // 2
                if indices[middle] < index:
                    low = middle + 1
                else:
                    high = middle
            found[position] = low if low < indptr[row + 1] and indices[low] == index else -1


@kernel
def _rows_ascend(indptr, indices):
    """Whether the indices of every row are strictly increasing."""
    for row in range(len(indptr) - 1):
        if not _ascends(indices, indptr[row], indptr[row + 1]):
            return False
    return True


@kernel
def _sort_rows(indptr, indices):
    """Sort every row in place, drop repetitions, close the gaps; returns the number of entries left."""
    written = 0
    begin = 0
    for row in range(len(indptr) - 1):
        end = indptr[row + 1]
        if not _ascends(indices, begin, end):
            if end - begin <= _INSERTION_LIMIT:
                _insertion_sort(indices, begin, end)
            else:
                _heap_sort(indices, begin, end)
        row_start = written
        for position in range(begin, end):
            value = indices[position]
            if written == row_start or indices[written - 1] != value:
                indices[written] = value
                written += 1
        begin = end
        indptr[row + 1] = written
    return written


@inlined
def _ascends(values, begin, end):
    for position in range(begin + 1, end):
        if values[position - 1] >= values[position]:
            return False
    return True


@inlined
def _insertion_sort(values, begin, end):
    for position in range(begin + 1, end):
        value = values[position]
        hole = position
        while hole > begin and values[hole - 1] > value:
            values[hole] = values[hole - 1]
            hole -= 1
        values[hole] = value


@inlined
def _heap_sort(values, begin, end):
    """In place, and n log n whatever the order that the user gave."""
    size = end - begin
    for root in range(size // 2 - 1, -1, -1):
        _sift_down(values, begin, root, size)
    for last in range(size - 1, 0, -1):
        values[begin], values[begin + last] = values[begin + last], values[begin]
        _sift_down(values, begin, 0, last)


@inlined
def _sift_down(values, begin, root, size):
    value = values[begin + root]
    while True:
        child = 2 * root + 1
        if child >= size:
            break
        if child + 1 < size and values[begin + child + 1] > values[begin + child]:
            child += 1
        if values[begin + child] <= value:
            break
        values[begin + root] = values[begin + child]
        root = child
    values[begin + root] = value

"""COO: one (row, column) per pair, in any order."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from ..errors import FormatError
from .checks import check_entries, check_indices, check_shape
from .csr import Csr, canonical

__all__ = ["entry_rows", "from_coo", "from_pairs", "to_coo"]


def from_coo(matrix: Any) -> Csr:
    """Pairs of a SciPy COO array or matrix, checked; repeated pairs count once.

    Parameters
    ----------
    matrix : scipy.sparse.coo_array or coo_matrix
        Every stored entry is a pair, whatever its value. Nothing is written to it.

    Returns
    -------
    Csr

    Examples
    --------
    >>> from scipy import sparse
    >>> csr = from_coo(sparse.coo_array(([1, 1, 1], ([1, 0, 1], [2, 0, 2])), shape=(2, 3)))
    >>> csr.indptr.tolist(), csr.indices.tolist()
    ([0, 1, 2], [0, 2])
    """
    shape = check_shape(matrix.shape, "a COO array")
    row = check_indices(matrix.row, shape[0], "row", "rows")
    column = check_indices(matrix.col, shape[1], "col", "columns")
    if row.size != column.size:
        raise FormatError(
            f"{row.size} row numbers and {column.size} column numbers",
            "one row and one column per entry",
            "rebuild the array from matching coordinates",
        )
    check_entries(matrix.data, row.size)
    return from_pairs(shape, row, column)


def to_coo(csr: Csr) -> sparse.coo_array:
    """The pairs as a new SciPy COO array of True, sorted by row, then by column.

    Examples
    --------
    >>> from scipy import sparse
    >>> pairs = to_coo(from_coo(sparse.coo_array(([1, 1], ([1, 0], [2, 0])), shape=(2, 3))))
    >>> pairs.row.tolist(), pairs.col.tolist(), pairs.data.tolist()
    ([0, 1], [0, 2], [True, True])
    """
    rows = entry_rows(csr).astype(csr.indices.dtype)
    result = sparse.coo_array((np.ones(csr.nnz, np.bool_), (rows, csr.indices.copy())), shape=csr.shape)
    result.has_canonical_format = True
    return result


def from_pairs(shape: tuple[int, int], row: npt.NDArray[Any], column: npt.NDArray[Any]) -> Csr:
    """Row-wise form of coordinates that are known to be in range.

    Examples
    --------
    >>> import numpy as np
    >>> from_pairs((2, 3), np.array([1, 1]), np.array([2, 0])).indices.tolist()
    [0, 2]
    """
    matrix = sparse.csr_array((np.ones(row.size, np.bool_), (row, column)), shape=shape)
    return canonical(shape, matrix.indptr, matrix.indices)


def entry_rows(csr: Csr) -> npt.NDArray[np.int64]:
    """Row number of every entry.

    Examples
    --------
    >>> import numpy as np
    >>> entry_rows(from_pairs((3, 3), np.array([2, 0, 2]), np.array([1, 1, 0]))).tolist()
    [0, 2, 2]
    """
    return np.repeat(np.arange(csr.shape[0]), np.diff(csr.indptr))

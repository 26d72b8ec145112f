"""One door for every SciPy sparse array or matrix."""

from __future__ import annotations

from typing import Any

from .bsr import from_bsr
from .checks import check_entries, check_indices, check_indptr, check_shape
from .coo import from_coo
from .csr import Csr, canonical

__all__ = ["from_scipy"]


def from_scipy(matrix: Any) -> Csr:
    """The stored entries of a SciPy sparse array or matrix, checked; nothing is written to it.

    CSR, CSC and BSR are read from their own arrays, so that a malformed one is refused instead of
    being handed to SciPy's conversions; every other format is read through COO.

    Examples
    --------
    >>> from scipy import sparse
    >>> from_scipy(sparse.eye_array(3, format="csc")).indices.tolist()
    [0, 1, 2]
    """
    if matrix.format == "csr":
        return _compressed(matrix, check_shape(matrix.shape, "a CSR array"), "columns")
    if matrix.format == "csc":
        rows, columns = check_shape(matrix.shape, "a CSC array")
        return _compressed(matrix, (columns, rows), "rows").transposed
    if matrix.format == "bsr":
        return from_bsr(matrix)
    return from_coo(matrix if matrix.format == "coo" else matrix.tocoo())


def _compressed(matrix: Any, shape: tuple[int, int], axis: str) -> Csr:
    """Checked arrays of a CSR array, or of a CSC array seen as its transpose."""
    indices = check_indices(matrix.indices, shape[1], axis=axis)
    indptr = check_indptr(matrix.indptr, shape[0], indices.size)
    check_entries(matrix.data, indices.size)
    return canonical(shape, indptr, indices)

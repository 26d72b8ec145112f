"""Index arrays: the keys of every query as one row of numbers, padded with -1."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .checks import check_index_array
from .coo import entry_rows
from .csr import Csr, canonical

__all__ = ["from_indices", "to_indices"]


def from_indices(array: Any, n_k: int) -> Csr:
    """Pairs of an index array, checked; repeated keys count once.

    Parameters
    ----------
    array : integers (n_q, width)
        Row i holds the keys of query i, in any order; -1, anywhere in the row, is no key.
    n_k : int
        Number of keys.

    Returns
    -------
    Csr

    Examples
    --------
    >>> csr = from_indices([[2, -1, 0], [-1, -1, -1], [1, 1, -1]], n_k=3)
    >>> csr.indptr.tolist(), csr.indices.tolist()
    ([0, 2, 2, 3], [0, 2, 1])
    """
    table = check_index_array(array, n_k)
    present = table >= 0
    indptr = np.zeros(len(table) + 1, np.int64)
    np.cumsum(np.count_nonzero(present, axis=1), out=indptr[1:])
    return canonical((len(table), n_k), indptr, table[present])


def to_indices(csr: Csr) -> npt.NDArray[np.int64]:
    """The pairs as an index array: ascending keys, then -1, as wide as the longest row.

    Examples
    --------
    >>> to_indices(from_indices([[2, -1, 0], [-1, -1, -1], [1, 1, -1]], n_k=3)).tolist()
    [[0, 2], [-1, -1], [1, -1]]
    """
    lengths = np.diff(csr.indptr)
    table = np.full((csr.shape[0], int(lengths.max(initial=0))), -1, np.int64)
    place = np.arange(csr.nnz) - np.repeat(csr.indptr[:-1], lengths)
    table[entry_rows(csr), place] = csr.indices
    return table

"""Boolean masks: True where the query sees the key."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .checks import check_mask
from .coo import entry_rows
from .csr import Csr, canonical

__all__ = ["from_mask", "to_mask"]


def from_mask(mask: Any) -> Csr:
    """Pairs of a boolean array (n_q, n_k).

    Examples
    --------
    >>> csr = from_mask([[True, False, True], [False, False, False]])
    >>> csr.indptr.tolist(), csr.indices.tolist()
    ([0, 2, 2], [0, 2])
    """
    array = check_mask(mask)
    indptr = np.zeros(len(array) + 1, np.int64)
    np.cumsum(np.count_nonzero(array, axis=1), out=indptr[1:])
    return canonical(array.shape, indptr, np.nonzero(array)[1])


def to_mask(csr: Csr) -> npt.NDArray[np.bool_]:
    """The pairs as a new boolean array (n_q, n_k).

    Examples
    --------
    >>> to_mask(from_mask([[True, False], [False, False]])).tolist()
    [[True, False], [False, False]]
    """
    mask = np.zeros(csr.shape, np.bool_)
    mask[entry_rows(csr), csr.indices] = True
    return mask

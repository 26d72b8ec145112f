"""Attention weights themselves, pair by pair: what the forward pass of the row path forms and drops."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..formats.csr import Csr
from ..jit import for_each, kernel
from .vector import address_of, dot

__all__ = ["row_weights"]

#: Pairs of a share: a few milliseconds of work, so that threads end together.
_PAIRS = 1 << 18


@kernel
def _row_weights_kernel(q, k, scale, indptr, indices, data, scratch, first, end):
    """Softmax of the scores of the rows first .. end - 1, written in the order of `indices`."""
    size = q.itemsize
    depth = q.shape[1]
    queries, keys = address_of(q), address_of(k)
    for row in range(first, end):
        begin = indptr[row]
        count = indptr[row + 1] - begin
        peak = -np.inf
        for i in range(count):
            key = np.int64(indices[begin + i])
            score = scale * dot(q, queries + row * depth * size, keys + key * depth * size, depth)
            scratch[i] = score
            peak = max(peak, score)
        total = 0.0
        for i in range(count):
            # A NaN or an infinite peak makes the total NaN, and with it the whole row, as in the formula.
            scratch[i] = math.exp(scratch[i] - peak)
            total += scratch[i]
        for i in range(count):
            data[begin + i] = scratch[i] / total


def row_weights(
    q: npt.NDArray[np.float64], k: npt.NDArray[np.float64], scale: float, rows: Csr, dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """Weights of one head's pairs, in the order of ``rows.indices``; computed in float64.

    Parameters
    ----------
    q, k : float64 (n_q, d), (n_k, d)
    scale : float
    rows : Csr
    dtype : float32 or float64
        Of the result.
    """
    q, k = np.ascontiguousarray(q), np.ascontiguousarray(k)
    data = np.empty(rows.nnz, dtype)
    longest = int(np.diff(rows.indptr).max(initial=0))
    cuts = np.searchsorted(rows.indptr, np.arange(0, rows.nnz, _PAIRS), side="right") - 1
    bounds = np.unique(np.append(cuts, rows.shape[0])).tolist()

    def work(share: tuple[int, int], worker: int) -> None:
        scratch = np.empty(longest)
        _row_weights_kernel(q, k, scale, rows.indptr, rows.indices, data, scratch, *share)

    for_each(work, list(itertools.pairwise(bounds)))
    return data

"""Attention weights themselves, pair by pair: what the forward pass of the row path forms and drops."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..formats.csr import Csr
from ..jit import for_each, kernel
from ..normalisers import Normaliser
from .normalising import SIGMOID, entmax_power, own_lse
from .vector import address_of, dot

__all__ = ["row_weights"]

#: Pairs of a share: a few milliseconds of work, so that threads end together.
_PAIRS = 1 << 18


@kernel
def _row_weights_kernel(q, k, scale, one, indptr, indices, data, scratch, first, end):
    """Softmax of the scores of the rows first .. end - 1, written in the order of `indices`.

    `one` is what the sum of exponentials starts at: 0, or 1 for softmax-plus-one.
    """
    size = q.itemsize
    depth = q.shape[1]
    queries, keys = address_of(q), address_of(k)
    for row in range(first, end):
        begin = indptr[row]
        count = indptr[row + 1] - begin
        # The one is the exponential of a score of 0.
        peak = 0.0 if one > 0.0 else -np.inf
        for i in range(count):
            key = np.int64(indices[begin + i])
            score = scale * dot(q, queries + row * depth * size, keys + key * depth * size, depth)
            scratch[i] = score
            peak = max(peak, score)
        total = one * math.exp(-peak) if one > 0.0 else 0.0
        for i in range(count):
            # A NaN or an infinite peak makes the total NaN, and with it the whole row, as in the formula.
            scratch[i] = math.exp(scratch[i] - peak)
            total += scratch[i]
        for i in range(count):
            data[begin + i] = scratch[i] / total


@kernel
def _normalised_weights_kernel(q, k, scale, step, sigmoid_lse, indptr, indices, data, scratch, first, end):
    """Entmax or sigmoid weights of the rows first .. end - 1; scratch is (2, longest row)."""
    size = q.itemsize
    depth = q.shape[1]
    queries, keys = address_of(q), address_of(k)
    products, kept = scratch
    for row in range(first, end):
        begin = indptr[row]
        count = indptr[row + 1] - begin
        if count == 0:
            continue
        for i in range(count):
            key = np.int64(indices[begin + i])
            products[i] = dot(q, queries + row * depth * size, keys + key * depth * size, depth)
        lse = own_lse(products, count, scale, step, sigmoid_lse, kept)
        for i in range(count):
            distance = scale * products[i] - lse
            if step == SIGMOID:
                data[begin + i] = 1.0 / (1.0 + math.exp(-distance))
            else:
                z = 1.0 + step * distance
                # NaN stays.
                data[begin + i] = 0.0 if z <= 0.0 else entmax_power(z, step)


def row_weights(
    q: npt.NDArray[np.float64],
    k: npt.NDArray[np.float64],
    scale: float,
    rows: Csr,
    dtype: npt.DTypeLike,
    normaliser: Normaliser | None = None,
    head: int = 0,
) -> npt.NDArray[Any]:
    """Weights of one head's pairs, in the order of ``rows.indices``; computed in float64.

    Parameters
    ----------
    q, k : float64 (n_q, d), (n_k, d)
    scale : float
    rows : Csr
    dtype : float32 or float64
        Of the result.
    normaliser : Normaliser, optional
        In place of softmax.
    head : int
        Number of the query head, whose alpha may be its own.
    """
    q, k = np.ascontiguousarray(q), np.ascontiguousarray(k)
    data = np.empty(rows.nnz, dtype)
    longest = int(np.diff(rows.indptr).max(initial=0))
    cuts = np.searchsorted(rows.indptr, np.arange(0, rows.nnz, _PAIRS), side="right") - 1
    bounds = np.unique(np.append(cuts, rows.shape[0])).tolist()

    def work(share: tuple[int, int], worker: int) -> None:
        lists = rows.indptr, rows.indices, data
        if normaliser is not None and normaliser.needs_rows:
            step, lse = normaliser.step_of(head), normaliser.row_lse
            _normalised_weights_kernel(q, k, scale, step, lse, *lists, np.empty((2, longest)), *share)
        else:
            one = 0.0 if normaliser is None else 1.0
            _row_weights_kernel(q, k, scale, one, *lists, np.empty(longest), *share)

    for_each(work, list(itertools.pairwise(bounds)))
    return data

"""Rows of a pattern whose queries and keys stand in another order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..jit import kernel
from .bits import population_count, trailing_zeros
from .csr import Csr
from .tiles import TILE, WORDS, Tiles

__all__ = ["RowLists", "inverse", "permuted_rows"]

#: indptr and indices of some rows; indices in any order within a row.
RowLists = tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]


def inverse(order: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Where every number stands in a permutation.

    Examples
    --------
    >>> inverse(np.array([2, 0, 1], np.int32)).tolist()
    [1, 2, 0]
    """
    places = np.empty_like(order)
    places[order] = np.arange(len(order), dtype=np.int32)
    places.flags.writeable = False
    return places


def permuted_rows(
    structure: Tiles | Csr, queries: npt.NDArray[np.int32], key_places: npt.NDArray[np.int32]
) -> RowLists:
    """Rows `queries` of a structure, in this order, with every key by its place.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> rows = np.array([2, 0], np.int32)
    >>> indptr, indices = permuted_rows(patterns.causal(3).rows(), rows, np.array([1, 2, 0], np.int32))
    >>> indptr.tolist(), indices.tolist()
    ([0, 3, 4], [1, 2, 0, 1])
    """
    indptr = np.zeros(len(queries) + 1, np.int64)
    if isinstance(structure, Csr):
        np.cumsum(np.diff(structure.indptr)[queries], out=indptr[1:])
        indices = np.empty(indptr[-1], np.int32)
        _copy_rows(structure.indptr, structure.indices, queries, key_places, indptr, indices)
        return indptr, indices
    masks = structure.pool.reshape(len(structure.pool), TILE * WORDS)
    _count_tile_rows(structure.indptr, structure.mask_ids, masks, queries, indptr)
    indices = np.empty(indptr[-1], np.int32)
    _read_tile_rows(
        structure.indptr, structure.columns, structure.mask_ids, masks, queries, key_places, indptr, indices
    )
    return indptr, indices


@kernel
def _copy_rows(indptr, indices, rows, places, new_indptr, new_indices):
    for number in range(len(rows)):
        target = new_indptr[number]
        for position in range(indptr[rows[number]], indptr[rows[number] + 1]):
            new_indices[target] = places[indices[position]]
            target += 1


@kernel
def _count_tile_rows(indptr, mask_ids, masks, rows, new_indptr):
    for number in range(len(rows)):
        tile, word = rows[number] // TILE, WORDS * (rows[number] % TILE)
        count = new_indptr[number]
        for position in range(indptr[tile], indptr[tile + 1]):
            for half in range(WORDS):
                count += population_count(masks[mask_ids[position], word + half])
        new_indptr[number + 1] = count


@kernel
def _read_tile_rows(indptr, columns, mask_ids, masks, rows, places, new_indptr, new_indices):
    for number in range(len(rows)):
        tile, word = rows[number] // TILE, WORDS * (rows[number] % TILE)
        target = new_indptr[number]
        for position in range(indptr[tile], indptr[tile + 1]):
            for half in range(WORDS):
                bits = masks[mask_ids[position], word + half]
                first = columns[position] * TILE + 64 * half
                while bits != 0:
                    new_indices[target] = places[first + trailing_zeros(bits)]
                    target += 1
                    bits &= bits - np.uint64(1)

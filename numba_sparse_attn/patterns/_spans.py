"""Ranges of tokens: equal blocks, and runs of neighbors. All are half-open, begin <= token < end."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Spans", "blocks", "pairs_to_rows", "runs", "spread"]

#: (begins, ends)
Spans = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def blocks(n: int, block: int) -> Spans:
    """0 .. n - 1 cut every `block` tokens; the last block is what is left."""
    begins = np.arange(0, n, block, dtype=np.int64)
    return begins, np.minimum(begins + block, n)


def runs(tokens: npt.NDArray[np.int64]) -> Spans:
    """The set of `tokens` as the fewest ranges, ascending."""
    distinct = np.unique(tokens)
    breaks = np.flatnonzero(np.diff(distinct) > 1)
    first = np.concatenate([distinct[:1], distinct[breaks + 1]])
    last = np.concatenate([distinct[breaks], distinct[-1:]])
    return first, last + 1


def spread(counts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The items of groups of `counts` members: (group of each item, its number within the group)."""
    group = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    first = np.cumsum(counts) - counts
    return group, np.arange(len(group), dtype=np.int64) - first[group]


def pairs_to_rows(
    begin: int, end: int, n_keys: int, queries: npt.NDArray[np.int64], keys: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Canonical CSR of the rows begin .. end - 1 from pairs in any order, duplicates allowed."""
    codes = (queries - begin) * np.int64(n_keys) + keys
    codes.sort()
    codes = codes[np.append(np.diff(codes) > 0, True)[: len(codes)]]
    indptr = np.searchsorted(codes, np.arange(end - begin + 1, dtype=np.int64) * n_keys)
    return indptr.astype(np.int64), codes % n_keys

"""Which warp does what: the rows of a CSR structure as items, longest first, long rows in parts.

A block's warps start together, so a grid that begins with its longest rows ends with its shortest, and no
warp is left alone at the end. A row beyond ``PART_KEYS`` keys becomes several items, whose partial results
``merge.py`` folds in their order: that is the only way in which one row is ever shared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...formats.csr import Csr

__all__ = ["PART_KEYS", "Schedule", "make_schedule"]

#: Longest row that one warp takes alone.
PART_KEYS = 8192


@dataclass(frozen=True, eq=False)
class Schedule:
    """Items of one structure.

    Attributes
    ----------
    items : int64 [items, 3]
        (row, begin, end): a row and a range of positions in ``indices``; parts of long rows come first.
    parts : int
        How many of the items are parts.
    long_rows : int64 [long rows, 3]
        (row, first part, end part).
    """

    items: npt.NDArray[np.int64]
    parts: int
    long_rows: npt.NDArray[np.int64]


def make_schedule(csr: Csr, part_keys: int = PART_KEYS) -> Schedule:
    """Items of all rows of a structure, empty ones included: their results have to be written, too.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> make_schedule(patterns.causal(4).rows()).items.tolist()
    [[3, 6, 10], [2, 3, 6], [1, 1, 3], [0, 0, 1]]
    >>> schedule = make_schedule(patterns.causal(4).rows(), part_keys=2)
    >>> schedule.parts, schedule.long_rows.tolist()
    (4, [[3, 0, 2], [2, 2, 4]])
    """
    lengths = np.diff(csr.indptr)
    order = np.argsort(-lengths, kind="stable")
    long_count = int(np.count_nonzero(lengths > part_keys))
    long_rows, short_rows = order[:long_count], order[long_count:]
    counts = -(-lengths[long_rows] // part_keys)
    ends = np.cumsum(counts)
    owner = np.repeat(np.arange(long_count), counts)
    number = np.arange(len(owner)) - (ends - counts)[owner]
    begin = csr.indptr[long_rows[owner]] + number * part_keys
    end = np.minimum(begin + part_keys, csr.indptr[long_rows[owner] + 1])
    parts = np.stack([long_rows[owner], begin, end], axis=1)
    whole = np.stack([short_rows, csr.indptr[short_rows], csr.indptr[short_rows + 1]], axis=1)
    return Schedule(
        np.concatenate([parts, whole]).astype(np.int64),
        len(parts),
        np.stack([long_rows, ends - counts, ends], axis=1).astype(np.int64),
    )

"""Counting what a pattern costs before its masks are built.

The planner compares the CPU's tile path, which computes a key for a whole panel of neighboring queries
as soon as one of them sees it, with the row path, which computes single pairs. What it needs to know is
how many (panel, key) meetings there are; that can be read off unique masks (regular patterns) or off
CSR rows (anything else) without building tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..jit import kernel
from .csr import Csr
from .tiles import FULL, TILE, Tiles

__all__ = ["PANEL", "Census", "census_of_rows", "census_of_tiles", "count_blocks", "fair_part"]

#: Queries of a panel: two vectors of float32 on a machine with 512-bit vectors. Narrower vectors make
#: smaller panels and fuller ones, so a census errs on the side of the row path there.
PANEL = 32

#: Where others have less to do, a warp on a GPU shares no row with others that is not longer than this. On an
#: H200 one warp alone takes 36 ns a key: 16 global tokens of 4096 were 0.150 ms, all other pairs 0.01 ms.
_LEAST_PART = 512
#: How many warps are at work at a time on a large GPU.
_WARPS_AT_WORK = 4096


@dataclass(frozen=True)
class Census:
    """Sizes of one pattern.

    Attributes
    ----------
    nnz : int
        Pairs.
    tiles : int
        Tiles with at least one pair.
    full_tiles : int or None
        Tiles with all their pairs; None where only rows were counted.
    meetings : int
        Pairs of a panel of ``PANEL`` queries and a key that at least one of them sees.
    longest : int
        Pairs of the row that has most.
    """

    nnz: int
    tiles: int
    full_tiles: int | None
    meetings: int
    longest: int

    @property
    def fill(self) -> float:
        """Share of the pairs in touched tiles that are selected."""
        return self.nnz / (self.tiles * TILE * TILE) if self.tiles else 1.0

    @property
    def panel_fill(self) -> float:
        """Share of the pairs in those meetings that are selected."""
        return self.nnz / (self.meetings * PANEL) if self.meetings else 1.0


def census_of_tiles(tiles: Tiles) -> Census:
    """Census from unique masks and how often each is used."""
    uses = np.bincount(tiles.mask_ids, minlength=len(tiles.pool))
    panels = np.bitwise_or.reduce(tiles.pool.reshape(len(tiles.pool), TILE // PANEL, PANEL, -1), axis=2)
    meetings = int(np.dot(np.bitwise_count(panels).sum(axis=(1, 2), dtype=np.int64), uses))
    return Census(tiles.nnz, tiles.count, int(uses[FULL]), meetings, _longest_row(tiles))


def fair_part(pairs: int) -> int:
    """Keys from which on a row is long for one warp of a GPU: twice what it has to do if all do as much.

    Examples
    --------
    >>> fair_part(4096 + 4095), fair_part(4096 * 4097 // 2)
    (512, 4096)
    """
    return max(_LEAST_PART, 2 * (pairs // _WARPS_AT_WORK))


def _longest_row(tiles: Tiles) -> int:
    """From the rows of unique masks, and which of them a row of tiles has."""
    lengths = np.bitwise_count(tiles.pool).sum(axis=-1, dtype=np.int64).reshape(len(tiles.pool), TILE)
    return int(_longest_sum(tiles.indptr, tiles.mask_ids, lengths))


@kernel
def _longest_sum(indptr, numbers, lengths):
    """The largest element of all sums of the listed rows of `lengths`, list by list."""
    sums = np.empty(lengths.shape[1], np.int64)
    longest = np.int64(0)
    for row in range(len(indptr) - 1):
        sums[:] = 0
        for position in range(indptr[row], indptr[row + 1]):
            sums += lengths[numbers[position]]
        longest = max(longest, sums.max())
    return longest


def census_of_rows(csr: Csr) -> Census:
    """Census from CSR rows, without masks."""
    tiles = count_blocks(csr.indptr, csr.indices, csr.shape[1], TILE, TILE)
    meetings = count_blocks(csr.indptr, csr.indices, csr.shape[1], PANEL, 1)
    longest = int(np.diff(csr.indptr).max(initial=0))
    return Census(csr.nnz, int(tiles), None, int(meetings), longest)


@kernel
def count_blocks(indptr, indices, columns, block_rows, block_columns):
    """Blocks of a grid that hold at least one entry of canonical CSR rows."""
    stamps = np.full(columns // block_columns + 1, -1, np.int64)
    touched = 0
    for row in range(len(indptr) - 1):
        stamp = row // block_rows
        for position in range(indptr[row], indptr[row + 1]):
            block = indices[position] // block_columns
            if stamps[block] != stamp:
                stamps[block] = stamp
                touched += 1
    return touched

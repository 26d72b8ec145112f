"""Runs: the keys of every query as intervals, in which the measures of this package read any pattern.

A causal pattern of 65,536 tokens is 65,536 runs, where its CSR rows would be 8.6 GB; a pattern without
structure has as many runs as pairs. Tiles and CSR rows are both read into them, whichever of the two
is cheap to have.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..formats.bits import trailing_zeros
from ..formats.tiles import FULL, TILE, WORDS
from ..jit import inlined, kernel
from ..patterns.pattern import Pattern

__all__ = ["Runs", "concatenated", "runs_of"]


@dataclass(frozen=True, eq=False)
class Runs:
    """The pairs of a pattern: query i sees the keys ``starts[r] <= j < stops[r]`` of its runs r.

    Attributes
    ----------
    shape : (n_q, n_k)
    indptr : int64 [n_q + 1]
        The runs of query i are ``indptr[i] <= r < indptr[i + 1]``, ascending, with a gap between each two.
    starts, stops : int64 [runs]
    """

    shape: tuple[int, int]
    indptr: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]

    @cached_property
    def row_counts(self) -> npt.NDArray[np.int64]:
        """Keys of every query."""
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.stops - self.starts)])
        return np.diff(ends[self.indptr])


def runs_of(pattern: Pattern) -> Runs:
    """The runs of a pattern; kept with it.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> runs = runs_of(patterns.sliding_window(4, 1) | patterns.global_tokens(4, [3]))
    >>> [list(zip(runs.starts[a:b].tolist(), runs.stops[a:b].tolist())) for a, b in [(0, 2), (2, 3)]]
    [[(0, 2), (3, 4)], [(0, 4)]]
    """
    runs: Runs | None = pattern.memo.get(Runs)
    if runs is None:
        runs = _of_tiles(pattern) if pattern.regular else _of_rows(pattern)
        pattern.memo[Runs] = runs
    return runs


def _of_tiles(pattern: Pattern) -> Runs:
    tiles = pattern.tiles()
    lists = (tiles.indptr, tiles.columns, tiles.mask_ids, tiles.pool)
    indptr = np.zeros(pattern.shape[0] + 1, np.int64)
    nothing = np.empty(0, np.int64)
    _read_tiles(*lists, indptr, nothing, nothing)
    np.cumsum(indptr, out=indptr)
    starts, stops = np.empty(indptr[-1], np.int64), np.empty(indptr[-1], np.int64)
    _read_tiles(*lists, indptr, starts, stops)
    return Runs(pattern.shape, indptr, starts, stops)


def _of_rows(pattern: Pattern) -> Runs:
    rows = pattern.rows()
    # A run begins where the key before is not its neighbor, or belongs to another query.
    begins = np.empty(rows.nnz, np.bool_)
    begins[:1] = True
    np.not_equal(rows.indices[1:], rows.indices[:-1] + 1, out=begins[1:])
    first = rows.indptr[:-1]
    begins[first[first < rows.nnz]] = True
    places = np.flatnonzero(begins)
    lasts = np.append(places[1:], rows.nnz) - 1
    starts = rows.indices[places].astype(np.int64)
    stops = rows.indices[lasts[: len(places)]].astype(np.int64) + 1
    return Runs(pattern.shape, np.searchsorted(places, rows.indptr), starts, stops)


@kernel
def _read_tiles(indptr, columns, mask_ids, pool, row_indptr, starts, stops):
    """Runs of every row. With no room in `starts`, only counts them, into ``row_indptr[row + 1]``."""
    counting = len(starts) == 0
    for row in range(len(row_indptr) - 1):
        written = np.int64(0) if counting else row_indptr[row]
        # The run at hand is written when the next one turns out not to continue it.
        start, stop = np.int64(-1), np.int64(-1)
        for position in range(indptr[row // TILE], indptr[row // TILE + 1]):
            base = np.int64(columns[position]) * TILE
            mask = mask_ids[position]
            if mask == FULL:
                if stop != base:
                    written = _write(start, stop, starts, stops, written)
                    start = base
                stop = base + TILE
                continue
            for word in range(WORDS):
                bits = pool[mask, row % TILE, word]
                place = base + 64 * word
                while bits != np.uint64(0):
                    skipped = trailing_zeros(bits)
                    # Two shifts: 64 at once would be undefined.
                    length = trailing_zeros(~(bits >> np.uint64(skipped)))
                    if stop != place + skipped:
                        written = _write(start, stop, starts, stops, written)
                        start = place + skipped
                    stop = place + skipped + length
                    passed = skipped + length
                    place += passed
                    bits = np.uint64(0) if passed >= 64 else bits >> np.uint64(passed)
        written = _write(start, stop, starts, stops, written)
        if counting:
            row_indptr[row + 1] = written


@inlined
def _write(start, stop, starts, stops, written):
    if stop < 0:
        return written
    if len(starts) > 0:
        starts[written] = start
        stops[written] = stop
    return written + 1


def concatenated(layers: list[Runs]) -> tuple[npt.NDArray[np.int64], ...]:
    """Several patterns of one shape in one set of arrays: ``indptr`` gets a line for each."""
    offsets = np.cumsum([0, *(len(runs.starts) for runs in layers[:-1])])
    indptr = np.stack([runs.indptr + offset for runs, offset in zip(layers, offsets, strict=True)])
    return (
        indptr,
        np.concatenate([runs.starts for runs in layers]),
        np.concatenate([runs.stops for runs in layers]),
    )

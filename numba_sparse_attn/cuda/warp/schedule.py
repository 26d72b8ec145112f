"""Which warp does what: the rows of a CSR structure as items of blocks, longest first.

A block's warps start together, so a grid that begins with its longest rows ends with its shortest, and no
warp is left alone at the end. A row that is much longer than the others becomes several items, whose
partial results ``merge.py`` folds in their order: that is the only way in which one row is ever shared.

Where consecutive rows see the same runs of consecutive keys (windows, blocks, documents), a block takes
consecutive rows, and the schedule lists those runs as *segments* that the block stages in shared memory
once for all of its warps; what is left of the rows is gathered by each warp for itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...formats.csr import Csr
from ...jit import inlined, kernel
from .shape import WARPS

__all__ = ["MOST_PARTS", "PART_KEYS", "Schedule", "Segments", "make_schedule", "share_runs"]

#: Longest row that one warp takes alone, unless many rows are that long; less where others have less to do:
#: see ``fair_part`` of ``formats/census.py``.
PART_KEYS = 8192
#: How many parts of that many keys there are at most: enough for every GPU, and a bound on their memory.
MOST_PARTS = 4096

#: Shortest run of consecutive keys that is looked at.
_SHORTEST_RUN = 16
#: How many of a block's warps, on average, a staged key must serve.
_LEAST_SERVED = 0.25
#: Share of all pairs that must be staged for a block to take consecutive rows.
_LEAST_SHARE = 0.5


@dataclass(frozen=True, eq=False)
class Segments:
    """Runs of keys that blocks stage.

    Attributes
    ----------
    spans : int64 [blocks, 2]
        (first, end) of a block's segments.
    runs : int64 [segments, 2]
        (first key, number of keys).
    bounds : int32 [segments, warps, 2]
        (begin, end) of the part of the run that each warp's row sees.
    """

    spans: npt.NDArray[np.int64]
    runs: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Schedule:
    """Blocks of one structure.

    Attributes
    ----------
    items : int64 [blocks, warps, 4]
        (row, begin, count, slot): a row, a range of ``indices``, and where the partial result goes. A row of
        -1 is nobody's; a slot of -1 means that the item is the whole row and writes the result itself.
    indices : integers
        The keys that are gathered.
    parts : int
        Number of slots.
    long_rows : int64 [long rows, 3]
        (row, first slot, end slot).
    segments : Segments or None
    """

    items: npt.NDArray[np.int64]
    indices: npt.NDArray[np.integer]
    parts: int
    long_rows: npt.NDArray[np.int64]
    segments: Segments | None = None


def _part_size(csr: Csr, part_keys: int) -> int:
    """Keys that one warp takes; a row that is longer becomes parts."""
    return min(max(part_keys, -(-csr.nnz // MOST_PARTS)), 1 << 30)


def _long_rows(lengths: npt.NDArray[np.int64], part: int) -> npt.NDArray[np.int64]:
    """(row, first slot, end slot) of the rows that are cut, the longest first."""
    order = np.argsort(-lengths, kind="stable")
    rows = order[: np.count_nonzero(lengths > part)]
    counts = -(-lengths[rows] // part)
    ends = np.cumsum(counts)
    return np.stack([rows, ends - counts, ends], axis=1).astype(np.int64)


def make_schedule(csr: Csr, part_keys: int = PART_KEYS, warps: int = WARPS) -> Schedule:
    """Items of all rows of a structure, empty ones included: their results have to be written, too.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> make_schedule(patterns.causal(3).rows()).items.tolist()
    [[[2, 3, 3, -1], [1, 1, 2, -1], [0, 0, 1, -1], [-1, 0, 0, -1]]]
    >>> schedule = make_schedule(patterns.causal(3).rows(), part_keys=2)
    >>> schedule.items.tolist(), schedule.parts, schedule.long_rows.tolist()
    ([[[2, 3, 2, 0], [2, 5, 1, 1], [1, 1, 2, -1], [0, 0, 1, -1]]], 2, [[2, 0, 2]])
    """
    lengths = np.diff(csr.indptr)
    part = _part_size(csr, part_keys)
    long_rows = _long_rows(lengths, part)
    owners = np.repeat(long_rows[:, 0], long_rows[:, 2] - long_rows[:, 1])
    slots = np.arange(len(owners))
    offsets = (slots - np.repeat(long_rows[:, 1], long_rows[:, 2] - long_rows[:, 1])) * part
    parts = np.stack(
        [owners, csr.indptr[owners] + offsets, np.minimum(lengths[owners] - offsets, part), slots], axis=1
    )
    short_rows = np.argsort(-lengths, kind="stable")[len(long_rows) :]
    whole = np.stack(
        [short_rows, csr.indptr[short_rows], lengths[short_rows], np.full(len(short_rows), -1)], axis=1
    )
    count = len(parts) + len(whole)
    items = np.empty((-(-count // warps) * warps, 4), np.int64)
    items[: len(parts)], items[len(parts) : count], items[count:] = parts, whole, (-1, 0, 0, -1)
    return Schedule(items.reshape(-1, warps, 4), csr.indices, len(parts), long_rows)


def share_runs(csr: Csr, warps: int, part_keys: int = PART_KEYS) -> Schedule | None:
    """A schedule of consecutive rows that stage what they have in common; None if that is too little.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> schedule = share_runs(patterns.sliding_window(100, 20).rows(), warps=4)
    >>> schedule.segments.runs[:2].tolist(), schedule.segments.bounds[1].tolist()
    ([[0, 24], [0, 28]], [[0, 25], [0, 26], [0, 27], [0, 28]])
    >>> share_runs(patterns.dilated_window(100, 20, dilation=2).rows(), warps=4) is None
    True
    """
    lengths = np.diff(csr.indptr)
    rows = len(lengths)
    if not rows or not csr.nnz:
        return None
    part = _part_size(csr, part_keys)
    long_rows = _long_rows(lengths, part)
    first_slot = np.full(rows, -1, np.int64)
    first_slot[long_rows[:, 0]] = long_rows[:, 1]
    padded = np.zeros(-(-rows // warps) * warps, np.int64)
    padded[:rows] = lengths
    blocks = int(np.maximum(1, -(-padded.reshape(-1, warps).max(axis=1) // part)).sum())
    nothing = np.zeros(0, np.int64)
    runs_found, gathered = _find_segments(
        csr.indptr, csr.indices, first_slot, part, warps, False,
        nothing.reshape(0, 0, 4), nothing.reshape(0, 2), nothing.reshape(0, 2),
        np.zeros((0, 0, 2), np.int32), csr.indices[:0].copy(), nothing,
    )  # fmt: skip
    if csr.nnz - gathered < _LEAST_SHARE * csr.nnz:
        return None
    items = np.empty((blocks, warps, 4), np.int64)
    spans = np.empty((blocks, 2), np.int64)
    runs = np.empty((runs_found, 2), np.int64)
    bounds = np.empty((runs_found, warps, 2), np.int32)
    indices = np.empty(gathered, csr.indices.dtype)
    costs = np.empty(blocks, np.int64)
    _find_segments(
        csr.indptr, csr.indices, first_slot, part, warps, True, items, spans, runs, bounds, indices, costs
    )
    order = np.argsort(-costs, kind="stable")
    parts = int(long_rows[-1, 2]) if len(long_rows) else 0
    return Schedule(items[order], indices, parts, long_rows, Segments(spans[order], runs, bounds))


@kernel
def _find_segments(
    indptr, indices, first_slot, part, warps, fill, items, spans, runs, bounds, gathered, costs
):
    """Blocks of `warps` rows, a block for every part of the longest; returns the numbers of runs and of keys
    that are left to gather. Without `fill` it only counts.
    """
    rows = len(indptr) - 1
    block = 0
    run_count = 0
    gathered_count = 0
    starts = np.empty((warps, 0), np.int64)
    ends = np.empty((warps, 0), np.int64)
    found = np.zeros(warps, np.int64)
    # The interval of each row that comes next, and the part of it that was cut off and comes first.
    following = np.zeros(warps, np.int64)
    resumed = np.zeros(warps, np.int64)
    lows = np.zeros(warps, np.int64)
    highs = np.zeros(warps, np.int64)
    work = np.zeros(warps, np.int64)
    for group in range(0, rows, warps):
        members = min(warps, rows - group)
        longest = 0
        for warp in range(members):
            longest = max(longest, indptr[group + warp + 1] - indptr[group + warp])
        room = min(longest, part) // _SHORTEST_RUN + 1
        if room > starts.shape[1]:
            starts = np.empty((warps, room), np.int64)
            ends = np.empty((warps, room), np.int64)
        for number in range(max(1, -(-longest // part))):
            for warp in range(warps):
                work[warp] = 0
                found[warp] = 0
                if warp < members:
                    begin = min(indptr[group + warp] + number * part, indptr[group + warp + 1])
                    end = min(begin + part, indptr[group + warp + 1])
                    found[warp] = _list_runs(indices, begin, end, starts[warp], ends[warp])
                following[warp] = 0
                resumed[warp] = starts[warp, 0] if found[warp] else 0
            first_run = run_count
            while True:
                # A segment starts at the first key that is left and ends where nobody's run goes on, or
                # where somebody's second run begins: a warp has one range in a segment.
                start = _next_start(following, found, resumed, warps)
                if start < 0:
                    break
                lows[:] = 0
                highs[:] = 0
                stop = start
                while True:
                    key = _next_start(following, found, resumed, warps)
                    if key < 0 or (key >= stop and stop > start):
                        break
                    warp = 0
                    while following[warp] >= found[warp] or resumed[warp] != key:
                        warp += 1
                    if highs[warp] > 0:
                        stop = key
                        break
                    lows[warp], highs[warp] = key, ends[warp, following[warp]]
                    stop = max(stop, highs[warp])
                    following[warp] += 1
                    if following[warp] < found[warp]:
                        resumed[warp] = starts[warp, following[warp]]
                served = 0
                for warp in range(warps):
                    if highs[warp] > stop:  # what was cut off comes again
                        following[warp] -= 1
                        resumed[warp] = stop
                        highs[warp] = stop
                    served += highs[warp] - lows[warp]
                if served >= _LEAST_SERVED * warps * (stop - start):
                    if fill:
                        runs[run_count, 0], runs[run_count, 1] = start, stop - start
                        for warp in range(warps):
                            seen = highs[warp] > lows[warp]
                            bounds[run_count, warp, 0] = lows[warp] - start if seen else 0
                            bounds[run_count, warp, 1] = highs[warp] - start if seen else 0
                    for warp in range(warps):
                        work[warp] += highs[warp] - lows[warp]
                    run_count += 1
            for warp in range(warps):
                row = group + warp
                first = gathered_count
                if warp < members:
                    begin = min(indptr[row] + number * part, indptr[row + 1])
                    end = min(begin + part, indptr[row + 1])
                    if fill:
                        gathered_count = _list_rest(
                            indices, begin, end, runs, bounds, first_run, run_count, warp, gathered, first
                        )
                    else:
                        gathered_count += end - begin - work[warp]
                if fill:
                    empty = warp >= members or (number > 0 and number * part >= indptr[row + 1] - indptr[row])
                    items[block, warp, 0] = -1 if empty else row
                    items[block, warp, 1] = first
                    items[block, warp, 2] = gathered_count - first
                    slot = -1 if empty or first_slot[row] < 0 else first_slot[row] + number
                    items[block, warp, 3] = slot
                    work[warp] += gathered_count - first
            if fill:
                spans[block, 0], spans[block, 1] = first_run, run_count
                costs[block] = work.max()
            block += 1
    return run_count, gathered_count


@inlined
def _list_runs(indices, begin, end, starts, ends):
    """Runs of consecutive keys in a range of a row; returns how many."""
    count = 0
    while begin < end:
        # Most rows are one run from end to end, and most others have none: look before walking.
        stop = begin + 1
        if indices[end - 1] - indices[begin] == end - 1 - begin:
            stop = end
        while stop < end and indices[stop] == indices[stop - 1] + 1:
            stop += 1
        if stop - begin >= _SHORTEST_RUN:
            starts[count], ends[count] = indices[begin], indices[stop - 1] + 1
            count += 1
        begin = stop
    return count


@inlined
def _next_start(following, found, resumed, warps):
    """The first key of all runs that are left, or -1."""
    key = -1
    for warp in range(warps):
        if following[warp] < found[warp] and (key < 0 or resumed[warp] < key):
            key = resumed[warp]
    return key


@inlined
def _list_rest(indices, begin, end, runs, bounds, first_run, last_run, warp, gathered, count):
    """Copy the keys of a row that no segment has; returns the end of the copy."""
    run = first_run
    for position in range(begin, end):
        key = indices[position]
        while run < last_run and key >= runs[run, 0] + bounds[run, warp, 1]:
            run += 1
        if run == last_run or key < runs[run, 0] + bounds[run, warp, 0]:
            gathered[count] = key
            count += 1
    return count

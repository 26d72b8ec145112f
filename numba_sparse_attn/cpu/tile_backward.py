"""Backward pass over tiles: one sweep over the keys, nothing of size N x N.

dk and dv of a key belong to one tile column. dq has no such owner, as a query is seen by many tile
columns: they are cut into a few chunks, each chunk adds to a buffer of its own that has room for the
tile rows that the chunk touches, and the buffers are summed in the order of the chunks. How many
chunks there are depends on the problem alone, so the sums do not depend on the number of threads. A
buffer is added as soon as those before it have been, so that there are seldom more than threads.
"""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..formats.tiles import TILE, Tiles
from ..formats.work import Request
from ..jit import for_each, kernel
from .elements import FLOAT32, FLOAT64, head_addresses, load_row, store_row, type_code
from .operands import (
    PADDING,
    aligned_empty,
    aligned_zeros,
    padded,
    ranges,
    rows_of,
    run_all,
    shares,
    structure_table,
)
from .products import ROWS, panel_size
from .tile_backward_kernel import scratch_sizes, tile_backward_kernel
from .vector import address_of, axpy, dot, has_non_finite

__all__ = ["backward_tiles"]

#: Pieces of work that the tile columns of all key heads are cut into, at least: enough for 8 threads.
_PIECES = 32
#: Chunks of one key head, at most.
_CHUNKS = 8

_Array = npt.NDArray[Any]


@kernel
def _statistics_kernel(
    scratch,
    statistics,
    flags,
    heads,
    n_q,
    depth,
    value_depth,
    code,
    query_stride,
    query_step,
    dout_stride,
    dout_step,
    out_stride,
    out_step,
    lse_stride,
    first_unit,
    last_unit,
):
    """(lse, delta) of every query of some tile rows, and whether q or dout has an inf or a NaN there.

    `heads` has the addresses of q, dout, out and lse of every head.
    """
    size = np.int64(scratch.itemsize)
    base = address_of(scratch)
    tile_rows = (n_q + TILE - 1) // TILE
    for unit in range(first_unit, last_unit):
        head = unit // tile_rows
        first = (unit - head * tile_rows) * TILE
        found = False
        for row in range(first, first + TILE if first + TILE < n_q else n_q):
            load_row(code, heads[head, 0] + row * query_stride, query_step, depth, scratch, 0)
            found |= has_non_finite(scratch, base, depth)
            load_row(code, heads[head, 1] + row * dout_stride, dout_step, value_depth, scratch, 0)
            found |= has_non_finite(scratch, base, value_depth)
            load_row(code, heads[head, 2] + row * out_stride, out_step, value_depth, scratch, value_depth)
            place = (head * n_q + row) * 2
            statistics[place + 1] = dot(scratch, base, base + value_depth * size, value_depth)
            address = heads[head, 3] + row * lse_stride
            load_row(FLOAT64 if size == 8 else FLOAT32, address, lse_stride, 1, statistics, place)
        flags[unit] = found


@kernel
def _add_chunk_kernel(total, buffer, slots, targets, n_q, depth, width, code, stride, step, last):
    """Add the buffer of a chunk to dq of the query heads of a key head, and write it if it is the last.

    total [heads, tile rows, TILE, width]; buffer [heads, touched tile rows, TILE, width]; `targets` are
    the addresses of the heads in dq.
    """
    kind, size, rows = total.dtype.type, total.itemsize, TILE * width
    for head in range(len(targets)):
        begin = head * (len(buffer) // len(targets))
        for row in range(len(slots)):
            if slots[row] >= 0:
                source = address_of(buffer) + (begin + slots[row] * rows) * size
                target = address_of(total) + (head * len(slots) + row) * rows * size
                axpy(total, kind(1.0), source, target, rows)
        if last:
            for query in range(n_q):
                place = head * len(slots) * rows + query * width
                store_row(code, targets[head] + query * stride, step, depth, total, place)


class _Chunk(NamedTuple):
    """Tile columns of one key head, where the tile rows that they touch lie in a buffer, how many."""

    first: int
    last: int
    slots: npt.NDArray[np.int64]
    touched: int


def _cut(structures: list[Tiles], request: Request) -> list[_Chunk]:
    """Chunks of the tile columns of a key head whose query heads have these structures."""
    tile_rows, columns = -(-request.n_q // TILE), -(-request.n_k // TILE)
    if columns == 0:
        return [_Chunk(0, 0, np.full(tile_rows, -1, np.int64), 0)]
    costs = np.ones(columns, np.int64)
    for tiles in structures:
        costs += np.diff(tiles.transposed_indptr)
    chunks = []
    for first, last in ranges(costs, min(_CHUNKS, -(-_PIECES // (request.batch * request.kv_heads)))):
        seen = np.zeros(tile_rows, bool)
        for tiles in structures:
            begin, end = tiles.transposed_indptr[[first, last]]
            seen[tiles.transposed_rows[begin:end]] = True
        slots = np.where(seen, np.cumsum(seen) - 1, -1)
        chunks.append(_Chunk(first, last, slots, int(np.count_nonzero(seen))))
    return chunks


class _QueryGradients:
    """dq of the query heads of one key head: sums buffers in order, whichever is finished first."""

    def __init__(self, targets: npt.NDArray[np.int64], chunks: list[_Chunk]) -> None:
        self._targets = targets
        self._chunks = chunks
        self._lock = threading.Lock()
        self._waiting: dict[int, _Array] = {}
        self._added = 0
        self._total = np.empty(0)

    def add(self, number: int, buffer: _Array, width: int, dq: _Array) -> None:
        """Take the buffer of chunk `number`; the last one to be added writes dq."""
        with self._lock:
            self._waiting[number] = buffer
            if self._added == 0:
                size = self._targets.size * self._chunks[0].slots.size * TILE * width
                self._total = aligned_zeros(size, buffer.dtype)
            while self._added in self._waiting:
                _add_chunk_kernel(
                    self._total,
                    self._waiting.pop(self._added),
                    self._chunks[self._added].slots,
                    self._targets,
                    dq.shape[-2],
                    dq.shape[-1],
                    width,
                    type_code(dq.dtype),
                    dq.strides[-2],
                    dq.strides[-1],
                    self._added == len(self._chunks) - 1,
                )
                self._added += 1
            if self._added == len(self._chunks):
                self._total = np.empty(0)


def _statistics(
    request: Request, selected: npt.NDArray[np.int64], q: _Array, dout: _Array, out: _Array, lse: _Array
) -> tuple[_Array, bool]:
    """(lse, delta) of every query, [selected heads, n_q, 2], and whether all of q and dout is finite."""
    accumulator = request.accumulator
    statistics = aligned_empty(selected.size * request.n_q * 2, accumulator)
    broken = np.zeros(selected.size * -(-request.n_q // TILE), np.bool_)
    addresses = [head_addresses(array).reshape(-1)[selected] for array in (q, dout, out)]
    heads = np.stack([*addresses, head_addresses(lse, 1).reshape(-1)[selected]], axis=1)

    def work(share: tuple[int, int], worker: int) -> None:
        _statistics_kernel(
            aligned_empty(2 * max(request.head_dim, request.value_dim), accumulator),
            statistics,
            broken,
            heads,
            request.n_q,
            request.head_dim,
            request.value_dim,
            type_code(request.dtype),
            q.strides[-2],
            q.strides[-1],
            dout.strides[-2],
            dout.strides[-1],
            out.strides[-2],
            out.strides[-1],
            lse.strides[-1],
            *share,
        )

    # An element is read from memory twice and converted: as long as a hundred operations of a product take.
    for_each(work, shares(np.ones(broken.size, np.int64), 100 * dout.size))
    return statistics, not broken.any()


def backward_tiles(
    request: Request,
    selected: npt.NDArray[np.int64],
    dout: _Array,
    q: _Array,
    k: _Array,
    v: _Array,
    out: _Array,
    lse: _Array,
    dq: _Array,
    dk: _Array,
    dv: _Array,
) -> None:
    """Gradients through the heads whose flat numbers ``b * heads + h`` are in `selected`, ascending.

    The arrays are those of :func:`numba_sparse_attn.cpu.backward`; the structures of the selected heads
    are Tiles. Only their part of `dq` is written, but all of `dk` and `dv`, which may also be of
    accumulator type.
    """
    accumulator = request.accumulator
    panel = panel_size(accumulator)
    width = padded(request.head_dim, max(PADDING, panel))
    queries, incoming = rows_of(q, accumulator, ROWS), rows_of(dout, accumulator, ROWS)
    statistics, finite = _statistics(request, selected, q, dout, out, lse)

    which = request.which.reshape(-1)[selected]
    heads = np.zeros((selected.size, 5), np.int64)
    heads[:, 0] = which
    heads[:, 1] = queries.addresses.reshape(-1)[selected]
    heads[:, 2] = incoming.addresses.reshape(-1)[selected]
    step = 2 * request.n_q * accumulator.itemsize
    heads[:, 3] = statistics.__array_interface__["data"][0] + step * np.arange(selected.size)
    groups = np.stack([head_addresses(array).reshape(-1) for array in (k, v, dk, dv)], axis=1)
    targets = head_addresses(dq).reshape(-1)[selected]

    # The selected heads of a key head lie side by side: from ends[i] to ends[i + 1].
    ends = np.searchsorted(selected, np.arange(len(groups) + 1) * request.group).tolist()
    chunks: dict[tuple[int, ...], list[_Chunk]] = {}
    sums: list[_QueryGradients] = []
    items: list[tuple[int, int, _Chunk]] = []
    for shared, (first, last) in enumerate(pairwise(ends)):
        key = tuple(np.unique(which[first:last]).tolist())
        if key not in chunks:
            structures = [request.structures[index] for index in key]
            chunks[key] = _cut([tiles for tiles in structures if isinstance(tiles, Tiles)], request)
        sums.append(_QueryGradients(targets[first:last], chunks[key]))
        items += [(shared, number, chunk) for number, chunk in enumerate(chunks[key])]

    table = structure_table(request.structures)
    sizes = scratch_sizes(panel, request.head_dim, request.value_dim, width)
    scratch: dict[int, tuple[_Array, npt.NDArray[np.int64]]] = {}

    def work(item: tuple[int, int, _Chunk], worker: int) -> None:
        if worker not in scratch:
            scratch[worker] = aligned_empty(sizes[0], accumulator), aligned_empty(sizes[1], np.int64)
        shared, number, chunk = item
        mine = heads[ends[shared] : ends[shared + 1]].copy()
        size = chunk.touched * TILE * width
        buffer = aligned_zeros(len(mine) * size, accumulator)
        begin = buffer.__array_interface__["data"][0]
        mine[:, 4] = begin + size * accumulator.itemsize * np.arange(len(mine))
        tile_backward_kernel(
            *scratch[worker],
            table,
            mine,
            groups[shared],
            chunk.slots,
            request.n_k,
            request.head_dim,
            request.value_dim,
            width,
            type_code(request.dtype),
            type_code(dk.dtype),
            queries.stride,
            incoming.stride,
            k.strides[-2],
            k.strides[-1],
            v.strides[-2],
            v.strides[-1],
            dk.strides[-2],
            dk.strides[-1],
            dv.strides[-2],
            dv.strides[-1],
            request.scale,
            finite,
            chunk.first,
            chunk.last,
        )
        sums[shared].add(number, buffer, width, dq)

    run_all(work, items, request.backward_flops)

"""Forward pass over tiles: exact attention, panel by panel of queries, never a row of scores whole.

A tile row (128 queries) is cut into panels of as many queries as two vectors have lanes. For every
panel the kernel keeps a list of the keys that *some* query of the panel sees: tiles are read in
ascending order, the mask rows of the panel are OR-ed, and the addresses of the keys that are left are
appended, with one word a key that says which lanes see it. Whenever CAPACITY keys are together, they
go through

    scores [keys, panel] = K panel^T  ->  online softmax down the columns  ->  out^T += V^T weights

So the work follows the union of the keys of a panel, not the tiles: the 31 unused columns of a strided
pattern cost nothing but the reading of their bits, and the edges of a window nothing at all. Softmax
never works across lanes. All panels of a tile row advance together, so that a tile of K and V is read
from memory once for 128 queries.

A full tile and a partial tile whose bits are all ones give the same lists, hence the same bits.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..formats.tiles import FULL, TILE, Tiles
from ..formats.work import Request
from ..jit import for_each, inlined, kernel
from .elements import FLOAT32, FLOAT64, head_addresses, load_row, store_row, type_code
from .lists import (
    CAPACITY,
    COLUMN,
    LIST_WORDS,
    MASK_ROW,
    MASKS,
    append_all,
    append_seen_columns,
    clear_list,
    count_seen_columns,
    is_masked,
    list_length,
    read_int32,
    read_int64,
)
from .operands import PADDING, aligned_empty, padded, rows_of, shares, structure_table
from .products import (
    ROWS,
    mix_rows,
    mix_rows_masked,
    panel_size,
    panel_width,
    score_rows,
    transpose,
)
from .softmax import STATE_ROWS, finish_softmax, scale_rows, softmax_rows, start_softmax
from .vector import address_of, fill

__all__ = ["forward_tiles"]


class _Layout(NamedTuple):
    """Sizes, and the addresses of scratch areas.

    `rows` and `factors` serve the transpositions; scores [CAPACITY + ROWS, panel] serve all panels;
    queries [depth_padded, panel], outputs [value_padded, panel], states [STATE_ROWS, panel] and lists
    are there once for every panel of a tile row.
    """

    size: int
    panel: int
    row_bytes: int
    depth: int
    depth_padded: int
    value_depth: int
    value_padded: int
    rows: int
    factors: int
    scores: int
    queries: int
    outputs: int
    states: int
    lists: int


@inlined
def _make_layout(scratch, lists, depth, value_depth):
    size = np.int64(scratch.itemsize)
    panel = panel_width(scratch)
    depth_padded = (depth + PADDING - 1) // PADDING * PADDING
    value_padded = (value_depth + PADDING - 1) // PADDING * PADDING
    widest = depth_padded if depth_padded > value_padded else value_padded
    widest = widest if widest > panel else panel
    rows = address_of(scratch)
    factors = rows + panel * widest * size
    scores = factors + widest * size
    queries = scores + (CAPACITY + ROWS) * panel * size
    outputs = queries + TILE * depth_padded * size
    states = outputs + TILE * value_padded * size
    return _Layout(
        size,
        panel,
        panel * size,
        depth,
        depth_padded,
        value_depth,
        value_padded,
        rows,
        factors,
        scores,
        queries,
        outputs,
        states,
        address_of(lists),
    )


def _scratch_sizes(panel: int, depth: int, value_depth: int) -> tuple[int, int]:
    """Elements of compute type and int64 words that a layout takes."""
    depth, value_depth = padded(depth, PADDING), padded(value_depth, PADDING)
    widest = max(depth, value_depth, panel)
    elements = widest * (panel + 1) + (CAPACITY + ROWS) * panel
    return elements + TILE * (depth + value_depth + STATE_ROWS), TILE // panel * LIST_WORDS


@inlined
def _begin(scratch, layout, part, code, query, stride, step, count, sign):
    """Transpose `count` queries times `sign` into a panel, and clear what belongs to it."""
    size, panel, depth_padded = layout.size, layout.panel, layout.depth_padded
    kind = scratch.dtype.type
    fill(scratch, layout.rows, panel * depth_padded, kind(0.0))
    for r in range(count):
        load_row(code, query + r * stride, step, layout.depth, scratch, r * depth_padded)
    fill(scratch, layout.factors, depth_padded, kind(sign))
    queries = layout.queries + part * depth_padded * layout.row_bytes
    transpose(
        scratch,
        layout.rows,
        depth_padded * size,
        panel,
        depth_padded,
        layout.factors,
        queries,
        layout.row_bytes,
    )
    outputs = layout.outputs + part * layout.value_padded * layout.row_bytes
    fill(scratch, outputs, layout.value_padded * panel, kind(0.0))
    start_softmax(scratch, layout.states + part * STATE_ROWS * layout.row_bytes)
    clear_list(layout.lists + part * (8 * LIST_WORDS))


@inlined
def _work_off(scratch, layout, part, factor, exact):
    """Scores, softmax and weighted sum over the keys that a panel has collected."""
    entries = layout.lists + part * (8 * LIST_WORDS)
    count = list_length(entries)
    if count == 0:
        return
    scores = layout.scores
    queries = layout.queries + part * layout.depth_padded * layout.row_bytes
    outputs = layout.outputs + part * layout.value_padded * layout.row_bytes
    state = layout.states + part * STATE_ROWS * layout.row_bytes
    masked = is_masked(entries)
    score_rows(scratch, entries, count, queries, layout.depth, scores)
    if softmax_rows(scratch, scores, count, entries + MASKS, masked, state, factor):
        scale_rows(scratch, outputs, layout.value_depth, state + 2 * layout.row_bytes)
    if exact and masked:
        mix_rows_masked(
            scratch, entries + COLUMN, count, scores, layout.value_depth, outputs, entries + MASKS
        )
    else:
        mix_rows(scratch, entries + COLUMN, count, scores, layout.value_depth, outputs)
    clear_list(entries)


@inlined
def _end(scratch, layout, part, code, out, stride, step, lse, lse_stride, count, magnitude):
    """Write outputs and lse of `count` queries of a panel; returns whether all outputs are finite."""
    size, value_padded = layout.size, layout.value_padded
    state = layout.states + part * STATE_ROWS * layout.row_bytes
    outputs = layout.outputs + part * value_padded * layout.row_bytes
    finish_softmax(scratch, state, layout.factors)
    broken = transpose(
        scratch,
        outputs,
        layout.row_bytes,
        value_padded,
        layout.panel,
        layout.factors,
        layout.rows,
        value_padded * size,
    )
    for r in range(count):
        store_row(code, out + r * stride, step, layout.value_depth, scratch, r * value_padded)
    if lse != 0:
        place = (state - layout.rows) // size
        for r in range(count):
            total = np.float64(scratch[place + layout.panel + r])
            largest = magnitude * np.float64(scratch[place + r])
            scratch[r] = largest + math.log(total) if total != 0.0 else -np.inf
        store_row(FLOAT64 if size == 8 else FLOAT32, lse, lse_stride, count, scratch, 0)
    return not broken


@kernel
def _tile_forward_kernel(
    scratch,
    lists,
    structures,
    heads,
    n_q,
    depth,
    value_depth,
    code,
    query_stride,
    query_step,
    key_stride,
    value_stride,
    out_stride,
    out_step,
    lse_stride,
    scale,
    first_unit,
    last_unit,
):
    """Tile rows ``first_unit, ..., last_unit - 1``, counted through all heads.

    `structures` has the addresses of the arrays of every structure; `heads` has, for every head, the
    number of its structure and the addresses of its q, k, v, out and lse. k and v are of compute type
    with elements side by side, and rows of v are readable up to a multiple of ROWS. Strides and steps
    are in bytes; the address of an lse that nobody wants is 0.
    """
    layout = _make_layout(scratch, lists, depth, value_depth)
    panel = layout.panel
    kind = scratch.dtype.type
    # From scores to units of log(2). The factor must be positive and finite, for scores of -inf.
    magnitude, sign = abs(scale), 1.0 if scale > 0.0 else -1.0
    factor = kind(magnitude * 1.4426950408889634)
    if factor == np.inf:
        factor = kind(3.0e38)
    if factor == 0.0:
        magnitude, sign, factor = 0.0, 0.0, kind(1.0)
    strides = (key_stride, value_stride)
    tile_rows = (n_q + TILE - 1) // TILE
    for unit in range(first_unit, last_unit):
        head = unit // tile_rows
        tile_row = unit - head * tile_rows
        structure = heads[head, 0]
        first_tile = read_int64(structures[structure, 0], tile_row)
        last_tile = read_int64(structures[structure, 0], tile_row + 1)
        first_query = tile_row * TILE
        queries = n_q - first_query if n_q - first_query < TILE else TILE
        parts = (queries + panel - 1) // panel
        for exact in range(2):
            for part in range(parts):
                query = heads[head, 1] + (first_query + part * panel) * query_stride
                count = queries - part * panel if queries - part * panel < panel else panel
                _begin(scratch, layout, part, code, query, query_stride, query_step, count, sign)

            # One step more than there are tiles: the last one works off what is left in the lists.
            for tile in range(first_tile, last_tile + 1):
                column, mask = np.int64(0), np.int64(-1)
                if tile < last_tile:
                    column = read_int32(structures[structure, 1], tile) * TILE
                    mask = read_int32(structures[structure, 2], tile)
                bases = (heads[head, 2] + column * key_stride, heads[head, 3] + column * value_stride)
                for part in range(parts):
                    entries = layout.lists + part * (8 * LIST_WORDS)
                    masks = structures[structure, 3] + (mask * TILE + part * panel) * MASK_ROW
                    count = TILE
                    if mask > FULL:
                        count = count_seen_columns(scratch, masks)
                    if list_length(entries) + count > CAPACITY or mask < 0:
                        _work_off(scratch, layout, part, factor, exact)
                    if mask == FULL:
                        append_all(entries, bases, strides)
                    elif mask > FULL:
                        append_seen_columns(scratch, entries, masks, bases, strides)

            finite = True
            for part in range(parts):
                first = first_query + part * panel
                out = heads[head, 4] + first * out_stride
                lse = heads[head, 5] + first * lse_stride if heads[head, 5] != 0 else 0
                count = queries - part * panel if queries - part * panel < panel else panel
                finite &= _end(
                    scratch,
                    layout,
                    part,
                    code,
                    out,
                    out_stride,
                    out_step,
                    lse,
                    lse_stride,
                    count,
                    magnitude,
                )
            # A weight of 0 times an inf or NaN of a key that nobody selected gives NaN. Nothing is
            # scanned for such values beforehand: the tile row is done again, multiplying selected
            # pairs only, and what is not finite then is so for a reason.
            if finite:
                break


def forward_tiles(
    request: Request,
    selected: npt.NDArray[np.int64],
    q: npt.NDArray[Any],
    k: npt.NDArray[Any],
    v: npt.NDArray[Any],
    out: npt.NDArray[Any],
    lse: npt.NDArray[Any] | None,
) -> None:
    """Attention of the heads whose flat numbers ``b * heads + h`` are in `selected`.

    The arrays are those of :func:`numba_sparse_attn.cpu.forward`; the structures of the selected heads
    are Tiles. Only their part of `out` and `lse` is written.
    """
    keys = rows_of(k, request.accumulator, 1)
    values = rows_of(v, request.accumulator, ROWS)
    which = request.which.reshape(-1)[selected]
    shared = selected // request.group  # b * kv_heads + h // group, as heads = kv_heads * group
    heads = np.empty((selected.size, 6), np.int64)
    heads[:, 0] = which
    heads[:, 1] = head_addresses(q).reshape(-1)[selected]
    heads[:, 2] = keys.addresses.reshape(-1)[shared]
    heads[:, 3] = values.addresses.reshape(-1)[shared]
    heads[:, 4] = head_addresses(out).reshape(-1)[selected]
    heads[:, 5] = 0 if lse is None else head_addresses(lse, 1).reshape(-1)[selected]
    table = structure_table(request.structures)
    sizes = _scratch_sizes(panel_size(request.accumulator), request.head_dim, request.value_dim)
    scratch: dict[int, tuple[npt.NDArray[Any], npt.NDArray[np.int64]]] = {}

    def work(share: tuple[int, int], worker: int) -> None:
        if worker not in scratch:
            scratch[worker] = aligned_empty(sizes[0], request.accumulator), aligned_empty(sizes[1], np.int64)
        _tile_forward_kernel(
            *scratch[worker],
            table,
            heads,
            request.n_q,
            request.head_dim,
            request.value_dim,
            type_code(request.dtype),
            q.strides[-2],
            q.strides[-1],
            keys.stride,
            values.stride,
            out.strides[-2],
            out.strides[-1],
            0 if lse is None else lse.strides[-1],
            request.scale,
            *share,
        )

    costs = [
        1 + np.diff(structure.indptr) if isinstance(structure, Tiles) else np.empty(0, np.int64)
        for structure in request.structures
    ]
    units = np.concatenate([costs[index] for index in which.tolist()])
    for_each(work, shares(units, request.forward_flops))

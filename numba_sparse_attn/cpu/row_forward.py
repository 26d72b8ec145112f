"""Forward pass over CSR rows: one query at a time over the keys that its list names.

For every piece of a list: scores by gathered dot products, online softmax, gathered weighted sum. Only
the listed rows of K and V are ever read, so the work is that of the listed pairs however they are
scattered. A few pieces advance together, phase by phase (see row_work.BATCH).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..formats.changes import Changes
from ..formats.work import Request
from ..jit import for_each, kernel
from .elements import FLOAT32, head_addresses, load_row, store_row, type_code
from .gather import gather_axpy, gather_dot, multiply
from .operands import aligned_empty, shares
from .row_changes import change_scores, list_columns_of, room_for, settings_of
from .row_work import (
    BATCH,
    BEGIN,
    BLOCK,
    HEAD,
    INDEX_BYTES,
    INDICES,
    INDPTR,
    IS_FIRST,
    IS_LAST,
    LIST_COLUMNS,
    LISTED,
    LOG2_E,
    NEXT_HEAD,
    NEXT_ROW,
    PLACE,
    ROW,
    SIZE,
    SLOT,
    Wave,
    Workspace,
    finite,
    join,
    joined_bytes,
    list_columns,
    list_pieces,
    padded,
    unit_costs,
    walk,
    waves,
)
from .vector import address_of, exp2_sum, fill, lane_count, largest

__all__ = ["forward_rows"]

#: Columns of the table of heads behind those of the lists: addresses of joined K and V, q, out, lse.
_KEYS, _QUERY, _OUT, _LSE = range(LIST_COLUMNS, LIST_COLUMNS + 4)


@kernel
def _row_forward_kernel(
    scratch,
    cursor,
    pieces,
    lists,
    heads,
    ends,
    n_q,
    sizes,
    widths,
    lanes,
    code,
    key_stride,
    value_offset,
    query_strides,
    out_strides,
    lse_stride,
    scale,
    settings,
    columns,
    bins,
    first_unit,
    last_unit,
):
    """Units of BLOCK queries, counted through all key heads.

    `heads` is the table of query heads; ``ends[i] .. ends[i + 1] - 1`` of them share key head i.
    `sizes` are head_dim and value_dim, `widths` the same filled up to whole vectors of `lanes`. Strides
    are in bytes. An address of 0 for lse means that nobody wants it. `settings` is None, or what scores go
    through (see ``row_changes.py``), `columns` and `bins` room for integers of a batch: with None, Numba
    compiles a kernel in which none of that is left.
    """
    kind = scratch.dtype.type
    size = scratch.itemsize
    key_width, value_width = widths
    # scratch: queries [BATCH, key_width], sums [BATCH, value_width], scores [LISTED], then the largest
    # score and the sum of the exponentials of every slot, and [LISTED] numbers of a change of scores.
    sums = BATCH * key_width
    scores = sums + BATCH * value_width
    peaks = scores + LISTED
    totals = peaks + BATCH
    base = address_of(scratch)
    minus_infinity = kind(-np.inf)
    fill(scratch, base, BATCH * key_width, kind(0.0))

    # Exponentials are those of (score - largest score) * steepness, where score is that of a query with
    # the sign of the scale. No scale, however large, can so turn a score into an infinite one.
    steepness = finite(abs(scale) * LOG2_E, scratch)
    sign = kind(1.0)
    if scale < 0.0:
        sign = kind(-1.0)
    if steepness == kind(0.0):
        sign = kind(0.0)
        steepness = kind(1.0)
    unit_of_lse = abs(scale)
    if settings is not None:
        # Scores are changed as they are, scale included, so the query takes all of it.
        sign = finite(scale, scratch)
        steepness = kind(LOG2_E)
        unit_of_lse = 1.0

    blocks = (n_q + BLOCK - 1) // BLOCK
    for unit in range(first_unit, last_unit):
        key_head = unit // blocks
        first_row = (unit - key_head * blocks) * BLOCK
        last_row = first_row + BLOCK if first_row + BLOCK < n_q else n_q
        first_head = ends[key_head]
        last_head = ends[key_head + 1]
        cursor[NEXT_ROW] = first_row
        cursor[NEXT_HEAD] = first_head
        while cursor[NEXT_ROW] < last_row:
            count = list_pieces(
                heads,
                INDPTR,
                _KEYS,
                key_stride,
                first_head,
                last_head,
                last_row,
                lanes,
                cursor,
                pieces,
                lists,
            )
            for i in range(count):
                entries = pieces[i, SIZE]
                slot = pieces[i, SLOT]
                place = pieces[i, PLACE]
                if pieces[i, IS_FIRST] != 0:
                    fill(scratch, base + (sums + slot * value_width) * size, value_width, kind(0.0))
                    scratch[peaks + slot] = minus_infinity
                    scratch[totals + slot] = kind(0.0)
                if entries > 0:
                    query = i * key_width
                    source = heads[pieces[i, HEAD], _QUERY] + pieces[i, ROW] * query_strides[0]
                    load_row(code, source, query_strides[1], sizes[0], scratch, query)
                    source = base + query * size
                    if sign != kind(1.0):
                        multiply(scratch, source, key_width, sign)
                    named = address_of(lists) + 8 * place
                    target = base + (scores + place) * size
                    gather_dot(scratch, source, named, 0, entries, key_width // lanes, target)
                    if settings is not None:
                        head = pieces[i, HEAD]
                        begin = pieces[i, BEGIN]
                        indices, width = heads[head, INDICES], heads[head, INDEX_BYTES]
                        list_columns_of(columns, place, indices, width, begin, entries)
                        change_scores(
                            settings,
                            head,
                            scratch,
                            scores + place,
                            totals + BATCH + place,
                            -1,
                            columns,
                            bins,
                            place,
                            0,
                            begin,
                            entries,
                            pieces[i, ROW],
                            False,
                        )

            for i in range(count):
                entries = pieces[i, SIZE]
                slot = pieces[i, SLOT]
                if entries > 0:
                    # Whole vectors: what fills the last one up has no weight.
                    whole = (entries + lanes - 1) // lanes * lanes
                    place = base + (scores + pieces[i, PLACE]) * size
                    fill(scratch, place + entries * size, whole - entries, minus_infinity)
                    peak = scratch[peaks + slot]
                    higher = largest(scratch, place, whole)
                    if higher > peak:
                        if peak > minus_infinity:
                            shrink = kind(np.exp2((peak - higher) * steepness))
                            scratch[totals + slot] *= shrink
                            multiply(scratch, base + (sums + slot * value_width) * size, value_width, shrink)
                        peak = higher
                        scratch[peaks + slot] = peak
                    # -inf - -inf would be NaN for scores that may still weigh nothing.
                    shift = peak if peak > minus_infinity else kind(0.0)
                    scratch[totals + slot] += exp2_sum(scratch, place, whole, shift, steepness)

            for i in range(count):
                if pieces[i, SIZE] > 0:
                    weights = base + (scores + pieces[i, PLACE]) * size
                    named = address_of(lists) + 8 * pieces[i, PLACE]
                    target = base + (sums + pieces[i, SLOT] * value_width) * size
                    vectors = value_width // lanes
                    gather_axpy(scratch, weights, named, value_offset, pieces[i, SIZE], vectors, target)

            for i in range(count):
                if pieces[i, IS_LAST] == 0:
                    continue
                slot = pieces[i, SLOT]
                head = pieces[i, HEAD]
                begin = sums + slot * value_width
                total = scratch[totals + slot]
                peak = scratch[peaks + slot]
                is_empty = pieces[i, IS_FIRST] != 0 and pieces[i, SIZE] == 0
                if not is_empty:
                    if peak == minus_infinity:
                        total = kind(np.nan)  # as the formula has it: -inf - -inf in every exponent
                    multiply(scratch, base + begin * size, value_width, kind(1.0) / total)
                target = heads[head, _OUT] + pieces[i, ROW] * out_strides[0]
                store_row(code, target, out_strides[1], sizes[1], scratch, begin)
                if heads[head, _LSE] != 0:
                    lse = -np.inf
                    if not is_empty:
                        lse = np.float64(peak) * unit_of_lse + math.log(np.float64(total))
                    scratch[totals + slot] = lse
                    target = heads[head, _LSE] + pieces[i, ROW] * lse_stride
                    store_row(FLOAT32, target, size, 1, scratch, totals + slot)


def forward_rows(
    request: Request,
    selected: npt.NDArray[np.int64],
    q: npt.NDArray[Any],
    k: npt.NDArray[Any],
    v: npt.NDArray[Any],
    out: npt.NDArray[Any],
    lse: npt.NDArray[Any] | None,
    changes: Changes | None = None,
) -> None:
    """Attention of the heads whose flat numbers ``b * heads + h`` are in `selected`, ascending.

    The arrays and `changes` are those of :func:`numba_sparse_attn.cpu.forward`; the structures of the
    selected heads are Csr. Only their part of `out` and `lse` is written.
    """
    accumulator = request.accumulator
    sizes = request.head_dim, request.value_dim
    widths = padded(sizes[0], accumulator), padded(sizes[1], accumulator)
    columns = np.zeros((selected.size, 3), np.int64)
    columns[:, 0] = head_addresses(q).reshape(-1)[selected]
    columns[:, 1] = head_addresses(out).reshape(-1)[selected]
    if lse is not None:
        columns[:, 2] = head_addresses(lse, 1).reshape(-1)[selected]
    workspace = Workspace(accumulator)

    def attend(wave: Wave) -> None:
        joined = join(k, v, wave.key_heads, wave.pairs, workspace, accumulator)
        heads = np.empty((wave.heads.size, LIST_COLUMNS + 4), np.int64)
        heads[:, :LIST_COLUMNS] = list_columns(wave.lists)
        heads[:, _KEYS] = joined.addresses[wave.owners]
        heads[:, _QUERY:] = columns[wave.places]
        settings = None if changes is None else settings_of(request, changes, wave)

        def work(share: tuple[int, int], worker: int) -> None:
            columns_room, bins_room = room_for(settings)
            _row_forward_kernel(
                aligned_empty(BATCH * (sum(widths) + 2) + 2 * LISTED, accumulator),
                *walk(),
                heads,
                wave.ends,
                request.n_q,
                sizes,
                widths,
                lane_count(accumulator),
                type_code(request.dtype),
                joined.stride,
                joined.offset,
                q.strides[-2:],
                out.strides[-2:],
                0 if lse is None else lse.strides[-1],
                request.scale,
                None if settings is None else settings.table,
                columns_room,
                bins_room,
                *share,
            )

        for_each(work, shares(unit_costs(wave, wave.lists, request.n_q), 2 * wave.pairs * sum(sizes)))

    for wave in waves(request, selected, joined_bytes(sizes, request.n_k, accumulator), 0):
        attend(wave)

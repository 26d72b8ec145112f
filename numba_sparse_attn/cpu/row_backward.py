"""Backward pass over CSR rows: dq by queries, then dk and dv by keys; nothing has two writers.

The first sweep goes through the lists of the queries, the second through the transposed lists of the
keys. Both compute the probabilities of their pairs anew from lse, so a pair costs seven products and
not five; for that nothing of the size of the lists is stored, no atomics are needed, and every sum is
formed in the order of its list, whatever the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..formats.changes import Changes
from ..formats.work import Request
from ..jit import for_each, kernel
from .elements import FLOAT32, head_addresses, load_row, store_row, type_code
from .gather import gather_axpy, gather_dot, gather_elements, multiply, probabilities
from .operands import aligned_empty, shares
from .row_changes import (
    STEP_ROOM,
    PairRoom,
    change_scores,
    list_columns_of,
    room_for,
    settings_of,
    slopes_to_scores,
)
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
from .vector import address_of, dot, fill, lane_count

__all__ = ["backward_rows"]

#: Columns of the table of heads behind those of the lists: addresses of joined K and V (in the table
#: for the first sweep only), of joined q and dout, and of out, lse and dq.
_KEYS, _QUERY, _OUT, _LSE, _DQ = range(LIST_COLUMNS, LIST_COLUMNS + 5)


@kernel
def _query_kernel(
    scratch,
    cursor,
    pieces,
    lists,
    shifts,
    deltas,
    heads,
    ends,
    n_q,
    sizes,
    widths,
    lanes,
    code,
    key_stride,
    value_offset,
    query_stride,
    dout_offset,
    out_strides,
    lse_stride,
    dq_strides,
    scale,
    settings,
    columns,
    bins,
    first_unit,
    last_unit,
):
    """dq of units of BLOCK queries, counted through all key heads, and what the key sweep needs of them.

    Arguments as of the forward kernel. That is, for every query of every head: in `shifts` lse as a
    power of two, in `deltas` the sum of dout * out.
    """
    kind = scratch.dtype.type
    size = scratch.itemsize
    key_width, value_width = widths
    # scratch: sums [BATCH, key_width], a row of out, then [LISTED] each: scores, products, shifts, deltas;
    # with changes of scores also numbers of a step, and derivatives of every step.
    row_of_out = BATCH * key_width
    base = address_of(scratch)
    scores = base + (row_of_out + value_width) * size
    products = scores + LISTED * size
    listed_shifts = products + LISTED * size
    listed_deltas = listed_shifts + LISTED * size
    fill(scratch, base + row_of_out * size, value_width, kind(0.0))
    factor = finite(scale * LOG2_E, scratch)
    slope = finite(scale, scratch)
    if settings is not None:
        factor = finite(LOG2_E, scratch)
    elements = row_of_out + value_width

    blocks = (n_q + BLOCK - 1) // BLOCK
    for unit in range(first_unit, last_unit):
        key_head = unit // blocks
        first_row = (unit - key_head * blocks) * BLOCK
        last_row = first_row + BLOCK if first_row + BLOCK < n_q else n_q
        first_head = ends[key_head]
        last_head = ends[key_head + 1]
        cursor[NEXT_ROW] = first_row if first_head < last_head else last_row
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
                head = pieces[i, HEAD]
                row = pieces[i, ROW]
                query = heads[head, _QUERY] + row * query_stride
                if pieces[i, IS_FIRST] != 0:
                    fill(scratch, base + pieces[i, SLOT] * key_width * size, key_width, kind(0.0))
                    source = heads[head, _OUT] + row * out_strides[0]
                    load_row(code, source, out_strides[1], sizes[1], scratch, row_of_out)
                    delta = dot(scratch, query + dout_offset, base + row_of_out * size, value_width)
                    deltas[head * n_q + row] = delta
                    source = heads[head, _LSE] + row * lse_stride
                    load_row(FLOAT32, source, size, 1, shifts, head * n_q + row)
                    shifts[head * n_q + row] *= kind(LOG2_E)
                if entries > 0:
                    named = address_of(lists) + 8 * pieces[i, PLACE]
                    place = pieces[i, PLACE] * size
                    gather_dot(scratch, query, named, 0, entries, key_width // lanes, scores + place)
                    vectors = value_width // lanes
                    target = products + place
                    gather_dot(scratch, query + dout_offset, named, value_offset, entries, vectors, target)
                    whole = (entries + lanes - 1) // lanes * lanes
                    fill(scratch, listed_shifts + place, whole, shifts[head * n_q + row])
                    fill(scratch, listed_deltas + place, whole, deltas[head * n_q + row])
                    if settings is not None:
                        multiply(scratch, scores + place, entries, slope)
                        place = pieces[i, PLACE]
                        begin = pieces[i, BEGIN]
                        indices, width = heads[head, INDICES], heads[head, INDEX_BYTES]
                        list_columns_of(columns, place, indices, width, begin, entries)
                        change_scores(
                            settings,
                            head,
                            scratch,
                            elements + place,
                            elements + 4 * LISTED + place,
                            elements + 5 * LISTED + place,
                            columns,
                            bins,
                            place,
                            0,
                            begin,
                            entries,
                            row,
                            False,
                        )

            for i in range(count):
                whole = (pieces[i, SIZE] + lanes - 1) // lanes * lanes
                place = pieces[i, PLACE] * size
                first, second = scores + place, products + place
                third, fourth = listed_shifts + place, listed_deltas + place
                probabilities(scratch, first, second, third, fourth, factor, whole)
                if settings is not None:
                    slopes_to_scores(
                        settings,
                        pieces[i, HEAD],
                        scratch,
                        elements + LISTED + pieces[i, PLACE],
                        elements + 5 * LISTED + pieces[i, PLACE],
                        pieces[i, BEGIN],
                        pieces[i, SIZE],
                        True,
                    )

            for i in range(count):
                if pieces[i, SIZE] > 0:
                    weights = products + pieces[i, PLACE] * size
                    named = address_of(lists) + 8 * pieces[i, PLACE]
                    target = base + pieces[i, SLOT] * key_width * size
                    gather_axpy(scratch, weights, named, 0, pieces[i, SIZE], key_width // lanes, target)

            for i in range(count):
                if pieces[i, IS_LAST] != 0:
                    begin = pieces[i, SLOT] * key_width
                    multiply(scratch, base + begin * size, key_width, slope)
                    target = heads[pieces[i, HEAD], _DQ] + pieces[i, ROW] * dq_strides[0]
                    store_row(code, target, dq_strides[1], sizes[0], scratch, begin)


@kernel
def _key_kernel(
    scratch,
    cursor,
    pieces,
    lists,
    shifts,
    deltas,
    heads,
    ends,
    keys,
    n_q,
    n_k,
    sizes,
    widths,
    lanes,
    code,
    key_stride,
    value_offset,
    query_stride,
    dout_offset,
    dk_strides,
    dv_strides,
    scale,
    settings,
    columns,
    bins,
    entries_by_key,
    first_unit,
    last_unit,
):
    """dk and dv of units of BLOCK keys, counted through all key heads.

    The lists in `heads` are by key. `keys` has, for every key head, the addresses of joined K and V, of
    dk and of dv; `code` is that of dk and dv. The rest is as for the query kernel.
    """
    kind = scratch.dtype.type
    size = scratch.itemsize
    key_width, value_width = widths
    # scratch: sums for dk and dv [BATCH, key_width + value_width], then [LISTED] each: scores, products,
    # shifts, deltas; with changes of scores more, as in the query kernel.
    width = key_width + value_width
    base = address_of(scratch)
    scores = base + BATCH * width * size
    products = scores + LISTED * size
    listed_shifts = products + LISTED * size
    listed_deltas = listed_shifts + LISTED * size
    factor = finite(scale * LOG2_E, scratch)
    slope = finite(scale, scratch)
    if settings is not None:
        factor = finite(LOG2_E, scratch)
    elements = BATCH * width

    blocks = (n_k + BLOCK - 1) // BLOCK
    for unit in range(first_unit, last_unit):
        key_head = unit // blocks
        first_row = (unit - key_head * blocks) * BLOCK
        last_row = first_row + BLOCK if first_row + BLOCK < n_k else n_k
        first_head = ends[key_head]
        last_head = ends[key_head + 1]
        if first_head == last_head:
            fill(scratch, base, width, kind(0.0))
            for row in range(first_row, last_row):
                target = keys[key_head, 1] + row * dk_strides[0]
                store_row(code, target, dk_strides[1], sizes[0], scratch, 0)
                target = keys[key_head, 2] + row * dv_strides[0]
                store_row(code, target, dv_strides[1], sizes[1], scratch, 0)
            continue
        cursor[NEXT_ROW] = first_row
        cursor[NEXT_HEAD] = first_head
        while cursor[NEXT_ROW] < last_row:
            count = list_pieces(
                heads,
                INDPTR,
                _QUERY,
                query_stride,
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
                head = pieces[i, HEAD]
                # The lists of all heads add to one sum, whose place so goes by the key alone.
                if pieces[i, IS_FIRST] != 0 and head == first_head:
                    fill(scratch, base + pieces[i, ROW] % BATCH * width * size, width, kind(0.0))
                if entries > 0:
                    key = keys[key_head, 0] + pieces[i, ROW] * key_stride
                    named = address_of(lists) + 8 * pieces[i, PLACE]
                    place = pieces[i, PLACE] * size
                    gather_dot(scratch, key, named, 0, entries, key_width // lanes, scores + place)
                    vectors = value_width // lanes
                    target = products + place
                    gather_dot(scratch, key + value_offset, named, dout_offset, entries, vectors, target)
                    indices = heads[head, INDICES]
                    index_bytes = heads[head, INDEX_BYTES]
                    begin = pieces[i, BEGIN]
                    source = address_of(shifts) + head * n_q * size
                    target = listed_shifts + place
                    gather_elements(scratch, source, indices, index_bytes, begin, entries, target)
                    source = address_of(deltas) + head * n_q * size
                    target = listed_deltas + place
                    gather_elements(scratch, source, indices, index_bytes, begin, entries, target)
                    if settings is not None:
                        multiply(scratch, scores + place, entries, slope)
                        place = pieces[i, PLACE]
                        list_columns_of(columns, place, indices, index_bytes, begin, entries)
                        change_scores(
                            settings,
                            head,
                            scratch,
                            elements + place,
                            elements + 4 * LISTED + place,
                            elements + 5 * LISTED + place,
                            columns,
                            bins,
                            place,
                            entries_by_key[head],
                            begin,
                            entries,
                            pieces[i, ROW],
                            True,
                        )

            for i in range(count):
                whole = (pieces[i, SIZE] + lanes - 1) // lanes * lanes
                place = pieces[i, PLACE] * size
                first, second = scores + place, products + place
                third, fourth = listed_shifts + place, listed_deltas + place
                probabilities(scratch, first, second, third, fourth, factor, whole)
                if settings is not None:
                    slopes_to_scores(
                        settings,
                        pieces[i, HEAD],
                        scratch,
                        elements + LISTED + pieces[i, PLACE],
                        elements + 5 * LISTED + pieces[i, PLACE],
                        pieces[i, BEGIN],
                        pieces[i, SIZE],
                        False,
                    )

            for i in range(count):
                entries = pieces[i, SIZE]
                if entries > 0:
                    named = address_of(lists) + 8 * pieces[i, PLACE]
                    place = pieces[i, PLACE] * size
                    target = base + pieces[i, ROW] % BATCH * width * size
                    vectors = key_width // lanes
                    gather_axpy(scratch, products + place, named, 0, entries, vectors, target)
                    target += key_width * size
                    vectors = value_width // lanes
                    gather_axpy(scratch, scores + place, named, dout_offset, entries, vectors, target)

            for i in range(count):
                if pieces[i, IS_LAST] != 0 and pieces[i, HEAD] == last_head - 1:
                    row = pieces[i, ROW]
                    begin = row % BATCH * width
                    multiply(scratch, base + begin * size, key_width, slope)
                    target = keys[key_head, 1] + row * dk_strides[0]
                    store_row(code, target, dk_strides[1], sizes[0], scratch, begin)
                    target = keys[key_head, 2] + row * dv_strides[0]
                    store_row(code, target, dv_strides[1], sizes[1], scratch, begin + key_width)


def backward_rows(
    request: Request,
    selected: npt.NDArray[np.int64],
    dout: npt.NDArray[Any],
    q: npt.NDArray[Any],
    k: npt.NDArray[Any],
    v: npt.NDArray[Any],
    out: npt.NDArray[Any],
    lse: npt.NDArray[Any],
    dq: npt.NDArray[Any],
    dk: npt.NDArray[Any],
    dv: npt.NDArray[Any],
    changes: Changes | None = None,
) -> list[npt.NDArray[Any] | None]:
    """Gradients through the heads whose flat numbers ``b * heads + h`` are in `selected`, ascending.

    The arrays, `changes` and the result are those of :func:`numba_sparse_attn.cpu.backward`; the structures
    of the selected heads are Csr. Only their part of `dq` is written, but all of `dk` and `dv`, which may
    also be of accumulator type.
    """
    accumulator, n_q, n_k = request.accumulator, request.n_q, request.n_k
    sizes = request.head_dim, request.value_dim
    widths = padded(sizes[0], accumulator), padded(sizes[1], accumulator)
    lanes = lane_count(accumulator)
    tables = [head_addresses(out), head_addresses(lse, 1), head_addresses(dq)]
    columns = np.stack([table.reshape(-1)[selected] for table in tables], axis=1)
    gradients = np.stack([head_addresses(array).reshape(-1) for array in (dk, dv)], axis=1)
    key_space, query_space = Workspace(accumulator), Workspace(accumulator)
    scratch_size = (BATCH + 1) * sum(widths) + 4 * LISTED
    pairs = None
    if changes is not None:
        scratch_size += LISTED + len(changes.steps) * STEP_ROOM
        pairs = PairRoom(request, changes)

    def differentiate(wave: Wave) -> None:
        rows = join(k, v, wave.key_heads, wave.pairs, key_space, accumulator)
        queries = join(q, dout, wave.heads, wave.pairs, query_space, accumulator)
        shifts, deltas = (aligned_empty(wave.heads.size * n_q, accumulator) for _ in range(2))
        by_query = np.empty((wave.heads.size, LIST_COLUMNS + 5), np.int64)
        by_query[:, :LIST_COLUMNS] = list_columns(wave.lists)
        by_query[:, _KEYS] = rows.addresses[wave.owners]
        by_query[:, _QUERY] = queries.addresses
        by_query[:, _OUT:] = columns[wave.places]
        by_key = by_query.copy()
        transposed = [csr.transposed for csr in wave.lists]
        by_key[:, :LIST_COLUMNS] = list_columns(transposed)
        keys = np.column_stack([rows.addresses, gradients[wave.key_heads]])
        settings, entries_by_key = None, None
        if changes is not None:
            settings = settings_of(request, changes, wave, pairs)
            numbers = [csr.entries_by_key for csr in wave.lists]
            entries_by_key = np.array([array.__array_interface__["data"][0] for array in numbers], np.int64)
        table = None if settings is None else settings.table

        def query_work(share: tuple[int, int], worker: int) -> None:
            columns_room, bins_room = room_for(settings)
            _query_kernel(
                aligned_empty(scratch_size, accumulator),
                *walk(),
                shifts,
                deltas,
                by_query,
                wave.ends,
                n_q,
                sizes,
                widths,
                lanes,
                type_code(request.dtype),
                rows.stride,
                rows.offset,
                queries.stride,
                queries.offset,
                out.strides[-2:],
                lse.strides[-1],
                dq.strides[-2:],
                request.scale,
                table,
                columns_room,
                bins_room,
                *share,
            )

        def key_work(share: tuple[int, int], worker: int) -> None:
            columns_room, bins_room = room_for(settings)
            _key_kernel(
                aligned_empty(scratch_size, accumulator),
                *walk(),
                shifts,
                deltas,
                by_key,
                wave.ends,
                keys,
                n_q,
                n_k,
                sizes,
                widths,
                lanes,
                type_code(dk.dtype),
                rows.stride,
                rows.offset,
                queries.stride,
                queries.offset,
                dk.strides[-2:],
                dv.strides[-2:],
                request.scale,
                table,
                columns_room,
                bins_room,
                entries_by_key,
                *share,
            )

        pair_flops = sizes[0] + sizes[1]
        for_each(query_work, shares(unit_costs(wave, wave.lists, n_q), 3 * wave.pairs * pair_flops))
        for_each(key_work, shares(unit_costs(wave, transposed, n_k), 4 * wave.pairs * pair_flops))
        if pairs is not None:
            pairs.add(wave)

    of_keys, of_queries = (joined_bytes(sizes, rows, accumulator) for rows in (n_k, n_q))
    if pairs is not None:
        of_queries += pairs.bytes_per_head
    for wave in waves(request, selected, of_keys, of_queries, every_key_head=True):
        differentiate(wave)
    return [] if pairs is None else pairs.totals

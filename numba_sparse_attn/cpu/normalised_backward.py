"""Backward pass over CSR rows with entmax or sigmoid weights: dq by queries, then dk and dv by keys.

With p a weight, u its derivative with respect to its score at a fixed lse, and g = dout . v:

    ds = u (g - delta),    delta = sum(u g) / sum(u) over the row for entmax, 0 for sigmoid

The first sweep leaves lse and delta of every row for the second, as the sweeps of softmax do. Pairs without
weight are dropped as soon as their score is known: neither their values nor their gradients are looked at.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..formats.work import Request
from ..jit import for_each, inlined, kernel
from .elements import FLOAT32, head_addresses, load_row, store_row, type_code
from .gather import GROUP, gather_dot, gather_elements, list_rows, multiply
from .lists import read_int64
from .normalised_forward import longest_row
from .normalising import (
    DQ,
    KEYS,
    LSE,
    QUERY,
    SIGMOID,
    TABLE_COLUMNS,
    add_rows,
    close_list,
    entmax_power,
    logistic,
    steps_of,
)
from .operands import aligned_empty, shares
from .row_work import (
    BLOCK,
    INDEX_BYTES,
    INDICES,
    INDPTR,
    LIST_COLUMNS,
    Wave,
    Workspace,
    finite,
    join,
    joined_bytes,
    list_columns,
    padded,
    unit_costs,
    waves,
)
from .vector import address_of, fill, lane_count

__all__ = ["backward_normalised"]


@inlined
def _of_alpha(z, weight, step):
    """Derivative of z ** (1 / step) with respect to step, at a fixed lse; 0 for z = 1."""
    return (weight / z * (z - 1.0) - weight * math.log1p(z - 1.0)) / (step * step)


@kernel
def _query_kernel(
    scratch,
    curves,
    lists,
    shifts,
    deltas,
    dalphas,
    heads,
    steps,
    ends,
    n_q,
    sizes,
    widths,
    lanes,
    room,
    code,
    key_stride,
    value_offset,
    query_stride,
    dout_offset,
    lse_stride,
    dq_strides,
    scale,
    first_unit,
    last_unit,
):
    """dq of units of BLOCK queries, counted through all key heads, and what the key sweep needs of them.

    That is, for every query of every head: in `shifts` lse, in `deltas` delta; and in `dalphas`, if there is
    any, its part of the gradient of alpha. scratch: sums [key_width], then `room` each for scores and for
    gradients of the weights; `curves`: derivatives of the weights with respect to alpha.
    """
    kind = scratch.dtype.type
    size = scratch.itemsize
    key_width, value_width = widths
    base = address_of(scratch)
    scores = scratch[key_width : key_width + room]
    gains = scratch[key_width + room :]
    scores_at = base + key_width * size
    gains_at = scores_at + room * size
    named = address_of(lists)
    slope = finite(scale, scratch)

    blocks = (n_q + BLOCK - 1) // BLOCK
    for unit in range(first_unit, last_unit):
        key_head = unit // blocks
        first_row = (unit - key_head * blocks) * BLOCK
        last_row = first_row + BLOCK if first_row + BLOCK < n_q else n_q
        for row in range(first_row, last_row):
            for head in range(ends[key_head], ends[key_head + 1]):
                begin = read_int64(heads[head, INDPTR], row)
                count = read_int64(heads[head, INDPTR], row + 1) - begin
                fill(scratch, base, key_width, kind(0.0))
                load_row(FLOAT32, heads[head, LSE] + row * lse_stride, size, 1, shifts, head * n_q + row)
                lse = np.float64(shifts[head * n_q + row])
                delta = 0.0
                step = steps[head]
                weighty = 0
                if count > 0:
                    query = heads[head, QUERY] + row * query_stride
                    indices, width = heads[head, INDICES], heads[head, INDEX_BYTES]
                    list_rows(indices, width, begin, count, heads[head, KEYS], key_stride, named)
                    gather_dot(scratch, query, named, 0, count, key_width // lanes, scores_at)
                    if step == SIGMOID:
                        weighty = count
                        for i in range(count):
                            scores[i] = kind(scale * np.float64(scores[i]) - lse)
                        logistic(scratch, scores, scores_at, count)
                        for i in range(count):
                            scores[i] *= kind(1.0) - scores[i]
                    else:
                        for i in range(count):
                            z = 1.0 + step * (scale * np.float64(scores[i]) - lse)
                            if not z <= 0.0:  # NaN stays
                                weight = entmax_power(z, step)
                                scores[weighty] = kind(weight / z)
                                lists[weighty] = lists[i]
                                if dalphas.size:
                                    curves[weighty] = _of_alpha(z, weight, step)
                                weighty += 1
                if weighty > 0:
                    close_list(lists, weighty)
                    vectors = value_width // lanes
                    gather_dot(scratch, query + dout_offset, named, value_offset, weighty, vectors, gains_at)
                    if step != SIGMOID:
                        total = 0.0
                        for i in range(weighty):
                            delta += np.float64(scores[i]) * np.float64(gains[i])
                            total += np.float64(scores[i])
                        delta /= total
                        if dalphas.size:
                            part = 0.0
                            for i in range(weighty):
                                part += curves[i] * (np.float64(gains[i]) - delta)
                            dalphas[head * n_q + row] = part
                    for i in range(weighty):
                        scores[i] *= gains[i] - kind(delta)
                    add_rows(scratch, scores_at, named, 0, weighty, key_width // lanes, base)
                    multiply(scratch, base, key_width, slope)
                deltas[head * n_q + row] = delta
                target = heads[head, DQ] + row * dq_strides[0]
                store_row(code, target, dq_strides[1], sizes[0], scratch, 0)


@kernel
def _key_kernel(
    scratch,
    lists,
    shifts,
    deltas,
    heads,
    steps,
    ends,
    keys,
    n_q,
    n_k,
    sizes,
    widths,
    lanes,
    room,
    code,
    key_stride,
    value_offset,
    query_stride,
    dout_offset,
    dk_strides,
    dv_strides,
    scale,
    first_unit,
    last_unit,
):
    """dk and dv of units of BLOCK keys, counted through all key heads.

    The lists in `heads` are by key. `keys` has, for every key head, the addresses of joined K and V, of dk
    and of dv; `code` is that of dk and dv. scratch: sums for dk and dv [key_width + value_width], then `room`
    each for weights, their derivatives, gradients of the weights, and lse and delta of the queries.
    """
    kind = scratch.dtype.type
    size = scratch.itemsize
    key_width, value_width = widths
    wide = key_width + value_width
    base = address_of(scratch)
    weights = scratch[wide : wide + room]
    slopes = scratch[wide + room : wide + 2 * room]
    gains = scratch[wide + 2 * room : wide + 3 * room]
    row_lse = scratch[wide + 3 * room : wide + 4 * room]
    row_delta = scratch[wide + 4 * room :]
    weights_at = base + wide * size
    slopes_at = weights_at + room * size
    gains_at = slopes_at + room * size
    lse_at = gains_at + room * size
    delta_at = lse_at + room * size
    named = address_of(lists)
    slope = finite(scale, scratch)

    blocks = (n_k + BLOCK - 1) // BLOCK
    for unit in range(first_unit, last_unit):
        key_head = unit // blocks
        first_row = (unit - key_head * blocks) * BLOCK
        last_row = first_row + BLOCK if first_row + BLOCK < n_k else n_k
        for row in range(first_row, last_row):
            fill(scratch, base, wide, kind(0.0))
            key = keys[key_head, 0] + row * key_stride
            for head in range(ends[key_head], ends[key_head + 1]):
                begin = read_int64(heads[head, INDPTR], row)
                count = read_int64(heads[head, INDPTR], row + 1) - begin
                if count == 0:
                    continue
                indices, width = heads[head, INDICES], heads[head, INDEX_BYTES]
                list_rows(indices, width, begin, count, heads[head, QUERY], query_stride, named)
                gather_dot(scratch, key, named, 0, count, key_width // lanes, weights_at)
                source = address_of(shifts) + head * n_q * size
                gather_elements(scratch, source, indices, width, begin, count, lse_at)
                source = address_of(deltas) + head * n_q * size
                gather_elements(scratch, source, indices, width, begin, count, delta_at)
                step = steps[head]
                if step == SIGMOID:
                    weighty = count
                    for i in range(count):
                        weights[i] = kind(scale * np.float64(weights[i]) - np.float64(row_lse[i]))
                    logistic(scratch, weights, weights_at, count)
                    for i in range(count):
                        slopes[i] = weights[i] * (kind(1.0) - weights[i])
                else:
                    weighty = 0
                    for i in range(count):
                        z = 1.0 + step * (scale * np.float64(weights[i]) - np.float64(row_lse[i]))
                        if not z <= 0.0:  # NaN stays
                            weight = entmax_power(z, step)
                            weights[weighty] = kind(weight)
                            slopes[weighty] = kind(weight / z)
                            row_delta[weighty] = row_delta[i]
                            lists[weighty] = lists[i]
                            weighty += 1
                if weighty == 0:
                    continue
                close_list(lists, weighty)
                vectors = value_width // lanes
                gather_dot(scratch, key + value_offset, named, dout_offset, weighty, vectors, gains_at)
                for i in range(weighty):
                    slopes[i] *= gains[i] - row_delta[i]
                add_rows(scratch, slopes_at, named, 0, weighty, key_width // lanes, base)
                add_rows(scratch, weights_at, named, dout_offset, weighty, vectors, base + key_width * size)
            multiply(scratch, base, key_width, slope)
            target = keys[key_head, 1] + row * dk_strides[0]
            store_row(code, target, dk_strides[1], sizes[0], scratch, 0)
            target = keys[key_head, 2] + row * dv_strides[0]
            store_row(code, target, dv_strides[1], sizes[1], scratch, key_width)


def backward_normalised(
    request: Request,
    dout: npt.NDArray[Any],
    q: npt.NDArray[Any],
    k: npt.NDArray[Any],
    v: npt.NDArray[Any],
    lse: npt.NDArray[Any],
    dq: npt.NDArray[Any],
    dk: npt.NDArray[Any],
    dv: npt.NDArray[Any],
    dalpha: npt.NDArray[Any] | None,
) -> None:
    """Gradients of all heads with the request's normaliser; arrays as of the engine's ``backward``."""
    accumulator, n_q, n_k = request.accumulator, request.n_q, request.n_k
    sizes = request.head_dim, request.value_dim
    widths = padded(sizes[0], accumulator), padded(sizes[1], accumulator)
    lanes = lane_count(accumulator)
    selected = np.arange(request.batch * request.heads)
    steps = steps_of(request)
    tables = [head_addresses(lse, 1), head_addresses(dq)]
    columns = np.stack([table.reshape(-1) for table in tables], axis=1)
    gradients = np.stack([head_addresses(array).reshape(-1) for array in (dk, dv)], axis=1)
    key_space, query_space = Workspace(accumulator), Workspace(accumulator)
    of_alpha = np.zeros(selected.size * n_q if dalpha is not None else 0)

    def differentiate(wave: Wave) -> None:
        rows = join(k, v, wave.key_heads, wave.pairs, key_space, accumulator)
        queries = join(q, dout, wave.heads, wave.pairs, query_space, accumulator)
        shifts, deltas = (aligned_empty(wave.heads.size * n_q, accumulator) for _ in range(2))
        by_query = np.zeros((wave.heads.size, TABLE_COLUMNS), np.int64)
        by_query[:, :LIST_COLUMNS] = list_columns(wave.lists)
        by_query[:, KEYS] = rows.addresses[wave.owners]
        by_query[:, QUERY] = queries.addresses
        by_query[:, LSE : DQ + 1] = columns[wave.places]
        by_key = by_query.copy()
        transposed = [csr.transposed for csr in wave.lists]
        by_key[:, :LIST_COLUMNS] = list_columns(transposed)
        keys = np.column_stack([rows.addresses, gradients[wave.key_heads]])
        own_steps = steps[wave.places]
        own_alpha = of_alpha[n_q * wave.places.start : n_q * wave.places.stop] if of_alpha.size else of_alpha

        def room_for(longest: int) -> int:
            return -(-(longest + GROUP) // lanes) * lanes

        def query_work(share: tuple[int, int], worker: int) -> None:
            room = room_for(longest_row(wave))
            _query_kernel(
                aligned_empty(widths[0] + 2 * room, accumulator),
                np.empty(room),
                np.zeros(room + GROUP, np.int64),
                shifts,
                deltas,
                own_alpha,
                by_query,
                own_steps,
                wave.ends,
                n_q,
                sizes,
                widths,
                lanes,
                room,
                type_code(request.dtype),
                rows.stride,
                rows.offset,
                queries.stride,
                queries.offset,
                lse.strides[-1],
                dq.strides[-2:],
                request.scale,
                *share,
            )

        def key_work(share: tuple[int, int], worker: int) -> None:
            room = room_for(longest_row(wave, transposed=True))
            _key_kernel(
                aligned_empty(sum(widths) + 5 * room, accumulator),
                np.zeros(room + GROUP, np.int64),
                shifts,
                deltas,
                by_key,
                own_steps,
                wave.ends,
                keys,
                n_q,
                n_k,
                sizes,
                widths,
                lanes,
                room,
                type_code(dk.dtype),
                rows.stride,
                rows.offset,
                queries.stride,
                queries.offset,
                dk.strides[-2:],
                dv.strides[-2:],
                request.scale,
                *share,
            )

        pair_flops = sizes[0] + sizes[1]
        for_each(query_work, shares(unit_costs(wave, wave.lists, n_q), 3 * wave.pairs * pair_flops))
        for_each(key_work, shares(unit_costs(wave, transposed, n_k), 4 * wave.pairs * pair_flops))

    of_keys, of_queries = (joined_bytes(sizes, rows, accumulator) for rows in (n_k, n_q))
    for wave in waves(request, selected, of_keys, of_queries, every_key_head=True):
        differentiate(wave)
    if dalpha is not None:
        dalpha[...] = of_alpha.reshape(request.batch, request.heads, n_q).sum(axis=(0, 2))

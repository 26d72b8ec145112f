"""Backward pass, one warp a query for dq and one warp a key for dk and dv: no atomics, fixed order.

Lanes are laid out as in ``forward.py``. The query kernel also leaves ``delta = dout . out`` of its row,
which the key kernel, started after it on the same stream, gathers together with lse. A key's warp goes
through its queries once for every query head that shares the key head, so their gradients are summed in
registers; if these heads have different patterns, one list of indices names head and query at once. The key
kernel's items and lists are those of the transposed structure.

Parts of long rows leave their sums in slots of a workspace, which ``merge.py`` adds up.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from numba import cuda, float32, float64, int64, types

from ..device import lanes as device
from ..device.changes import change_tools
from ..device.rows import own_head, own_item, row_tools
from ..device.walk import make_walk
from .shape import WarpShape

__all__ = [
    "KEY_SIGNATURE",
    "KEY_STEPS",
    "KEY_THREADS",
    "QUERY_SIGNATURE",
    "QUERY_THREADS",
    "make_key_backward",
    "make_query_backward",
]

QUERY_SIGNATURE = types.void(
    *[types.int64] * 10,  # q, k, v, out, dout, dq, lse, delta, workspace, settings of changes (0: none)
    types.int64,  # bytes from one head's lse (and delta) to the next
    *[types.int64] * 5,  # items, indices, spans, runs, bounds
    *[types.int64] * 5,  # heads: table or 0; number, heads before, heads a batch element, group
    *[types.int64] * 3,  # parts, head_dim, value_dim
    *[types.int64] * 24,  # (batch, head, row, column) strides of q, k, v, out, dout, dq in bytes
    types.float64,  # scale
)

KEY_SIGNATURE = types.void(
    *[types.int64] * 10,  # q, k, v, dout, dk, dv, lse, delta, workspace, settings of changes (0: none)
    types.int64,  # bytes from one head's lse (and delta) to the next
    *[types.int64] * 6,  # items, indices, spans, runs, bounds, numbers of the entries in their rows
    *[types.int64] * 5,  # key heads: table or 0; number, query heads before, key heads a batch element, group
    *[types.int64] * 4,  # parts, head_dim, value_dim, queries
    *[types.int64] * 24,  # (batch, head, row, column) strides of q, k, v, dout, dk, dv in bytes
    types.float64,  # scale
)

#: Threads that a multiprocessor should run at a time, and rows (times 32 / lanes) that the key kernel loads
#: before it uses the first. Random graph, float16, d 64: dq 1.05 ms against 1.13 ms with all registers that
#: the compiler would take, dk and dv 1.56 ms against 1.81 ms, or 1.58 ms with two rows and 640 threads.
QUERY_THREADS = 1024
KEY_THREADS = 768
KEY_STEPS = 1


@functools.cache
def make_query_backward(shape: WarpShape) -> Callable[..., None]:
    """dq and delta, row by row."""
    kind, sharing, chunk, steps = shape.kind, shape.lanes, shape.chunk, shape.steps
    key_chunks, value_chunks = shape.key_chunks, shape.value_chunks
    key_words, value_words = key_chunks * chunk, value_chunks * chunk
    keys_a_step, warps, shared = shape.keys_a_step, shape.warps, shape.tile > 0
    lane_bits = sharing.bit_length() - 1
    real = float64 if kind == "float64" else float32
    real_bytes = shape.real_bytes
    load_real, store_real = device.load_element(shape.real), device.store_element(shape.real)
    exp2 = device.exp2(kind)
    lane_address, load_row, store_row, sum_over_key, sum_over_places = row_tools(
        kind, sharing, chunk, shape.aligned, shape.exact
    )
    log2_e = 1.0 / math.log(2.0)
    changes = change_tools(shape.changes, shape.real, steps, keys_a_step, False)
    start_changes, enter_changes, bend, back = changes

    @cuda.jit(device=True, inline="always")
    def take(keys, values, rows, members, left, own):
        """Add one round's share of dq; `fixed` is (lse in base 2, delta)."""
        query, incoming, total, scores, slopes, fixed, writes, where = own
        for s in range(steps):
            scores[s] = real(0.0)
            for e in range(key_words):
                scores[s] += query[e] * keys[s * key_words + e]
            slopes[s] = real(0.0)
            for e in range(value_words):
                slopes[s] += incoming[e] * values[s * value_words + e]
        sum_over_key(scores, steps)
        sum_over_key(slopes, steps)
        bend(scores, rows, left, int64(0), where)
        for s in range(steps):
            if s * keys_a_step < left:
                slope = exp2(scores[s] - fixed[0]) * (slopes[s] - fixed[1])
                slope = back(slope, s, left, writes, where)
                for e in range(key_words):
                    total[e] += slope * keys[s * key_words + e]

    gather, stage = make_walk(shape, take)

    def kernel(
        q, k, v, out, dout, dq, lse, delta, workspace, settings, lse_head,
        items, indices, spans, runs, bounds,
        table, heads_here, heads_before, heads, group, parts, head_dim, value_dim,
        q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
        v_batch, v_head, v_row, v_column, out_batch, out_head, out_row, out_column,
        dout_batch, dout_head, dout_row, dout_column, dq_batch, dq_head, dq_row, dq_column,
        scale,
    ):  # fmt: skip
        number, entry, batch, head = own_head(table, heads)
        if number >= heads_here:
            return
        lane, warp, row, begin, count, slot = own_item(items, warps)
        some_row = max(row, int64(0))
        key_head = head // group
        part = lane & (sharing - 1)
        query = cuda.local.array(key_words, real)
        total = cuda.local.array(key_words, real)
        incoming = cuda.local.array(value_words, real)
        result = cuda.local.array(value_words, real)
        scores = cuda.local.array(steps, real)
        slopes = cuda.local.array(steps, real)
        fixed = cuda.local.array(2, real)
        start = lane_address(out + batch * out_batch + head * out_head + some_row * out_row, part)
        load_row(start, out_column, part, value_chunks, value_dim, result, 0)
        start = lane_address(dout + batch * dout_batch + head * dout_head + some_row * dout_row, part)
        load_row(start, dout_column, part, value_chunks, value_dim, incoming, 0)
        start = lane_address(q + batch * q_batch + head * q_head + some_row * q_row, part)
        load_row(start, q_column, part, key_chunks, head_dim, query, 0)
        logarithm = load_real(lse + entry * lse_head + some_row * real_bytes)
        fixed[0] = logarithm * real(log2_e)
        fixed[1] = real(0.0)
        if logarithm == real(-math.inf):
            # The output of such a row is 0 by definition, whatever its incoming gradient and its scores.
            fixed[0] = real(math.inf)
        else:
            for e in range(value_words):
                fixed[1] += incoming[e] * result[e]
        scores[0] = fixed[1]
        sum_over_key(scores, 1)
        fixed[1] = scores[0]
        for e in range(key_words):
            query[e] *= real(scale * log2_e)
            total[e] = real(0.0)
        where = start_changes(some_row, begin + count)
        enter_changes(settings, heads_before + entry, head, where)
        own = (query, incoming, total, scores, slopes, fixed, part == 0, where)
        keys = k + batch * k_batch + key_head * k_head
        values = v + batch * v_batch + key_head * v_head
        if shared:
            stage(keys, k_row, head_dim, values, v_row, value_dim, spans, runs, bounds, warp, lane, own)
        gather(
            keys, 0, k_row, k_column, head_dim, values, 0, v_row, v_column, value_dim,
            0, indices, begin, count, lane, own,
        )  # fmt: skip
        if row < 0:
            return
        sum_over_places(total, key_words)
        for e in range(key_words):
            total[e] *= real(scale)
        if lane == 0:
            # All parts of a row write the same bits.
            store_real(delta + entry * lse_head + row * real_bytes, fixed[1])
        if lane >> lane_bits == 0:
            if slot >= 0:
                target = workspace + (number * parts + slot) * head_dim * real_bytes
                for c in range(key_chunks):
                    for e in range(chunk):
                        element = (part + c * sharing) * chunk + e
                        if element < head_dim:
                            store_real(target + element * real_bytes, total[c * chunk + e])
            else:
                target = lane_address(dq + batch * dq_batch + head * dq_head + row * dq_row, part)
                store_row(target, dq_column, part, key_chunks, head_dim, total)

    return kernel


@functools.cache
def make_key_backward(shape: WarpShape) -> Callable[..., None]:
    """dk and dv, key by key, summed over the query heads that share it."""
    kind, sharing, chunk, steps = shape.kind, shape.lanes, shape.chunk, shape.steps
    key_chunks, value_chunks = shape.key_chunks, shape.value_chunks
    key_words, value_words = key_chunks * chunk, value_chunks * chunk
    rows_a_step, warps, shared, mixed = shape.keys_a_step, shape.warps, shape.tile > 0, shape.mixed
    lane_bits = sharing.bit_length() - 1
    real = float64 if kind == "float64" else float32
    real_bytes = shape.real_bytes
    load_real, store_real = device.load_element(shape.real), device.store_element(shape.real)
    exp2 = device.exp2(kind)
    lane_address, load_row, store_row, sum_over_key, sum_over_places = row_tools(
        kind, sharing, chunk, shape.aligned, shape.exact
    )
    log2_e = 1.0 / math.log(2.0)
    changes = change_tools(shape.changes, shape.real, steps, rows_a_step, True)
    start_changes, enter_changes, bend, back = changes
    per_pair = mixed and bool(shape.changes)

    @cuda.jit(device=True, inline="always")
    def take(queries, incoming, rows, members, left, own):
        """Add one round's shares of dk and dv; `at` are the addresses of the head's lse and delta."""
        key, value, key_total, value_total, scores, slopes, at, lse_head, change = own
        shifts = cuda.local.array(steps, real)
        products = cuda.local.array(steps, real)
        for s in range(steps):
            place = int64(0)
            if s * rows_a_step < left:
                place = int64(members[s]) * lse_head + int64(rows[s]) * real_bytes
            shifts[s] = load_real(at[0] + place) * real(log2_e)
            if shifts[s] == real(-math.inf):
                shifts[s] = real(math.inf)
            products[s] = load_real(at[1] + place)
        for s in range(steps):
            scores[s] = real(0.0)
            for e in range(key_words):
                scores[s] += key[e] * queries[s * key_words + e]
            slopes[s] = real(0.0)
            for e in range(value_words):
                slopes[s] += value[e] * incoming[s * value_words + e]
        sum_over_key(scores, steps)
        sum_over_key(slopes, steps)
        settings, entries, flat, where = change
        if per_pair:
            # A round has one row a place (KEY_STEPS), and with it one query head.
            enter_changes(settings, flat[0] + int64(members[0]), flat[1] + int64(members[0]), where)
        bend(scores, rows, left, entries, where)
        for s in range(steps):
            if s * rows_a_step < left:
                probability = exp2(scores[s] - shifts[s])
                slope = back(probability * (slopes[s] - products[s]), s, left, False, where)
                for e in range(key_words):
                    key_total[e] += slope * queries[s * key_words + e]
                for e in range(value_words):
                    value_total[e] += probability * incoming[s * value_words + e]

    gather, stage = make_walk(shape, take)

    def kernel(
        q, k, v, dout, dk, dv, lse, delta, workspace, settings, lse_head,
        items, indices, spans, runs, bounds, entries,
        table, heads_here, heads_before, heads, group, parts, head_dim, value_dim, length,
        q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
        v_batch, v_head, v_row, v_column, dout_batch, dout_head, dout_row, dout_column,
        dk_batch, dk_head, dk_row, dk_column, dv_batch, dv_head, dv_row, dv_column,
        scale,
    ):  # fmt: skip
        number, entry, batch, key_head = own_head(table, heads)
        if number >= heads_here:
            return
        lane, warp, row, begin, count, slot = own_item(items, warps)
        some_row = max(row, int64(0))
        part = lane & (sharing - 1)
        key = cuda.local.array(key_words, real)
        value = cuda.local.array(value_words, real)
        key_total = cuda.local.array(key_words, real)
        value_total = cuda.local.array(value_words, real)
        scores = cuda.local.array(steps, real)
        slopes = cuda.local.array(steps, real)
        at = cuda.local.array(2, int64)
        start = lane_address(k + batch * k_batch + key_head * k_head + some_row * k_row, part)
        load_row(start, k_column, part, key_chunks, head_dim, key, 0)
        start = lane_address(v + batch * v_batch + key_head * v_head + some_row * v_row, part)
        load_row(start, v_column, part, value_chunks, value_dim, value, 0)
        for e in range(key_words):
            key[e] *= real(scale * log2_e)
            key_total[e] = real(0.0)
        for e in range(value_words):
            value_total[e] = real(0.0)
        where = start_changes(some_row, begin + count)
        # The query head at hand, counted through batches and within one.
        flat = cuda.local.array(2, int64)
        own = (
            key,
            value,
            key_total,
            value_total,
            scores,
            slopes,
            at,
            lse_head,
            (settings, entries, flat, where),
        )
        # Mixed indices name the head of the group: one walk is all.
        for member in range(1 if mixed else group):
            head = key_head * group + member
            queries = q + batch * q_batch + head * q_head
            incoming = dout + batch * dout_batch + head * dout_head
            rows = (batch * heads * group + head) * lse_head
            at[0], at[1] = lse + rows, delta + rows
            flat[0], flat[1] = heads_before + batch * heads * group + head, head
            if not per_pair:
                enter_changes(settings, flat[0], head, where)
            if shared:
                stage(
                    queries, q_row, head_dim, incoming, dout_row, value_dim,
                    spans, runs, bounds, warp, lane, own,
                )  # fmt: skip
            gather(
                queries, q_head, q_row, q_column, head_dim,
                incoming, dout_head, dout_row, dout_column, value_dim,
                length, indices, begin, count, lane, own,
            )  # fmt: skip
        if row < 0:
            return
        sum_over_places(key_total, key_words)
        sum_over_places(value_total, value_words)
        for e in range(key_words):
            key_total[e] *= real(scale)
        if lane >> lane_bits == 0:
            if slot >= 0:
                target = workspace + (number * parts + slot) * (head_dim + value_dim) * real_bytes
                for c in range(key_chunks):
                    for e in range(chunk):
                        element = (part + c * sharing) * chunk + e
                        if element < head_dim:
                            store_real(target + element * real_bytes, key_total[c * chunk + e])
                for c in range(value_chunks):
                    for e in range(chunk):
                        element = (part + c * sharing) * chunk + e
                        if element < value_dim:
                            store_real(target + (head_dim + element) * real_bytes, value_total[c * chunk + e])
            else:
                target = lane_address(dk + batch * dk_batch + key_head * dk_head + row * dk_row, part)
                store_row(target, dk_column, part, key_chunks, head_dim, key_total)
                target = lane_address(dv + batch * dv_batch + key_head * dv_head + row * dv_row, part)
                store_row(target, dv_column, part, value_chunks, value_dim, value_total)

    return kernel

"""Backward pass, one warp a query for dq and one warp a key for dk and dv: no atomics, fixed order.

Lanes are laid out as in ``forward.py``. The query kernel also leaves ``delta = dout . out`` of its row,
which the key kernel, started after it on the same stream, gathers together with lse. A key's warp goes
through its queries once for every query head that shares the key head, so their gradients are summed in
registers. The key kernel takes the transposed lists: its items are ``(key, begin, end)`` over query
indices.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from numba import cuda, float32, float64, int64, types

from ..device import lanes as device
from ..device.rows import row_tools
from .shape import WARPS, WarpShape

__all__ = ["KEY_SIGNATURE", "QUERY_SIGNATURE", "make_key_backward", "make_query_backward"]

QUERY_SIGNATURE = types.void(
    *[types.int64] * 6,  # q, k, v, out, dout, dq
    *[types.int64] * 3,  # lse, delta, bytes from one head's lse (and delta) to the next
    *[types.int64] * 2,  # items, indices
    *[types.int64] * 3,  # table of heads or 0, heads a batch element, group
    *[types.int64] * 3,  # items, head_dim, value_dim
    *[types.int64] * 24,  # (batch, head, row, column) strides of q, k, v, out, dout, dq in bytes
    types.float64,  # scale
)

KEY_SIGNATURE = types.void(
    *[types.int64] * 6,  # q, k, v, dout, dk, dv
    *[types.int64] * 3,  # lse, delta, bytes from one head's lse (and delta) to the next
    *[types.int64] * 2,  # items, indices
    *[types.int64] * 3,  # table of key heads or 0, key heads a batch element, group
    *[types.int64] * 3,  # items, head_dim, value_dim
    *[types.int64] * 24,  # (batch, head, row, column) strides of q, k, v, dout, dk, dv in bytes
    types.float64,  # scale
)


@functools.cache
def make_query_backward(shape: WarpShape) -> Callable[..., None]:
    """dq and delta, row by row."""
    kind, sharing, chunk, steps = shape.kind, shape.lanes, shape.chunk, shape.steps
    key_chunks, value_chunks = shape.key_chunks, shape.value_chunks
    key_words, value_words = key_chunks * chunk, value_chunks * chunk
    key_buffer, value_buffer = steps * key_words, steps * value_words
    keys_a_step = 32 // sharing
    keys_a_round = keys_a_step * steps
    lane_bits = sharing.bit_length() - 1
    real = float64 if kind == "float64" else float32
    real_bytes = 8 if kind == "float64" else 4
    load_real = device.load_element("float64" if kind == "float64" else "float32")
    store_real = device.store_element("float64" if kind == "float64" else "float32")
    exp2 = device.exp2(kind)
    load_int32, load_int64 = device.load_int32, device.load_int64
    xor_lane, from_lane = device.xor_lane, device.from_lane
    load_row, store_row, load_columns, sum_over_key = row_tools(
        kind, sharing, chunk, shape.aligned, shape.exact, shape.wide
    )
    log2_e = 1.0 / math.log(2.0)

    def kernel(
        q, k, v, out, dout, dq, lse, delta, lse_head, items, indices, table, heads, group,
        item_count, head_dim, value_dim,
        q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
        v_batch, v_head, v_row, v_column, out_batch, out_head, out_row, out_column,
        dout_batch, dout_head, dout_row, dout_column, dq_batch, dq_head, dq_row, dq_column,
        scale,
    ):  # fmt: skip
        lane = cuda.threadIdx.x & 31
        blocks_a_head = (item_count + WARPS - 1) // WARPS
        block = int64(cuda.blockIdx.x)
        number = block // blocks_a_head
        item = (block - number * blocks_a_head) * WARPS + (cuda.threadIdx.x >> 5)
        if item >= item_count:
            return
        entry = number
        if table != 0:
            entry = int64(load_int32(table + 4 * number))
        batch = entry // heads
        head = entry - batch * heads
        key_head = head // group
        row = load_int64(items + 24 * item)
        begin = load_int64(items + 24 * item + 8)
        end = load_int64(items + 24 * item + 16)

        part = lane & (sharing - 1)
        place = lane >> lane_bits
        query = cuda.local.array(key_words, real)
        total = cuda.local.array(key_words, real)
        incoming = cuda.local.array(value_words, real)
        keys = cuda.local.array(key_buffer, real)
        values = cuda.local.array(value_buffer, real)
        load_row(
            out + batch * out_batch + head * out_head + row * out_row,
            out_column,
            part,
            value_chunks,
            value_dim,
            values,
            0,
        )
        load_row(
            dout + batch * dout_batch + head * dout_head + row * dout_row,
            dout_column,
            part,
            value_chunks,
            value_dim,
            incoming,
            0,
        )
        load_row(
            q + batch * q_batch + head * q_head + row * q_row, q_column, part, key_chunks, head_dim, query, 0
        )
        product = real(0.0)
        if begin < end:
            # An output of a row without keys is 0 by definition, whatever its incoming gradient.
            for e in range(value_words):
                product += incoming[e] * values[e]
        product = sum_over_key(product)
        if lane == 0:
            store_real(delta + entry * lse_head + row * real_bytes, product)
        for e in range(key_words):
            query[e] *= real(scale * log2_e)
            total[e] = real(0.0)
        shift = real(load_real(lse + entry * lse_head + row * real_bytes) * real(log2_e))
        key_base = k + batch * k_batch + key_head * k_head
        value_base = v + batch * v_batch + key_head * v_head
        first = begin
        while first < end:
            column = load_columns(indices, first, end, lane, keys_a_round)
            for s in range(steps):
                mine = int64(from_lane(column, s * keys_a_step + place))
                load_row(key_base + mine * k_row, k_column, part, key_chunks, head_dim, keys, s * key_words)
                load_row(
                    value_base + mine * v_row,
                    v_column,
                    part,
                    value_chunks,
                    value_dim,
                    values,
                    s * value_words,
                )
            for s in range(steps):
                score = real(0.0)
                for e in range(key_words):
                    score += query[e] * keys[s * key_words + e]
                score = sum_over_key(score)
                slope = real(0.0)
                for e in range(value_words):
                    slope += incoming[e] * values[s * value_words + e]
                slope = sum_over_key(slope)
                if first + s * keys_a_step + place < end:
                    slope = exp2(score - shift) * (slope - product) * real(scale)
                    for e in range(key_words):
                        total[e] += slope * keys[s * key_words + e]
            first += keys_a_round
        distance = sharing
        while distance < 32:
            for e in range(key_words):
                total[e] += xor_lane(total[e], distance)
            distance <<= 1
        if place == 0:
            target = dq + batch * dq_batch + head * dq_head + row * dq_row
            store_row(target, dq_column, part, key_chunks, head_dim, total)

    return kernel


@functools.cache
def make_key_backward(shape: WarpShape) -> Callable[..., None]:
    """dk and dv, key by key, summed over the query heads that share it."""
    kind, sharing, chunk, steps = shape.kind, shape.lanes, shape.chunk, shape.steps
    key_chunks, value_chunks = shape.key_chunks, shape.value_chunks
    key_words, value_words = key_chunks * chunk, value_chunks * chunk
    key_buffer, value_buffer = steps * key_words, steps * value_words
    rows_a_step = 32 // sharing
    rows_a_round = rows_a_step * steps
    lane_bits = sharing.bit_length() - 1
    real = float64 if kind == "float64" else float32
    real_bytes = 8 if kind == "float64" else 4
    load_real = device.load_element("float64" if kind == "float64" else "float32")
    exp2 = device.exp2(kind)
    load_int32, load_int64 = device.load_int32, device.load_int64
    xor_lane, from_lane = device.xor_lane, device.from_lane
    load_row, store_row, load_columns, sum_over_key = row_tools(
        kind, sharing, chunk, shape.aligned, shape.exact, shape.wide
    )
    log2_e = 1.0 / math.log(2.0)

    def kernel(
        q, k, v, dout, dk, dv, lse, delta, lse_head, items, indices, table, key_heads, group,
        item_count, head_dim, value_dim,
        q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
        v_batch, v_head, v_row, v_column, dout_batch, dout_head, dout_row, dout_column,
        dk_batch, dk_head, dk_row, dk_column, dv_batch, dv_head, dv_row, dv_column,
        scale,
    ):  # fmt: skip
        lane = cuda.threadIdx.x & 31
        blocks_a_head = (item_count + WARPS - 1) // WARPS
        block = int64(cuda.blockIdx.x)
        number = block // blocks_a_head
        item = (block - number * blocks_a_head) * WARPS + (cuda.threadIdx.x >> 5)
        if item >= item_count:
            return
        entry = number
        if table != 0:
            entry = int64(load_int32(table + 4 * number))
        batch = entry // key_heads
        key_head = entry - batch * key_heads
        row = load_int64(items + 24 * item)
        begin = load_int64(items + 24 * item + 8)
        end = load_int64(items + 24 * item + 16)

        part = lane & (sharing - 1)
        place = lane >> lane_bits
        key = cuda.local.array(key_words, real)
        value = cuda.local.array(value_words, real)
        key_total = cuda.local.array(key_words, real)
        value_total = cuda.local.array(value_words, real)
        queries = cuda.local.array(key_buffer, real)
        incoming = cuda.local.array(value_buffer, real)
        shifts = cuda.local.array(steps, real)
        products = cuda.local.array(steps, real)
        load_row(
            k + batch * k_batch + key_head * k_head + row * k_row,
            k_column,
            part,
            key_chunks,
            head_dim,
            key,
            0,
        )
        load_row(
            v + batch * v_batch + key_head * v_head + row * v_row,
            v_column,
            part,
            value_chunks,
            value_dim,
            value,
            0,
        )
        for e in range(key_words):
            key[e] *= real(scale * log2_e)
            key_total[e] = real(0.0)
        for e in range(value_words):
            value_total[e] = real(0.0)
        for member in range(group):
            head = key_head * group + member
            query_base = q + batch * q_batch + head * q_head
            incoming_base = dout + batch * dout_batch + head * dout_head
            row_base = (batch * key_heads * group + head) * lse_head
            first = begin
            while first < end:
                column = load_columns(indices, first, end, lane, rows_a_round)
                for s in range(steps):
                    mine = int64(from_lane(column, s * rows_a_step + place))
                    load_row(
                        query_base + mine * q_row,
                        q_column,
                        part,
                        key_chunks,
                        head_dim,
                        queries,
                        s * key_words,
                    )
                    load_row(
                        incoming_base + mine * dout_row,
                        dout_column,
                        part,
                        value_chunks,
                        value_dim,
                        incoming,
                        s * value_words,
                    )
                    shifts[s] = load_real(lse + row_base + mine * real_bytes)
                    products[s] = load_real(delta + row_base + mine * real_bytes)
                for s in range(steps):
                    score = real(0.0)
                    for e in range(key_words):
                        score += key[e] * queries[s * key_words + e]
                    score = sum_over_key(score)
                    slope = real(0.0)
                    for e in range(value_words):
                        slope += value[e] * incoming[s * value_words + e]
                    slope = sum_over_key(slope)
                    if first + s * rows_a_step + place < end:
                        probability = exp2(score - shifts[s] * real(log2_e))
                        slope = probability * (slope - products[s]) * real(scale)
                        for e in range(key_words):
                            key_total[e] += slope * queries[s * key_words + e]
                        for e in range(value_words):
                            value_total[e] += probability * incoming[s * value_words + e]
                first += rows_a_round
        distance = sharing
        while distance < 32:
            for e in range(key_words):
                key_total[e] += xor_lane(key_total[e], distance)
            for e in range(value_words):
                value_total[e] += xor_lane(value_total[e], distance)
            distance <<= 1
        if place == 0:
            store_row(
                dk + batch * dk_batch + key_head * dk_head + row * dk_row,
                dk_column,
                part,
                key_chunks,
                head_dim,
                key_total,
            )
            store_row(
                dv + batch * dv_batch + key_head * dv_head + row * dv_row,
                dv_column,
                part,
                value_chunks,
                value_dim,
                value_total,
            )

    return kernel

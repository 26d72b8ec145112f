"""Forward pass, one warp a query: gather the keys of a CSR row, online softmax, weighted sum.

Lane ``l`` of a warp holds chunks ``l % lanes, l % lanes + lanes, ...`` of its query and of its output,
and in every step reads the same chunks of key number ``l // lanes`` of that step. Scores are summed over
the ``lanes`` lanes of a key by shuffles; outputs of the ``32 / lanes`` key groups are summed at the end.

An *item* is a query with a range of its keys: ``items[i] = (row, begin, end)``. The first ``partial_items``
items are parts of rows too long for one warp; they leave (maximum, sum, output) in a workspace that
``merge.py`` folds. All others write the result. Items are sorted longest first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, float32, float64, int64, types

from ..device import lanes as device
from ..device.rows import row_tools
from .shape import WARPS, WarpShape

__all__ = ["FORWARD_SIGNATURE", "make_forward"]

FORWARD_SIGNATURE = types.void(
    *[types.int64] * 6,  # q, k, v, out, lse (0: not wanted), bytes from one head's lse to the next
    *[types.int64] * 3,  # items, indices, workspace
    *[types.int64] * 4,  # heads of this launch: table or 0; number of heads, heads a batch element, group
    *[types.int64] * 2,  # items, partial items
    *[types.int64] * 2,  # head_dim, value_dim
    *[types.int64] * 16,  # (batch, head, row, column) strides of q, k, v, out in bytes
    types.float64,  # scale * log2(e)
)


@functools.cache
def make_forward(shape: WarpShape) -> Callable[..., None]:
    """The kernel's Python source, closed over compile-time numbers (compiled by ``launch.py``)."""
    kind, sharing, chunk, steps = shape.kind, shape.lanes, shape.chunk, shape.steps
    key_chunks, value_chunks = shape.key_chunks, shape.value_chunks
    key_words, value_words = key_chunks * chunk, value_chunks * chunk
    key_buffer, value_buffer = steps * key_words, steps * value_words
    keys_a_step = 32 // sharing
    keys_a_round = keys_a_step * steps
    lane_bits = sharing.bit_length() - 1
    real = float64 if kind == "float64" else float32
    real_bytes = 8 if kind == "float64" else 4
    store_real = device.store_element("float64" if kind == "float64" else "float32")
    exp2 = device.exp2(kind)
    load_int32, load_int64 = device.load_int32, device.load_int64
    xor_lane, from_lane = device.xor_lane, device.from_lane
    load_row, store_row, load_columns, sum_over_key = row_tools(
        kind, sharing, chunk, shape.aligned, shape.exact, shape.wide
    )
    natural = math.log(2.0)

    def make_round(checked: bool) -> Callable[..., Any]:
        """One round of keys; `checked` where the list may end inside of it."""

        @cuda.jit(device=True, inline="always")
        def take_round(query, keys, values, scores, total, first, end, place, largest, weight):
            highest = largest
            for s in range(steps):
                score = real(0.0)
                for e in range(key_words):
                    score += query[e] * keys[s * key_words + e]
                score = sum_over_key(score)
                if checked:
                    if first + s * keys_a_step + place >= end:
                        score = real(-np.inf)
                scores[s] = score
                highest = max(highest, score)
            distance = sharing
            while distance < 32:
                highest = max(highest, xor_lane(highest, distance))
                distance <<= 1
            # With nothing but -inf so far, any finite shift gives weights of 0 instead of NaN.
            shift = highest if highest != real(-np.inf) else real(0.0)
            if highest != largest:
                fading = exp2(largest - shift)
                weight *= fading
                for e in range(value_words):
                    total[e] *= fading
            for s in range(steps):
                if checked:
                    # A key beyond the end is never multiplied: its value might be NaN.
                    if first + s * keys_a_step + place < end:
                        probability = exp2(scores[s] - shift)
                        weight += probability
                        for e in range(value_words):
                            total[e] += probability * values[s * value_words + e]
                else:
                    probability = exp2(scores[s] - shift)
                    weight += probability
                    for e in range(value_words):
                        total[e] += probability * values[s * value_words + e]
            return highest, weight

        return take_round

    whole_round, last_round = make_round(False), make_round(True)

    def kernel(
        q, k, v, out, lse, lse_head, items, indices, workspace, table, heads_here, heads, group,
        item_count, partial_items, head_dim, value_dim,
        q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
        v_batch, v_head, v_row, v_column, out_batch, out_head, out_row, out_column,
        factor,
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
        total = cuda.local.array(value_words, real)
        keys = cuda.local.array(key_buffer, real)
        values = cuda.local.array(value_buffer, real)
        scores = cuda.local.array(steps, real)
        load_row(
            q + batch * q_batch + head * q_head + row * q_row, q_column, part, key_chunks, head_dim, query, 0
        )
        for e in range(key_words):
            query[e] *= real(factor)
        for e in range(value_words):
            total[e] = real(0.0)
        key_base = k + batch * k_batch + key_head * k_head
        value_base = v + batch * v_batch + key_head * v_head
        largest = real(-np.inf)
        weight = real(0.0)
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
            if first + keys_a_round <= end:
                largest, weight = whole_round(
                    query, keys, values, scores, total, first, end, place, largest, weight
                )
            else:
                largest, weight = last_round(
                    query, keys, values, scores, total, first, end, place, largest, weight
                )
            first += keys_a_round
        distance = sharing
        while distance < 32:
            weight += xor_lane(weight, distance)
            for e in range(value_words):
                total[e] += xor_lane(total[e], distance)
            distance <<= 1

        if item < partial_items:
            slot = workspace + (number * partial_items + item) * (2 + value_dim) * real_bytes
            if lane == 0:
                store_real(slot, largest)
                store_real(slot + real_bytes, weight)
            if place == 0:
                for c in range(value_chunks):
                    for e in range(chunk):
                        element = (part + c * sharing) * chunk + e
                        if element < value_dim:
                            store_real(slot + (2 + element) * real_bytes, total[c * chunk + e])
            return
        inverse = real(0.0)
        if weight != real(0.0):
            inverse = real(1.0) / weight
        for e in range(value_words):
            total[e] *= inverse
        if lse != 0 and lane == 0:
            logarithm = real(-np.inf)
            if weight != real(0.0):
                logarithm = real(float64(largest) * natural + math.log(float64(weight)))
            store_real(lse + entry * lse_head + row * real_bytes, logarithm)
        if place == 0:
            target = out + batch * out_batch + head * out_head + row * out_row
            store_row(target, out_column, part, value_chunks, value_dim, total)

    return kernel

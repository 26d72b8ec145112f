"""Backward pass with entmax or sigmoid weights: one warp a query for dq, one warp a key for dk and dv.

With p a weight, u its derivative with respect to its score at a fixed lse, and g = dout . v:

    ds = u (g - delta),    delta = sum(u g) / sum(u) over the row for entmax, 0 for sigmoid

A query's warp walks over its keys twice for entmax, for delta and then for dq; it leaves delta for the key
kernel, and its row's part of the gradient of alpha, if that is asked for. A row is one warp's, however long
it is. Keys are cut into parts like those of softmax, with the same kernel to add them up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from numba import cuda, float32, float64, int32, int64, types

from ..device import lanes as device
from ..device.rows import own_head, own_item, row_tools
from ..device.walk import make_walk
from ..device.weighing import ENTMAX, weighing
from .normalised_forward import NormalisedShape

__all__ = [
    "ALPHA_SIGNATURE",
    "NORMALISED_KEY_SIGNATURE",
    "NORMALISED_QUERY_SIGNATURE",
    "make_alpha_sum",
    "make_normalised_key_backward",
    "make_normalised_query_backward",
]

NORMALISED_QUERY_SIGNATURE = types.void(
    *[types.int64] * 9,  # q, k, v, dout, dq, lse, delta, parts of dalpha (0: not wanted), steps
    types.int64,  # bytes from one head's lse (and delta, and parts of dalpha) to the next
    *[types.int64] * 2,  # items, indices
    *[types.int64] * 4,  # heads of this launch: table or 0; number of heads, heads a batch element, group
    *[types.int64] * 2,  # head_dim, value_dim
    *[types.int64] * 20,  # (batch, head, row, column) strides of q, k, v, dout, dq in bytes
    types.float64,  # scale
)

NORMALISED_KEY_SIGNATURE = types.void(
    *[types.int64] * 10,  # q, k, v, dout, dk, dv, lse, delta, workspace, steps
    types.int64,  # bytes from one head's lse (and delta) to the next
    *[types.int64] * 5,  # items, indices, spans, runs, bounds
    *[types.int64] * 4,  # key heads of this launch: table or 0; number, key heads a batch element, group
    *[types.int64] * 4,  # parts, head_dim, value_dim, queries
    *[types.int64] * 24,  # (batch, head, row, column) strides of q, k, v, dout, dk, dv in bytes
    types.float64,  # scale
)

ALPHA_SIGNATURE = types.void(
    *[types.int64] * 2,  # dalpha, parts
    *[types.int64] * 3,  # batch elements, heads, queries
)


@functools.cache
def make_normalised_query_backward(shape: NormalisedShape) -> Callable[..., None]:
    """dq and delta, row by row, and each row's part of dalpha."""
    warp_shape, is_entmax, learns = shape.warp, shape.rule == ENTMAX, shape.learns
    kind, sharing, chunk, steps = warp_shape.kind, warp_shape.lanes, warp_shape.chunk, warp_shape.steps
    key_chunks, value_chunks = warp_shape.key_chunks, warp_shape.value_chunks
    key_words, value_words = key_chunks * chunk, value_chunks * chunk
    keys_a_step, warps = warp_shape.keys_a_step, warp_shape.warps
    lane_bits = sharing.bit_length() - 1
    real = float64 if kind == "float64" else float32
    real_bytes = warp_shape.real_bytes
    load_real, store_real = device.load_element(warp_shape.real), device.store_element(warp_shape.real)
    lane_address, load_row, store_row, sum_over_key, sum_over_places = row_tools(
        kind, sharing, chunk, warp_shape.aligned, warp_shape.exact
    )
    weigh, of_alpha = weighing(shape.rule, kind)

    @cuda.jit(device=True, inline="always")
    def products(keys, values, own):
        """score - lse, and g, of one round's pairs."""
        query, incoming, scores, gains, fixed = own
        for s in range(steps):
            scores[s] = real(0.0)
            for e in range(key_words):
                scores[s] += query[e] * keys[s * key_words + e]
            gains[s] = real(0.0)
            for e in range(value_words):
                gains[s] += incoming[e] * values[s * value_words + e]
        sum_over_key(scores, steps)
        sum_over_key(gains, steps)
        for s in range(steps):
            scores[s] = real(real(scores[s] * fixed[1]) - fixed[0])

    @cuda.jit(device=True, inline="always")
    def take_mean(keys, values, rows, members, left, own):
        """Sums of u g and of u."""
        shared, sums, step = own
        products(keys, values, shared)
        scores, gains = shared[2], shared[3]
        for s in range(steps):
            if s * keys_a_step < left:
                weight, slope = weigh(scores[s], step)
                if weight != real(0.0):
                    sums[0] += slope * gains[s]
                    sums[1] += slope

    @cuda.jit(device=True, inline="always")
    def take_gradient(keys, values, rows, members, left, own):
        """Shares of dq, and of dalpha."""
        shared, total, part_of_alpha, delta, step = own
        products(keys, values, shared)
        scores, gains = shared[2], shared[3]
        for s in range(steps):
            if s * keys_a_step < left:
                weight, slope = weigh(scores[s], step)
                if weight != real(0.0):
                    gain = real(gains[s] - delta)
                    slope = real(slope * gain)
                    for e in range(key_words):
                        total[e] += slope * keys[s * key_words + e]
                    if learns:
                        part_of_alpha[0] += of_alpha(scores[s], step) * float64(gain)

    for_mean, _ = make_walk(warp_shape, take_mean)
    for_gradient, _ = make_walk(warp_shape, take_gradient)

    def kernel(
        q, k, v, dout, dq, lse, deltas, dalphas, step_table, lse_head, items, indices,
        table, heads_here, heads, group, head_dim, value_dim,
        q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
        v_batch, v_head, v_row, v_column, dout_batch, dout_head, dout_row, dout_column,
        dq_batch, dq_head, dq_row, dq_column,
        scale,
    ):  # fmt: skip
        number, entry, batch, head = own_head(table, heads)
        if number >= heads_here:
            return
        lane, _, row, begin, count, _ = own_item(items, warps)
        some_row = max(row, int64(0))
        key_head = head // group
        part = lane & (sharing - 1)
        query = cuda.local.array(key_words, real)
        total = cuda.local.array(key_words, real)
        incoming = cuda.local.array(value_words, real)
        scores = cuda.local.array(steps, real)
        gains = cuda.local.array(steps, real)
        fixed = cuda.local.array(2, real)
        sums = cuda.local.array(2, real)
        part_of_alpha = cuda.local.array(1, float64)
        start = lane_address(dout + batch * dout_batch + head * dout_head + some_row * dout_row, part)
        load_row(start, dout_column, part, value_chunks, value_dim, incoming, 0)
        start = lane_address(q + batch * q_batch + head * q_head + some_row * q_row, part)
        load_row(start, q_column, part, key_chunks, head_dim, query, 0)
        step = load_real(step_table + head * real_bytes)
        fixed[0] = load_real(lse + entry * lse_head + some_row * real_bytes)
        fixed[1] = real(scale)
        for e in range(key_words):
            total[e] = real(0.0)
        part_of_alpha[0] = float64(0.0)
        keys = k + batch * k_batch + key_head * k_head
        values = v + batch * v_batch + key_head * v_head
        shared = (query, incoming, scores, gains, fixed)
        delta = real(0.0)
        if is_entmax:
            sums[0], sums[1] = real(0.0), real(0.0)
            for_mean(
                keys, 0, k_row, k_column, head_dim, values, 0, v_row, v_column, value_dim,
                0, indices, begin, count, lane, (shared, sums, step),
            )  # fmt: skip
            sum_over_places(sums, 2)
            if sums[1] != real(0.0):
                delta = real(sums[0] / sums[1])
        for_gradient(
            keys, 0, k_row, k_column, head_dim, values, 0, v_row, v_column, value_dim,
            0, indices, begin, count, lane, (shared, total, part_of_alpha, delta, step),
        )  # fmt: skip
        sum_over_places(total, key_words)
        for e in range(key_words):
            total[e] *= real(scale)
        if learns:
            sum_over_places(part_of_alpha, 1)
        if row < 0:
            return
        if lane == 0:
            store_real(deltas + entry * lse_head + row * real_bytes, delta)
            if learns:
                store_real(dalphas + entry * lse_head + row * real_bytes, real(part_of_alpha[0]))
        if lane >> lane_bits == 0:
            target = lane_address(dq + batch * dq_batch + head * dq_head + row * dq_row, part)
            store_row(target, dq_column, part, key_chunks, head_dim, total)

    return kernel


@functools.cache
def make_normalised_key_backward(shape: NormalisedShape) -> Callable[..., None]:
    """dk and dv, key by key; arguments and mixed indices as of the softmax kernel."""
    warp_shape = shape.warp
    kind, sharing, chunk, steps = warp_shape.kind, warp_shape.lanes, warp_shape.chunk, warp_shape.steps
    key_chunks, value_chunks = warp_shape.key_chunks, warp_shape.value_chunks
    key_words, value_words = key_chunks * chunk, value_chunks * chunk
    rows_a_step, warps, shared = warp_shape.keys_a_step, warp_shape.warps, warp_shape.tile > 0
    mixed = warp_shape.mixed
    lane_bits = sharing.bit_length() - 1
    real = float64 if kind == "float64" else float32
    real_bytes = warp_shape.real_bytes
    load_real, store_real = device.load_element(warp_shape.real), device.store_element(warp_shape.real)
    lane_address, load_row, store_row, sum_over_key, sum_over_places = row_tools(
        kind, sharing, chunk, warp_shape.aligned, warp_shape.exact
    )
    weigh, _ = weighing(shape.rule, kind)

    @cuda.jit(device=True, inline="always")
    def take(queries, incoming, rows, members, left, own):
        """Add one round's shares of dk and dv; `at` are the addresses of the head's lse and delta.

        Mixed indices find the step of their head in the table, the others' is `power`.
        """
        key, value, key_total, value_total, scores, gains, at, power, step_table, lse_head, scale = own
        shifts = cuda.local.array(steps, real)
        deltas = cuda.local.array(steps, real)
        powers = cuda.local.array(steps, real)
        for s in range(steps):
            place, member = int64(0), int64(0)
            if s * rows_a_step < left:
                member = int64(members[s])
                place = member * lse_head + int64(rows[s]) * real_bytes
            shifts[s] = load_real(at[0] + place)
            deltas[s] = load_real(at[1] + place)
            if mixed:
                powers[s] = load_real(step_table + member * real_bytes)
            else:
                powers[s] = power[0]
        for s in range(steps):
            scores[s] = real(0.0)
            for e in range(key_words):
                scores[s] += key[e] * queries[s * key_words + e]
            gains[s] = real(0.0)
            for e in range(value_words):
                gains[s] += value[e] * incoming[s * value_words + e]
        sum_over_key(scores, steps)
        sum_over_key(gains, steps)
        for s in range(steps):
            scores[s] = real(real(scores[s] * scale) - shifts[s])
            gains[s] -= deltas[s]
        for s in range(steps):
            if s * rows_a_step < left:
                weight, slope = weigh(scores[s], powers[s])
                if weight != real(0.0):
                    slope = real(slope * gains[s])
                    for e in range(key_words):
                        key_total[e] += slope * queries[s * key_words + e]
                    for e in range(value_words):
                        value_total[e] += weight * incoming[s * value_words + e]

    gather, stage = make_walk(warp_shape, take)

    def kernel(
        q, k, v, dout, dk, dv, lse, delta, workspace, step_table,
        lse_head, items, indices, spans, runs, bounds,
        table, heads_here, heads, group, parts, head_dim, value_dim, length,
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
        gains = cuda.local.array(steps, real)
        at = cuda.local.array(2, int64)
        power = cuda.local.array(1, real)
        start = lane_address(k + batch * k_batch + key_head * k_head + some_row * k_row, part)
        load_row(start, k_column, part, key_chunks, head_dim, key, 0)
        start = lane_address(v + batch * v_batch + key_head * v_head + some_row * v_row, part)
        load_row(start, v_column, part, value_chunks, value_dim, value, 0)
        for e in range(key_words):
            key_total[e] = real(0.0)
        for e in range(value_words):
            value_total[e] = real(0.0)
        steps_of_group = step_table + key_head * group * real_bytes
        own = (
            key, value, key_total, value_total, scores, gains,
            at, power, steps_of_group, lse_head, real(scale),
        )  # fmt: skip
        # Mixed indices name the head of the group: one walk is all.
        for member in range(1 if mixed else group):
            head = key_head * group + member
            queries = q + batch * q_batch + head * q_head
            incoming = dout + batch * dout_batch + head * dout_head
            rows = (batch * heads * group + head) * lse_head
            at[0], at[1] = lse + rows, delta + rows
            power[0] = load_real(steps_of_group + member * real_bytes)
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


@functools.cache
def make_alpha_sum(kind: str) -> Callable[..., None]:
    """dalpha of a head, from the parts of all its rows: one warp a head, always in the same order."""
    real = float64 if kind == "float64" else float32
    real_bytes = 8 if kind == "float64" else 4
    accumulator = "float64" if kind == "float64" else "float32"
    load_real, store_real = device.load_element(accumulator), device.store_element(accumulator)
    xor_lane = device.xor_lane

    def kernel(dalpha, parts, batches, heads, n_q):
        lane = int32(cuda.threadIdx.x)
        head = int64(cuda.blockIdx.x)
        total = float64(0.0)
        for batch in range(batches):
            first = parts + (batch * heads + head) * n_q * real_bytes
            row = int64(lane)
            while row < n_q:
                total += float64(load_real(first + row * real_bytes))
                row += 32
        distance = int32(1)
        while distance < int32(32):
            total += xor_lane(total, distance)
            distance <<= int32(1)
        if lane == 0:
            store_real(dalpha + head * real_bytes, real(total))

    return kernel

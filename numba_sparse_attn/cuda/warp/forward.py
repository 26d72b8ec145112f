"""Forward pass, one warp a query: online softmax and weighted sum over the keys of a CSR row.

Lane ``l`` of a warp holds chunks ``l % lanes, l % lanes + lanes, ...`` of its query and of its output, and
in every step reads the same chunks of the key at *place* ``l // lanes`` of that step. Scores are summed over
the ``lanes`` lanes of a key by shuffles. Every place has a softmax of its own; they are joined at the end.

Items are as in ``schedule.py``. One that is a part of a long row leaves (maximum, sum, output) in its slot
of a workspace, which ``merge.py`` folds; all others write the result.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numba import cuda, float32, float64, int64, types

from ..device import lanes as device
from ..device.changes import change_tools
from ..device.rows import own_head, own_item, row_tools
from ..device.walk import make_walk
from .shape import WarpShape

__all__ = ["FORWARD_SIGNATURE", "FORWARD_THREADS", "make_forward"]

FORWARD_SIGNATURE = types.void(
    *[types.int64] * 7,  # q, k, v, out, lse (0: not wanted), workspace, settings of changes (0: none)
    types.int64,  # bytes from one head's lse to the next
    *[types.int64] * 5,  # items, indices, spans, runs, bounds
    *[types.int64] * 5,  # heads: table or 0; number, heads before, heads a batch element, group
    *[types.int64] * 3,  # parts, head_dim, value_dim
    *[types.int64] * 16,  # (batch, head, row, column) strides of q, k, v, out in bytes
    types.float64,  # scale * log2(e)
)

#: Threads that a multiprocessor should run at a time (random graph, float16, d 64: 0.98 ms against 1.04 ms
#: with all registers that the compiler would take).
FORWARD_THREADS = 1024

#: A maximum before there is any: finite, so that nothing has to ask for it.
_LOWEST = {"float32": -3.0e38, "float64": -1.0e308}
#: The maximum that scores are taken relative to may be stale by this much, in powers of two: rescaling all
#: sums is rare then, and 2**8 costs float32 no accuracy.
_STALE = 8.0


@functools.cache
def make_forward(shape: WarpShape) -> Callable[..., None]:
    """The kernel's Python source, closed over compile-time numbers (compiled by ``launch.py``)."""
    kind, sharing, chunk, steps = shape.kind, shape.lanes, shape.chunk, shape.steps
    key_chunks, value_chunks = shape.key_chunks, shape.value_chunks
    key_words, value_words = key_chunks * chunk, value_chunks * chunk
    keys_a_step, warps, shared = shape.keys_a_step, shape.warps, shape.tile > 0
    lane_bits = sharing.bit_length() - 1
    real = float64 if kind == "float64" else float32
    real_bytes = shape.real_bytes
    store_real = device.store_element(shape.real)
    exp2, xor_lane = device.exp2(kind), device.xor_lane
    lane_address, load_row, store_row, sum_over_key, sum_over_places = row_tools(
        kind, sharing, chunk, shape.aligned, shape.exact
    )
    natural, lowest, stale = math.log(2.0), _LOWEST[shape.real], _STALE
    changes = change_tools(shape.changes, shape.real, steps, keys_a_step, False)
    start_changes, enter_changes, bend = changes.start, changes.enter, changes.bend

    @cuda.jit(device=True, inline="always")
    def take(keys, values, rows, members, left, own):
        """Online softmax over one round; `softmax` is (shift, weight) of this lane's place."""
        query, total, scores, softmax, where = own
        for s in range(steps):
            scores[s] = real(0.0)
            for e in range(key_words):
                scores[s] += query[e] * keys[s * key_words + e]
        sum_over_key(scores, steps)
        bend(scores, rows, left, int64(0), where)
        highest = real(lowest)
        for s in range(steps):
            if s * keys_a_step < left:
                highest = max(highest, scores[s])
        if highest > softmax[0] + real(stale):
            fading = exp2(softmax[0] - highest)
            softmax[0] = highest
            softmax[1] *= fading
            for e in range(value_words):
                total[e] *= fading
        for s in range(steps):
            if s * keys_a_step < left:
                probability = exp2(scores[s] - softmax[0])
                softmax[1] += probability
                for e in range(value_words):
                    total[e] += probability * values[s * value_words + e]

    gather, stage = make_walk(shape, take)

    def kernel(
        q, k, v, out, lse, workspace, settings, lse_head, items, indices, spans, runs, bounds,
        table, heads_here, heads_before, heads, group, parts, head_dim, value_dim,
        q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
        v_batch, v_head, v_row, v_column, out_batch, out_head, out_row, out_column,
        factor,
    ):  # fmt: skip
        number, entry, batch, head = own_head(table, heads)
        if number >= heads_here:
            return
        lane, warp, row, begin, count, slot = own_item(items, warps)
        key_head = head // group
        part = lane & (sharing - 1)
        query = cuda.local.array(key_words, real)
        total = cuda.local.array(value_words, real)
        scores = cuda.local.array(steps, real)
        softmax = cuda.local.array(2, real)
        start = q + batch * q_batch + head * q_head + max(row, int64(0)) * q_row
        load_row(lane_address(start, part), q_column, part, key_chunks, head_dim, query, 0)
        for e in range(key_words):
            query[e] *= real(factor)
        for e in range(value_words):
            total[e] = real(0.0)
        softmax[0], softmax[1] = real(lowest), real(0.0)
        where = start_changes(max(row, int64(0)), begin + count)
        enter_changes(settings, heads_before + entry, head, where)
        own = (query, total, scores, softmax, where)
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

        highest = softmax[0]
        distance = sharing
        while distance < 32:
            highest = max(highest, xor_lane(highest, distance))
            distance <<= 1
        fading = exp2(softmax[0] - highest)
        softmax[1] *= fading
        for e in range(value_words):
            total[e] *= fading
        softmax[0] = real(0.0)
        sum_over_places(softmax, 2)
        sum_over_places(total, value_words)
        weight = softmax[1]
        place = lane >> lane_bits
        if slot >= 0:
            target = workspace + (number * parts + slot) * (2 + value_dim) * real_bytes
            if lane == 0:
                store_real(target, highest)
                store_real(target + real_bytes, weight)
            if place == 0:
                for c in range(value_chunks):
                    for e in range(chunk):
                        element = (part + c * sharing) * chunk + e
                        if element < value_dim:
                            store_real(target + (2 + element) * real_bytes, total[c * chunk + e])
            return
        inverse = real(0.0)
        if weight != real(0.0):
            inverse = real(1.0) / weight
        for e in range(value_words):
            total[e] *= inverse
        if lse != 0 and lane == 0:
            logarithm = real(-np.inf)
            if weight != real(0.0):
                logarithm = real(float64(highest) * natural + math.log(float64(weight)))
            store_real(lse + entry * lse_head + row * real_bytes, logarithm)
        if place == 0:
            target = lane_address(out + batch * out_batch + head * out_head + row * out_row, part)
            store_row(target, out_column, part, value_chunks, value_dim, total)

    return kernel

"""One row of attention by one warp, pair by pair: the cure for rows that a matrix product has spoilt.

In a product of matrices a weight of 0 meets every value of the tile, and 0 * inf and 0 * nan are nan. So a
key that no query selects can spoil a result if its value is not finite. Such rows show (they are not finite)
and are computed again here, from global memory, touching selected pairs only. Slow, and never run otherwise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from numba import cuda, float32, int32, int64

from . import lanes
from .fragments import fma_float32
from .tile_changes import pair_change

__all__ = ["exact_row"]

_FULL = 0


@functools.cache
def exact_row(kind: str, depth: int, width: int, changes: tuple[Any, ...] = ()) -> Callable[..., Any]:
    """Device function for rows of up to `depth` and values of up to `width` elements.

    ``(query, keys, values, target, key_row, value_row, head_dim, value_dim, lists, pool, count, half, row,
    factor, where)``: addresses of the row, of the head's keys and values, and of the result; bytes from row
    to row; true dimensions; the tile row's list and the masks in lane order; which half of the tile and which
    of its 64 rows it is; scale * log2(e), signed; for `changes` of scores, (settings, head, row, number of
    rows), as ``tile_changes.py`` has them. Returns the base-2 logarithm of the sum of weights.
    """
    depth_parts, width_parts = -(-depth // 32), -(-width // 32)
    load, store = lanes.load_element(kind), lanes.store_element(kind)
    load_int32, load_int64 = lanes.load_int32, lanes.load_int64
    exp2_float32, xor_lane = lanes.exp2("float32"), lanes.xor_lane
    change = pair_change(changes, stacked=True)
    infinite = float32(math.inf)

    @cuda.jit(device=True, inline="always")
    def compute(
        query_at, keys, values, target, key_row, value_row, head_dim, value_dim,
        lists, pool, count, half, row, factor, where,
    ):  # fmt: skip
        lane = int32(cuda.threadIdx.x & 31)
        query = cuda.local.array(depth_parts, float32)
        total = cuda.local.array(width_parts, float32)
        for part in range(depth_parts):
            element = lane + 32 * part
            query[part] = load(query_at + 2 * element) if element < head_dim else float32(0.0)
        for part in range(width_parts):
            total[part] = float32(0.0)
        largest = -infinite
        weight = float32(0.0)
        # Of this row, thread `first_thread + c` of the mask has columns 8 j + 2 c and 8 j + 2 c + 1.
        first_thread = 32 * (row >> 4) + 4 * (row & 7)
        first_bit = 2 * ((row >> 3) & 1)
        for place in range(count):
            column = load_int32(lists + 8 * int64(place))
            mask = load_int32(lists + 8 * int64(place) + 4)
            for key in range(128):
                selected = True
                if mask != _FULL:
                    thread = first_thread + ((key & 7) >> 1)
                    word = load_int64(pool + ((int64(mask) * 2 + half) * 128 + thread) * 8)
                    selected = (word >> (4 * (key >> 3) + first_bit + (key & 1))) & 1 != 0
                if selected:
                    number = int64(column) * 128 + key
                    score = float32(0.0)
                    for part in range(depth_parts):
                        element = lane + 32 * part
                        if element < head_dim:
                            score = fma_float32(
                                query[part], load(keys + number * key_row + 2 * element), score
                            )
                    for bit in range(5):
                        score += xor_lane(score, 1 << bit)
                    score *= factor
                    score, _ = change(score, where[0], where[1], where[2], where[3], number)
                    if not (score <= largest):  # a nan, too, becomes the maximum and stays it
                        fade = exp2_float32(largest - score)
                        weight *= fade
                        for part in range(width_parts):
                            total[part] *= fade
                        largest = score
                    if score != -infinite:
                        share = exp2_float32(score - largest)
                        weight += share
                        for part in range(width_parts):
                            element = lane + 32 * part
                            if element < value_dim:
                                value = load(values + number * value_row + 2 * element)
                                total[part] = fma_float32(share, value, total[part])
        inverse = float32(0.0)
        if weight != float32(0.0):
            inverse = float32(1.0) / weight
        for part in range(width_parts):
            element = lane + 32 * part
            if element < value_dim:
                store(target + 2 * element, total[part] * inverse)
        return largest + math.log2(weight) if weight != float32(0.0) else -infinite

    return compute

"""Gradients of one row by one warp, pair by pair: the cure for rows that a matrix product has spoilt.

The backward counterpart of ``exact_rows.py``: rows of gradients that are not finite are computed again from
global memory, touching selected pairs only. Slow, and never run otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from numba import cuda, float32, int32, int64

from . import lanes
from .fragments import fma_float32, own_thread
from .tile_changes import pair_change

__all__ = ["exact_gradients"]

_FULL = 0


@functools.cache
def exact_gradients(
    kind: str,
    depth: int,
    width: int,
    *,
    by_keys: bool,
    first: bool,
    second: bool,
    changes: tuple[Any, ...] = (),
) -> Callable[..., Any]:
    """Device function for rows of up to `depth`, and values of up to `width` elements.

    A row is a query (with its row of dout), whose gradient is dq; or, `by_keys`, a key (with its value),
    whose gradients are dk, the `first`, and dv, the `second`. The others are keys and values, or queries and
    dout of all heads of a group.

    ``(own, others, targets, dimensions, pairs, lists, factor, scale, where)``: addresses of the row's parts;
    (address, bytes from head to head, bytes from row to row) of the others' first part, then of the second;
    addresses of the first and the second gradient; (head dimension, value dimension); (address, bytes from
    head to head) of the row's pair of statistics, or, by keys, of those of query 0 of the group's first
    head; (entries, masks in lane order, number of entries, half of the tile, which of its 64 rows);
    scale * log2(e); scale; for `changes` of scores, (settings, head, number of the row), where by keys
    the head is the group's first. Entries are int32: tile column and mask; by keys (head in the group, tile
    row, mask, 0), and masks are those of the transposed tiles.
    """
    depth_parts, width_parts = -(-depth // 32), -(-width // 32)
    load, store = lanes.load_element(kind), lanes.store_element(kind)
    load_int32, load_int64, load_float32 = lanes.load_int32, lanes.load_int64, lanes.load_element("float32")
    exp2_float32, xor_lane = lanes.exp2("float32"), lanes.xor_lane
    entry_bytes, tile_at, mask_at = (16, 4, 8) if by_keys else (8, 0, 4)
    change = pair_change(changes, stacked=False)

    if changes:

        @cuda.jit(device=True, inline="always")
        def weight_of(score, factor, shift, where, member, number):
            settings, head, own = where
            query, key = (number, own) if by_keys else (own, number)
            changed, slope = change(score * factor, settings, head + member, query, 0, key)
            return exp2_float32(changed - shift), slope

    else:

        @cuda.jit(device=True, inline="always")
        def weight_of(score, factor, shift, where, member, number):
            return exp2_float32(fma_float32(score, factor, -shift)), float32(1.0)

    def row_functions(parts: int) -> tuple[Callable[..., Any], ...]:
        @cuda.jit(device=True, inline="always")
        def read(address, size, target):
            lane = int32(own_thread() & 31)
            for part in range(parts):
                element = lane + 32 * part
                target[part] = load(address + 2 * element) if element < size else float32(0.0)

        @cuda.jit(device=True, inline="always")
        def write(address, size, source, factor):
            lane = int32(own_thread() & 31)
            for part in range(parts):
                element = lane + 32 * part
                if element < size:
                    store(address + 2 * element, source[part] * factor)

        @cuda.jit(device=True, inline="always")
        def product(one, other):
            total = float32(0.0)
            for part in range(parts):
                total = fma_float32(one[part], other[part], total)
            for bit in range(5):
                total += xor_lane(total, 1 << bit)
            return total

        @cuda.jit(device=True, inline="always")
        def add(total, weight, row):
            for part in range(parts):
                total[part] = fma_float32(weight, row[part], total[part])

        return read, write, product, add

    read_first, write_first, product_of_first, add_first = row_functions(depth_parts)
    read_second, write_second, product_of_second, add_second = row_functions(width_parts)

    @cuda.jit(device=True, inline="always")
    def compute(own, others, targets, dimensions, pairs, lists, factor, scale, where):
        own_first, own_second = own
        first_at, first_head, first_row, second_at, second_head, second_row = others
        head_dim, value_dim = dimensions
        pairs_at, pairs_head = pairs
        entries, masks, count, half, row = lists
        one, two = cuda.local.array(depth_parts, float32), cuda.local.array(width_parts, float32)
        their_one, their_two = cuda.local.array(depth_parts, float32), cuda.local.array(width_parts, float32)
        total, more_total = cuda.local.array(depth_parts, float32), cuda.local.array(width_parts, float32)
        read_first(own_first, head_dim, one)
        if first:
            read_second(own_second, value_dim, two)
        for part in range(depth_parts):
            total[part] = float32(0.0)
        for part in range(width_parts):
            more_total[part] = float32(0.0)
        # Of this row, thread `first_thread + c` of the mask has columns 8 j + 2 c and 8 j + 2 c + 1.
        first_thread = 32 * (row >> 4) + 4 * (row & 7)
        first_bit = 2 * ((row >> 3) & 1)
        for place in range(count):
            entry = entries + entry_bytes * int64(place)
            member = int64(load_int32(entry)) if by_keys else int64(0)
            tile, mask = load_int32(entry + tile_at), load_int32(entry + mask_at)
            for column in range(128):
                selected = True
                if mask != _FULL:
                    thread = first_thread + ((column & 7) >> 1)
                    word = load_int64(masks + ((int64(mask) * 2 + half) * 128 + thread) * 8)
                    selected = (word >> (4 * (column >> 3) + first_bit + (column & 1))) & 1 != 0
                if selected:
                    number = int64(tile) * 128 + column
                    read_first(first_at + member * first_head + number * first_row, head_dim, their_one)
                    read_second(second_at + member * second_head + number * second_row, value_dim, their_two)
                    pair = pairs_at
                    if by_keys:
                        pair = pairs_at + member * pairs_head + 8 * number
                    score = product_of_first(one, their_one)
                    weight, steep = weight_of(score, factor, load_float32(pair), where, member, number)
                    if second:
                        add_second(more_total, weight, their_two)
                    if first:
                        slope = product_of_second(two, their_two) - load_float32(pair + 4)
                        add_first(total, weight * slope * steep, their_one)
        if first:
            write_first(targets[0], head_dim, total, scale)
        if second:
            write_second(targets[1], value_dim, more_total, float32(1.0))

    return compute

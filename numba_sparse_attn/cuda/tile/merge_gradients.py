"""Gradients of tile rows that were cut: one warp a row adds up what its parts came to, in their order.

Lane l has every 32nd column. A row that is not finite is computed again pair by pair, as ``backward_sm90.py``
does it with rows that are whole. Cut rows are those of ``dealing.py``; for slots see ``device/row_parts.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from numba import cuda, float32, int32, int64, types

from ...formats.tiles import TILE
from ..device import lanes
from ..device.exact_gradients import exact_gradients
from ..device.row_parts import gradient_row_bytes
from .backward_sm90 import BACKWARD_SIGNATURE
from .dealing import LONG_ROW_WORDS
from .merge import MERGE_WARPS
from .shape_gradients import GradientShape

__all__ = ["MERGE_GRADIENTS_SIGNATURE", "make_gradient_merge"]

_LANE_BITS = 5

#: Cut rows, pairs of statistics, memory for parts; then what ``backward_sm90.py`` is given.
MERGE_GRADIENTS_SIGNATURE = types.void(*[types.int64] * 3, *BACKWARD_SIGNATURE.args[5:])


@functools.cache
def make_gradient_merge(shape: GradientShape) -> Callable[..., None]:
    """The kernel's Python source, closed over compile-time numbers."""
    kind, of_keys, first, second = shape.kind, shape.of_keys, shape.first, shape.second
    a_columns, b_columns = (shape.depth // 32 if first else 0), (shape.width // 32 if second else 0)
    columns = a_columns + b_columns
    stride = gradient_row_bytes(shape.depth, shape.width, first=first, second=second)
    sign = -1.0 if shape.negate else 1.0
    load_int64, load_float32 = lanes.load_int64, lanes.load_element("float32")
    store, xor_lane = lanes.store_element(kind), lanes.xor_lane
    compute_exactly = exact_gradients(
        kind, shape.depth, shape.width, by_keys=of_keys, first=first, second=second, changes=shape.changes
    )

    def kernel(
        long_rows, pairs, slots, heads, group, rows, pair_rows, head_dim, value_dim,
        own_a, own_b, other_a, other_b, target_a, target_b,
        own_a_batch, own_a_head, own_a_row, own_b_batch, own_b_head, own_b_row,
        other_a_batch, other_a_head, other_a_row, other_b_batch, other_b_head, other_b_row,
        target_a_batch, target_a_head, target_a_row, target_b_batch, target_b_head, target_b_row,
        factor, scale, settings,
    ):  # fmt: skip
        number = int64(cuda.blockIdx.x) * MERGE_WARPS + (cuda.threadIdx.x >> 5)
        lane = int32(cuda.threadIdx.x & 31)
        row_at = long_rows + (8 * LONG_ROW_WORDS) * (number // TILE)
        local = int32(number % TILE)
        place = load_int64(row_at)
        row = int64(int32(place)) * TILE + local
        if row >= rows:
            return
        entry = int32(place >> 32)
        batch = int32(entry // heads)
        head = int32(entry - batch * heads)
        total = cuda.local.array(columns, float32)
        for column in range(columns):
            total[column] = float32(0.0)
        slot = slots + (load_int64(row_at + 8) * TILE + local) * stride + 4 * lane
        for _ in range(int32(load_int64(row_at + 16))):
            for column in range(columns):
                total[column] += load_float32(slot + 128 * column)
            slot += TILE * stride
        blemish = float32(0.0)
        for column in range(columns):
            blemish += total[column] * float32(0.0)
        for bit in range(_LANE_BITS):
            blemish += xor_lane(blemish, 1 << bit)
        a_at = target_a + int64(batch) * target_a_batch + int64(head) * target_a_head + row * target_a_row
        b_at = target_b + int64(batch) * target_b_batch + int64(head) * target_b_head + row * target_b_row
        if blemish == float32(0.0):
            for column in range(a_columns):
                element = int32(lane + 32 * column)
                if element < head_dim:
                    store(a_at + 2 * element, total[column] * scale)
            for column in range(b_columns):
                element = int32(lane + 32 * column)
                if element < value_dim:
                    store(b_at + 2 * element, total[a_columns + column])
            return
        other_head = int64(head // group)
        pairs_of = pairs + 8 * (int64(entry) * pair_rows + row)
        if of_keys:
            other_head = int64(head) * group
            pairs_of = pairs + 8 * (int64(batch) * heads * group + other_head) * pair_rows
        compute_exactly(
            (
                own_a + int64(batch) * own_a_batch + head * own_a_head + row * own_a_row,
                own_b + int64(batch) * own_b_batch + head * own_b_head + row * own_b_row,
            ),
            (
                other_a + int64(batch) * other_a_batch + other_head * other_a_head,
                other_a_head, other_a_row,
                other_b + int64(batch) * other_b_batch + other_head * other_b_head,
                other_b_head, other_b_row,
            ),
            (a_at, b_at),
            (head_dim, value_dim),
            (pairs_of, 8 * int64(pair_rows)),
            (
                load_int64(row_at + 24), load_int64(row_at + 40), int32(load_int64(row_at + 32)),
                int32(local >> 6), int32(local & 63),
            ),
            factor * float32(sign), scale,
            (settings, other_head if of_keys else head, row),
        )  # fmt: skip

    return kernel

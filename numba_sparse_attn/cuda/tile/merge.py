"""Results of tile rows that were cut: one warp a query adds up its parts, in their order.

Lane l has every 32nd column. A row that is not finite is computed again pair by pair, as ``forward_sm90.py``
does it with rows that are whole.

Cut rows are int64 sextuples (entry << 32 | tile row, first slot, parts, address of the row's list, its tiles,
address of the masks in lane order). Slots: see ``device/row_parts.py``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda, float32, int32, int64, types

from ...formats.tiles import TILE
from ..device import lanes
from ..device.exact_rows import exact_row
from ..device.row_parts import row_bytes
from .dealing import LONG_ROW_WORDS

__all__ = ["MERGE_SIGNATURE", "MERGE_WARPS", "MergeShape", "make_merge"]

#: Queries a block.
MERGE_WARPS = 4
_LANE_BITS = 5

MERGE_SIGNATURE = types.void(
    *[types.int64] * 3,  # cut rows, slots, lse (0: not wanted)
    *[types.int32] * 5,  # heads, group, n_q, head_dim, value_dim
    *[types.int64] * 4,  # q, k, v, out
    *[types.int64] * 12,  # (batch, head, row) strides of q, k, v, out in bytes
    types.float32,  # abs(scale) * log2(e)
    types.int64,  # settings of changes (0: none)
)


class MergeShape(NamedTuple):
    """Element type, padded dimensions, whether the scale is negative, and what scores go through."""

    kind: str
    depth: int
    width: int
    negate: bool
    changes: tuple[Any, ...] = ()


@functools.cache
def make_merge(shape: MergeShape) -> Callable[..., None]:
    """The kernel's Python source, closed over compile-time numbers."""
    kind, depth, width, negate, changes = shape
    columns = width // 32
    stride = row_bytes(width)
    sign = -1.0 if negate else 1.0
    natural = math.log(2.0)
    load_int32, load_int64 = lanes.load_int32, lanes.load_int64
    load_float32, store_float32 = lanes.load_element("float32"), lanes.store_element("float32")
    store, exp2, xor_lane = lanes.store_element(kind), lanes.exp2("float32"), lanes.xor_lane
    changed = bool(changes)
    compute_exactly = exact_row(kind, depth, width, changes)
    nothing = float32(-math.inf)

    def kernel(
        long_rows, slots, lse, heads, group, n_q, head_dim, value_dim,
        q, k, v, out,
        q_batch, q_head, q_row, k_batch, k_head, k_row,
        v_batch, v_head, v_row, out_batch, out_head, out_row,
        factor, settings,
    ):  # fmt: skip
        unit = float32(1.0) if changed else factor
        number = int64(cuda.blockIdx.x) * MERGE_WARPS + (cuda.threadIdx.x >> 5)
        lane = int32(cuda.threadIdx.x & 31)
        row_at = long_rows + (8 * LONG_ROW_WORDS) * (number // TILE)
        row = int32(number % TILE)
        place = load_int64(row_at)
        query = int64(int32(place)) * TILE + row
        if query >= n_q:
            return
        entry = int32(place >> 32)
        batch = int32(entry // heads)
        head = int32(entry - batch * heads)
        first = slots + (load_int64(row_at + 8) * TILE + row) * stride
        parts = int32(load_int64(row_at + 16))
        largest = nothing
        for part in range(parts):
            largest = max(largest, load_float32(first + int64(part) * (TILE * stride) + 4 * width))
        # With nothing but -inf, any finite base gives weights of 0 instead of NaN.
        base = largest if largest != nothing else float32(0.0)
        weight = float32(0.0)
        total = cuda.local.array(columns, float32)
        for column in range(columns):
            total[column] = float32(0.0)
        for part in range(parts):
            slot = first + int64(part) * (TILE * stride)
            share = exp2((load_float32(slot + 4 * width) - base) * unit)
            weight += share * load_float32(slot + 4 * width + 4)
            for column in range(columns):
                total[column] += share * load_float32(slot + 4 * (lane + 32 * column))
        blemish = weight * float32(0.0)
        for column in range(columns):
            blemish += total[column] * float32(0.0)
        for bit in range(_LANE_BITS):
            blemish += xor_lane(blemish, 1 << bit)
        target = out + int64(batch) * out_batch + int64(head) * out_head + query * out_row
        if blemish == float32(0.0):
            inverse = float32(1.0) / weight if weight != float32(0.0) else float32(0.0)
            for column in range(columns):
                element = int32(lane + 32 * column)
                if element < value_dim:
                    store(target + 2 * element, total[column] * inverse)
            logarithm = nothing
            if weight != float32(0.0):
                logarithm = largest * unit * float32(natural) + math.log(weight)
        else:
            key_head = int32(head // group)
            logarithm = float32(natural) * compute_exactly(
                q + int64(batch) * q_batch + int64(head) * q_head + query * q_row,
                k + int64(batch) * k_batch + int64(key_head) * k_head,
                v + int64(batch) * v_batch + int64(key_head) * v_head,
                target, k_row, v_row, head_dim, value_dim,
                load_int64(row_at + 24), load_int64(row_at + 40), load_int32(row_at + 32),
                int32(row >> 6), int32(row & 63), factor * float32(sign), (settings, head, query, n_q),
            )  # fmt: skip
        if lse != 0 and lane == 0:
            store_float32(lse + 4 * (int64(entry) * n_q + query), logarithm)

    return kernel

"""Fold the parts of long rows: one warp a row, parts in their order, so the bits are always the same."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numba import cuda, float32, float64, int64, types

from ..device import lanes as device
from .shape import WARPS, WarpShape

__all__ = ["MERGE_SIGNATURE", "make_merge"]

MERGE_SIGNATURE = types.void(
    *[types.int64] * 3,  # out, lse (0: not wanted), bytes from one head's lse to the next
    *[types.int64] * 3,  # long rows, how many, workspace
    *[types.int64] * 4,  # table of heads or 0, heads a batch element, parts, value_dim
    *[types.int64] * 4,  # (batch, head, row, column) strides of out in bytes
)


@functools.cache
def make_merge(shape: WarpShape) -> Callable[..., None]:
    """The kernel for one element type; lane l has every 32nd column of the output."""
    kind = shape.kind
    real = float64 if kind == "float64" else float32
    real_bytes = 8 if kind == "float64" else 4
    load_real = device.load_element("float64" if kind == "float64" else "float32")
    store_real = device.store_element("float64" if kind == "float64" else "float32")
    store_element, exp2 = device.store_element(kind), device.exp2(kind)
    load_int32, load_int64 = device.load_int32, device.load_int64
    natural = math.log(2.0)

    def kernel(
        out, lse, lse_head, long_rows, long_count, workspace, table, heads, parts, value_dim,
        out_batch, out_head, out_row, out_column,
    ):  # fmt: skip
        lane = cuda.threadIdx.x & 31
        blocks_a_head = (long_count + WARPS - 1) // WARPS
        block = int64(cuda.blockIdx.x)
        number = block // blocks_a_head
        item = (block - number * blocks_a_head) * WARPS + (cuda.threadIdx.x >> 5)
        if item >= long_count:
            return
        entry = number
        if table != 0:
            entry = int64(load_int32(table + 4 * number))
        batch = entry // heads
        head = entry - batch * heads
        row = load_int64(long_rows + 24 * item)
        first = load_int64(long_rows + 24 * item + 8)
        end = load_int64(long_rows + 24 * item + 16)
        slot_bytes = (2 + value_dim) * real_bytes
        slots = workspace + number * parts * slot_bytes
        largest = real(-np.inf)
        for part in range(first, end):
            largest = max(largest, load_real(slots + part * slot_bytes))
        shift = largest if largest != real(-np.inf) else real(0.0)
        weight = real(0.0)
        for part in range(first, end):
            slot = slots + part * slot_bytes
            weight += exp2(load_real(slot) - shift) * load_real(slot + real_bytes)
        inverse = real(0.0)
        if weight != real(0.0):
            inverse = real(1.0) / weight
        target = out + batch * out_batch + head * out_head + row * out_row
        element = int64(lane)
        while element < value_dim:
            total = real(0.0)
            for part in range(first, end):
                slot = slots + part * slot_bytes
                total += exp2(load_real(slot) - shift) * load_real(slot + (2 + element) * real_bytes)
            store_element(target + element * out_column, total * inverse)
            element += 32
        if lse != 0 and lane == 0:
            logarithm = real(-np.inf)
            if weight != real(0.0):
                logarithm = real(float64(largest) * natural + math.log(float64(weight)))
            store_real(lse + entry * lse_head + row * real_bytes, logarithm)

    return kernel

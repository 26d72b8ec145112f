"""Fold the parts of long rows: one warp a row, parts in their order, so the bits are always the same."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numba import cuda, float32, float64, int32, int64, types

from ..device import lanes as device
from ..device.rows import own_head
from .shape import WARPS

__all__ = ["ADD_SIGNATURE", "MERGE_SIGNATURE", "make_add", "make_merge"]

MERGE_SIGNATURE = types.void(
    *[types.int64] * 3,  # out, lse (0: not wanted), workspace
    types.int64,  # bytes from one head's lse to the next
    *[types.int64] * 2,  # long rows, how many
    *[types.int64] * 3,  # heads of this launch: table or 0; number of heads, heads a batch element
    *[types.int64] * 2,  # parts, value_dim
    *[types.int64] * 4,  # (batch, head, row, column) strides of out in bytes
)

ADD_SIGNATURE = types.void(
    *[types.int64] * 2,  # target, workspace
    *[types.int64] * 2,  # long rows, how many
    *[types.int64] * 3,  # heads of this launch: table or 0; number of heads, heads a batch element
    *[types.int64] * 4,  # parts, elements of a slot, first element, elements of a row of the target
    *[types.int64] * 4,  # (batch, head, row, column) strides of the target in bytes
)


@cuda.jit(device=True, inline="always")
def _own_row(long_rows, long_count):
    """(lane, row, first slot, end slot); a warp beyond the last row gets row -1."""
    item = int64(cuda.blockIdx.x) * WARPS + (cuda.threadIdx.x >> 5)
    row, first, end = int64(-1), int64(0), int64(0)
    if item < long_count:
        row = device.load_int64(long_rows + 24 * item)
        first = device.load_int64(long_rows + 24 * item + 8)
        end = device.load_int64(long_rows + 24 * item + 16)
    return int32(cuda.threadIdx.x & 31), row, first, end


@functools.cache
def make_merge(kind: str) -> Callable[..., None]:
    """Softmaxes of one element type; lane l has every 32nd column of the output."""
    real = float64 if kind == "float64" else float32
    real_bytes = 8 if kind == "float64" else 4
    accumulator = "float64" if kind == "float64" else "float32"
    load_real, store_real = device.load_element(accumulator), device.store_element(accumulator)
    store_element, exp2 = device.store_element(kind), device.exp2(kind)
    natural = math.log(2.0)

    def kernel(
        out, lse, workspace, lse_head, long_rows, long_count, table, heads_here, heads, parts, value_dim,
        out_batch, out_head, out_row, out_column,
    ):  # fmt: skip
        number, entry, batch, head = own_head(table, heads)
        lane, row, first, end = _own_row(long_rows, long_count)
        if number >= heads_here or row < 0:
            return
        slot_bytes = (2 + value_dim) * real_bytes
        slots = workspace + number * parts * slot_bytes
        largest = load_real(slots + first * slot_bytes)
        for part in range(first + 1, end):
            largest = max(largest, load_real(slots + part * slot_bytes))
        weight = real(0.0)
        for part in range(first, end):
            slot = slots + part * slot_bytes
            weight += exp2(load_real(slot) - largest) * load_real(slot + real_bytes)
        inverse = real(0.0)
        if weight != real(0.0):
            inverse = real(1.0) / weight
        target = out + batch * out_batch + head * out_head + row * out_row
        element = int64(lane)
        while element < value_dim:
            total = real(0.0)
            for part in range(first, end):
                slot = slots + part * slot_bytes
                total += exp2(load_real(slot) - largest) * load_real(slot + (2 + element) * real_bytes)
            store_element(target + element * out_column, total * inverse)
            element += 32
        if lse != 0 and lane == 0:
            logarithm = real(-np.inf)
            if weight != real(0.0):
                logarithm = real(float64(largest) * natural + math.log(float64(weight)))
            store_real(lse + entry * lse_head + row * real_bytes, logarithm)

    return kernel


@functools.cache
def make_add(kind: str) -> Callable[..., None]:
    """Plain sums of gradients: some columns of the slots."""
    real = float64 if kind == "float64" else float32
    real_bytes = 8 if kind == "float64" else 4
    load_real = device.load_element("float64" if kind == "float64" else "float32")
    store_element = device.store_element(kind)

    def kernel(
        target, workspace, long_rows, long_count, table, heads_here, heads, parts, slot_size, offset, size,
        target_batch, target_head, target_row, target_column,
    ):  # fmt: skip
        number, _, batch, head = own_head(table, heads)
        lane, row, first, end = _own_row(long_rows, long_count)
        if number >= heads_here or row < 0:
            return
        place = target + batch * target_batch + head * target_head + row * target_row
        element = int64(lane)
        while element < size:
            total = real(0.0)
            for part in range(first, end):
                slot = workspace + (number * parts + part) * slot_size * real_bytes
                total += load_real(slot + (offset + element) * real_bytes)
            store_element(place + element * target_column, total)
            element += 32

    return kernel

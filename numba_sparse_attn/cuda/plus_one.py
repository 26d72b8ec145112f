"""Softmax becomes softmax-plus-one, in place: a factor for every row of what any engine has made."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

from numba import cuda, float32, float64, int32, int64, types, uint32

from ..formats.work import Request
from . import streams
from .device import fragments
from .device import lanes as device
from .launch import launch, load_kernel
from .view import DeviceView, merged_stride

__all__ = ["PLUS_ONE_SIGNATURE", "PLUS_ONE_WARPS", "add_one", "make_plus_one"]

PLUS_ONE_SIGNATURE = types.void(
    *[types.int64] * 2,  # out, lse
    *[types.int64] * 3,  # rows of all heads, rows of a head, value_dim
    *[types.int64] * 3,  # (head, row, column) strides of out in bytes
)

#: Warps, hence rows, of a block.
PLUS_ONE_WARPS = 8


@functools.cache
def make_plus_one(kind: str) -> Callable[..., None]:
    """One warp a row; lane l has every 32nd column."""
    real = float64 if kind == "float64" else float32
    real_bytes = 8 if kind == "float64" else 4
    accumulator = "float64" if kind == "float64" else "float32"
    load_real, store_real = device.load_written(accumulator), device.store_element(accumulator)
    load, store = device.load_written(kind), device.store_element(kind)
    sync_warp = fragments.sync_warp

    def kernel(out, lse, rows, n_q, value_dim, out_head, out_row, out_column):
        lane = int32(cuda.threadIdx.x & 31)
        item = int64(cuda.blockIdx.x) * PLUS_ONE_WARPS + (cuda.threadIdx.x >> 5)
        if item >= rows:
            return
        value = load_real(lse + item * real_bytes)
        sync_warp()
        if value == real(-math.inf):
            return  # no keys: 0 and -inf as before
        # log(1 + exp(value)) without overflow; NaN stays.
        whole = real(max(value, real(0.0)) + real(math.log1p(real(math.exp(-abs(value))))))
        share = real(math.exp(value - whole))
        head = uint32(item) // uint32(n_q)
        place = out + int64(head) * out_head + (item - int64(head) * n_q) * out_row
        column = int64(lane)
        while column < value_dim:
            store(place + column * out_column, real(load(place + column * out_column) * share))
            column += 32
        if lane == 0:
            store_real(lse + item * real_bytes, whole)

    return kernel


def add_one(request: Request, out: DeviceView, lse: DeviceView) -> None:
    """Queue the change of `out` and `lse` (contiguous), which an engine has queued as softmax's."""
    if not out.size:
        return
    stream = streams.stream_object(out.stream, out.device)
    threads = 32 * PLUS_ONE_WARPS
    kernel = load_kernel(make_plus_one, request.dtype.name, PLUS_ONE_SIGNATURE, threads, out.device)
    lead, strides = out.shape[:-2], out.strides[:-2]
    merged = merged_stride(lead, strides)
    # Axes that no single stride reaches are gone through one by one.
    inner = lead if merged is not None else lead[-1:]
    head_stride = int(merged) if merged is not None else strides[-1]
    outer = lead[: len(lead) - len(inner)]
    rows = math.prod(inner) * request.n_q
    for number, place in enumerate(itertools.product(*map(range, outer))):
        offset = sum(i * stride for i, stride in zip(place, strides, strict=False))
        arguments = (
            *(out.address + offset, lse.address + number * rows * request.accumulator.itemsize),
            *(rows, request.n_q, request.value_dim),
            *(head_stride, *out.strides[-2:]),
        )
        launch(kernel, -(-rows // PLUS_ONE_WARPS), threads, stream, arguments)

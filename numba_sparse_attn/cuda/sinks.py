"""Sinks on a GPU: what a sink does to results, and its gradient, one warp a row; for whichever engine ran.

As on the host (``scores/sink.py``), nothing but lse, out and dout is looked at, so kernels of attention need
not know of sinks. Sums over rows are formed by one warp a head, in one order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import cuda, float32, float64, int32, int64, types

from . import memory, staging, streams
from .device import lanes as device
from .launch import launch, load_kernel
from .view import DeviceView, batch_parts

__all__ = [
    "GRADIENT_SIGNATURE",
    "SHARE_SIGNATURE",
    "SUM_SIGNATURE",
    "add_sink",
    "make_share",
    "make_sum",
    "make_terms",
    "sink_gradient",
]

_WARPS = 4
_THREADS = 32 * _WARPS

SHARE_SIGNATURE = types.void(
    *[types.int64] * 3,  # out, lse, logits
    *[types.int64] * 4,  # rows, heads, queries, value_dim
    *[types.int64] * 4,  # (batch, head, row, column) strides of out in bytes
)

GRADIENT_SIGNATURE = types.void(
    *[types.int64] * 5,  # dout, out, lse, logits, terms
    *[types.int64] * 4,  # rows, heads, queries, value_dim
    *[types.int64] * 8,  # (batch, head, row, column) strides of dout and out in bytes
)

SUM_SIGNATURE = types.void(
    *[types.int64] * 2,  # terms, sums
    *[types.int64] * 3,  # batch elements, heads, queries
)


def _real_of(kind: str) -> str:
    return "float64" if kind == "float64" else "float32"


@functools.cache
def make_share(kind: str) -> Callable[..., None]:
    """Let the sink take its share of every row; lse becomes that with the sink."""
    real = float64 if kind == "float64" else float32
    real_bytes = 8 if kind == "float64" else 4
    load_real, store_real = device.load_element(_real_of(kind)), device.store_element(_real_of(kind))
    load_own_real, load_own = device.load_written(_real_of(kind)), device.load_written(kind)
    store_element, from_lane = device.store_element(kind), device.from_lane

    def kernel(
        out, lse, logits, rows, heads, queries, value_dim, out_batch, out_head, out_row, out_column
    ):  # fmt: skip
        lane = int32(cuda.threadIdx.x & 31)
        item = int64(cuda.blockIdx.x) * _WARPS + (cuda.threadIdx.x >> 5)
        if item >= rows:
            return
        head = item // queries % heads
        before = real(0.0)
        if lane == 0:
            before = load_own_real(lse + item * real_bytes)
        before = from_lane(before, 0)  # and nobody reads it after lane 0 has written
        logit = load_real(logits + head * real_bytes)
        peak = before if before > logit else logit
        after, share = real(-math.inf), real(0.0)
        if peak != real(-math.inf):
            after = real(peak + math.log(math.exp(before - peak) + math.exp(logit - peak)))
            share = real(math.exp(before - after))
        if lane == 0:
            store_real(lse + item * real_bytes, after)
        place = out + item // (queries * heads) * out_batch + head * out_head + item % queries * out_row
        column = int64(lane)
        while column < value_dim:
            at = place + column * out_column
            store_element(at, load_own(at) * share)
            column += 32

    return kernel


@functools.cache
def make_terms(kind: str) -> Callable[..., None]:
    """What every row contributes to the gradient of its head's logit."""
    real = float64 if kind == "float64" else float32
    real_bytes = 8 if kind == "float64" else 4
    load_real, store_real = device.load_element(_real_of(kind)), device.store_element(_real_of(kind))
    load_element, xor_lane = device.load_element(kind), device.xor_lane

    def kernel(
        dout, out, lse, logits, terms, rows, heads, queries, value_dim,
        dout_batch, dout_head, dout_row, dout_column, out_batch, out_head, out_row, out_column,
    ):  # fmt: skip
        lane = int32(cuda.threadIdx.x & 31)
        item = int64(cuda.blockIdx.x) * _WARPS + (cuda.threadIdx.x >> 5)
        if item >= rows:
            return
        batch, head, row = item // (queries * heads), item // queries % heads, item % queries
        left = dout + batch * dout_batch + head * dout_head + row * dout_row
        right = out + batch * out_batch + head * out_head + row * out_row
        total = real(0.0)
        column = int64(lane)
        while column < value_dim:
            total += load_element(left + column * dout_column) * load_element(right + column * out_column)
            column += 32
        distance = 16
        while distance > 0:
            total += xor_lane(total, distance)
            distance >>= 1
        logarithm, logit = load_real(lse + item * real_bytes), load_real(logits + head * real_bytes)
        term = real(0.0)
        if logarithm != logit:  # else the row has no keys, or none that counts: its output is 0
            term = real(-(math.exp(logit - logarithm) * total))
        if lane == 0:
            store_real(terms + item * real_bytes, term)

    return kernel


@functools.cache
def make_sum(kind: str) -> Callable[..., None]:
    """Sums of terms over rows and batch elements, in float64; lane l has every 32nd row."""
    real_bytes = 8 if kind == "float64" else 4
    load_real, store_sum = device.load_element(_real_of(kind)), device.store_element("float64")
    xor_lane = device.xor_lane

    def kernel(terms, sums, batch, heads, queries):
        lane = int32(cuda.threadIdx.x & 31)
        head = int64(cuda.blockIdx.x) * _WARPS + (cuda.threadIdx.x >> 5)
        if head >= heads:
            return
        total = float64(0.0)
        for item in range(batch):
            first = (item * heads + head) * queries
            row = int64(lane)
            while row < queries:
                total += float64(load_real(terms + (first + row) * real_bytes))
                row += 32
        distance = 16
        while distance > 0:
            total += xor_lane(total, distance)
            distance >>= 1
        if lane == 0:
            store_sum(sums + 8 * head, total)

    return kernel


def add_sink(out: DeviceView, lse: DeviceView, logits: npt.NDArray[Any], stream_handle: int) -> None:
    """Queue on a stream, on which `out` is written, what a sink does to it and to lse, in place.

    `logits` are (heads,), on the host, in the type of lse, which is contiguous.
    """
    kernel = load_kernel(make_share, out.dtype.name, SHARE_SIGNATURE, _THREADS, out.device)
    stream = streams.stream_object(stream_handle, out.device)
    numbers = staging.to_device(np.ascontiguousarray(logits), out.device, stream_handle)
    heads, queries, value_dim = out.shape[-3:]
    for first, count, (place,) in batch_parts((out,)):
        rows = count * heads * queries
        addresses = out.address + place[0], lse.address + first * heads * queries * lse.dtype.itemsize
        launch(
            kernel,
            -(-rows // _WARPS),
            _THREADS,
            stream,
            (*addresses, numbers.address, rows, heads, queries, value_dim, *place[1]),
        )


def sink_gradient(
    dout: DeviceView, out: DeviceView, lse: DeviceView, logits: npt.NDArray[Any], stream_handle: int
) -> npt.NDArray[np.float64]:
    """Gradient of every head's logit, from results with the sink, all of them ready on a stream."""
    device_number, kind = out.device, out.dtype.name
    stream = streams.stream_object(stream_handle, device_number)
    heads, queries, value_dim = out.shape[-3:]
    batch = out.size // max(1, heads * queries * value_dim)
    sums = np.zeros(heads)
    if not batch * heads * queries:
        return sums
    real = lse.dtype.itemsize
    terms = memory.scratch(batch * heads * queries * real, device_number, stream_handle)
    result = memory.scratch(8 * heads, device_number, stream_handle)
    numbers = staging.to_device(np.ascontiguousarray(logits), device_number, stream_handle)
    kernel = load_kernel(make_terms, kind, GRADIENT_SIGNATURE, _THREADS, device_number)
    for first, count, (left, right) in batch_parts((dout, out)):
        rows = count * heads * queries
        offset = first * heads * queries * real
        addresses = dout.address + left[0], out.address + right[0], lse.address + offset, numbers.address
        launch(
            kernel,
            -(-rows // _WARPS),
            _THREADS,
            stream,
            (*addresses, terms.address + offset, rows, heads, queries, value_dim, *left[1], *right[1]),
        )
    kernel = load_kernel(make_sum, kind, SUM_SIGNATURE, _THREADS, device_number)
    arguments = terms.address, result.address, batch, heads, queries
    launch(kernel, -(-heads // _WARPS), _THREADS, stream, arguments)
    view = DeviceView(
        result.address, (heads,), (8,), sums.dtype, device_number, stream_handle, "other", result
    )
    staging.to_host(view, sums, stream_handle)
    return sums

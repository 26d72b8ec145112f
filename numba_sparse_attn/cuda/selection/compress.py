"""Means of overlapping stretches of an array in GPU memory, as an array of the caller's library."""

from __future__ import annotations

from typing import Any

from .. import memory, streams
from ..view import DeviceView
from .place import Place

__all__ = ["compress_view"]


def compress_view(x: DeviceView, length: int, stride: int, count: int) -> Any:
    """``(..., count, d)`` of the stretches of ``(..., n, d)``, ready in the order of the array's stream."""
    with streams.on_device(x.device):
        stream = memory.join((x,))
        shape = (*x.shape[:-2], count, x.shape[-1])
        result = memory.allocate(x.library, shape, x.dtype, x.device, stream)
        if result.size:
            rows = x if x.ndim > 2 else x.with_leading_axis()
            place = Place(x.device, stream, x.library)
            batch = rows.size // (rows.shape[-3] * rows.shape[-2] * rows.shape[-1])
            sizes = {"length": length, "step": stride, "stretches": count}
            place.queue_blocks(
                place.rows_of(rows), batch, "means", **sizes, result=x.dtype.name, target=result.address
            )
        memory.release((x,), stream)
        return memory.deliver(result)

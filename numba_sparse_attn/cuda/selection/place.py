"""Where a selection is computed: on which stream of a GPU, and in whose memory; and how kernels get there."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from .. import memory, staging, streams
from ..launch import launch, load_kernel
from ..view import DeviceView, merged_stride
from .blocks import BLOCKS_SIGNATURE, BLOCKS_THREADS, WORD_BYTES, blocks_shape, make_blocks
from .rows import DeviceRows

__all__ = ["Place"]

_MOST_ROWS_OF_BLOCKS = 65_535


@dataclass(frozen=True)
class Place:
    """A stream of a GPU, which has to be the current one: see :class:`streams.on_device`.

    Attributes
    ----------
    device, stream : int
    library : str
        Whose memory is taken.
    """

    device: int
    stream: int
    library: str

    def room(self, nbytes: int) -> DeviceView:
        """Temporary memory."""
        return memory.scratch(nbytes, self.device, self.stream, self.library)

    def rows_of(self, array: DeviceView) -> DeviceRows:
        """The rows of an array ``(..., heads, n, d)`` where they lie."""
        (heads, count, width), (head, row, column) = array.shape[-3:], array.strides[-3:]
        merged = merged_stride(array.shape[:-3], array.strides[:-3])
        table = None
        if merged is None and array.size:
            places = itertools.product(*map(range, array.shape[:-3]))
            addresses = [
                array.address + sum(map(math.prod, zip(place, array.strides, strict=False)))
                for place in places
            ]
            table = staging.to_device(np.array(addresses, np.int64), self.device, self.stream)
        return DeviceRows(
            array.address,
            table.address if table else 0,
            (merged or 0, head, row, column),
            array.dtype.name,
            heads,
            count,
            width,
            (array, table),
        )

    def queue_blocks(
        self,
        rows: DeviceRows,
        batch: int,
        what: str,
        *,
        length: int,
        step: int,
        stretches: int,
        result: str,
        target: int,
    ) -> None:
        """Queue means or extremes of stretches: see ``blocks.py``."""
        size = np.dtype("float16" if rows.kind == "bfloat16" else rows.kind).itemsize
        words = rows.aligned(WORD_BYTES, size)
        shape = blocks_shape(rows.kind, size, rows.width, result, what=what, words=words)
        entries = batch * rows.heads
        self.launch(
            load_kernel(make_blocks, shape, BLOCKS_SIGNATURE, BLOCKS_THREADS, self.device),
            stretches,
            entries,
            BLOCKS_THREADS,
            (
                *rows.arguments,
                *(entries, rows.heads, rows.count, rows.width),
                *(length, step, stretches, target),
            ),
        )

    def launch(
        self, kernel: object, blocks: int, entries: int, threads: int, arguments: tuple[float, ...]
    ) -> None:
        """Queue so many blocks for each of some entries, which are heads of all batch elements."""
        if blocks and entries:
            grid = blocks, min(entries, _MOST_ROWS_OF_BLOCKS), -(-entries // _MOST_ROWS_OF_BLOCKS)
            launch(kernel, grid, threads, streams.stream_object(self.stream, self.device), arguments)

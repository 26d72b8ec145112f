"""From rows of q and k in GPU memory to lists of what was chosen: memory, launches, the copy to the host."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...arrays import Dimensions
from ...errors import EngineError
from ...formats.limits import Always, Limits
from .. import memory, staging, streams
from ..launch import launch, load_kernel
from ..view import DeviceView, merged_stride
from .best import BEST_SIGNATURE, BEST_WARPS, make_best
from .blocks import BLOCKS_SIGNATURE, BLOCKS_THREADS, WORD_BYTES, blocks_shape, make_blocks
from .products import PRODUCTS_SIGNATURE, ProductsShape, make_products
from .rows import DeviceRows

__all__ = ["DeviceTools"]

#: Scores that exist at a time.
_SCORES_BYTES = 256 << 20
#: Sides of the squares that products are computed in.
_SIDE = 64
_MOST_ROWS_OF_BLOCKS = 65_535


class DeviceTools:
    """Tools for arrays in GPU memory; results are new memory, which lives as long as what names it.

    Attributes
    ----------
    queries, keys : DeviceRows
    """

    def __init__(self, sizes: Dimensions, q: DeviceView, k: DeviceView) -> None:
        self._sizes = sizes
        self._device, self._library = q.device, q.library
        self._real = np.dtype(np.float64 if sizes.dtype == np.float64 else np.float32)
        with streams.on_device(self._device):
            self._stream = memory.join((q, k))
            if streams.is_capturing(self._stream):
                raise EngineError(
                    "a selection by content while the stream is captured into a CUDA graph",
                    "selections outside of a capture: which pairs are chosen is known when kernels have run",
                    "select beforehand, and capture attention over the pattern",
                )
            self.queries, self.keys = self._rows_of(q), self._rows_of(k)

    def means(self, rows: DeviceRows, block: int) -> DeviceRows:
        """As ``Tools.means``."""
        return self._blocks(rows, block, "means")

    def extremes(self, rows: DeviceRows, block: int) -> DeviceRows:
        """As ``Tools.extremes``."""
        return self._blocks(rows, block, "extremes")

    def sides(self, rows: DeviceRows, block: int) -> DeviceRows:
        """As ``Tools.sides``."""
        return self._blocks(rows, block, "sides")

    def best(
        self,
        queries: DeviceRows,
        keys: DeviceRows,
        limits: Limits,
        always: Always,
        budgets: Sequence[int],
    ) -> list[npt.NDArray[np.int32]]:
        """As ``Tools.best``. Waits for the GPU."""
        counts = np.maximum(max(budgets), always.counts(limits))
        width = int(np.minimum(counts, limits.values()).max(initial=0))
        chosen = np.empty((self._sizes.batch * self._sizes.heads, queries.count, width), np.int32)
        if not chosen.size:
            return list(chosen)
        entries, _, columns = len(chosen), queries.count, keys.count
        with streams.on_device(self._device):
            places = self._room(chosen.nbytes)
            room = entries * columns * self._real.itemsize
            panel = min(queries.count, max(1, _SCORES_BYTES // (room * _SIDE)) * _SIDE)
            scores = self._room(room * panel)
            several = None
            if len(set(budgets)) > 1:
                several = staging.to_device(np.array(budgets, np.int32), self._device, self._stream)
            for first in range(0, queries.count, panel):
                count = min(panel, queries.count - first)
                self._products(queries, keys, limits, scores.address, first, count)
                self._launch(
                    load_kernel(make_best, self._real.name, BEST_SIGNATURE, 32 * BEST_WARPS, self._device),
                    -(-count // BEST_WARPS),
                    entries,
                    32 * BEST_WARPS,
                    (
                        *(scores.address, places.address + 4 * first * width),
                        *(several.address if several else 0, budgets[0]),
                        *(entries, self._sizes.heads, first, count, columns, queries.count, width),
                        *limits,
                        *always,
                    ),
                )
            self._fetch(places, chosen)
        return list(chosen)

    def _blocks(self, rows: DeviceRows, block: int, what: str) -> DeviceRows:
        stretches = -(-rows.count // block)
        width = rows.width * (1 if what == "means" else 2)
        entries = self._sizes.batch * rows.heads
        with streams.on_device(self._device):
            room = self._room(entries * stretches * width * self._real.itemsize)
            if entries * stretches:
                itemsize = self._sizes.dtype.itemsize
                shape = blocks_shape(
                    rows.kind,
                    itemsize,
                    rows.width,
                    self._real.name,
                    what=what,
                    words=rows.aligned(WORD_BYTES, itemsize),
                )
                self._launch(
                    load_kernel(make_blocks, shape, BLOCKS_SIGNATURE, BLOCKS_THREADS, self._device),
                    stretches,
                    entries,
                    BLOCKS_THREADS,
                    (
                        *rows.arguments,
                        *(entries, rows.heads, rows.count, rows.width),
                        *(block, block, stretches, room.address),
                    ),
                )
        return self._contiguous(room, rows.heads, stretches, width)

    def _products(
        self,
        left: DeviceRows,
        right: DeviceRows,
        limits: Limits,
        scores: int,
        first: int,
        count: int,
    ) -> None:
        """Queue scores of `count` rows from `first` on, contiguous at an address."""
        entries = self._sizes.batch * left.heads
        shape = ProductsShape(left.kind, right.kind, _SIDE)
        squares = -(-count // _SIDE) * -(-right.count // _SIDE)
        self._launch(
            load_kernel(make_products, shape, PRODUCTS_SIGNATURE, shape.threads, self._device),
            squares,
            entries,
            shape.threads,
            (
                *left.arguments,
                *right.arguments,
                *(entries, left.heads, left.heads // right.heads, left.width),
                *(first, count, right.count),
                *limits,
                *(1.0, scores),
            ),
        )

    # Memory and launches

    def _rows_of(self, array: DeviceView) -> DeviceRows:
        """The rows of q or k where they lie."""
        view = array.with_leading_axis() if self._sizes.flat else array
        (heads, count, width), (head, row, column) = view.shape[-3:], view.strides[-3:]
        merged = merged_stride(view.shape[:-3], view.strides[:-3])
        table = None
        if merged is None and view.size:
            places = itertools.product(*map(range, view.shape[:-3]))
            addresses = [
                view.address + sum(map(math.prod, zip(place, view.strides, strict=False))) for place in places
            ]
            table = staging.to_device(np.array(addresses, np.int64), self._device, self._stream)
        return DeviceRows(
            view.address,
            table.address if table else 0,
            (merged or 0, head, row, column),
            view.dtype.name,
            heads,
            count,
            width,
            (array, table),
        )

    def _contiguous(self, room: DeviceView, heads: int, count: int, width: int) -> DeviceRows:
        size = self._real.itemsize
        strides = (heads * count * width * size, count * width * size, width * size, size)
        return DeviceRows(room.address, 0, strides, self._real.name, heads, count, width, room)

    def _room(self, nbytes: int) -> DeviceView:
        return memory.scratch(nbytes, self._device, self._stream, self._library)

    def _launch(
        self, kernel: object, blocks: int, entries: int, threads: int, arguments: tuple[float, ...]
    ) -> None:
        """Queue so many blocks for each of some entries, which are heads of all batch elements."""
        grid = blocks, min(entries, _MOST_ROWS_OF_BLOCKS), -(-entries // _MOST_ROWS_OF_BLOCKS)
        launch(kernel, grid, threads, streams.stream_object(self._stream, self._device), arguments)

    def _fetch(self, room: DeviceView, array: npt.NDArray[np.int32]) -> None:
        """Copy to the host, once all that was queued has run."""
        strides = array.strides
        view = DeviceView(
            room.address, array.shape, strides, array.dtype, self._device, self._stream, "other", room
        )
        staging.to_host(view, array, self._stream)

"""From rows of q and k in GPU memory to lists of what was chosen: memory, launches, the copy to the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...arrays import Dimensions
from ...errors import EngineError
from ...formats.limits import NOTHING, Always, Limits, Stretches
from ...formats.pieces import UNBOUNDED
from .. import memory, staging, streams
from ..launch import load_kernel
from ..view import DeviceView
from .attended import (
    LINES_SIGNATURE,
    MASSES_SIGNATURE,
    SUM_THREADS,
    WEIGHTS_SIGNATURE,
    WEIGHTS_WARPS,
    MassesShape,
    make_lines,
    make_masses,
    make_weights,
)
from .best import BEST_SIGNATURE, BEST_WARPS, make_best
from .place import Place
from .products import PRODUCTS_SIGNATURE, make_products, products_shape
from .rows import DeviceRows

__all__ = ["DeviceTools"]

#: Scores that exist at a time, unless a few rows of all heads are more: an H200's second-level cache, of
#: which this is half, then has them for all kernels that read them. Assumed, not measured.
_SCORES_BYTES = 32 << 20
#: Rows that are scored at a time are a multiple of this.
_ROWS = 128
#: Warps that share the queries of a block which choose together.
_MASSES_WARPS = 8


class _Lists(NamedTuple):
    """What is to be chosen for every row of `heads` heads of every batch element, and where it is written."""

    chosen: npt.NDArray[np.int32]
    places: DeviceView
    heads: int
    limits: Limits
    always: Always
    budgets: DeviceView | None
    budget: int


class DeviceTools:
    """Tools for arrays in GPU memory; results are new memory, which lives as long as what names it.

    Attributes
    ----------
    queries, keys : DeviceRows
    """

    def __init__(self, sizes: Dimensions, q: DeviceView, k: DeviceView) -> None:
        self._sizes = sizes
        self._device = q.device
        self._real = np.dtype(np.float64 if sizes.dtype == np.float64 else np.float32)
        with streams.on_device(self._device):
            self._at = Place(q.device, memory.join((q, k)), q.library)
            if streams.is_capturing(self._at.stream):
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
        lists = self._lists(queries.heads, limits, always, budgets)
        if lists.chosen.size:
            with streams.on_device(self._device):
                panel = self._panel(queries.heads, queries.count, keys.count)
                scores = self._scores(queries.heads, panel, keys.count)
                for first in range(0, queries.count, panel):
                    count = min(panel, queries.count - first)
                    self._products(queries, keys, limits, 1.0, scores.address, first, count)
                    self._list_best(lists, scores.address, first, count, keys.count)
                self._fetch(lists.places, lists.chosen)
        return list(lists.chosen)

    def best_attended(
        self,
        keys: DeviceRows,
        stretches: Stretches,
        seen: Limits,
        factor: float,
        limits: Limits,
        always: Always,
        budgets: Sequence[int],
    ) -> list[npt.NDArray[np.int32]]:
        """As ``Tools.best_attended``. Waits for the GPU."""
        heads, group = keys.heads, self.queries.heads // keys.heads
        lists = self._lists(heads, limits, always, budgets[::group])
        if lists.chosen.size:
            per_row = limits.per_row
            with streams.on_device(self._device):
                panel = self._panel(self.queries.heads, limits.queries, keys.count)
                rows = min(limits.rows, max(1, panel // per_row))
                shape = MassesShape(self._real.name, _MASSES_WARPS)
                scores = self._scores(self.queries.heads, rows * per_row, max(keys.count, 1))
                masses = self._scores(heads, rows, limits.most)
                for first in range(0, limits.rows, rows):
                    count = min(rows, limits.rows - first)
                    begin = first * per_row
                    queries = min(count * per_row, limits.queries - begin)
                    self._weights(keys, seen, factor, scores.address, begin, queries)
                    self._at.launch(
                        load_kernel(make_masses, shape, MASSES_SIGNATURE, shape.threads, self._device),
                        count * -(-limits.most // 32),
                        self._sizes.batch * heads,
                        shape.threads,
                        (
                            *(scores.address, masses.address, self._sizes.batch * heads, group),
                            *(queries, per_row, count, keys.count),
                            *(stretches.length, stretches.stride, always.block, limits.most),
                        ),
                    )
                    self._list_best(lists, masses.address, first, count, limits.most)
                self._fetch(lists.places, lists.chosen)
        return list(lists.chosen)

    def best_lines(
        self,
        first: int,
        seen: Limits,
        factor: float,
        ahead: int,
        columns: Sequence[int],
        slashes: Sequence[int],
    ) -> tuple[list[npt.NDArray[np.int32]], list[npt.NDArray[np.int32]]]:
        """As ``Tools.best_lines``. Waits for the GPU."""
        heads, width = self.queries.heads, self.keys.count
        entries = self._sizes.batch * heads
        found = []
        with streams.on_device(self._device):
            sums = [self._at.room(8 * entries * length) for length in (width, ahead + width)]
            rows = seen.queries - first
            panel = self._panel(heads, rows, width)
            scores = self._scores(heads, panel, width)
            # Without rows there still are sums, all of them 0.
            for begin in range(0, max(rows, 1), panel):
                count = min(panel, rows - begin)
                if count and width:
                    self._weights(self.keys, seen, factor, scores.address, first + begin, count)
                self._at.launch(
                    load_kernel(make_lines, self._real.name, LINES_SIGNATURE, SUM_THREADS, self._device),
                    -(-(ahead + width) // SUM_THREADS) if width else 0,
                    entries,
                    SUM_THREADS,
                    (
                        *(scores.address, sums[0].address, sums[1].address, entries, count, width),
                        *(first + begin + width - seen.queries, ahead),
                        *(int(begin == 0), int(begin + count == rows)),
                    ),
                )
            for room, length, budgets in zip(
                sums, (width, ahead + width if width else 0), (columns, slashes), strict=True
            ):
                lists = self._lists(heads, Limits(1, 1, UNBOUNDED, 0, 1, length), NOTHING, budgets)
                if lists.chosen.size:
                    self._list_best(lists, room.address, 0, 1, length, "float64")
                    self._fetch(lists.places, lists.chosen)
                found.append([of_head[0] for of_head in lists.chosen])
        return found[0], found[1]

    def best_received(
        self, first: int, seen: Limits, factor: float, budgets: Sequence[int]
    ) -> list[npt.NDArray[np.int32]]:
        """As ``Tools.best_received``. Waits for the GPU."""
        return self.best_lines(first, seen, factor, 0, budgets, [0] * len(budgets))[0]

    def compressed(self, keys: DeviceRows, stretches: Stretches) -> DeviceRows:
        """As ``Tools.compressed``."""
        return self._blocks(keys, stretches.length, "means", stretches.stride, stretches.count(keys.count))

    def projections(self, directions: npt.NDArray[Any], rows: DeviceRows) -> list[npt.NDArray[np.float64]]:
        """As ``Tools.projections``. Waits for the GPU."""
        heads, width = directions.shape
        size = np.dtype(np.float64).itemsize
        found = np.empty((self._sizes.batch * heads, rows.count))
        if found.size:
            with streams.on_device(self._device):
                room = self._at.room(found.nbytes)
                there = np.ascontiguousarray(directions, np.float64)
                copy = staging.to_device(there, self._device, self._at.stream)
                strides = (0, width * size, width * size, size)
                left = DeviceRows(copy.address, 0, strides, "float64", heads, 1, width, copy)
                everything = Limits(1, 1, UNBOUNDED, 0, 1, rows.count)
                self._products(left, rows, everything, 1.0, room.address, 0, 1)
                self._fetch(room, found)
        return list(found)

    def given(self, view: DeviceView) -> DeviceRows:
        """Rows of another array of the call's key heads, which lies on the same GPU."""
        with streams.on_device(self._device):
            streams.wait(self._at.stream, view.stream, self._device)
            return self._rows_of(view)

    # Launches

    def _rows_of(self, array: DeviceView) -> DeviceRows:
        return self._at.rows_of(array.with_leading_axis() if self._sizes.flat else array)

    def _lists(self, heads: int, limits: Limits, always: Always, budgets: Sequence[int]) -> _Lists:
        """Room for lists of all rows of so many heads of every batch element."""
        budgets = [min(budget, limits.most) for budget in budgets]  # which 32 bits hold
        counts = np.maximum(max(budgets), always.counts(limits))
        width = int(np.minimum(counts, limits.values()).max(initial=0))
        chosen = np.empty((self._sizes.batch * heads, limits.rows, width), np.int32)
        with streams.on_device(self._device):
            several = None
            if len(set(budgets)) > 1:
                several = staging.to_device(np.array(budgets, np.int32), self._device, self._at.stream)
            return _Lists(chosen, self._at.room(chosen.nbytes), heads, limits, always, several, budgets[0])

    def _list_best(
        self, lists: _Lists, scores: int, first: int, count: int, columns: int, kind: str | None = None
    ) -> None:
        """Queue lists of `count` rows from `first` on; scores of another type than others if there is one."""
        entries, rows, width = lists.chosen.shape
        self._at.launch(
            load_kernel(make_best, kind or self._real.name, BEST_SIGNATURE, 32 * BEST_WARPS, self._device),
            -(-count // BEST_WARPS),
            entries,
            32 * BEST_WARPS,
            (
                *(scores, lists.places.address + 4 * first * width),
                *(lists.budgets.address if lists.budgets else 0, lists.budget),
                *(entries, lists.heads, first, count, columns, rows, width),
                *lists.limits,
                *lists.always,
            ),
        )

    def _panel(self, heads: int, rows: int, columns: int) -> int:
        """How many rows of all heads are scored at a time."""
        row = self._sizes.batch * heads * columns * self._real.itemsize
        return max(1, min(rows, max(1, _SCORES_BYTES // max(row * _ROWS, 1)) * _ROWS))

    def _scores(self, heads: int, rows: int, columns: int) -> DeviceView:
        return self._at.room(self._sizes.batch * heads * rows * columns * self._real.itemsize)

    def _weights(
        self, keys: DeviceRows, seen: Limits, factor: float, scores: int, first: int, count: int
    ) -> None:
        """Queue weights of `count` queries from `first` on, contiguous at an address."""
        self._products(self.queries, keys, seen, factor, scores, first, count)
        entries = self._sizes.batch * self.queries.heads
        self._at.launch(
            load_kernel(make_weights, self._real.name, WEIGHTS_SIGNATURE, 32 * WEIGHTS_WARPS, self._device),
            -(-count // WEIGHTS_WARPS),
            entries,
            32 * WEIGHTS_WARPS,
            (scores, entries, first, count, keys.count, *seen),
        )

    def _blocks(
        self, rows: DeviceRows, block: int, what: str, step: int | None = None, count: int | None = None
    ) -> DeviceRows:
        """Of every `block` rows, or of `count` stretches of as many that begin every `step` rows."""
        stretches = -(-rows.count // block) if count is None else count
        width, batch, kind = rows.width * (1 if what == "means" else 2), self._sizes.batch, self._real.name
        sizes = {"length": block, "step": step or block, "stretches": stretches}
        with streams.on_device(self._device):
            room = self._at.room(batch * rows.heads * stretches * width * self._real.itemsize)
            self._at.queue_blocks(rows, batch, what, **sizes, result=kind, target=room.address)
        size = self._real.itemsize
        strides = (rows.heads * stretches * width * size, stretches * width * size, width * size, size)
        return DeviceRows(room.address, 0, strides, kind, rows.heads, stretches, width, room)

    def _products(
        self,
        left: DeviceRows,
        right: DeviceRows,
        limits: Limits,
        factor: float,
        scores: int,
        first: int,
        count: int,
    ) -> None:
        """Queue scores of `count` rows from `first` on, contiguous at an address."""
        entries = self._sizes.batch * left.heads
        shape = products_shape(left.kind, right.kind)
        squares = -(-count // shape.side) * -(-right.count // shape.side)
        self._at.launch(
            load_kernel(
                make_products, shape, PRODUCTS_SIGNATURE, shape.threads, self._device, blocks=shape.resident
            ),
            squares,
            entries,
            shape.threads,
            (
                *left.arguments,
                *right.arguments,
                *(entries, left.heads, left.heads // right.heads, left.width),
                *(first, count, right.count),
                *limits,
                *(factor, scores),
            ),
        )

    def _fetch(self, room: DeviceView, array: npt.NDArray[Any]) -> None:
        """Copy to the host, once all that was queued has run."""
        strides = array.strides
        view = DeviceView(
            room.address, array.shape, strides, array.dtype, self._device, self._at.stream, "other", room
        )
        staging.to_host(view, array, self._at.stream)

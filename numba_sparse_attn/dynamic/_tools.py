"""What selections compute from q and k: on the host here, in GPU memory by ``cuda/selection``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import scipy.sparse

from ..arrays import Dimensions
from ..formats.limits import Always, Limits, Stretches
from ..patterns._spans import blocks, spread
from ._panels import Floats, Integers, for_each_panel, for_each_rows, largest, scores_of, softmax_rows
from .compression import compress

__all__ = ["HostTools", "Tools", "extremes_of_blocks", "mean_of_blocks", "pick"]

#: Rows of one head of one batch element: ``rows(batch, head) -> [n, width]``, with query heads also for keys.
HostRows = Callable[[int, int], Floats]


class Tools(Protocol):
    """Rows are of all heads and batch elements; what they are is known to those who made them."""

    @property
    def queries(self) -> Any:
        """Rows of q."""

    @property
    def keys(self) -> Any:
        """Rows of k."""

    def means(self, rows: Any, block: int) -> Any:
        """Mean of every `block` rows; the last block may have fewer."""

    def extremes(self, rows: Any, block: int) -> Any:
        """Maxima and then minima of the columns over every `block` rows."""

    def sides(self, rows: Any, block: int) -> Any:
        """Means over every `block` rows of what is above 0, the rest as 0, and then of what is below."""

    def best(
        self,
        queries: Any,
        keys: Any,
        limits: Limits,
        always: Always,
        budgets: Sequence[int],
    ) -> Sequence[npt.NDArray[np.int32]]:
        """Numbers of the keys with the largest products, ascending, padded with -1, for every row of queries.

        A table ``[rows, width]`` for every query head of every batch element. Of equal products the first
        count as larger, NaN counts as the smallest.

        Parameters
        ----------
        queries, keys : rows
            Equally wide.
        limits : Limits
            How many keys, from the first on, a row of queries may choose among.
        always : Always
            What is chosen before all others.
        budgets : sequence of int
            Keys of a row, for every query head; more where more than that are chosen before all others.
        """

    def compressed(self, rows: Any, stretches: Stretches) -> Any:
        """Mean of every stretch of rows."""

    def given(self, array: Any) -> Any:
        """Rows of another array of the call's key heads, which lies in the same memory."""

    def projections(self, directions: Floats, rows: Any) -> Sequence[npt.NDArray[np.float64]]:
        """Products of all rows with a direction, in float64: ``[n]`` for every query head of every batch
        element, from ``directions [heads, width]``.
        """

    def best_attended(
        self,
        keys: Any,
        stretches: Stretches,
        seen: Limits,
        factor: float,
        limits: Limits,
        always: Always,
        budgets: Sequence[int],
    ) -> Sequence[npt.NDArray[np.int32]]:
        """As :meth:`best`, for every key head of every batch element: blocks by the weights that they get.

        Those are softmax weights of all queries of a row and of all heads of a group, over stretches of keys;
        each stretch's counts for a block by the share of its keys that lies there.

        Parameters
        ----------
        keys : rows
            One for every stretch.
        seen : Limits
            Stretches that each query sees.
        factor : float
            On products.
        limits, always, budgets
            Blocks, as for :meth:`best`; `budgets` are of query heads.
        """

    def best_lines(
        self,
        first: int,
        seen: Limits,
        factor: float,
        ahead: int,
        columns: Sequence[int],
        slashes: Sequence[int],
    ) -> tuple[Sequence[npt.NDArray[np.int32]], Sequence[npt.NDArray[np.int32]]]:
        """Keys, and distances from ``-ahead`` on, that get most weight of the queries from `first` on.

        A list of each for every query head of every batch element, ascending, padded with -1; distances are
        counted from 0, and distance 0 is the first of the best.
        """

    def best_received(
        self, first: int, seen: Limits, factor: float, budgets: Sequence[int]
    ) -> Sequence[npt.NDArray[np.int32]]:
        """Keys that get most weight of the queries from `first` on, which may be many: summed in float64.

        A list for every query head of every batch element, ascending, padded with -1.
        """


class HostTools:
    """Tools for NumPy arrays, which are widened to the type that sums are taken in.

    Attributes
    ----------
    q : float32 or float64 [batch, heads, n_q, d]
    k : [batch, kv_heads, n_k, d]
    """

    def __init__(self, sizes: Dimensions, q: Floats, k: Floats) -> None:
        kind = np.float64 if sizes.dtype == np.float64 else np.float32

        def heads_first(array: Floats, heads: int) -> Floats:
            shaped = array.reshape(sizes.batch, heads, *array.shape[-2:])
            return np.ascontiguousarray(shaped, kind)

        self._sizes = sizes
        self.q, self.k = heads_first(q, sizes.heads), heads_first(k, sizes.kv_heads)

    def queries(self, batch: int, head: int) -> Floats:
        """``[n_q, d]`` of one head."""
        return np.asarray(self.q[batch, head])

    def keys(self, batch: int, head: int) -> Floats:
        """``[n_k, d]`` of the key head that a query head reads."""
        return np.asarray(self.k[batch, self._key_head(head)])

    def means(self, rows: HostRows, block: int) -> HostRows:
        """As :meth:`Tools.means`."""
        return lambda batch, head: mean_of_blocks(rows(batch, head), block)

    def extremes(self, rows: HostRows, block: int) -> HostRows:
        """As :meth:`Tools.extremes`."""
        return lambda batch, head: extremes_of_blocks(rows(batch, head), block)

    def sides(self, rows: HostRows, block: int) -> HostRows:
        """As :meth:`Tools.sides`."""

        def of_head(batch: int, head: int) -> Floats:
            mine = rows(batch, head)
            return mean_of_blocks(
                np.concatenate([np.maximum(mine, 0.0), np.minimum(mine, 0.0)], axis=1), block
            )

        return of_head

    def best(
        self,
        queries: HostRows,
        keys: HostRows,
        limits: Limits,
        always: Always,
        budgets: Sequence[int],
    ) -> list[npt.NDArray[np.int32]]:
        """As :meth:`Tools.best`."""
        reach = limits.values()

        def of_head(batch: int, head: int) -> npt.NDArray[np.int32]:
            left, right = queries(batch, head), keys(batch, head)
            return pick(
                limits,
                always,
                len(right),
                budgets[head],
                lambda rows: scores_of(left[rows], right, reach[rows]),
            )

        heads = range(self._sizes.heads)
        return [of_head(batch, head) for batch in range(self._sizes.batch) for head in heads]

    def compressed(self, rows: HostRows, stretches: Stretches) -> HostRows:
        """As :meth:`Tools.compressed`."""
        return lambda batch, head: compress(rows(batch, head), *stretches)

    def given(self, array: Floats) -> HostRows:
        """Rows of another array of the call's key heads."""
        shaped = array.reshape(*self.k.shape[:2], *array.shape[-2:]).astype(self.k.dtype)
        return lambda batch, head: shaped[batch, self._key_head(head)]

    def projections(self, directions: Floats, rows: HostRows) -> list[npt.NDArray[np.float64]]:
        """As :meth:`Tools.projections`."""
        return [
            rows(batch, head).astype(np.float64) @ direction
            for batch in range(self._sizes.batch)
            for head, direction in enumerate(directions)
        ]

    def best_attended(
        self,
        keys: HostRows,
        stretches: Stretches,
        seen: Limits,
        factor: float,
        limits: Limits,
        always: Always,
        budgets: Sequence[int],
    ) -> list[npt.NDArray[np.int32]]:
        """As :meth:`Tools.best_attended`."""
        group = self._sizes.heads // self._sizes.kv_heads
        visible, per_row = seen.values(), limits.per_row
        shares = _shares(stretches, seen.most, always.block, limits.most).astype(self.k.dtype)

        def of_group(batch: int, head: int) -> npt.NDArray[np.int32]:
            tokens = keys(batch, head)

            def masses(rows: slice) -> Floats:
                some = slice(rows.start * per_row, min(rows.stop * per_row, limits.queries))
                mine = visible[some]
                weights = np.zeros((len(mine), int(mine.max(initial=0))), tokens.dtype)
                for member in range(head, head + group):
                    scores = factor * scores_of(self.queries(batch, member)[some], tokens, mine)
                    weights += softmax_rows(scores, mine)
                summed = np.add.reduceat(weights, np.arange(0, len(mine), per_row), axis=0)
                return np.ascontiguousarray((shares[:, : summed.shape[1]] @ summed.T).T)

            return pick(limits, always, per_row * max(seen.most, limits.most), budgets[head], masses)

        heads = range(0, self._sizes.heads, group)
        return [of_group(batch, head) for batch in range(self._sizes.batch) for head in heads]

    def best_lines(
        self,
        first: int,
        seen: Limits,
        factor: float,
        ahead: int,
        columns: Sequence[int],
        slashes: Sequence[int],
    ) -> tuple[list[npt.NDArray[np.int32]], list[npt.NDArray[np.int32]]]:
        """As :meth:`Tools.best_lines`."""
        limits, n_k = seen.values()[first:], seen.most
        kept, distances = [], []
        for batch in range(self._sizes.batch):
            for head in range(self._sizes.heads):
                scores = factor * scores_of(self.queries(batch, head)[first:], self.keys(batch, head), limits)
                weights = softmax_rows(scores, limits)
                sums = _by_distance(weights, first + n_k - seen.queries, ahead, n_k)
                if len(sums):
                    sums[ahead] = np.inf
                totals = np.pad(weights.sum(axis=0), (0, n_k - weights.shape[1]))
                kept.append(_best(totals, columns[head]))
                distances.append(_best(sums, slashes[head]))
        return kept, distances

    def best_received(
        self, first: int, seen: Limits, factor: float, budgets: Sequence[int]
    ) -> list[npt.NDArray[np.int32]]:
        """As :meth:`Tools.best_received`."""
        limits = seen.values()[first:]

        def of_head(batch: int, head: int) -> npt.NDArray[np.int32]:
            sums: dict[int, Floats] = {}

            def work(rows: slice, scores: Floats) -> None:
                scores *= factor
                sums[rows.start] = softmax_rows(scores, limits[rows]).sum(axis=0, dtype=np.float64)

            for_each_panel(self.queries(batch, head)[first:], self.keys(batch, head), limits, work)
            # In order, whichever thread was first: the same bits every time.
            received = np.zeros(seen.most)
            for start in sorted(sums):
                received[: len(sums[start])] += sums[start]
            return _best(received, budgets[head])

        heads = range(self._sizes.heads)
        return [of_head(batch, head) for batch in range(self._sizes.batch) for head in heads]

    def _key_head(self, head: int) -> int:
        return head * self._sizes.kv_heads // self._sizes.heads


def _by_distance(weights: Floats, place: int, ahead: int, n_k: int) -> Floats:
    """Sums of weights over distances -ahead .. n_k - 1; the first row stands where key `place` does."""
    sums = np.zeros(ahead + n_k if n_k else 0, weights.dtype)
    for row, of_row in enumerate(weights):
        nearest = place + row - (len(of_row) - 1)  # distance of the row's last key, the least
        low = max(-ahead, nearest)
        kept = of_row[::-1][low - nearest :]
        sums[low + ahead : low + ahead + len(kept)] += kept
    return sums


def _best(sums: Floats, count: int) -> npt.NDArray[np.int32]:
    """Places of the `count` largest, ascending."""
    limit, budget = np.array([len(sums)], np.int64), np.array([min(count, len(sums))], np.int64)
    return largest(sums[None], limit, budget)[0]


def _shares(stretches: Stretches, count: int, block: int, blocks: int) -> scipy.sparse.csr_array:
    """Share of every stretch's keys that lies in every block, ``[blocks, stretches]``."""
    length = stretches.length
    starts: Integers = np.arange(count, dtype=np.int64) * stretches.stride
    stretch, further = spread((starts + length - 1) // block - starts // block + 1)
    number = starts[stretch] // block + further
    low = np.maximum(starts[stretch], number * block)
    high = np.minimum(starts[stretch] + length, (number + 1) * block)
    return scipy.sparse.csr_array(((high - low) / length, (number, stretch)), shape=(blocks, count))


def pick(
    limits: Limits, always: Always, count: int, budget: int, scores: Callable[[slice], Floats]
) -> npt.NDArray[np.int32]:
    """Numbers of what is chosen for every row of queries of one head, ascending, padded with -1.

    Parameters
    ----------
    limits, always, budget
        As for :meth:`Tools.best`.
    count : int
        What decides how many rows are scored at a time: keys, or more if that takes more.
    scores : callable
        ``scores(rows)`` gives ``[rows, keys]``, at least up to the panel's largest limit.
    """
    reach = limits.values()
    budgets = np.maximum(budget, always.counts(limits))
    width = int(np.minimum(budgets, reach).max(initial=0))
    chosen = np.full((len(reach), width), -1, np.int32)

    def work(rows: slice) -> None:
        found = scores(rows)
        found[always.mask(limits, rows, found.shape[1])] = np.inf
        best = largest(found, reach[rows], budgets[rows])
        chosen[rows, : best.shape[1]] = best[:, :width]

    if width:
        for_each_rows(len(reach), count, work)
    return chosen


def mean_of_blocks(array: Floats, block: int) -> Floats:
    """Mean of every `block` rows, ``[blocks, d]``; the last block may have fewer."""
    begins, ends = blocks(len(array), block)
    if not len(begins):
        return array
    sums = np.add.reduceat(array, begins, axis=0)
    return np.asarray(sums / (ends - begins)[:, None].astype(array.dtype))


def extremes_of_blocks(array: Floats, block: int) -> Floats:
    """Maxima and then minima of the columns over every `block` rows, ``[blocks, 2 * d]``."""
    begins = blocks(len(array), block)[0]
    if not len(begins):
        return np.concatenate([array, array], axis=1)
    return np.concatenate(
        [np.maximum.reduceat(array, begins, axis=0), np.minimum.reduceat(array, begins, axis=0)], axis=1
    )

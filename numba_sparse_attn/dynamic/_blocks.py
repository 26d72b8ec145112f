"""The choice of whole blocks of keys, and the patterns that it makes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from ..formats.pieces import make_pieces
from ..jit import kernel
from ..patterns._spans import blocks
from ..patterns.pattern import Pattern
from ._call import Call, Floats, Integers
from ._panels import for_each_rows, largest, scores_of

__all__ = ["Blocks", "extremes_of_blocks", "mean_of_blocks"]


def mean_of_blocks(array: Floats, block: int) -> Floats:
    """Mean of every `block` rows, ``[blocks, d]``; the last block may have fewer."""
    begins, ends = blocks(len(array), block)
    if not len(begins):
        return array
    sums = np.add.reduceat(array, begins, axis=0)
    return np.asarray(sums / (ends - begins)[:, None].astype(array.dtype))


def extremes_of_blocks(array: Floats, block: int) -> Floats:
    """Maxima and then minima of the channels over every `block` rows, ``[blocks, 2 * d]``."""
    begins = blocks(len(array), block)[0]
    if not len(begins):
        return np.concatenate([array, array], axis=1)
    return np.concatenate(
        [np.maximum.reduceat(array, begins, axis=0), np.minimum.reduceat(array, begins, axis=0)], axis=1
    )


class Blocks:
    """Blocks of `query_block` queries that choose among blocks of `block` keys.

    Where a call is causal, some blocks are chosen before all others: those in which the queries
    themselves stand, which are seen in part and whose scores would tell of the future, and ``local - 1``
    blocks before them. In any call, so are the `first` blocks.

    Attributes
    ----------
    reach : int64 [query blocks]
        Blocks of keys, from the first on, that any of the queries may see.
    """

    def __init__(
        self, call: Call, block: int, *, query_block: int = 1, first: int = 0, local: int = 1
    ) -> None:
        self._call, self._block, self._query_block, self._first = call, block, query_block, first
        begins, ends = blocks(call.n_q, query_block)
        if call.causal:
            self.reach = -(-np.clip(ends + call.offset, 0, call.n_k) // block)
            self._own = np.maximum(begins + call.offset, 0) // block - (local - 1)
        else:
            self.reach = np.full(len(begins), -(-call.n_k // block), np.int64)
            self._own = self.reach
        self._rows = begins, ends

    @property
    def forced(self) -> Integers:
        """How many blocks every block of queries gets before all others."""
        own = np.maximum(self.reach - np.maximum(self._own, self._first), 0)
        return np.asarray(np.minimum(self._first, self.reach) + own)

    def always(self, rows: slice, count: int) -> npt.NDArray[np.bool_]:
        """Which of the first `count` blocks are chosen before all others, ``[rows, count]``."""
        place = np.arange(count)
        return np.asarray((place >= self._own[rows, None]) | (place < self._first))

    def choose(self, queries: Floats, keys: Floats, budget: int) -> npt.NDArray[np.int32]:
        """As :meth:`over_panels`, by ``queries @ keys.T`` with a row for every block in both."""
        return self.over_panels(
            len(keys), budget, lambda rows: scores_of(queries[rows], keys, self.reach[rows])
        )

    def over_panels(
        self, count: int, budget: int, scores: Callable[[slice], Floats]
    ) -> npt.NDArray[np.int32]:
        """Numbers of the chosen blocks of every block of queries, ascending, padded with -1.

        Parameters
        ----------
        count : int
            What decides how many rows are scored at a time: blocks of keys, or more if that takes more.
        budget : int
            Blocks of keys; more where more than that are chosen before all others.
        scores : callable
            ``scores(rows)`` gives ``[rows, blocks of keys]``, at least up to the panel's reach.
        """
        budgets = np.maximum(budget, self.forced)
        width = int(np.minimum(budgets, self.reach).max(initial=0))
        chosen = np.full((len(self.reach), width), -1, np.int32)

        def work(rows: slice) -> None:
            found = scores(rows)
            found[self.always(rows, found.shape[1])] = np.inf
            best = largest(found, self.reach[rows], budgets[rows])
            chosen[rows, : best.shape[1]] = best[:, :width]

        if width:
            for_each_rows(len(self.reach), count, work)
        return chosen

    def within(self, pairs: int, scores: Floats) -> npt.NDArray[np.int32]:
        """As :meth:`over_panels`, all blocks of queries drawing on one budget of pairs.

        Blocks are taken in the order of their scores until the next one would not fit; none after it is,
        so that a larger budget keeps what a smaller one chose. Those that are chosen before all others are
        in whatever the budget.

        Parameters
        ----------
        pairs : int
        scores : [query blocks, blocks of keys]
            Written to. Of equal scores the first counts as larger, NaN counts as the smallest.
        """
        scores[np.isnan(scores)] = -np.inf
        scores[self.always(slice(None), scores.shape[1])] = np.inf
        candidates = np.flatnonzero(np.arange(scores.shape[1]) < self.reach[:, None])
        order = candidates[np.argsort(-scores.reshape(-1)[candidates], kind="stable")]
        spent = np.cumsum(self._pairs(scores.shape[1]).reshape(-1)[order])
        count = max(int(np.searchsorted(spent, pairs, side="right")), int(self.forced.sum()))
        row, number = np.divmod(np.sort(order[:count]), max(scores.shape[1], 1))
        counts = np.bincount(row, minlength=len(scores))
        chosen = np.full((len(scores), int(counts.max(initial=0))), -1, np.int32)
        chosen[row, np.arange(count) - np.repeat(np.cumsum(counts) - counts, counts)] = number
        return chosen

    def _pairs(self, count: int) -> Integers:
        """Pairs of every block of queries with every block of keys that the call may see."""
        begins, ends = self._rows
        rows = (ends - begins)[:, None]
        edges = np.minimum(np.arange(count + 1, dtype=np.int64) * self._block, self._call.n_k)
        if not self._call.causal:
            return np.asarray(rows * np.diff(edges))

        def triangle(height: Integers) -> Integers:
            return np.asarray(np.where(height > 0, height * (height + 1) // 2, 0))

        # Query i sees max(0, i + offset + 1 - edge) keys from an edge on: sums of those are triangles.
        last = (ends + self._call.offset)[:, None] - edges
        behind = triangle(last) - triangle(last - rows)
        return np.asarray(behind[:, :-1] - behind[:, 1:])

    def pattern(self, chosen: npt.NDArray[np.int32], name: str) -> Pattern:
        """What the queries of every block see of the blocks that were chosen for them."""
        call, shape = self._call, (self._call.n_q, self._call.n_k)
        if self._query_block == 1:
            return Pattern.from_rows(shape, partial(_rows, chosen, self._block, call.visible), name=name)
        block_row, place = np.nonzero(chosen >= 0)
        number = chosen[block_row, place].astype(np.int64)
        # Neighbors become one piece: most choices have some, and pieces are drawn one by one.
        starts = np.ones(len(number), np.bool_)
        starts[1:] = (np.diff(number) != 1) | (np.diff(block_row) != 0)
        first = np.flatnonzero(starts)
        last = np.append(first[1:], len(number))[: len(first)] - 1
        begins, ends = self._rows
        pieces = make_pieces(
            rows=(begins[block_row[first]], ends[block_row[first]]),
            columns=(number[first] * self._block, np.minimum((number[last] + 1) * self._block, call.n_k)),
            differences=call.differences,
        )
        return Pattern.from_pieces(shape, pieces, name=name)


def _rows(
    chosen: npt.NDArray[np.int32], block: int, limits: Integers, begin: int, end: int
) -> tuple[Integers, npt.NDArray[np.int32]]:
    """Rows of a pattern whose queries have a list of blocks each."""
    mine, limit = chosen[begin:end], limits[begin:end, None]
    first = mine.astype(np.int64) * block
    counts = np.where(mine >= 0, np.clip(limit - first, 0, block), 0)
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts.sum(axis=1))])
    keys = np.empty(indptr[-1], np.int32)
    _write_blocks(first, counts, keys)
    return indptr, keys


@kernel
def _write_blocks(first, counts, keys):
    place = 0
    for row in range(first.shape[0]):
        for number in range(first.shape[1]):
            for i in range(counts[row, number]):
                keys[place] = first[row, number] + i
                place += 1

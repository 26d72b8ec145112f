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

__all__ = ["Blocks", "mean_of_blocks"]


def mean_of_blocks(array: Floats, block: int) -> Floats:
    """Mean of every `block` rows, ``[blocks, d]``; the last block may have fewer."""
    begins, ends = blocks(len(array), block)
    if not len(begins):
        return array
    sums = np.add.reduceat(array, begins, axis=0)
    return np.asarray(sums / (ends - begins)[:, None].astype(array.dtype))


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
        own = np.maximum(self.reach - np.maximum(self._own, self._first), 0)
        forced = np.minimum(self._first, self.reach) + own
        budgets = np.maximum(budget, forced)
        width = int(np.minimum(budgets, self.reach).max(initial=0))
        chosen = np.full((len(self.reach), width), -1, np.int32)

        def work(rows: slice) -> None:
            found = scores(rows)
            place = np.arange(found.shape[1])
            always = (place >= self._own[rows, None]) | (place < self._first)
            found[always] = np.inf
            best = largest(found, self.reach[rows], budgets[rows])
            chosen[rows, : best.shape[1]] = best[:, :width]

        if width:
            for_each_rows(len(self.reach), count, work)
        return chosen

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

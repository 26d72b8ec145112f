"""The choice of whole blocks of keys, and the patterns that it makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..formats.limits import Limits, Stretches, always_of, limits_of
from ..jit import kernel
from ..patterns._block_tables import BlockTables, stacked_tables
from ..patterns._spans import blocks
from ..patterns.heads import HeadPatterns
from ..patterns.pattern import Pattern
from ._call import Call, Floats, Integers
from ._tools import pick

__all__ = ["Blocks"]


class Blocks:
    """Blocks of `query_block` queries that choose among blocks of `block` keys.

    Where a call is causal, some blocks are chosen before all others: those in which the queries
    themselves stand, which are seen in part and whose scores would tell of the future, and ``local - 1``
    blocks before them. In any call, so are the `first` blocks.

    Attributes
    ----------
    limits : Limits
    reach : int64 [query blocks]
        Blocks of keys, from the first on, that any of the queries may see.
    """

    def __init__(
        self, call: Call, block: int, *, query_block: int = 1, first: int = 0, local: int = 1
    ) -> None:
        self._call, self._block, self._query_block = call, block, query_block
        self.limits = limits_of(call.n_q, call.n_k, causal=call.causal, per_row=query_block, block=block)
        self.reach = self.limits.values()
        self._always = always_of(block, causal=call.causal, first=first, local=local)
        self._rows = blocks(call.n_q, query_block)

    @property
    def forced(self) -> Integers:
        """How many blocks every block of queries gets before all others."""
        return self._always.counts(self.limits)

    def always(self, rows: slice, count: int) -> npt.NDArray[np.bool_]:
        """Which of the first `count` blocks are chosen before all others, ``[rows, count]``."""
        return self._always.mask(self.limits, rows, count)

    def best(self, queries: Any, keys: Any, budgets: Sequence[int]) -> Sequence[npt.NDArray[np.int32]]:
        """The choice of all heads by products of rows, one for every block: see :meth:`Tools.best`."""
        return self._call.tools.best(queries, keys, self.limits, self._always, budgets)

    def best_attended(
        self, keys: Any, stretches: Stretches, seen: Limits, factor: float, budgets: Sequence[int]
    ) -> Sequence[npt.NDArray[np.int32]]:
        """The choice of all key heads by the weights that blocks get: see :meth:`Tools.best_attended`."""
        return self._call.tools.best_attended(
            keys, stretches, seen, factor, self.limits, self._always, budgets
        )

    def over_panels(
        self, count: int, budget: int, scores: Callable[[slice], Floats]
    ) -> npt.NDArray[np.int32]:
        """The choice of one head by any scores: see :func:`~numba_sparse_attn.dynamic._tools.pick`."""
        return pick(self.limits, self._always, count, budget, scores)

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

    def patterns(self, tables: Sequence[npt.NDArray[np.int32]], name: str) -> Pattern | HeadPatterns:
        """What the queries of every block see of the blocks that were chosen for them.

        Parameters
        ----------
        tables : sequence of int32 [rows, width]
            Of every query head of every batch element, as :meth:`best` gives them; or of every key head.
        """
        call = self._call
        shape = call.n_q, call.n_k
        if self._query_block == 1:
            rows = [partial(_rows, table, self._block, call.visible) for table in tables]
            return call.stacked([Pattern.from_rows(shape, one, name=name) for one in rows])
        chosen = stacked_tables(tables)
        held = BlockTables(chosen, shape, self._block, self._query_block, call.causal)
        return call.stacked([Pattern(shape, source, name) for source in held.sources()])


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

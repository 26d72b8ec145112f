"""How far along keys, or blocks of keys, rows of queries may look: one formula for all engines."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .pieces import UNBOUNDED

__all__ = ["NOTHING", "Always", "Limits", "Stretches", "always_of", "limits_of"]


class Limits(NamedTuple):
    """Row r holds the queries ``r * per_row`` to ``last(r) = min((r + 1) * per_row, queries) - 1`` and sees

        min(most, (last(r) + 1 + offset + extra) // divisor),   at least 0,

    things, from the first on.

    Attributes
    ----------
    queries, per_row : int
    offset : int
        Query i stands where key ``i + offset`` does; :data:`~numba_sparse_attn.formats.pieces.UNBOUNDED` if
        every row sees everything.
    extra, divisor, most : int
    """

    queries: int
    per_row: int
    offset: int
    extra: int
    divisor: int
    most: int

    @property
    def rows(self) -> int:
        """How many there are."""
        return -(-self.queries // self.per_row)

    def values(self) -> npt.NDArray[np.int64]:
        """Of all rows, ``int64 [rows]``.

        Examples
        --------
        >>> limits_of(7, 9, causal=True, per_row=2, block=4).values().tolist()
        [1, 2, 2, 3]
        """
        ends = np.minimum(np.arange(1, self.rows + 1, dtype=np.int64) * self.per_row, self.queries)
        return np.clip((ends + self.offset + self.extra) // self.divisor, 0, self.most)


class Always(NamedTuple):
    """Blocks that a row has before all others.

    Attributes
    ----------
    block : int
        Keys in a block.
    first : int
        Blocks at the beginning.
    local : int
        Blocks that end with the one in which the row's first query stands, and all that the row sees after
        it; 0 for none.
    """

    block: int
    first: int
    local: int

    def own(self, limits: Limits) -> npt.NDArray[np.int64]:
        """The first of the blocks at the end, ``int64 [rows]``: not below the limit if there is none."""
        if not self.local:
            return limits.values()
        begins = np.arange(limits.rows, dtype=np.int64) * limits.per_row
        return np.asarray(np.maximum(begins + limits.offset, 0) // self.block - (self.local - 1))

    def mask(self, limits: Limits, rows: slice, count: int) -> npt.NDArray[np.bool_]:
        """Which of the first `count` blocks they are, ``[rows, count]``."""
        place = np.arange(count)
        return np.asarray((place >= self.own(limits)[rows, None]) | (place < self.first))

    def counts(self, limits: Limits) -> npt.NDArray[np.int64]:
        """How many blocks every row has before all others, ``int64 [rows]``."""
        reach = limits.values()
        last = np.maximum(reach - np.maximum(self.own(limits), self.first), 0)
        return np.asarray(np.minimum(self.first, reach) + last)


class Stretches(NamedTuple):
    """Stretches of `length` tokens, one every `stride`; only whole ones count."""

    length: int
    stride: int

    def count(self, n: int) -> int:
        """How many there are of `n` tokens."""
        return max(0, (n - self.length) // self.stride + 1)

    def seen(self, n_q: int, n_k: int, *, causal: bool) -> Limits:
        """How many of the first stretches every query may see: where causal, those that end in time."""
        offset = n_k - n_q if causal else UNBOUNDED
        return Limits(n_q, 1, offset, self.stride - self.length, self.stride, self.count(n_k))


#: Nothing is chosen before all others.
NOTHING = Always(1, 0, 0)


def limits_of(n_q: int, n_k: int, *, causal: bool, per_row: int = 1, block: int = 1) -> Limits:
    """Limits of `per_row` queries each that look at blocks of `block` keys; the last query stands by the last
    key.

    Examples
    --------
    >>> limits_of(3, 5, causal=True).values().tolist(), limits_of(3, 5, causal=False).values().tolist()
    ([3, 4, 5], [5, 5, 5])
    """
    offset = n_k - n_q if causal else UNBOUNDED
    return Limits(n_q, per_row, offset, block - 1, block, -(-n_k // block))


def always_of(block: int, *, causal: bool, first: int = 0, local: int = 1) -> Always:
    """The `first` blocks; where causal, those with a row's queries, and ``local - 1`` before them."""
    return Always(block, first, local if causal else 0)

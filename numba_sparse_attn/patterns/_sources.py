"""Where the pairs of a pattern come from: pieces, rows on demand, CSR, or a set operation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..formats.csr import Csr, canonical
from ..formats.permuted import permuted_rows
from ..formats.pieces import PieceArray, common_period, fold_pieces, transpose_pieces
from ..formats.tiles import TILE, Tiles

if TYPE_CHECKING:
    from ..formats.pool import MaskPool
    from ..formats.segments import Segments
    from ..orders.order import Order
    from .pattern import Pattern

__all__ = [
    "CombinedSource",
    "CsrSource",
    "PermutedSource",
    "PieceSource",
    "RowFunction",
    "RowSource",
    "Source",
]

#: rows(begin, end) -> (indptr, indices) of rows begin .. end - 1, canonical.
RowFunction = Callable[[int, int], tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]

#: Pairs of a permuted pattern that are listed at a time.
_PAIRS_AT_A_TIME = 1 << 22


class Source(ABC):
    """How the pairs of a pattern are made."""

    #: True where the number of unique masks does not follow the number of pairs.
    regular: bool = False
    #: True where :meth:`csr` answers without drawing masks.
    lists_rows: bool = False

    @abstractmethod
    def segments(self, shape: tuple[int, int], pool: MaskPool, first: int, end: int) -> Segments:
        """Segments of the tile rows first .. end - 1."""

    def tiles(self, shape: tuple[int, int]) -> Tiles | None:
        """Tiles, where they are had without segments."""
        return None

    def csr(self, shape: tuple[int, int]) -> Csr:
        """CSR rows; only where `lists_rows`."""
        raise AssertionError("this source does not list rows")

    def period(self, shape: tuple[int, int]) -> int:
        """The largest number modulo which tokens fall into classes that are alike and see themselves only, as
        far as that can be told at a glance; 1 if there is none.
        """
        return 1

    def folded(self, shape: tuple[int, int], period: int) -> Source:
        """Source of one such class; `period` divides :meth:`period`."""
        raise AssertionError("this source has no classes")

    @abstractmethod
    def transposed(self, shape: tuple[int, int]) -> Source:
        """Source of the transposed pattern; `shape` is this one's."""


class PieceSource(Source):
    regular = True

    def __init__(self, pieces: PieceArray) -> None:
        self.pieces = pieces

    def segments(self, shape: tuple[int, int], pool: MaskPool, first: int, end: int) -> Segments:
        from ..formats.segments import segments_from_pieces

        return segments_from_pieces(self.pieces, shape, pool, first, end)

    def period(self, shape: tuple[int, int]) -> int:
        return common_period(self.pieces, shape)

    def folded(self, shape: tuple[int, int], period: int) -> Source:
        return PieceSource(fold_pieces(self.pieces, shape, period))

    def transposed(self, shape: tuple[int, int]) -> Source:
        return PieceSource(transpose_pieces(self.pieces))


class CsrSource(Source):
    lists_rows = True

    def __init__(self, csr: Csr) -> None:
        self._csr = csr

    def segments(self, shape: tuple[int, int], pool: MaskPool, first: int, end: int) -> Segments:
        from ..formats.segments import segments_from_rows

        indptr = self._csr.indptr[first * TILE : end * TILE + 1]
        return segments_from_rows(indptr, self._csr.indices, shape, pool, first, end)

    def csr(self, shape: tuple[int, int]) -> Csr:
        return self._csr

    def transposed(self, shape: tuple[int, int]) -> Source:
        return CsrSource(self._csr.transposed)


class RowSource(Source):
    lists_rows = True

    def __init__(self, rows: RowFunction) -> None:
        self._rows = rows

    def segments(self, shape: tuple[int, int], pool: MaskPool, first: int, end: int) -> Segments:
        from ..formats.segments import segments_from_rows

        indptr, indices = self._rows(first * TILE, min(end * TILE, shape[0]))
        return segments_from_rows(indptr, indices, shape, pool, first, end)

    def csr(self, shape: tuple[int, int]) -> Csr:
        indptr, indices = self._rows(0, shape[0])
        indices = np.ascontiguousarray(indices, np.int32 if shape[1] <= 2**31 - 1 else np.int64)
        indptr = np.ascontiguousarray(indptr, np.int64)
        indices.flags.writeable = indptr.flags.writeable = False
        return Csr(shape, indptr, indices)

    def transposed(self, shape: tuple[int, int]) -> Source:
        return CsrSource(self.csr(shape).transposed)


class CombinedSource(Source):
    def __init__(self, operation: str, left: Source, right: Source) -> None:
        self._operation, self._left, self._right = operation, left, right
        self.regular = left.regular and right.regular

    def segments(self, shape: tuple[int, int], pool: MaskPool, first: int, end: int) -> Segments:
        from ..formats.segments import combine

        left = self._left.segments(shape, pool, first, end)
        return combine(self._operation, left, self._right.segments(shape, pool, first, end))

    def period(self, shape: tuple[int, int]) -> int:
        return gcd(self._left.period(shape), self._right.period(shape))

    def folded(self, shape: tuple[int, int], period: int) -> Source:
        left = self._left.folded(shape, period)
        return CombinedSource(self._operation, left, self._right.folded(shape, period))

    def transposed(self, shape: tuple[int, int]) -> Source:
        return CombinedSource(self._operation, self._left.transposed(shape), self._right.transposed(shape))


class PermutedSource(Source):
    """A pattern's pairs by their places in an order; read off its tiles if it is regular, else its rows."""

    def __init__(self, pattern: Pattern, order: Order) -> None:
        self._pattern, self._order = pattern, order
        self.regular = pattern.regular
        self.lists_rows = not pattern.regular

    def _rows(self, begin: int, end: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        structure = self._pattern.tiles() if self.regular else self._pattern.rows()
        return permuted_rows(structure, self._order.queries[begin:end], self._order.key_places)

    def segments(self, shape: tuple[int, int], pool: MaskPool, first: int, end: int) -> Segments:
        from ..formats.segments import joined, segments_from_rows

        # As many tile rows at a time as have about this many pairs: their lists are there only meanwhile.
        step = max(1, _PAIRS_AT_A_TIME // max(1, TILE * self._pattern.nnz // max(shape[0], 1)))
        parts = []
        for begin in range(first, end, step):
            last = min(begin + step, end)
            indptr, indices = self._rows(begin * TILE, min(last * TILE, shape[0]))
            parts.append(segments_from_rows(indptr, indices, shape, pool, begin, last))
        return joined(shape, pool, first, parts)

    def csr(self, shape: tuple[int, int]) -> Csr:
        return canonical(shape, *self._rows(0, shape[0]))

    def transposed(self, shape: tuple[int, int]) -> Source:
        return PermutedSource(self._pattern.T, self._order.T)

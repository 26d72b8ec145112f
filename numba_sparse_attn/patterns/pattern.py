"""Pattern: a lazy set of (query, key) pairs, its algebra and its conversions.

A pattern holds *how* its pairs are made (pieces, a function that lists rows, a CSR array, or a set
operation on two patterns) and turns that into tiles, CSR rows or a mask when asked, once. What it
holds does not grow with the square of the length, nor, for regular patterns, with the pairs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from ..errors import PatternError, ShapeError
from ..formats.csr import Csr
from ..formats.pieces import UNBOUNDED, PieceArray, intersect_pieces, make_pieces
from ..formats.tiles import Tiles
from ._sources import CombinedSource, CsrSource, PieceSource, RowFunction, RowSource, Source

if TYPE_CHECKING:
    from ..formats.segments import Segments
    from .heads import HeadPatterns

__all__ = ["Pattern"]

#: Tile rows that are drawn at a time where masks may all differ: bounds the memory of the pool.
_PANEL = 16


class Pattern:
    """A set of (query, key) pairs: which query sees which key.

    Made by the functions of :mod:`numba_sparse_attn.patterns`, by :func:`as_pattern` from a SciPy
    array, a mask or an index array, and by the operators ``|  &  -  ^  ~`` on patterns of one shape.
    A pattern never changes; what it has computed once it keeps.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> pattern = patterns.sliding_window(8, 1) | patterns.global_tokens(8, [0])
    >>> pattern
    <Pattern sliding_window(n=8, window=1) | global_tokens(n=8, tokens=[0]): 8 x 8>
    >>> pattern.nnz
    34
    >>> pattern.tocsr().shape
    (8, 8)
    """

    def __init__(self, shape: tuple[int, int], source: Source, name: str) -> None:
        self.shape = (int(shape[0]), int(shape[1]))
        self._source = source
        self.name = name
        #: What others keep with the pattern, such as plans.
        self.memo: dict[Any, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what others keep, which is of use in this process only."""
        return {**self.__dict__, "memo": {}}

    # Construction

    @classmethod
    def from_pieces(cls, shape: tuple[int, int], pieces: PieceArray, *, name: str = "pieces") -> Pattern:
        """The union of pieces (see :func:`numba_sparse_attn.formats.make_pieces`).

        Examples
        --------
        >>> from numba_sparse_attn.formats.pieces import make_pieces
        >>> Pattern.from_pieces((4, 4), make_pieces(rows=(0, 4), columns=(0, 4), differences=(0, 1))).nnz
        7
        """
        return cls(shape, PieceSource(pieces), name)

    @classmethod
    def from_rows(cls, shape: tuple[int, int], rows: RowFunction, *, name: str = "rows") -> Pattern:
        """Pairs that a function lists when they are needed.

        Parameters
        ----------
        shape : (n_q, n_k)
        rows : callable
            ``rows(begin, end)`` returns ``indptr`` (int64, ``end - begin + 1``) and ``indices`` of the
            rows begin .. end - 1, strictly increasing in every row. The same call must always give
            the same answer.

        Examples
        --------
        >>> import numpy as np
        >>> diagonal = Pattern.from_rows((4, 4), lambda a, b: (np.arange(b - a + 1), np.arange(a, b)))
        >>> diagonal.nnz
        4
        """
        return cls(shape, RowSource(rows), name)

    @classmethod
    def from_csr(cls, csr: Csr, *, name: str = "csr") -> Pattern:
        """The pairs of a canonical :class:`~numba_sparse_attn.formats.Csr`.

        Examples
        --------
        >>> from numba_sparse_attn import patterns
        >>> Pattern.from_csr(patterns.causal(4).rows()).nnz
        10
        """
        return cls(csr.shape, CsrSource(csr), name)

    @classmethod
    def from_predicate(
        cls,
        mask_mod: Callable[[int, int, int], bool],
        shape: tuple[int, int],
        *,
        heads: int | None = None,
        name: str | None = None,
    ) -> Any:
        """The pairs for which a function says yes.

        Parameters
        ----------
        mask_mod : callable
            ``mask_mod(head, i, j)``: whether query i sees key j. An ordinary Python function that Numba
            compiles; it may read arrays that it closes over, as they are now: they become a part of it.
        shape : (n_q, n_k)
        heads : int, optional
            Ask for this many heads. Without it the function is asked for head 0.
        name : str, optional
            That of the function, if not given.

        Returns
        -------
        Pattern, or HeadPatterns with `heads`
            One member for all heads if the function does not look at `head`.

        Notes
        -----
        The function is called for every pair, n_q x n_k times a head, when the pattern is first used. What is
        kept are runs of tiles and each distinct 128 x 128 mask once, never a bit for every pair.

        Examples
        --------
        >>> import numpy as np
        >>> document = np.array([0, 0, 1, 1, 1])
        >>> Pattern.from_predicate(lambda head, i, j: j <= i and document[i] == document[j], (5, 5)).nnz
        9
        >>> reach = Pattern.from_predicate(lambda head, i, j: abs(i - j) <= head, (5, 5), heads=2)
        >>> [member.nnz for member in reach]
        [5, 13]
        """
        from ._predicate import PredicateSource, checked_shape, compile_predicate, reads_head

        size = checked_shape(shape)
        draw = compile_predicate(mask_mod)
        called = str(name or getattr(mask_mod, "__name__", "predicate"))
        if heads is None:
            return cls(size, PredicateSource(draw, size), called)
        if heads < 1:
            raise PatternError(f"heads={heads}", "at least one head", "pass a positive count")
        if not reads_head(mask_mod):
            return cls(size, PredicateSource(draw, size), called).heads(heads)
        from .heads import HeadPatterns

        members = [cls(size, PredicateSource(draw, size, head), f"{called}[{head}]") for head in range(heads)]
        return HeadPatterns(members, np.arange(heads))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Pattern:
        """Read a pattern that :meth:`save` or ``scipy.sparse.save_npz`` wrote.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> from numba_sparse_attn import patterns
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "causal.npz"
        >>> patterns.causal(4).save(path)
        >>> Pattern.load(path).equals(patterns.causal(4))
        True
        """
        from ..formats.npz import read_npz

        return cls.from_csr(read_npz(path), name=os.path.basename(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the pairs as a SciPy ``.npz`` file (CSR), which SciPy alone can read.

        Examples
        --------
        See :meth:`load`.
        """
        scipy.sparse.save_npz(path, self.tocsr())

    # What it knows

    @property
    def regular(self) -> bool:
        """Whether memory and time follow tiles instead of pairs."""
        return self._source.regular

    @property
    def nnz(self) -> int:
        """Number of pairs, exactly."""
        return self._nnz

    @cached_property
    def _nnz(self) -> int:
        if self.regular:
            return self._segments.nnz
        if "_rows" in self.__dict__ or self._source.lists_rows:
            return self.rows().nnz
        return sum(panel.nnz for panel in self._panels())

    @property
    def sparsity(self) -> float:
        """Share of the n_q x n_k pairs that is *not* selected; 0.0 for an empty shape."""
        size = self.shape[0] * self.shape[1]
        return 1.0 - self.nnz / size if size else 0.0

    def __repr__(self) -> str:
        return f"<Pattern {self.name}: {self.shape[0]} x {self.shape[1]}>"

    def __contains__(self, pair: tuple[int, int]) -> bool:
        query, key = pair
        if not (0 <= query < self.shape[0] and 0 <= key < self.shape[1]):
            return False
        indptr, indices = self.rows().indptr, self.rows().indices
        row = indices[indptr[query] : indptr[query + 1]]
        position = int(np.searchsorted(row, key))
        return position < len(row) and int(row[position]) == key

    def equals(self, other: Pattern) -> bool:
        """Whether both select the same pairs.

        Examples
        --------
        >>> from numba_sparse_attn import patterns
        >>> patterns.causal(5).equals(patterns.band(5, 5, 0))
        True
        """
        return self.shape == other.shape and (self ^ other).nnz == 0

    # Engine forms

    @cached_property
    def _segments(self) -> Segments:
        from ..formats.pool import MaskPool
        from ..formats.segments import tile_count

        return self._source.segments(self.shape, MaskPool(), 0, tile_count(self.shape[0]))

    def _panels(self) -> Iterator[Segments]:
        """Segments, a few tile rows at a time, each with its own short-lived pool."""
        from ..formats.pool import MaskPool
        from ..formats.segments import tile_count

        row_tiles = tile_count(self.shape[0])
        for first in range(0, row_tiles, _PANEL):
            yield self._source.segments(self.shape, MaskPool(), first, min(first + _PANEL, row_tiles))

    @cached_property
    def _tiles(self) -> Tiles:
        return self._segments.to_tiles()

    def tiles(self) -> Tiles:
        """Tile lists in both directions with their pool of masks; computed once.

        Examples
        --------
        >>> from numba_sparse_attn import patterns
        >>> tiles = patterns.causal(1024).tiles()
        >>> tiles.full_count, tiles.partial_count, len(tiles.pool)
        (28, 8, 2)
        """
        return self._tiles

    @cached_property
    def _rows(self) -> Csr:
        if self._source.lists_rows:
            return self._source.csr(self.shape)
        if self.regular:
            return self._segments.to_csr()
        panels = [panel.to_csr() for panel in self._panels()]
        lengths = [np.diff(panel.indptr) for panel in panels]
        indptr = np.concatenate(
            [np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths or [np.zeros(0, np.int64)]))]
        )
        indices = np.concatenate([panel.indices for panel in panels] or [np.zeros(0, np.int32)])
        indptr.flags.writeable = indices.flags.writeable = False
        return Csr(self.shape, indptr, indices)

    def rows(self) -> Csr:
        """The pairs as canonical CSR rows; computed once.

        Examples
        --------
        >>> from numba_sparse_attn import patterns
        >>> patterns.causal(3).rows().indices.tolist()
        [0, 0, 1, 0, 1, 2]
        """
        return self._rows

    # SciPy and NumPy forms

    def tocsr(self) -> scipy.sparse.csr_array:
        """A SciPy CSR array of bool.

        Examples
        --------
        >>> from numba_sparse_attn import patterns
        >>> patterns.causal(3).tocsr().nnz
        6
        """
        from ..formats.csr import to_csr

        return to_csr(self.rows())

    def tocoo(self) -> scipy.sparse.coo_array:
        """A SciPy COO array of bool, in row order.

        Examples
        --------
        >>> from numba_sparse_attn import patterns
        >>> patterns.causal(2).tocoo().col.tolist()
        [0, 0, 1]
        """
        from ..formats.coo import to_coo

        return to_coo(self.rows())

    def tobsr(self, blocksize: tuple[int, int]) -> scipy.sparse.bsr_array:
        """A SciPy BSR array of bool; both lengths must be multiples of the block's.

        Examples
        --------
        >>> from numba_sparse_attn import patterns
        >>> patterns.block_local(8, 4).tobsr((4, 4)).indices.tolist()
        [0, 1]
        """
        from ..formats.bsr import to_bsr

        return to_bsr(self.rows(), blocksize)

    def toarray(self) -> npt.NDArray[np.bool_]:
        """The dense mask, ``bool [n_q, n_k]``: n_q x n_k bytes.

        Examples
        --------
        >>> from numba_sparse_attn import patterns
        >>> patterns.causal(2).toarray().tolist()
        [[True, False], [True, True]]
        """
        from ..formats.masks import to_mask

        return to_mask(self.rows())

    def toindices(self) -> npt.NDArray[np.int64]:
        """Keys of every query, ``int64 [n_q, k]``, padded with -1 behind the longest row's length.

        Examples
        --------
        >>> from numba_sparse_attn import patterns
        >>> patterns.causal(3).toindices().tolist()
        [[0, -1, -1], [0, 1, -1], [0, 1, 2]]
        """
        from ..formats.indices import to_indices

        return to_indices(self.rows())

    # Algebra

    def _combine(self, other: Any, operation: str, symbol: str) -> Pattern:
        if not isinstance(other, Pattern):
            other = _as_pattern(other)
        if other.shape != self.shape:
            raise ShapeError(
                f"patterns of shapes {self.shape} and {other.shape} in one set operation",
                "patterns of one shape",
                "build both for the same number of queries and keys",
            )
        name = f"{self.name} {symbol} {other.name}"
        left, right = self._source, other._source
        if isinstance(left, PieceSource) and isinstance(right, PieceSource):
            if operation == "or":
                return Pattern(self.shape, PieceSource(np.concatenate([left.pieces, right.pieces])), name)
            if operation == "and":
                met = intersect_pieces(left.pieces, right.pieces)
                if met is not None:
                    return Pattern(self.shape, PieceSource(met), name)
        return Pattern(self.shape, CombinedSource(operation, left, right), name)

    def __or__(self, other: Any) -> Pattern:
        return self._combine(other, "or", "|") if _is_operand(other) else NotImplemented

    def __and__(self, other: Any) -> Pattern:
        return self._combine(other, "and", "&") if _is_operand(other) else NotImplemented

    def __sub__(self, other: Any) -> Pattern:
        return self._combine(other, "sub", "-") if _is_operand(other) else NotImplemented

    def __xor__(self, other: Any) -> Pattern:
        return self._combine(other, "xor", "^") if _is_operand(other) else NotImplemented

    # A NumPy array on the left must not take the operator element by element.
    __array_ufunc__ = None

    def __ror__(self, other: Any) -> Pattern:
        return _as_pattern(other) | self

    def __rand__(self, other: Any) -> Pattern:
        return _as_pattern(other) & self

    def __rsub__(self, other: Any) -> Pattern:
        return _as_pattern(other) - self

    def __rxor__(self, other: Any) -> Pattern:
        return _as_pattern(other) ^ self

    def __invert__(self) -> Pattern:
        everything = PieceSource(make_pieces(rows=(0, self.shape[0]), columns=(0, self.shape[1])))
        return Pattern(self.shape, CombinedSource("sub", everything, self._source), f"~({self.name})")

    @property
    def T(self) -> Pattern:
        """Queries and keys exchanged."""
        return Pattern(self.shape[::-1], self._source.transposed(self.shape), f"({self.name}).T")

    def causal(self) -> Pattern:
        """The pairs that do not look ahead: j - i <= n_k - n_q, so the last query sees the last key.

        Examples
        --------
        >>> from numba_sparse_attn import patterns
        >>> patterns.sliding_window(6, 1).causal().equals(patterns.sliding_window(6, 1, causal=True))
        True
        """
        n_q, n_k = self.shape
        band = make_pieces(rows=(0, n_q), columns=(0, n_k), differences=(-UNBOUNDED, n_k - n_q))
        past = Pattern(self.shape, PieceSource(band), "causal")
        result = self & past
        result.name = f"({self.name}).causal()"
        return result

    def heads(self, count: int) -> HeadPatterns:
        """The same pattern for `count` heads; add two such results to mix heads.

        Examples
        --------
        >>> from numba_sparse_attn import patterns
        >>> mixed = patterns.causal(16).heads(3) + patterns.sliding_window(16, 2).heads(1)
        >>> len(mixed)
        4
        """
        if count < 1:
            raise PatternError(f"heads({count})", "at least one head", "pass a positive count")
        from .heads import HeadPatterns

        return HeadPatterns([self], np.zeros(count, np.int32))


def _is_operand(value: Any) -> bool:
    """What stands beside a Pattern in a set operation; HeadPatterns bring their own operators."""
    return isinstance(value, Pattern | np.ndarray) or scipy.sparse.issparse(value)


def _as_pattern(value: Any) -> Pattern:
    """One pattern from anything that says which query sees which key."""
    from .convert import as_pattern

    made = as_pattern(value)
    if not isinstance(made, Pattern):
        raise PatternError(
            "patterns for several heads beside one pattern", "operands for one head", "put HeadPatterns first"
        )
    return made

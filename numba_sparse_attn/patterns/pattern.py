"""Pattern: a lazy set of (query, key) pairs, its algebra and its conversions.

A pattern holds *how* its pairs are made (pieces, a function that lists rows, a CSR array, or a set
operation on two patterns) and turns that into tiles, CSR rows or a mask when asked, once. What it
holds does not grow with the square of the length, nor, for regular patterns, with the pairs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from ..errors import PatternError, ShapeError
from ..formats.csr import Csr
from ..formats.pieces import UNBOUNDED, PieceArray, intersect_pieces, make_pieces
from ..formats.tiles import Tiles
from ..orders.order import Order, Recipe, as_order
from ._sources import (
    CombinedSource,
    CsrSource,
    PermutedSource,
    PieceSource,
    RowFunction,
    RowSource,
    Source,
)

if TYPE_CHECKING:
    from ..formats.census import Census
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

    def __init__(
        self, shape: tuple[int, int], source: Source, name: str, *, orders: Sequence[Recipe] = ()
    ) -> None:
        self.shape = (int(shape[0]), int(shape[1]))
        self._source = source
        self.name = name
        self._recipes = tuple(orders)
        #: What others keep with the pattern, such as plans.
        self.memo: dict[Any, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what others keep, which is of use in this process only."""
        return {**self.__dict__, "memo": {}}

    # Construction

    @classmethod
    def from_pieces(
        cls,
        shape: tuple[int, int],
        pieces: PieceArray,
        *,
        name: str = "pieces",
        orders: Sequence[Recipe] = (),
    ) -> Pattern:
        """The union of pieces (see :func:`numba_sparse_attn.formats.make_pieces`); `orders` suit it.

        Examples
        --------
        >>> from numba_sparse_attn.formats.pieces import make_pieces
        >>> Pattern.from_pieces((4, 4), make_pieces(rows=(0, 4), columns=(0, 4), differences=(0, 1))).nnz
        7
        """
        return cls(shape, PieceSource(pieces), name, orders=orders)

    @classmethod
    def from_rows(
        cls,
        shape: tuple[int, int],
        rows: RowFunction,
        *,
        name: str = "rows",
        orders: Sequence[Recipe] = (),
    ) -> Pattern:
        """Pairs that a function lists when they are needed.

        Parameters
        ----------
        shape : (n_q, n_k)
        rows : callable
            ``rows(begin, end)`` returns ``indptr`` (int64, ``end - begin + 1``) and ``indices`` of the
            rows begin .. end - 1, strictly increasing in every row. The same call must always give
            the same answer.
        orders : sequence of Recipe
            Those that suit it: see :attr:`orders`.

        Examples
        --------
        >>> import numpy as np
        >>> diagonal = Pattern.from_rows((4, 4), lambda a, b: (np.arange(b - a + 1), np.arange(a, b)))
        >>> diagonal.nnz
        4
        """
        return cls(shape, RowSource(rows), name, orders=orders)

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
            How many heads to ask for; head 0 alone without it.
        name : str, optional

        Returns
        -------
        Pattern, or HeadPatterns with `heads`
            One member for all heads if the function does not look at `head`.

        Notes
        -----
        The function is called for every pair of a head when the pattern is first used. What is kept are runs
        of tiles and each distinct 128 x 128 mask once, never a bit for every pair.

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
        from ._predicate import pattern_of

        return pattern_of(mask_mod, shape, heads, name)

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
            tiles = self._source.tiles(self.shape)
            return self._segments.nnz if tiles is None else tiles.nnz
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

    # Orders

    @cached_property
    def orders(self) -> tuple[Order, ...]:
        """Orders of tokens of which a plan may choose one, because tiles are fuller in it; made once.

        Set operations keep those of both sides.

        Examples
        --------
        >>> from numba_sparse_attn import patterns
        >>> patterns.dilated_window(4096, 64, 16).causal().orders
        (<Order residues mod 16: 4096 x 4096>,)
        """
        return tuple(recipe() for recipe in self._recipes)

    @cached_property
    def in_orders(self) -> tuple[Pattern, ...]:
        """The pattern by its places in each of its orders."""
        return tuple(self.permuted(order) for order in self.orders)

    def with_orders(self, *orders: Any) -> Pattern:
        """The same pairs, with further orders for plans to choose from.

        Parameters
        ----------
        *orders : Order or pair of permutations
            See :mod:`numba_sparse_attn.orders`.

        Examples
        --------
        >>> import numba_sparse_attn as nsa
        >>> pattern = nsa.patterns.random_keys(64, per_query=3, seed=0)
        >>> pattern.with_orders(nsa.orders.reverse_cuthill_mckee(pattern)).orders
        (<Order reverse Cuthill-McKee: 64 x 64>,)
        """
        more = [Recipe.of(as_order(order, self.shape)) for order in orders]
        return Pattern(self.shape, self._source, self.name, orders=(*self._recipes, *more))

    def permuted(self, order: Any) -> Pattern:
        """The pairs by their places in an order: (p, s) for every pair (queries[p], keys[s]) of this one.

        Parameters
        ----------
        order : Order or pair of permutations

        Examples
        --------
        >>> import numba_sparse_attn as nsa
        >>> even_and_odd = nsa.orders.residues(4, 2)
        >>> nsa.patterns.dilated_window(4, 1, 2).permuted(even_and_odd).toarray().astype(int)
        array([[1, 1, 0, 0],
               [1, 1, 0, 0],
               [0, 0, 1, 1],
               [0, 0, 1, 1]])
        """
        checked = as_order(order, self.shape)
        return Pattern(self.shape, PermutedSource(self, checked), f"{self.name} in order {checked.name}")

    @cached_property
    def period(self) -> int:
        """A number modulo which tokens fall into classes that are alike and see only themselves; 1 if none is
        known.

        Examples
        --------
        >>> from numba_sparse_attn import patterns
        >>> patterns.dilated_window(4096, 64, 16).causal().period, patterns.strided(64, 8, 2).period
        (16, 1)
        """
        return self._source.period(self.shape)

    def folded(self, period: int) -> Pattern:
        """One of the `period` classes, which all look like this.

        Examples
        --------
        >>> from numba_sparse_attn import patterns
        >>> patterns.dilated_window(64, 3, 16).folded(16).equals(patterns.sliding_window(4, 3))
        True
        """
        if period < 1 or self.period % period:
            raise PatternError(
                f"folded({period}) of {self.name}", f"divisors of its period, {self.period}", "choose one"
            )
        if period == 1:
            return self
        shape = self.shape[0] // period, self.shape[1] // period
        return Pattern(shape, self._source.folded(self.shape, period), f"every {period}th of {self.name}")

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
        tiles = self._source.tiles(self.shape)
        return self._segments.to_tiles() if tiles is None else tiles

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

    @cached_property
    def census(self) -> Census:
        """Sizes that predictions are made from, taken from what is cheapest to build."""
        from ..formats.census import census_of_rows, census_of_tiles

        return census_of_tiles(self.tiles()) if self.regular else census_of_rows(self.rows())

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
        known = self._recipes
        orders = (*known, *(one for one in other._recipes if not any(map(one.same, known))))
        left, right = self._source, other._source
        if isinstance(left, PieceSource) and isinstance(right, PieceSource):
            if operation == "or":
                union = PieceSource(np.concatenate([left.pieces, right.pieces]))
                return Pattern(self.shape, union, name, orders=orders)
            if operation == "and":
                met = intersect_pieces(left.pieces, right.pieces)
                if met is not None:
                    return Pattern(self.shape, PieceSource(met), name, orders=orders)
        return Pattern(self.shape, CombinedSource(operation, left, right), name, orders=orders)

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
        rest = CombinedSource("sub", everything, self._source)
        return Pattern(self.shape, rest, f"~({self.name})", orders=self._recipes)

    @property
    def T(self) -> Pattern:
        """Queries and keys exchanged."""
        source = self._source.transposed(self.shape)
        orders = [recipe.turned() for recipe in self._recipes]
        return Pattern(self.shape[::-1], source, f"({self.name}).T", orders=orders)

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

"""Patterns from a function of one pair: compiled by Numba, drawn a row of tiles at a time.

What is held are tile masks, each distinct one once, and never a bit for every pair: a window or a causal
mask that is written as a function so takes as little memory as the named pattern.
"""

from __future__ import annotations

import dis
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import config
from ..errors import ArgumentError, PatternError
from ..formats.tiles import TILE, WORDS
from ..jit import compiled_by_user, for_each, inlined
from ._sources import Source

if TYPE_CHECKING:
    from ..formats.pool import MaskPool
    from ..formats.segments import Segments
    from .heads import HeadPatterns
    from .pattern import Pattern

__all__ = ["PredicateSource", "compile_predicate", "pattern_of", "reads_head"]

#: Tiles of a row that are worth handing to another thread: a millisecond of a cheap function.
_TILES_A_SHARE = 32
#: A pattern counts as regular while it has no more masks than these and a quarter of its tiles.
_MASKS_FOR_ALL, _TILES_A_MASK = 64, 4


def pattern_of(
    function: Callable[..., Any], shape: Any, heads: int | None, name: str | None
) -> Pattern | HeadPatterns:
    """What :meth:`Pattern.from_predicate` makes of its arguments."""
    from .heads import HeadPatterns
    from .pattern import Pattern

    size = _checked_shape(shape)
    draw = compile_predicate(function)
    called = str(name or getattr(function, "__name__", "predicate"))
    if heads is None:
        return Pattern(size, PredicateSource(draw, size), called)
    if heads < 1:
        raise PatternError(f"heads={heads}", "at least one head", "pass a positive count")
    if not reads_head(function):
        return Pattern(size, PredicateSource(draw, size), called).heads(heads)
    members = [Pattern(size, PredicateSource(draw, size, head), f"{called}[{head}]") for head in range(heads)]
    return HeadPatterns(members, np.arange(heads))


@inlined
def _draw(function, head, swapped, row_tile, first, last, shape, masks):
    """Set the bits of tiles first .. last - 1 of a tile row; `masks` comes zeroed."""
    for tile in range(first, last):
        for row in range(min(TILE, shape[0] - row_tile * TILE)):
            for word in range(WORDS):
                column = tile * TILE + 64 * word
                bits = np.uint64(0)
                for bit in range(min(64, shape[1] - column)):
                    if swapped:
                        chosen = function(head, column + bit, row_tile * TILE + row)
                    else:
                        chosen = function(head, row_tile * TILE + row, column + bit)
                    if chosen:
                        bits |= np.uint64(1) << np.uint64(bit)
                masks[tile, WORDS * row + word] = bits


def compile_predicate(function: Callable[..., Any]) -> Callable[..., Any]:
    """What draws tiles of a predicate; refuses one that Numba does not compile."""
    # Compiled now, and first by itself: what is wrong with it is so said where it is handed in, and of it.
    call = compiled_by_user(function, "mask_mod", PatternError, "(int64, int64, int64)")
    return compiled_by_user(
        _make_draw(call),
        "mask_mod",
        PatternError,
        "void(int64, boolean, int64, int64, int64, UniTuple(int64, 2), uint64[:, ::1])",
        shown=function,
    )


def _make_draw(function: Callable[..., Any]) -> Callable[..., Any]:
    """:func:`_draw` closed over one predicate."""

    def draw(head, swapped, row_tile, first, last, shape, masks):
        _draw(function, head, swapped, row_tile, first, last, shape, masks)

    return draw


def reads_head(function: Callable[..., Any]) -> bool:
    """Whether a predicate looks at its first argument at all; if not, all heads are alike."""
    code = getattr(function, "py_func", function).__code__
    if not code.co_argcount:
        return True  # *arguments: who knows
    name = code.co_varnames[0]
    return name in code.co_cellvars or any(
        name == read or (isinstance(read, tuple) and name in read)
        for read in (step.argval for step in dis.get_instructions(code))
    )


class PredicateSource(Source):
    """Pairs for which a compiled function of (head, query, key) says yes."""

    def __init__(
        self, draw: Callable[..., Any], shape: tuple[int, int], head: int = 0, swapped: bool = False
    ) -> None:
        self._draw, self._shape, self._head, self._swapped = draw, shape, head, swapped
        self._known: tuple[bool, Segments | None] | None = None

    @property
    def regular(self) -> bool:  # type: ignore[override]
        """Whether the masks are few; found out by drawing until they are many, or to the end."""
        if self._known is None:
            from ..formats.pool import MaskPool
            from ..formats.segments import segments_from_tiles, tile_count

            pool = MaskPool()

            def few(done: int) -> bool:
                return pool.count <= _MASKS_FOR_ALL + done * tile_count(self._shape[1]) // _TILES_A_MASK

            drawn = segments_from_tiles(
                self._tiles, self._shape, pool, 0, tile_count(self._shape[0]), proceed=few
            )
            self._known = drawn is not None, drawn
        return self._known[0]

    def segments(self, shape: tuple[int, int], pool: MaskPool, first: int, end: int) -> Segments:
        from ..formats.segments import moved_segments, segments_from_tiles

        if self._known is not None and self._known[1] is not None:
            return moved_segments(self._known[1], pool, first, end)
        drawn = segments_from_tiles(self._tiles, shape, pool, first, end)
        assert drawn is not None
        return drawn

    def transposed(self, shape: tuple[int, int]) -> Source:
        return PredicateSource(self._draw, shape[::-1], self._head, not self._swapped)

    def _tiles(self, row_tile: int, masks: npt.NDArray[np.uint64]) -> None:
        """The masks of a tile row into a zeroed array ``[column tiles, TILE * WORDS]``."""
        count = len(masks)
        step = max(_TILES_A_SHARE, -(-count // config.thread_count()))
        bounds = [*range(0, count, step), count]

        def work(share: tuple[int, int], worker: int) -> None:
            self._draw(self._head, self._swapped, row_tile, *share, self._shape, masks)

        for_each(work, itertools.pairwise(bounds))


def _checked_shape(shape: Any) -> tuple[int, int]:
    """(n_q, n_k) as two whole numbers."""
    lengths = tuple(shape) if isinstance(shape, tuple | list) else ()
    if len(lengths) != 2 or not all(isinstance(n, int | np.integer) and n >= 0 for n in lengths):
        raise ArgumentError(f"shape={shape!r}", "(n_q, n_k), two whole numbers", "pass both lengths")
    return int(lengths[0]), int(lengths[1])

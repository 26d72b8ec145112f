"""Products of a warp's rows with a matrix in shared memory, by its rows (scores) or by its columns (sums).

Matrices lie as in ``shared_rows.py``. A warp has 16 rows or 32; the second 16 are in arrays of their own.
Loops over steps of 16 are written out here: compilers for some targets would leave them as loops, and then
registers have to be addressed by numbers that are not known.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from numba import cuda, int32

from . import fragments
from .shared_rows import pieces_at

__all__ = ["left_loader", "product_with_columns", "product_with_rows", "right_count"]

_NEGATED = -0x7FFF8000  # both signs of a word


def right_count(width: int) -> int:
    """Words that a product with `width` columns, and any with rows, needs for its right operand."""
    return 4 * max(2, -(-width // 64))


@functools.cache
def left_loader(depth: int, row_bytes: int, row_tiles: int, *, negate: bool) -> Callable[..., Any]:
    """Device function ``(left, rows)``: all steps' left operands of a warp, to stay in registers."""
    load = _left_step(row_bytes, row_tiles, negate)

    @cuda.jit(device=True, inline="always")
    def load_all(left, rows):
        for i in range(depth // 16):
            load(left, 4 * row_tiles * i, pieces_at(rows, i))

    return load_all


@functools.cache
def _left_step(row_bytes: int, row_tiles: int, negate: bool) -> Callable[..., Any]:
    """Device function ``(left, first, address)``: the left operand of one step of the depth."""
    load_one, place_of = fragments.load_matrices(1, 0, transposed=False), fragments.place_of

    @cuda.jit(device=True, inline="always")
    def load(left, first, address):
        load_one(left, first, address)
        if row_tiles == 2:
            load_one(left, first + 4, place_of(address + 16 * row_bytes))
        if negate:
            for i in range(4 * row_tiles):
                left[first + i] = left[first + i] ^ int32(_NEGATED)

    return load


@functools.cache
def product_with_rows(
    kind: str, depth: int, columns: int, left_row: int, row_bytes: int, row_tiles: int, *,
    stay: bool, negate: bool,
) -> Callable[..., Any]:  # fmt: skip
    """Device function ``(scores, more_scores, left, right, left_rows, rows)``: add ``left @ matrix.T``.

    The matrix has `columns` rows of `depth`, `rows` is a lane's address in it. `left` holds the warp's rows
    if they `stay` in registers; else it has room for one step of them, which is loaded from `left_rows`.
    """
    pairs = min(2, columns // 16)
    place_of, load_left = fragments.place_of, _left_step(left_row, row_tiles, negate)
    load_rows = fragments.load_matrices(pairs, 16 * row_bytes, transposed=False)
    multiply = fragments.multiply(kind, pairs, 8, crossed=True)

    def after(before: Any, i: int) -> Any:
        """One step of the depth after others."""
        first = 4 * row_tiles * i if stay else 0

        @cuda.jit(device=True, inline="always")
        def steps(scores, more_scores, left, right, left_rows, rows):
            if i > 0:
                before(scores, more_scores, left, right, left_rows, rows)
            if not stay:
                load_left(left, 0, pieces_at(left_rows, i))
            for part in range(columns // (16 * pairs)):
                load_rows(right, 0, place_of(pieces_at(rows, i) + 16 * pairs * row_bytes * part))
                multiply(scores, 8 * pairs * part, left, first, right)
                if row_tiles == 2:
                    multiply(more_scores, 8 * pairs * part, left, first + 4, right)

        return steps

    product: Callable[..., Any] = functools.reduce(after, range(depth // 16), None)
    return product


@functools.cache
def product_with_columns(
    kind: str, width: int, count: int, row_bytes: int, row_tiles: int
) -> Callable[..., Any]:
    """Device function ``(sums, more_sums, weights, more_weights, right, rows)``: add ``weights @ matrix``.

    The matrix has `count` rows of `width`, `rows` is a lane's address in it.
    """
    whole_lines, some_lines = width // 64, -(-width // 64)
    place_of = fragments.place_of
    # Pairs of 8 columns that lie at one place of a line, in all lines that go that far.
    load = fragments.load_matrices(some_lines, 128, transposed=True)
    load_whole = fragments.load_matrices(whole_lines, 128, transposed=True)
    multiply = fragments.multiply(kind, some_lines, 32, crossed=False)
    multiply_whole = fragments.multiply(kind, whole_lines, 32, crossed=False)

    def after(before: Any, i: int) -> Any:
        """One step of the matrix's rows after others."""

        @cuda.jit(device=True, inline="always")
        def steps(sums, more_sums, weights, more_weights, right, rows):
            if i > 0:
                before(sums, more_sums, weights, more_weights, right, rows)
            for pair in range(2):
                load(right, 0, place_of(pieces_at(rows, pair) + 16 * row_bytes * i))
                multiply(sums, 8 * pair, weights, 4 * i, right)
                if row_tiles == 2:
                    multiply(more_sums, 8 * pair, more_weights, 4 * i, right)
            if whole_lines > 0:
                for pair in range(2, 4):
                    load_whole(right, 0, place_of(pieces_at(rows, pair) + 16 * row_bytes * i))
                    multiply_whole(sums, 8 * pair, weights, 4 * i, right)
                    if row_tiles == 2:
                        multiply_whole(more_sums, 8 * pair, more_weights, 4 * i, right)

        return steps

    product: Callable[..., Any] = functools.reduce(after, range(count // 16), None)
    return product

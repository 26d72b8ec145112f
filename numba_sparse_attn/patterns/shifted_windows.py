"""Windows of a grid, moved by a shift."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt, prod
from typing import Any

import numpy as np

from ..errors import PatternError
from ..formats.pieces import make_pieces
from ._arguments import check_per_axis, check_shape, title
from ._grids import coordinates, per_axis
from ._spans import Spans, spread
from .catalogue import Integers, entry
from .pattern import Pattern

__all__ = ["shifted_windows"]


def _member(
    i: int, j: int, shape: Sequence[int], window: int | Sequence[int], shift: int | Sequence[int]
) -> bool:
    sizes, shifts = per_axis(window, shape), per_axis(shift, shape)
    labels = [
        [(x - moved) // size for x, moved, size in zip(coordinates(token, shape), shifts, sizes, strict=True)]
        for token in (i, j)
    ]
    return labels[0] == labels[1]


def _nnz(shape: Sequence[int], window: int | Sequence[int], shift: int | Sequence[int]) -> int:
    total = 1
    for length, size, moved in zip(shape, per_axis(window, shape), per_axis(shift, shape), strict=True):
        head = min(moved, length)
        whole, rest = divmod(length - head, size)
        total *= head**2 + whole * size**2 + rest**2
    return total


def _sample(integers: Integers) -> dict[str, Any]:
    rank = integers(1, 3)
    window = [integers(1, 4) for _ in range(rank)]
    return {
        "shape": [integers(0, (0, 14, 6, 4)[rank]) for _ in range(rank)],
        "window": window,
        "shift": [integers(0, size - 1) for size in window],
    }


@entry(
    examples=[
        {"shape": (8, 8), "window": 4, "shift": 2},
        {"shape": (8, 8), "window": 4, "shift": 0},
        {"shape": (7, 9), "window": (3, 2), "shift": (1, 0)},
        {"shape": (2, 3, 4), "window": 2, "shift": 1},
        {"shape": (0, 4), "window": 2, "shift": 1},
    ],
    member=_member,
    sample=_sample,
    nnz=_nnz,
    scaled=lambda length: {"shape": (isqrt(length), isqrt(length)), "window": 8, "shift": 4},
)
def shifted_windows(shape: Sequence[int], window: int | Sequence[int], shift: int | Sequence[int]) -> Pattern:
    """A grid is cut into windows that begin at `shift`; every query sees its own window.

    ::

        {(i, j) : floor((x[a](i) - shift[a]) / window[a]) = floor((x[a](j) - shift[a]) / window[a])
                  for every axis a}

    with x(i) the coordinates of token i in C order. Cells before `shift` and after the last whole
    window make smaller windows. This is what a cyclic shift with a mask between its parts computes.

    Parameters
    ----------
    shape : sequence of int
        Lengths of the axes of the grid; n is their product.
    window : int or sequence of int
        Cells of a window along each axis, at least 1.
    shift : int or sequence of int
        Where the first whole window begins along each axis, from 0 to ``window - 1``.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``.

    Notes
    -----
    Pairs: exactly the product over the axes of the sum of the squared window sizes along the axis;
    ``n * prod(window)`` where windows fit without rest.

    Cost: O(n * prod(window) * d) time; the pattern is one piece for every two lines of a window.

    Reach: the window after one layer. Layers with shift 0 and ``window / 2`` in turn carry information
    half a window further each.

    Use: for images and video in layers with alternating shifts, as in Swin.

    Avoid: with one shift in all layers, as windows then never exchange anything.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.shifted_windows((5,), 2, 1).toarray().astype(int)
    array([[1, 0, 0, 0, 0],
           [0, 1, 1, 0, 0],
           [0, 1, 1, 0, 0],
           [0, 0, 0, 1, 1],
           [0, 0, 0, 1, 1]])
    """
    grid = check_shape("shape", shape)
    sizes = check_per_axis("window", window, len(grid), low=1)
    shifts = check_per_axis("shift", shift, len(grid))
    for size, moved in zip(sizes, shifts, strict=True):
        if moved >= size:
            raise PatternError(
                f"shift={shift} for window={window}",
                "a shift from 0 to window - 1",
                "take shift modulo window",
            )
    query_line, key_line = np.zeros(1, np.int64), np.zeros(1, np.int64)
    for length, size, moved in zip(grid[:-1], sizes[:-1], shifts[:-1], strict=True):
        begins, ends = _windows(length, size, moved)
        owner, query = spread(ends - begins)
        query += begins[owner]
        position, key = spread((ends - begins)[owner])
        key += begins[owner][position]
        query_line = (query_line[:, None] * length + query[position]).reshape(-1)
        key_line = (key_line[:, None] * length + key).reshape(-1)
    length = grid[-1]
    begins, ends = _windows(length, sizes[-1], shifts[-1])
    row, column = query_line[:, None] * length, key_line[:, None] * length
    pieces = make_pieces(rows=(row + begins, row + ends), columns=(column + begins, column + ends))
    n = prod(grid)
    name = title(shifted_windows, shape=grid, window=window, shift=shift)
    return Pattern.from_pieces((n, n), pieces, name=name)


def _windows(length: int, window: int, shift: int) -> Spans:
    """The windows along one axis."""
    cuts = np.unique(np.concatenate([[0], np.arange(shift, length, window), [length]])).astype(np.int64)
    return cuts[:-1], cuts[1:]

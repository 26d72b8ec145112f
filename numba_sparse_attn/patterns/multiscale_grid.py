"""A pyramid of grids over an image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import isqrt, prod

import numpy as np

from ..formats.pieces import Axis, PieceArray, make_pieces
from ._arguments import check_flag, check_int, check_shape, title
from ._grids import MOST_LEVELS, Level, cell_of_token, is_neighbor, link_rows, neighborhood_pieces, pyramid
from .catalogue import Integers, entry
from .pattern import Pattern

__all__ = ["multiscale_grid"]


def _member(i: int, j: int, shape: Sequence[int], levels: int, window: int = 8, border: bool = True) -> bool:
    (own, y, x), (other, key_y, key_x) = cell_of_token(i, shape, levels), cell_of_token(j, shape, levels)
    if own != other:
        steps = max(other, own)
        return (y >> (steps - own), x >> (steps - own)) == (
            key_y >> (steps - other),
            key_x >> (steps - other),
        )
    height, width = (-(-length // 2**own) for length in shape)
    if border and (key_y in (0, height - 1) or key_x in (0, width - 1)):
        return True
    return is_neighbor(y, key_y, height, window, 1) and is_neighbor(x, key_x, width, window, 1)


def _nnz(shape: Sequence[int], levels: int, window: int = 8, border: bool = True) -> int | None:
    if border:
        return None
    sizes = [[-(-length // 2**level) for length in shape] for level in range(levels)]
    links = sum(2 * level_cells * (levels - 1 - level) for level, level_cells in enumerate(map(prod, sizes)))
    return links + sum(prod(length * min(window, length) for length in size) for size in sizes)


def _sample(integers: Integers) -> dict[str, object]:
    return {
        "shape": (integers(0, 5), integers(0, 5)),
        "levels": integers(1, 4),
        "window": integers(1, 5),
        "border": bool(integers(0, 1)),
    }


@entry(
    examples=[
        {"shape": (8, 8), "levels": 3, "window": 3, "border": False},
        {"shape": (8, 8), "levels": 3, "window": 3},
        {"shape": (7, 5), "levels": 3, "window": 4},
        {"shape": (4, 4), "levels": 1},
        {"shape": (0, 4), "levels": 2},
    ],
    member=_member,
    sample=_sample,
    nnz=_nnz,
    scaled=lambda length: {"shape": (isqrt(length), isqrt(length)), "levels": 3},
)
def multiscale_grid(shape: Sequence[int], levels: int, *, window: int = 8, border: bool = True) -> Pattern:
    """A pyramid of grids: cells see their neighborhood, the cells above and below, and the border.

    ::

        {(i, j) : l(i) = l(j) and j in the window x window neighborhood of i}
        {(i, j) : l(i) = l(j) and j on the border of its level}                     border=True
        {(i, j) : l(i) < l(j) and cell(i) >> (l(j) - l(i)) = cell(j), or the other way round}

    Level l has ``ceil(height / 2**l) x ceil(width / 2**l)`` cells. The tokens are the cells of level 0
    in C order, then those of level 1, and so on; a cell of a coarser level lies over 2 x 2 cells of the
    one before it, ``>>`` halves both coordinates. Neighborhoods are those of :func:`neighborhood`: moved
    inwards at the borders, never cut. The border is the first and last row and column of a level.

    Parameters
    ----------
    shape : (height, width)
        Cells of the finest level: pixels or, usually, patches.
    levels : int
        Levels of the pyramid, the finest included; from 1 to 32.
    window : int
        Side of the neighborhood, at least 1.
    border : bool
        Let every cell see the border cells of its own level.

    Returns
    -------
    Pattern
        Of shape ``(n, n)`` with n the cells of all levels, about ``4 / 3 * height * width``.

    Notes
    -----
    Pairs: exactly the sum over the levels of ``cells(l) * window**2 + 2 * cells(l) * (levels - 1 - l)``
    without border, if all levels are at least as large as the window, with cells(l) the cells of level
    l; the border adds less than ``2 * (height + width)`` keys to a query.

    Cost: O(n * (window**2 + height + width) * d) time; the pattern is at most ``3 * window`` pieces a
    line of a level, and the rows of the links between levels are made when they are needed.

    Reach: everything after three layers if the coarsest level fits into the window: up, across, down.

    Use: for images with one token a patch and summary tokens at lower resolutions.

    Avoid: without summary tokens in the sequence; then use :func:`neighborhood`.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> pattern = patterns.multiscale_grid((32, 32), 3)
    >>> pattern.shape, round(pattern.sparsity, 3)
    ((1344, 1344), 0.875)
    """
    height, width = check_shape("shape", shape, ranks=(2,))
    levels = check_int("levels", levels, low=1, high=MOST_LEVELS)
    window = check_int("window", window, low=1)
    border = check_flag("border", border)
    stack = pyramid((height, width), levels)
    n = sum(prod(size) for _, size in stack)
    pieces = [neighborhood_pieces(size, (window, window), (1, 1), first_token=first) for first, size in stack]
    if border:
        pieces += [_border_pieces(level) for level in stack]
    name = title(multiscale_grid, shape=(height, width), levels=levels, window=window, border=border)
    pattern = Pattern.from_pieces((n, n), np.concatenate(pieces), name=name)
    if levels > 1:
        pattern |= Pattern.from_rows((n, n), partial(link_rows, n, stack), name="links")
        pattern.name = name
    return pattern


def _border_pieces(level: Level) -> PieceArray:
    """Every cell of a level sees its first and last row and column."""
    first, (height, width) = level
    end = first + height * width
    full_rows = make_pieces(rows=(first, end), columns=([first, end - width], [first + width, end]))
    phases = np.array([first, first + width - 1])
    sides = make_pieces(
        rows=(first, end), columns=(first, end), axis=Axis.COLUMN, step=max(width, 1), phase=phases
    )
    return np.concatenate([full_rows, sides])

"""Lines of a grid along one axis, or along each of them."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt, prod

import numpy as np

from ..formats.pieces import make_pieces
from ._arguments import check_int, check_shape, title
from ._grids import coordinates
from ._orders import grid_lines
from .catalogue import Integers, entry
from .pattern import Pattern

__all__ = ["axial"]


def _member(i: int, j: int, shape: Sequence[int], axis: int | str) -> bool:
    cells = zip(coordinates(i, shape), coordinates(j, shape), strict=True)
    different = [number for number, (query, key) in enumerate(cells) if query != key]
    return not different or (len(different) == 1 and axis in ("all", different[0], different[0] - len(shape)))


def _nnz(shape: Sequence[int], axis: int | str) -> int:
    if axis == "all":
        return prod(shape) * (sum(shape) - len(shape) + 1)
    return prod(shape) * shape[int(axis)]


def _sample(integers: Integers) -> dict[str, object]:
    rank = integers(1, 3)
    axis = integers(-rank, rank)
    shape = [integers(0, 4) for _ in range(rank)]
    return {"shape": shape, "axis": "all" if axis == rank else axis}


@entry(
    examples=[
        {"shape": (6, 8), "axis": "all"},
        {"shape": (6, 8), "axis": 0},
        {"shape": (6, 8), "axis": 1},
        {"shape": (3, 4, 5), "axis": "all"},
        {"shape": (3, 4, 5), "axis": -2},
        {"shape": (0, 4), "axis": "all"},
    ],
    member=_member,
    sample=_sample,
    nnz=_nnz,
    scaled=lambda length: {"shape": (isqrt(length), isqrt(length)), "axis": "all"},
)
def axial(shape: Sequence[int], axis: int | str) -> Pattern:
    """Every query sees the line of its grid along one axis; or the lines along each axis.

    ::

        {(i, j) : x[b](i) = x[b](j) for all axes b other than `axis`}
        the union of that over all axes                                    axis="all"

    with x(i) the coordinates of token i in a grid of this shape, in C order (last axis fastest).

    Parameters
    ----------
    shape : sequence of int
        Lengths of the axes of the grid; n is their product.
    axis : int or "all"
        The axis to look along, negative ones counted from the last. In an image of shape (height,
        width), 1 sees the row and 0 the column.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``.

    Notes
    -----
    Pairs: exactly ``n * shape[axis]``; ``n * (sum(shape) - axes + 1)`` for all axes.

    Cost: O(n * sum(shape) * d) time, O(n * sqrt(n) * d) on a square image; the pattern is one piece a
    slab of the axis, so n / width for rows, one for columns.

    Reach: everything after as many layers as there are axes.

    Use: for images, video and tables; axes in turn, layer by layer, or all of them in each.

    Avoid: where the diagonal neighbor matters at once; see :func:`neighborhood`.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.axial((2, 3), 0).toarray().astype(int)
    array([[1, 0, 0, 1, 0, 0],
           [0, 1, 0, 0, 1, 0],
           [0, 0, 1, 0, 0, 1],
           [1, 0, 0, 1, 0, 0],
           [0, 1, 0, 0, 1, 0],
           [0, 0, 1, 0, 0, 1]])
    """
    grid = check_shape("shape", shape)
    n = prod(grid)
    if isinstance(axis, str) and axis == "all":
        axes = range(len(grid))
    else:
        chosen = check_int("axis", axis, low=-len(grid), high=len(grid) - 1) % len(grid)
        axes = range(chosen, chosen + 1)
    pieces = []
    for number in axes:
        stride = prod(grid[number + 1 :])
        slab = stride * grid[number]
        begins = np.arange(0, n, max(slab, 1), dtype=np.int64)
        spans = (begins, begins + slab)
        pieces.append(make_pieces(rows=spans, columns=spans, step=max(stride, 1)))
    # Lines along the last axis are whole as they are.
    orders = grid_lines(grid, axes) if axes.start < len(grid) - 1 else ()
    name = title(axial, shape=grid, axis=axis)
    return Pattern.from_pieces((n, n), np.concatenate(pieces), name=name, orders=orders)

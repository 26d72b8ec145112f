"""The cells around each cell of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt, prod

from ._arguments import check_per_axis, check_shape, title
from ._grids import coordinates, is_neighbor, neighborhood_pieces, per_axis
from ._orders import neighborhood_boxes
from .catalogue import Integers, entry
from .pattern import Pattern

__all__ = ["neighborhood"]


def _member(
    i: int, j: int, shape: Sequence[int], kernel: int | Sequence[int], dilation: int | Sequence[int] = 1
) -> bool:
    axes = zip(
        coordinates(i, shape),
        coordinates(j, shape),
        shape,
        per_axis(kernel, shape),
        per_axis(dilation, shape),
        strict=True,
    )
    return all(is_neighbor(*axis) for axis in axes)


def _nnz(shape: Sequence[int], kernel: int | Sequence[int], dilation: int | Sequence[int] = 1) -> int:
    total = 1
    for length, size, step in zip(shape, per_axis(kernel, shape), per_axis(dilation, shape), strict=True):
        longer = length % step  # residue classes with one member more than the others
        members = length // step
        total *= longer * (members + 1) * min(size, members + 1) + (step - longer) * members * min(
            size, members
        )
    return total


def _sample(integers: Integers) -> dict[str, object]:
    rank = integers(1, 3)
    longest = (0, 14, 6, 4)[rank]
    return {
        "shape": [integers(0, longest) for _ in range(rank)],
        "kernel": [integers(1, 5) for _ in range(rank)],
        "dilation": [integers(1, 3) for _ in range(rank)],
    }


@entry(
    examples=[
        {"shape": (8, 10), "kernel": 3},
        {"shape": (8, 10), "kernel": (3, 4), "dilation": (1, 2)},
        {"shape": (23,), "kernel": 5, "dilation": 3},
        {"shape": (3, 5, 4), "kernel": (1, 3, 2)},
        {"shape": (5, 6), "kernel": 7},
        {"shape": (0, 6), "kernel": 3},
    ],
    member=_member,
    sample=_sample,
    nnz=_nnz,
    scaled=lambda length: {"shape": (isqrt(length), isqrt(length)), "kernel": 7},
)
def neighborhood(
    shape: Sequence[int], kernel: int | Sequence[int], *, dilation: int | Sequence[int] = 1
) -> Pattern:
    """Every cell of a 1-D to 3-D grid sees the `kernel` cells around it along every axis.

    ::

        {(i, j) : x[a](j) in N[a](x[a](i)) for every axis a}

    with x(i) the coordinates of token i in C order. Along an axis of length L, with kernel k and
    dilation s, coordinate p belongs to the class {p mod s, p mod s + s, ...}, at place g = floor(p / s)
    of its m members; N(p) holds the members b, b + 1, ..., b + k - 1 with
    ``b = min(max(g - floor(k / 2), 0), m - k)``: near the borders the window is moved inwards, not cut.
    If k > m, N(p) is the whole class.

    Parameters
    ----------
    shape : sequence of 1 to 3 int
        Lengths of the axes of the grid; n is their product.
    kernel : int or sequence of int
        Cells seen along each axis, at least 1, its own included. An odd kernel reaches as far to both
        sides; an even one reaches one cell further back than ahead.
    dilation : int or sequence of int
        Distance between seen cells along each axis, at least 1.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``.

    Notes
    -----
    Pairs: exactly ``n * prod(kernel)`` while ``kernel * dilation`` fits into the shape; never more.

    Cost: O(n * prod(kernel) * d) time; the pattern is at most three pieces for every two lines along
    the last axis that see each other. Tokens are computed in boxes of the grid where that pays.

    Reach: ``kernel / 2 * dilation`` cells further along every axis with every layer.

    Use: for images, video and volumes, as in neighborhood attention; dilation in every other layer.

    Avoid: on sequences with grids of thin lines: lines of less than 128 cells share tiles.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.neighborhood((5,), 3).toarray().astype(int)
    array([[1, 1, 1, 0, 0],
           [1, 1, 1, 0, 0],
           [0, 1, 1, 1, 0],
           [0, 0, 1, 1, 1],
           [0, 0, 1, 1, 1]])
    """
    grid = check_shape("shape", shape, ranks=(1, 2, 3))
    kernels = check_per_axis("kernel", kernel, len(grid), low=1)
    dilations = check_per_axis("dilation", dilation, len(grid), low=1)
    n = prod(grid)
    pieces = neighborhood_pieces(grid, kernels, dilations)
    name = title(neighborhood, shape=grid, kernel=kernel, dilation=dilation)
    orders = neighborhood_boxes(grid, kernels, dilations)
    return Pattern.from_pieces((n, n), pieces, name=name, orders=orders)

"""Grids of tokens in C order: neighborhoods with clamped borders, and pyramids of ever coarser grids."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..formats.pieces import PieceArray, make_pieces
from ._spans import pairs_to_rows, spread

__all__ = [
    "MOST_LEVELS",
    "Level",
    "cell_of_token",
    "coordinates",
    "is_neighbor",
    "link_rows",
    "neighborhood_pieces",
    "per_axis",
    "pyramid",
]

#: Halving more often leaves a single cell of any image.
MOST_LEVELS = 32
#: (first token, (height, width))
Level = tuple[int, tuple[int, int]]


def _axis_pairs(
    length: int, kernel: int, dilation: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All (query, key) pairs of a neighborhood along one axis."""
    query = np.arange(length, dtype=np.int64)
    residue, group = query % dilation, query // dilation
    members = (length - 1 - residue) // dilation + 1
    counts = np.minimum(kernel, members)
    start = np.clip(group - kernel // 2, 0, members - counts)
    owner, number = spread(counts)
    return owner, (start[owner] + number) * dilation + residue[owner]


def neighborhood_pieces(
    shape: tuple[int, ...], kernel: tuple[int, ...], dilation: tuple[int, ...], *, first_token: int = 0
) -> PieceArray:
    """Neighborhoods on a grid that begins at `first_token`.

    One piece for the interior of every pair of lines along the last axis and, where the kernel is
    shorter than the line, one for each of its two ends: there the window stops moving, so its columns
    are fixed. A lattice on j - i keeps a dilated window within its residue class.
    """
    query_line, key_line = np.zeros(1, np.int64), np.zeros(1, np.int64)
    for length, size, step in zip(shape[:-1], kernel[:-1], dilation[:-1], strict=True):
        query, key = _axis_pairs(length, size, step)
        query_line = (query_line[:, None] * length + query).reshape(-1)
        key_line = (key_line[:, None] * length + key).reshape(-1)
    length, size, step = shape[-1], kernel[-1], dilation[-1]
    before, after = size // 2 * step, (size - 1 - size // 2) * step
    if size * step >= length:  # every query sees its whole residue class
        spans = np.array([[0, length, 0, length, -length, length]])
    else:
        spans = np.array(
            [
                [0, before, 0, size * step, -length, length],
                [before, length - after, 0, length, -before, after],
                [length - after, length, length - size * step, length, -length, length],
            ]
        )
    row, column = query_line[:, None] * length + first_token, key_line[:, None] * length + first_token
    ahead = column - row
    return make_pieces(
        rows=(row + spans[:, 0], row + spans[:, 1]),
        columns=(column + spans[:, 2], column + spans[:, 3]),
        differences=(ahead + spans[:, 4], ahead + spans[:, 5]),
        step=step,
        phase=ahead,
    )


def pyramid(shape: tuple[int, int], levels: int, *, first_token: int = 0) -> list[Level]:
    """Where the levels of a pyramid lie: each halves height and width, rounding up, finest first."""
    result: list[Level] = []
    for level in range(levels):
        size = (-(-shape[0] >> level), -(-shape[1] >> level))
        result.append((first_token, size))
        first_token += math.prod(size)
    return result


def link_rows(
    n: int, levels: list[Level], begin: int, end: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows begin .. end - 1 of the links of a pyramid: corresponding cells of all *other* levels.

    Cell (y, x) of a level corresponds to (y >> s, x >> s) of the level s steps coarser, and that cell
    to all the cells that lie in it.
    """
    queries, keys = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for own, (first, (height, width)) in enumerate(levels):
        query = np.arange(max(begin, first), min(end, first + height * width), dtype=np.int64)
        y, x = np.divmod(query - first, max(width, 1))
        for other, (other_first, (other_height, other_width)) in enumerate(levels):
            if other == own:
                continue
            coarser = max(other - own, 0)
            side = 1 << max(own - other, 0)  # cells of the other level along an edge of an own one
            down, right = min(side, other_height), min(side, other_width)
            owner, cell = spread(np.full(len(query), down * right))
            key_y = (y[owner] >> coarser) * side + cell // max(right, 1)
            key_x = (x[owner] >> coarser) * side + cell % max(right, 1)
            inside = (key_y < other_height) & (key_x < other_width)
            queries.append(query[owner][inside])
            keys.append((other_first + key_y * other_width + key_x)[inside])
    return pairs_to_rows(begin, end, n, np.concatenate(queries), np.concatenate(keys))


# The definitions once more, cell by cell, for the catalogue's members.


def per_axis(value: int | Sequence[int], shape: Sequence[int]) -> list[int]:
    """One number for every axis."""
    return [value] * len(shape) if isinstance(value, int) else list(value)


def coordinates(token: int, shape: Sequence[int]) -> list[int]:
    """Where a token lies on a grid."""
    place: list[int] = []
    for length in reversed(shape):
        token, x = divmod(token, length)
        place.insert(0, x)
    return place


def cell_of_token(token: int, shape: Sequence[int], levels: int) -> tuple[int, int, int]:
    """(level, y, x) of a token of a pyramid."""
    for level in range(levels):
        height, width = (math.ceil(length / 2**level) for length in shape)
        if token < height * width:
            return level, token // width, token % width
        token -= height * width
    raise AssertionError("a token beyond the coarsest level")


def is_neighbor(query: int, key: int, length: int, kernel: int, dilation: int) -> bool:
    """The definition along one axis: the `kernel` members of a residue class around the query."""
    line = [position for position in range(length) if (position - query) % dilation == 0]
    begin = line.index(query) - kernel // 2
    while begin > 0 and begin + kernel > len(line):
        begin -= 1
    return key in line[max(begin, 0) : max(begin, 0) + kernel]

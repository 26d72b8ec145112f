"""Pieces: a pattern as a short list of shapes, however long the sequence.

A *piece* is a rectangle, intersected with a band of diagonals, intersected with a lattice:

    row_begin <= i < row_end,   column_begin <= j < column_end,
    difference_low <= j - i <= difference_high,   x = phase (mod step)

where x is i, j or j - i. A pattern is the union of its pieces; a sliding window of any length is one
piece. The set of pieces is closed under transposition and (lattices permitting) intersection, so a
regular pattern stays a handful of integers until its tiles are asked for.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

__all__ = [
    "FIELDS",
    "UNBOUNDED",
    "Axis",
    "PieceArray",
    "common_period",
    "fold_pieces",
    "intersect_pieces",
    "make_pieces",
    "transpose_pieces",
]

#: int64 [pieces, 9], columns as in :data:`FIELDS`.
PieceArray = npt.NDArray[np.int64]

FIELDS = (
    "row_begin",
    "row_end",
    "column_begin",
    "column_end",
    "difference_low",
    "difference_high",
    "axis",
    "step",
    "phase",
)

#: Larger than any index; stands for "no bound" in a band.
UNBOUNDED = 1 << 40


class Axis(IntEnum):
    """What a lattice counts. A step of 1 is no lattice at all, on whatever axis."""

    ROW = 0
    COLUMN = 1
    DIFFERENCE = 2


def make_pieces(
    *,
    rows: tuple[npt.ArrayLike, npt.ArrayLike],
    columns: tuple[npt.ArrayLike, npt.ArrayLike],
    differences: tuple[npt.ArrayLike, npt.ArrayLike] = (-UNBOUNDED, UNBOUNDED),
    axis: npt.ArrayLike = Axis.DIFFERENCE,
    step: npt.ArrayLike = 1,
    phase: npt.ArrayLike = 0,
) -> PieceArray:
    """Pieces from scalars or arrays, broadcast against each other.

    Parameters
    ----------
    rows, columns : (begin, end)
        Half-open, like ``range``.
    differences : (low, high)
        Closed, on j - i: a window that reaches `left` back and `right` ahead is ``(-left, right)``.
    axis, step, phase
        The lattice: i, j or j - i (see :class:`Axis`) is congruent to `phase` modulo `step`.

    Returns
    -------
    int64 [pieces, 9]
        Empty pieces are dropped, phases are reduced into ``[0, step)``.

    Examples
    --------
    >>> make_pieces(rows=(0, 8), columns=(0, 8), differences=(-2, 2)).shape
    (1, 9)
    >>> make_pieces(rows=(0, 8), columns=([0, 5, 3], [1, 6, 3])).shape  # the third is empty
    (2, 9)
    """
    fields = np.broadcast_arrays(
        *(np.asarray(field, np.int64) for field in (*rows, *columns, *differences, axis, step, phase))
    )
    pieces = np.stack([field.reshape(-1) for field in fields], axis=1)
    keep = (pieces[:, 0] < pieces[:, 1]) & (pieces[:, 2] < pieces[:, 3]) & (pieces[:, 4] <= pieces[:, 5])
    pieces = np.ascontiguousarray(pieces[keep])
    pieces[:, 8] %= pieces[:, 7]
    return pieces


def transpose_pieces(pieces: PieceArray) -> PieceArray:
    """The same pairs with queries and keys exchanged.

    Examples
    --------
    >>> window = make_pieces(rows=(0, 8), columns=(0, 8), differences=(-2, 0))
    >>> transpose_pieces(window)[0, 4:6].tolist()
    [0, 2]
    """
    transposed = pieces[:, [2, 3, 0, 1, 5, 4, 6, 7, 8]]
    transposed[:, 4:6] *= -1
    axis = pieces[:, 6]
    transposed[:, 6] = np.select([axis == Axis.ROW, axis == Axis.COLUMN], [Axis.COLUMN, Axis.ROW], axis)
    difference = axis == Axis.DIFFERENCE
    transposed[difference, 8] = -pieces[difference, 8] % pieces[difference, 7]
    return transposed


def intersect_pieces(left: PieceArray, right: PieceArray, *, most: int = 4096) -> PieceArray | None:
    """Pieces of the intersection of two unions, or None where pieces cannot say it.

    Every piece of one side meets every piece of the other. Two different lattices do not meet in a
    piece, and more than `most` meetings are better done on masks: both give None.

    Examples
    --------
    >>> window = make_pieces(rows=(0, 8), columns=(0, 8), differences=(-2, 2))
    >>> causal = make_pieces(rows=(0, 8), columns=(0, 8), differences=(-UNBOUNDED, 0))
    >>> intersect_pieces(window, causal)[0, 4:6].tolist()
    [-2, 0]
    """
    if len(left) * len(right) > most:
        return None
    a, b = np.repeat(left, len(right), axis=0), np.tile(right, (len(left), 1))
    lattice_a, lattice_b = a[:, 7] > 1, b[:, 7] > 1
    both = lattice_a & lattice_b
    if np.any(both & ((a[:, 6] != b[:, 6]) | (a[:, 7] != b[:, 7]))):
        return None
    met = np.where(lattice_b[:, None], b, a)
    for low, high in ((0, 1), (2, 3), (4, 5)):
        met[:, low] = np.maximum(a[:, low], b[:, low])
        met[:, high] = np.minimum(a[:, high], b[:, high])
    keep = (met[:, 0] < met[:, 1]) & (met[:, 2] < met[:, 3]) & (met[:, 4] <= met[:, 5])
    keep &= ~both | (a[:, 8] == b[:, 8])
    return np.ascontiguousarray(met[keep])


def common_period(pieces: PieceArray, shape: tuple[int, int]) -> int:
    """The largest number that divides both lengths, all differences, and where every piece begins and ends.

    Modulo it tokens fall into classes that see only themselves, all in the same way: see :func:`fold_pieces`.

    Examples
    --------
    >>> every_sixth = make_pieces(rows=(0, 48), columns=(0, 48), differences=(-18, 20), step=6)
    >>> common_period(every_sixth, (48, 48)), common_period(every_sixth, (48, 50))
    (6, 2)
    """
    if not len(pieces) or 0 in shape:
        return 1
    ends = pieces[:, :4].clip(0, [shape[0]] * 2 + [shape[1]] * 2)
    steps = np.where(pieces[:, 6] == Axis.DIFFERENCE, pieces[:, 7], 1)
    return int(np.gcd.reduce([*shape, *ends.reshape(-1), *steps, *pieces[:, 8]]))


def fold_pieces(pieces: PieceArray, shape: tuple[int, int], period: int) -> PieceArray:
    """The pieces of one residue class, its tokens numbered from 0: token i of class r is i * period + r.

    Examples
    --------
    >>> every_sixth = make_pieces(rows=(0, 48), columns=(0, 48), differences=(-18, 20), step=6)
    >>> fold_pieces(every_sixth, (48, 48), 6).tolist()  # rows and columns 0 to 7, a window of 3 to each side
    [[0, 8, 0, 8, -3, 3, 2, 1, 0]]
    """
    folded = pieces.copy()
    folded[:, :4] = pieces[:, :4].clip(0, [shape[0]] * 2 + [shape[1]] * 2) // period
    folded[:, 4] = -(-pieces[:, 4] // period)
    folded[:, 5] = pieces[:, 5] // period
    folded[:, 7:] //= period
    return folded

"""The orders that patterns declare: those in which their tiles are full or empty."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from math import gcd, prod

from ..formats.tiles import TILE
from ..orders.made import boxes, residues
from ..orders.order import Recipe

__all__ = ["grid_lines", "neighborhood_boxes", "period_grid", "periods", "spaced_windows"]

Box = tuple[int, ...]

#: Lines narrower than this are met by a natural tile as they are by a square box.
_NARROWEST = 32


def periods(n: int, steps: Sequence[int]) -> tuple[Recipe, ...]:
    """For differences that are multiples of every step: a residue class sees nothing of another."""
    step = gcd(*(int(step) for step in steps))
    return (Recipe(residues, n, step),) if 1 < step < n else ()


def spaced_windows(n: int, window: int, steps: Sequence[int]) -> tuple[Recipe, ...]:
    """For a window to both sides at every one of these steps."""
    alone = neighborhood_boxes((n,), (2 * window + 1,), steps) if len(steps) == 1 else ()
    return alone or periods(n, steps)


def period_grid(n: int, stride: int, window: int) -> tuple[Recipe, ...]:
    """For a window and every `stride`-th key.

    On lines of `stride` tokens a query sees its column and a part of its line. Boxes of 8 x 16 meet both in
    few tiles; residues only the columns, so they are for windows that hardly leave one.
    """
    if stride < _NARROWEST or n < 16 * stride:
        return ()
    grid = Recipe(boxes, (-(-n // stride), stride), (8, 16), n=n)
    return (grid, Recipe(residues, n, stride)) if 2 * window < stride // 16 else (grid,)


def grid_lines(shape: Sequence[int], axes: Sequence[int]) -> tuple[Recipe, ...]:
    """For cells that see the lines of their grid along some axes."""
    box = _best_box(shape, lambda box: sum(-(-shape[axis] // box[axis]) for axis in axes))
    return (Recipe(boxes, tuple(shape), box),) if box else ()


def neighborhood_boxes(
    shape: Sequence[int], kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[Recipe, ...]:
    """For cells that see the cells around them.

    The cells that a box sees reach half a kernel beyond it on either side. Boxes of keys that begin half a
    kernel earlier than those of queries save one an axis wherever that is not a whole number of boxes.
    """
    lengths = [-(-length // step) for length, step in zip(shape, dilation, strict=True)]

    def met(box: Box) -> float:
        axes = zip(lengths, box, kernel, strict=True)
        return prod(min(_met_along(*axis)[0], -(-axis[0] // axis[1])) for axis in axes)

    box = _best_box(lengths, met)
    if box is None or (len(shape) == 1 and dilation[0] == 1):
        return ()
    shift = tuple(_met_along(*axis)[1] for axis in zip(lengths, box, kernel, strict=True))
    return (Recipe(boxes, tuple(shape), box, shift=shift, dilation=tuple(dilation)),)


def _met_along(length: int, size: int, kernel: int) -> tuple[int, int]:
    """How many boxes of keys a box of queries meets along an axis, and how much earlier they begin."""
    back, ahead = kernel // 2, (kernel - 1) // 2
    aligned, moved = 1 + -(-back // size) + -(-ahead // size), 1 + -(-(back + ahead) // size)
    # Around the border there is only room for whole boxes if the axis has nothing else.
    return (moved, back % size) if moved < aligned and length % size == 0 else (aligned, 0)


def _best_box(shape: Sequence[int], met: Callable[[Box], float]) -> Box | None:
    """The box of as many cells as a tile has rows that meets the fewest others; None if none fits."""
    if prod(shape) <= TILE:
        return None
    sides = [[1 << bit for bit in range(max(int(length) - 1, 0).bit_length() + 1)] for length in shape]

    def cost(box: Box) -> float:
        # Boxes that stand out of the grid are not filled, and tiles then begin anywhere.
        return met(box) * prod(
            -(-length // size) * size / length for length, size in zip(shape, box, strict=True)
        )

    candidates = [box for box in itertools.product(*sides) if prod(box) == TILE]
    return min(candidates, key=lambda box: (cost(box), *box), default=None)

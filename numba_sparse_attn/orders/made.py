"""Orders for sequences with a period, for grids, and for tokens that fall into buckets."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from .order import Order

__all__ = ["boxes", "buckets", "hilbert", "residues"]


def residues(n: int, step: int) -> Order:
    """Tokens by their residue modulo `step`, then by position: a window with gaps becomes a window.

    Parameters
    ----------
    n : int
    step : int
        At least 1.

    Returns
    -------
    Order

    Examples
    --------
    >>> residues(7, 3).queries.tolist()
    [0, 3, 6, 1, 4, 2, 5]
    """
    if step < 1 or n < 0:
        raise ArgumentError(f"residues({n}, {step})", "n >= 0 and step >= 1", "correct them")
    tokens = np.arange(n)
    return Order(np.argsort(tokens % step, kind="stable"), name=f"residues mod {step}")


def boxes(
    shape: Sequence[int],
    box: Sequence[int],
    *,
    shift: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    n: int | None = None,
) -> Order:
    """Cells of a grid box by box, boxes and the cells in them in C order.

    Parameters
    ----------
    shape : sequence of int
        Lengths of the axes; tokens are the cells in C order.
    box : sequence of int
        Cells of a box along every axis. Boxes of 128 cells are whole tiles where they divide the shape.
    shift : sequence of int, optional
        The boxes of keys begin so many cells earlier, around the border: where queries see as far to both
        sides, half as far as they see saves a box. None by default.
    dilation : sequence of int, optional
        First by the residues of all coordinates modulo these, then by boxes of the coordinates divided by
        them. 1 by default.
    n : int, optional
        Only the first so many cells are tokens; all, if not given.

    Returns
    -------
    Order

    Examples
    --------
    >>> boxes((2, 4), (2, 2)).queries.tolist()
    [0, 1, 4, 5, 2, 3, 6, 7]
    >>> boxes((8,), (4,), shift=(1,)).keys.tolist()
    [7, 0, 1, 2, 3, 4, 5, 6]
    """
    axes = len(shape)
    moved = (0,) * axes if shift is None else tuple(shift)
    steps = (1,) * axes if dilation is None else tuple(dilation)
    if not len(box) == len(moved) == len(steps) == axes or min((*box, *steps), default=1) < 1:
        raise ArgumentError(
            f"boxes({tuple(shape)}, {tuple(box)}, shift={shift}, dilation={dilation})",
            "one number an axis, boxes and dilations of at least 1",
            "give as many numbers as there are axes",
        )
    count = prod(shape) if n is None else n
    place = np.unravel_index(np.arange(count), tuple(shape))
    name = f"boxes of {_by(box)} on {_by(shape)}"
    if any(step > 1 for step in steps):
        name += f", every {_by(steps)}"
    queries = np.argsort(_box_codes(place, shape, box, (0,) * axes, steps), kind="stable")
    if not any(moved):
        return Order(queries, name=name)
    keys = np.argsort(_box_codes(place, shape, box, moved, steps), kind="stable")
    return Order(queries, keys, name=f"{name}, of keys {_by(moved)} earlier")


def _by(numbers: Sequence[int]) -> str:
    return " x ".join(str(int(number)) for number in numbers)


def _box_codes(
    place: Sequence[npt.NDArray[np.int64]],
    shape: Sequence[int],
    box: Sequence[int],
    shift: Sequence[int],
    dilation: Sequence[int],
) -> npt.NDArray[np.int64]:
    """Numbers that ascend by residue class, box, and cell in the box."""
    digits: list[tuple[list[npt.NDArray[np.int64]], list[int]]] = [([], []) for _ in range(3)]
    for coordinate, length, size, ahead, step in zip(place, shape, box, shift, dilation, strict=True):
        members = max(-(-length // step), 1)
        inside = (coordinate // step + ahead) % members
        for (values, bases), value, base in zip(
            digits,
            (coordinate % step, inside // size, inside % size),
            (step, -(-members // size), size),
            strict=True,
        ):
            values.append(value)
            bases.append(base)
    codes = np.zeros(len(place[0]) if len(place) else 0, np.int64)
    for values, bases in digits:
        for value, base in zip(values, bases, strict=True):
            codes = codes * base + value
    return codes


def hilbert(shape: Sequence[int]) -> Order:
    """Cells of a 2-D or 3-D grid along Hilbert's curve: neighbors in the order are neighbors on the grid.

    Whatever the shape, runs of cells are compact; where boxes divide the grid, :func:`boxes` makes fewer
    tiles.

    Parameters
    ----------
    shape : sequence of 2 or 3 int

    Returns
    -------
    Order

    Examples
    --------
    >>> hilbert((2, 2)).queries.tolist()
    [0, 1, 3, 2]
    """
    axes = len(shape)
    if axes not in (2, 3):
        raise ArgumentError(f"hilbert({tuple(shape)})", "grids of 2 or 3 axes", "use boxes()")
    place = np.unravel_index(np.arange(prod(shape)), tuple(shape))
    bits = max(1, int(max((*shape, 1)) - 1).bit_length())
    codes = _hilbert_codes([np.array(axis, np.int64) for axis in place], bits)
    return Order(np.argsort(codes, kind="stable"), name=f"Hilbert's curve on {_by(shape)}")


def _hilbert_codes(place: list[npt.NDArray[np.int64]], bits: int) -> npt.NDArray[np.int64]:
    """Distance along the curve, after J. Skilling, Programming the Hilbert curve (2004)."""
    axes = len(place)
    for level in range(bits - 1, 0, -1):
        high, low = 1 << level, (1 << level) - 1
        for axis in range(axes):
            turned = (place[axis] & high) != 0
            swapped = np.where(turned, 0, (place[0] ^ place[axis]) & low)
            place[0] = np.where(turned, place[0] ^ low, place[0] ^ swapped)
            if axis:
                place[axis] = place[axis] ^ swapped
    for axis in range(1, axes):
        place[axis] ^= place[axis - 1]
    flips = np.zeros_like(place[0])
    for level in range(bits - 1, 0, -1):
        flips ^= np.where(place[-1] & (1 << level), (1 << level) - 1, 0)
    codes = np.zeros_like(place[0])
    for level in range(bits - 1, -1, -1):
        for axis in range(axes):
            codes = codes << 1 | ((place[axis] ^ flips) >> level & 1)
    return codes


def buckets(queries: npt.ArrayLike, keys: npt.ArrayLike | None = None) -> Order:
    """Tokens by the number of their bucket, then by position: what sees its own bucket sees one block.

    Parameters
    ----------
    queries : int array (n_q,)
        The bucket of every query.
    keys : int array (n_k,), optional
        The bucket of every key; that of the query with its number, if not given.

    Returns
    -------
    Order

    Examples
    --------
    >>> order = buckets([1, 0, 1], [0, 1])
    >>> order.queries.tolist(), order.keys.tolist()
    ([1, 0, 2], [0, 1])
    """
    of_queries = np.argsort(np.asarray(queries), kind="stable")
    of_keys = None if keys is None else np.argsort(np.asarray(keys), kind="stable")
    return Order(of_queries, of_keys, name="buckets")

"""The oracle's changes of scores: dense, by the book, with derivatives written by hand; NumPy alone.

Each takes the scores of a block of rows of one head against all keys. Like ``reference.py``, whose functions
they are handed to, they import nothing of the package. They compute in the type of the scores they are given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["DenseAlibi", "DenseBias", "DenseFunction", "DenseRelative", "DenseSoftCap"]

Array = npt.NDArray[Any]


def _row_numbers(rows: slice) -> Array:
    """Numbers of the queries of a block, as a column."""
    return np.arange(rows.start, rows.stop)[:, None]


class DenseBias:
    """``score + bias``, with a bias for every pair, ``(batch or 1, heads or 1, n_q, n_k)``."""

    def __init__(self, bias: npt.ArrayLike) -> None:
        self._bias = np.asarray(bias, np.float64)

    def _place(self, item: int, head: int, rows: slice) -> tuple[int, int, slice]:
        return item % self._bias.shape[0], head % self._bias.shape[1], rows

    def apply(self, scores: Array, item: int, head: int, rows: slice) -> tuple[Array, Array]:
        """Changed scores and derivatives."""
        return scores + self._bias[self._place(item, head, rows)].astype(scores.dtype), np.ones_like(scores)

    def add_gradient(self, dscores: Array, item: int, head: int, rows: slice, total: Array) -> None:
        """Every pair's own."""
        total[self._place(item, head, rows)] += dscores

    def zeros(self) -> Array:
        """Shaped like the bias."""
        return np.zeros_like(self._bias)


class DenseAlibi:
    """``score - slope * |i + offset - j|``, with a slope for every head."""

    def __init__(self, slopes: npt.ArrayLike, offset: int) -> None:
        self._slopes, self._offset = np.asarray(slopes, np.float64), offset

    def _distance(self, scores: Array, rows: slice) -> Array:
        return np.abs(_row_numbers(rows) + self._offset - np.arange(scores.shape[1])).astype(scores.dtype)

    def apply(self, scores: Array, item: int, head: int, rows: slice) -> tuple[Array, Array]:
        """Changed scores and derivatives."""
        slope = scores.dtype.type(self._slopes[head])
        return scores - slope * self._distance(scores, rows), np.ones_like(scores)

    def add_gradient(self, dscores: Array, item: int, head: int, rows: slice, total: Array) -> None:
        """Of the head's slope."""
        total[head] -= np.sum(dscores * self._distance(dscores, rows))

    def zeros(self) -> Array:
        """A slope a head."""
        return np.zeros_like(self._slopes)


class DenseSoftCap:
    """``cap * tanh(score / cap)``."""

    def __init__(self, cap: float) -> None:
        self._cap = cap

    def apply(self, scores: Array, item: int, head: int, rows: slice) -> tuple[Array, Array]:
        """Changed scores and derivatives."""
        cap = scores.dtype.type(self._cap)
        bent = np.tanh(scores / cap)
        return cap * bent, 1 - bent**2

    def add_gradient(self, dscores: Array, item: int, head: int, rows: slice, total: Array) -> None:
        """There is no parameter."""

    def zeros(self) -> Array:
        """Nothing."""
        return np.zeros(0)


class DenseRelative:
    """``score + table[head, place(i, j)]``: places ``int (n_q, n_k)`` in a table (heads or 1, places)."""

    def __init__(self, table: npt.ArrayLike, places: npt.ArrayLike) -> None:
        self._table, self._places = np.asarray(table, np.float64), np.asarray(places)

    def apply(self, scores: Array, item: int, head: int, rows: slice) -> tuple[Array, Array]:
        """Changed scores and derivatives."""
        entries = self._table[head % len(self._table)].astype(scores.dtype)
        return scores + entries[self._places[rows]], np.ones_like(scores)

    def add_gradient(self, dscores: Array, item: int, head: int, rows: slice, total: Array) -> None:
        """Pairs with the same place add up."""
        np.add.at(total[head % len(self._table)], self._places[rows], dscores)

    def zeros(self) -> Array:
        """Shaped like the table."""
        return np.zeros_like(self._table)


class DenseFunction:
    """``function(score, head, i, j)``, called for one pair after the other; `derivative` likewise."""

    def __init__(self, function: Callable[..., float], derivative: Callable[..., float] | None) -> None:
        self._function, self._derivative = function, derivative

    def _map(self, function: Callable[..., float], scores: Array, head: int, rows: slice) -> Array:
        keys = np.arange(scores.shape[1])
        found = [
            [function(float(score), head, int(i), int(j)) for score, j in zip(line, keys, strict=True)]
            for line, i in zip(scores, _row_numbers(rows)[:, 0], strict=True)
        ]
        return np.array(found, scores.dtype).reshape(scores.shape)

    def apply(self, scores: Array, item: int, head: int, rows: slice) -> tuple[Array, Array]:
        """Changed scores and derivatives; NaN for derivatives that nobody gave."""
        slopes = np.full_like(scores, np.nan)
        if self._derivative is not None:
            slopes = self._map(self._derivative, scores, head, rows)
        return self._map(self._function, scores, head, rows), slopes

    def add_gradient(self, dscores: Array, item: int, head: int, rows: slice, total: Array) -> None:
        """There is no parameter that is known here."""

    def zeros(self) -> Array:
        """Nothing."""
        return np.zeros(0)

"""Patterns of one budget for images whose tokens are the cells of a square grid.

A budget is a share of the pairs of dense attention between the cells. A family says how every layer of a
model sees the image, and with a pyramid the tokens that it adds: their pairs count, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from numba_sparse_attn import Pattern, patterns

from .families import DENSE, largest, largest_size

__all__ = ["GRID_FAMILIES", "Grid", "make_grid"]

#: Levels of the pyramid, the image's own cells the first of them.
_LEVELS = 3


@dataclass(frozen=True)
class Grid:
    """How the layers of a model see an image.

    Parameters
    ----------
    patterns : sequence of Pattern
        One a layer.
    levels : int
        Of the pyramid; 1 if there is none.
    """

    patterns: Sequence[Pattern]
    levels: int = 1

    @property
    def tokens(self) -> int:
        """Cells of the image and of what lies above it."""
        return self.patterns[0].shape[0]

    @property
    def pairs(self) -> float:
        """Of a layer on average."""
        return sum(pattern.nnz for pattern in self.patterns) / len(self.patterns)


def _alike(pattern: Pattern, layers: int) -> Grid:
    return Grid([pattern] * layers)


def _dense(side: int, layers: int, budget: int, seed: int) -> Grid:
    """Every cell."""
    return _alike(patterns.full(side * side), layers)


def _neighbors(side: int, budget: int, dilation: int) -> Pattern:
    # A kernel has at least one cell: the number that is tuned begins with 0.
    return largest(
        lambda more: patterns.neighborhood((side, side), more + 1, dilation=dilation), budget, side - 1
    )


def _neighborhood(side: int, layers: int, budget: int, seed: int) -> Grid:
    """The cells around its own."""
    return _alike(_neighbors(side, budget, 1), layers)


def _dilated_neighborhood(side: int, layers: int, budget: int, seed: int) -> Grid:
    """As `neighborhood`; in every second layer, every second cell around its own."""
    return Grid([_neighbors(side, budget, 1 + layer % 2) for layer in range(layers)])


def _axial(side: int, layers: int, budget: int, seed: int) -> Grid:
    """Its own row and column."""
    return _alike(largest(lambda _: patterns.axial((side, side), "all"), budget, 0), layers)


def _shifted_windows(side: int, layers: int, budget: int, seed: int) -> Grid:
    """The window that it lies in; every second layer's are moved by half of one, and cut at the borders."""

    def windows(window: int, shift: int = 0) -> Pattern:
        return patterns.shifted_windows((side, side), window, shift)

    window = largest_size(windows, budget, side)
    return Grid([windows(window, layer % 2 * (window // 2)) for layer in range(layers)])


def _multiscale(side: int, layers: int, budget: int, seed: int) -> Grid:
    """The cells around its own, on every level of a pyramid, and what lies above and below."""

    def pyramid(more: int) -> Pattern:
        return patterns.multiscale_grid((side, side), _LEVELS, window=more + 1, border=False)

    return Grid([largest(pyramid, budget, side - 1)] * layers, _LEVELS)


def _random(side: int, layers: int, budget: int, seed: int) -> Grid:
    """Nothing but random cells, others in every layer, and its own."""
    cells = side * side
    own = patterns.sliding_window(cells, 0)

    def chosen(layer: int) -> Pattern:
        # Its own cell may be among the chosen ones: one more of them than is left may still fit.
        return largest(
            lambda count: own | patterns.random_keys(cells, count, seed * layers + layer), budget, cells
        )

    return Grid([chosen(layer) for layer in range(layers)])


_Family = Callable[[int, int, int, int], Grid]

#: By name.
GRID_FAMILIES: dict[str, _Family] = {
    DENSE: _dense,
    "multiscale": _multiscale,
    "axial": _axial,
    "neighborhood": _neighborhood,
    "dilated_neighborhood": _dilated_neighborhood,
    "shifted_windows": _shifted_windows,
    "random": _random,
}


def make_grid(family: str, side: int, layers: int, density: float, seed: int) -> Grid:
    """A family's patterns, none with more than `density` times the pairs of dense attention.

    >>> make_grid("multiscale", 8, 3, 0.25, 0).pairs, make_grid("neighborhood", 8, 3, 0.25, 0).pairs
    (1024.0, 1024.0)
    """
    return GRID_FAMILIES[family](side, layers, int(density * side**4), seed)

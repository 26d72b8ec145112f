"""Attention weights as a map of any length, each cell an exact mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ._inputs import Call, Floats, check_whole, members_of
from ._panels import weights_by_panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["AttentionMap", "attention_map"]


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """Attention weights in square cells; made by :func:`attention_map`.

    Attributes
    ----------
    name : str
        Of the pattern.
    shape : (n_q, n_k)
    cell : int
        Queries and keys along the edge of a cell.
    mass : float64 (..., heads, rows, columns)
        Weight that the queries of a row of cells give, on average, to the keys of a column of cells. A
        row of cells sums to 1, less the share of its queries that have no keys.
    """

    name: str
    shape: tuple[int, int]
    cell: int
    mass: Floats

    def of(self, head: int | tuple[int, ...]) -> Floats:
        """The cells of one head, by its index or a tuple of indices; all there are if there are no heads."""
        if self.mass.ndim == 2:
            return self.mass
        place = head if isinstance(head, tuple) else (head,)
        lead = self.mass.shape[:-2]
        if len(place) != len(lead) or any(
            not -size <= at < size for at, size in zip(place, lead, strict=True)
        ):
            raise ArgumentError(f"head={head!r}", f"an index for each of the axes {lead}", "correct head")
        return self.mass[place]

    def coarser(self, cell: int) -> AttentionMap:
        """The map in larger cells, whose edge is a multiple of what it was."""
        if cell % self.cell:
            raise ArgumentError(f"cell={cell!r}", f"a multiple of {self.cell}", "correct cell")
        times = cell // self.cell
        queries = _queries(self.shape[0], self.cell)[:, None]
        mass = self.mass * queries
        for axis in (-2, -1):
            if mass.shape[axis]:
                mass = np.add.reduceat(mass, np.arange(0, mass.shape[axis], times), axis=axis)
        return AttentionMap(self.name, self.shape, cell, mass / _queries(self.shape[0], cell)[:, None])

    def plot(self, ax: Axes | None = None, *, head: int | tuple[int, ...] = 0) -> Axes:
        """A picture of one head by :func:`numba_sparse_attn.plot.plot_weights`."""
        from ..plot import plot_weights

        return plot_weights(self, ax, head=head)


def attention_map(
    q: Any, k: Any, pattern: Any = None, *, scale: float | None = None, cells: int = 256
) -> AttentionMap:
    """Where the weights of attention are.

    Parameters
    ----------
    q, k
        As :func:`numba_sparse_attn.sparse_attention` takes them; computed in float64.
    pattern : optional
        Which query sees which key; all pairs if not given.
    scale : float, optional
    cells : int
        Most cells along an edge. Where there are no more tokens than that, a cell is a pair and the map
        holds the weights themselves.

    Returns
    -------
    AttentionMap

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.zeros((8, 4))
    >>> nsa.analysis.attention_map(q, k, nsa.patterns.causal(8), cells=2).mass.round(3).tolist()
    [[1.0, 0.0], [0.635, 0.365]]
    """
    cells = check_whole("cells", cells, low=1)
    call = Call.of(q, k, k, scale)
    chosen = call.pattern(pattern)
    cell = 1
    while -(-max(chosen.shape) // cell) > cells:
        cell *= 2
    rows, columns = (-(-length // cell) for length in chosen.shape)
    mass = np.zeros((call.sizes.batch, call.sizes.heads, rows, columns))
    for batch, head, panel, weights in weights_by_panel(call, chosen):
        # Columns ascend, so those of a cell lie side by side.
        column_cells = panel.columns // cell
        first = np.flatnonzero(np.diff(column_cells, prepend=-1))
        if not len(first):
            continue
        by_cell = np.add.reduceat(weights, first, axis=1)
        row_cells = np.arange(panel.rows.start, panel.rows.stop) // cell
        np.add.at(mass[batch, head], (row_cells[:, None], column_cells[first]), by_cell)
    name = " + ".join(member.name for member in members_of(chosen))
    return AttentionMap(
        name, chosen.shape, cell, call.shaped(mass / _queries(chosen.shape[0], cell)[:, None])
    )


def _queries(length: int, cell: int) -> npt.NDArray[np.int64]:
    """Queries in every row of cells: the last may have fewer."""
    return np.diff(np.append(np.arange(0, length, cell), length))

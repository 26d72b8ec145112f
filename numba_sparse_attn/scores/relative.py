"""A learned number for every relative position, on a line or on a grid."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, ShapeError
from ..formats import changes
from ..formats.work import Request
from ._change import Change, parameter

__all__ = ["RelativeChange", "relative"]


class RelativeChange(Change):
    """See :func:`relative`."""

    kind = "relative"

    def __init__(
        self, table: npt.NDArray[Any], grid: tuple[int, ...] | None, offset: int | None, learnable: bool
    ) -> None:
        self.table, self.grid, self.offset, self.learnable = table, grid, offset, learnable

    @property
    def _sizes(self) -> tuple[int, ...]:
        """Axes of one head's table."""
        axes = 1 if self.grid is None else len(self.grid)
        return self.table.shape[self.table.ndim - axes :]

    @property
    def key(self) -> Hashable:
        return self.kind, self.grid, self.offset, self.learnable, self.table.shape

    def describe(self) -> str:
        where = "a line" if self.grid is None else "a grid of " + " x ".join(map(str, self.grid))
        sizes = " x ".join(map(str, self._sizes))
        return f"relative positions on {where}: tables of {sizes}"

    def step(self, request: Request, lead: tuple[int, ...]) -> changes.Relative:
        heads = self.table.shape[0] if self.table.ndim > len(self._sizes) else 1
        if heads not in (1, request.heads):
            raise ShapeError(
                f"relative tables of {heads} heads for {request.heads} query heads",
                "one table, or one a query head",
                "pass as many",
            )
        size = math.prod(self._sizes)
        if self.grid is None:
            offset = request.n_k - request.n_q if self.offset is None else self.offset
            keys = np.arange(request.n_k, dtype=np.int64)
            # Differences beyond the table are all the same, so places are small whatever the offset.
            queries = np.arange(request.n_q, dtype=np.int64) + offset + size // 2
            queries = np.clip(queries, -1, request.n_k + size)
        else:
            queries, keys = self._grid_places(request)
        return changes.Relative(
            table=np.ascontiguousarray(self.table, request.accumulator).reshape(-1),
            starts=np.arange(request.heads, dtype=np.int64) * (size if heads > 1 else 0),
            size=size,
            query_places=queries,
            key_places=keys,
            wanted=self.learnable,
        )

    def _grid_places(self, request: Request) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        assert self.grid is not None
        cells = math.prod(self.grid)
        if (request.n_q, request.n_k) != (cells, cells):
            raise ShapeError(
                f"{request.n_q} queries and {request.n_k} keys on a grid of {self.grid}, {cells} cells",
                "a query and a key for every cell",
                "correct the grid, or use modify() for tokens that stand nowhere",
            )
        places = np.zeros(cells, np.int64)
        center = 0
        coordinates = np.unravel_index(np.arange(cells), self.grid)
        for along, size in zip(coordinates, self._sizes, strict=True):
            places = places * size + along
            center = center * size + size // 2
        return places + center, places

    def gradient(self, found: npt.NDArray[Any], request: Request) -> npt.NDArray[Any]:
        return found.reshape(self.table.shape).astype(self.table.dtype)


def relative(
    table: Any, grid: Sequence[int] | None = None, *, offset: int | None = None, learnable: bool = True
) -> RelativeChange:
    """``score + table[head, position of i - position of j]``: biases by relative position.

    Parameters
    ----------
    table : array (heads, length) or (heads, *lengths); the heads axis may be absent
        Lengths are odd; the entry in the middle is that of position difference 0. Without a heads axis all
        heads share the table.
    grid : sequence of 1 to 3 int, optional
        Lengths of the grid on which tokens stand in C order, such as (height, width). Without it tokens stand
        on a line, and differences beyond the table take its first or last entry. With it the table has at
        least ``2 * length - 1`` entries along every axis, as Swin's has.
    offset : int, optional
        On a line, where query 0 stands among the keys; n_k - n_q if not given.
    learnable : bool
        Whether the backward pass returns the table's gradient, shaped like the table.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> table = np.array([0.0, 0.0, np.log(3.0)])            # a key before the query counts three times
    >>> q = k = np.zeros((1, 3, 4))
    >>> out = nsa.sparse_attention(q, k, np.eye(3)[None], nsa.patterns.full(3),
    ...                            scores=nsa.scores.relative(table))
    >>> (out[0, 1] * 5).round(6).tolist()
    [3.0, 1.0, 1.0]
    >>> swin = nsa.scores.relative(np.zeros((4, 13, 13)), grid=(7, 7))
    >>> swin.describe()
    'relative positions on a grid of 7 x 7: tables of 13 x 13'
    """
    entries = parameter(table, "table")
    shape = None if grid is None else tuple(int(length) for length in grid)
    if shape is not None and (not 1 <= len(shape) <= 3 or min(shape) < 1 or offset is not None):
        raise ArgumentError(
            f"grid={grid!r}, offset={offset!r}", "one to three positive lengths, and no offset", "correct it"
        )
    axes = 1 if shape is None else len(shape)
    sizes = entries.shape[entries.ndim - axes :]
    if entries.ndim not in (axes, axes + 1) or 0 in entries.shape or any(size % 2 == 0 for size in sizes):
        raise ShapeError(
            f"a relative table of shape {entries.shape} for {axes} axes",
            "(heads, *odd lengths) or (*odd lengths,)",
            "pass a table whose middle stands for no difference",
        )
    if shape is not None and any(size < 2 * length - 1 for size, length in zip(sizes, shape, strict=True)):
        raise ShapeError(
            f"a relative table of {sizes} for a grid of {shape}",
            "at least 2 * length - 1 entries along every axis",
            "enlarge the table",
        )
    return RelativeChange(entries, shape, None if offset is None else int(offset), learnable)

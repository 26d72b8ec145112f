"""Gradients of the numbers of changes of scores, from what every pair contributes, in one fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..jit import kernel
from .changes import Changes, PairBias, Relative, Slopes, Step
from .csr import Csr
from .work import Request

__all__ = ["PairGradients", "numbers_of"]


def numbers_of(step: Step) -> int:
    """How many numbers a step has."""
    if isinstance(step, PairBias):
        return int(step.data.size)
    if isinstance(step, Slopes):
        return int(step.slopes.size)
    return int(step.table.size) if isinstance(step, Relative) else 0


class PairGradients:
    """Sums, in float64, head after head and in each in the order of its rows.

    Attributes
    ----------
    totals : list of float64 array or None
        One a step, None where nobody wants it.
    """

    def __init__(self, request: Request, changes: Changes) -> None:
        self._heads, self._steps = request.heads, changes.steps
        self.totals: list[npt.NDArray[Any] | None] = [
            np.zeros(numbers_of(step)) if step.wanted else None for step in changes.steps
        ]

    def add(self, flat: int, csr: Csr, contributions: Sequence[npt.NDArray[Any] | None]) -> None:
        """Add what the pairs of a head contribute, an array in the order of its entries for every step."""
        head = flat % self._heads
        for step, total, found in zip(self._steps, self.totals, contributions, strict=True):
            if total is None or found is None:
                continue
            if isinstance(step, PairBias):
                begin = int(step.starts[flat])
                total[begin : begin + csr.nnz] += found
            elif isinstance(step, Slopes):
                _add_distances(csr.indptr, csr.indices, found, step.offset, head, total)
            elif isinstance(step, Relative):
                begin = int(step.starts[head])
                table = total[begin : begin + step.size]
                _add_places(csr.indptr, csr.indices, found, step.query_places, step.key_places, table)


@kernel
def _add_distances(indptr, indices, gradients, offset, head, total):
    """Gradient of a head's slope."""
    for row in range(len(indptr) - 1):
        part = 0.0
        for position in range(indptr[row], indptr[row + 1]):
            part += np.float64(gradients[position]) * abs(row + offset - np.int64(indices[position]))
        total[head] -= part


@kernel
def _add_places(indptr, indices, gradients, query_places, key_places, table):
    """Gradient of a head's table."""
    last = len(table) - 1
    for row in range(len(indptr) - 1):
        mine = query_places[row]
        for position in range(indptr[row], indptr[row + 1]):
            place = min(max(mine - key_places[indices[position]], 0), last)
            table[place] += gradients[position]

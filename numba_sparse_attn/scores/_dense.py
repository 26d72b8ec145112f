"""Changes of scores for the oracle: each step's dense twin, and the way back from its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..formats.changes import Changes, Function, PairBias, Relative, Slopes, SoftCap, Step
from ..formats.csr import Csr
from ..formats.work import Request

__all__ = ["dense_steps"]

_Array = npt.NDArray[Any]
#: A change for the oracle, and what turns its gradient into that of the step's numbers.
_Dense = tuple[Any, Callable[[_Array], _Array]]


def dense_steps(request: Request, changes: Changes | None) -> list[_Dense]:
    """A pair for every step."""
    return [_dense(step, request) for step in (changes.steps if changes else ())]


def _dense(step: Step, request: Request) -> _Dense:
    from .. import reference_scores as dense

    if isinstance(step, PairBias):
        matrix = np.zeros((request.batch, request.heads, request.n_q, request.n_k))
        for place, begin, csr in _heads(step, request):
            matrix[(*place, *_pairs(csr))] = step.data[begin : begin + csr.nnz]

        def collect(gradient: _Array) -> _Array:
            total = np.zeros(step.data.size)
            for place, begin, csr in _heads(step, request):
                total[begin : begin + csr.nnz] += gradient[(*place, *_pairs(csr))]
            return total

        return dense.DenseBias(matrix), collect
    if isinstance(step, Slopes):
        return dense.DenseAlibi(step.slopes, step.offset), _unchanged
    if isinstance(step, Relative):
        places = np.clip(step.query_places[:, None] - step.key_places, 0, step.size - 1)
        return dense.DenseRelative(step.table.reshape(-1, step.size), places), np.ravel
    if isinstance(step, SoftCap):
        return dense.DenseSoftCap(step.cap), _unchanged
    assert isinstance(step, Function)
    plain: Any = [getattr(function, "py_func", function) for function in (step.function, step.derivative)]
    return dense.DenseFunction(*plain), _unchanged


def _unchanged(gradient: _Array) -> _Array:
    return gradient


def _heads(step: PairBias, request: Request) -> list[tuple[tuple[int, int], int, Csr]]:
    """(batch element, head), first number and structure of every head."""
    found = []
    for flat, number in enumerate(request.which.reshape(-1).tolist()):
        csr = request.structures[number]
        assert isinstance(csr, Csr)
        found.append((divmod(flat, request.heads), int(step.starts[flat]), csr))
    return found


def _pairs(csr: Csr) -> tuple[_Array, _Array]:
    return np.repeat(np.arange(csr.shape[0]), np.diff(csr.indptr)), csr.indices
